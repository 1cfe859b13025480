"""What holds for the products of every dtype of weights, and linear_f32, linear_f16, linear_bf16 and linear_bf16_tile:
against float64, on every level. test_mxfp4.py and test_int8.py have what is particular to those."""

import functools

import numpy as np
import pytest

from cgpt.kernels import _kernels

from support.kernel_cases import (
    FLOATS,
    THREADS,
    TOKENS,
    Weights,
    activations,
    assert_same_bits,
    check_slots,
    linear,
    rounding,
    tiled,
    true_product,
)
from support.tolerance import F32, assert_close

SLOTS = {
    "F32": "linear_f32",
    "F16": "linear_f16",
    "BF16": "linear_bf16",
    "BF16_PACKED": "linear_bf16_packed",
    "MXFP4": "linear_mxfp4",
    "INT8": "linear_int8",
}
INPUTS = dict.fromkeys((*FLOATS, "BF16_PACKED"), (1, 7, 15, 16, 17, 31, 33, 63, 65, 80, 100, 2880))
INPUTS |= {"MXFP4": (32, 64, 96, 128, 160, 2880), "INT8": (1, 63, 64, 65, 128, 200, 2880)}
OUTPUTS = (1, 3, 16, 21, 70)
MOST = max(TOKENS), max(OUTPUTS)


@functools.cache
def case(dtype, K):
    """x [100, K], weights [70, K]."""
    return activations(MOST[0], K), Weights(dtype, (MOST[1], K))


@functools.cache
def product(dtype, K, how):
    """x @ w.T, float64, and its bound, with activations rounded as `how` says."""
    return true_product(*case(dtype, K), how)


@pytest.mark.parametrize("precision", _kernels.PRECISIONS)
@pytest.mark.parametrize("dtype", SLOTS)
def test_uniform_tokens(level, dtype, precision):
    """As long as rounding and order are those of one token; test_kvcache.py compares the bits."""
    exact = {"exact": True, "auto": False}.get(precision, precision)
    alike = [
        rounding(level, dtype, T, exact) == rounding(level, dtype, 1, exact) and not tiled(level, dtype, T, exact)
        for T in range(1, 61)
    ]
    expected = ([*alike, False]).index(False)
    assert _kernels.uniform_tokens(Weights(dtype, (3, 64)).matrix(), 60, precision) == expected >= 4
    assert _kernels.uniform_tokens(Weights(dtype, (3, 64)).matrix(), 1, precision) == 1


@pytest.mark.parametrize("dtype", SLOTS)
def test_exact(level, dtype):
    """Every K against float64; every T and N against the bits of the largest."""
    check_slots(level, SLOTS[dtype])
    for K in INPUTS[dtype]:
        x, w = case(dtype, K)
        whole = linear(w.matrix(), x, MOST[0])
        assert_close(whole, *product(dtype, K, None), f"K = {K}")
        for N in OUTPUTS:
            matrix = w.matrix(N)
            for T in TOKENS:
                assert_same_bits(linear(matrix, x, T), whole[:T, :N], f"T = {T}, N = {N}, K = {K}")


@pytest.mark.parametrize("dtype", FLOATS)
def test_tile(level, dtype):
    """precision auto: many tokens in an order of their own, bf16 rounded too where the CPU multiplies it."""
    check_slots(level, "linear_f32_tile", "linear_f16_tile", "linear_bf16_tile")
    for K in INPUTS[dtype]:
        x, w = case(dtype, K)
        exact = linear(w.matrix(), x, MOST[0])
        for N in OUTPUTS:
            matrix = w.matrix(N)
            for T in TOKENS:
                y, what = linear(matrix, x, T, exact=False), f"T = {T}, N = {N}, K = {K}"
                if tiled(level, dtype, T):
                    values, bound = product(dtype, K, rounding(level, dtype, T))
                    assert_close(y, values[:T, :N], bound[:T, :N], what)
                else:
                    assert_same_bits(y, exact[:T, :N], what)
        if K > 64 or rounding(level, dtype, T):
            assert (y != exact[:T, :N]).any(), f"K = {K}: not the tile kernel's sums"


@pytest.mark.parametrize("dtype", SLOTS)
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "auto"])
def test_more_than_one_block_of_everything(level, dtype, exact):
    """More tokens than share a decoding of rows, more rows than a panel, more inputs than a slice."""
    check_product(level, dtype, exact, 401, 83, 1120)


@pytest.mark.parametrize("dtype", SLOTS)
@pytest.mark.parametrize("exact", [True, False, "int8"], ids=["exact", "auto", "int8"])
def test_wide_rows(level, dtype, exact):
    for T in (1, 60):
        check_product(level, dtype, exact, T, 35, 32800)


def check_product(level, dtype, exact, T, N, K):
    x, w = activations(T, K), Weights(dtype, (N, K))
    expected = true_product(x, w, rounding(level, dtype, T, exact))
    assert_close(linear(w.matrix(), x, T, exact=exact), *expected, f"T = {T}")


@pytest.mark.parametrize("dtype", SLOTS)
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "auto"])
def test_bias_and_add(level, dtype, exact, rng):
    for K, N, T in ((INPUTS[dtype][-4], 21, 3), (INPUTS[dtype][-2], 70, 17), (2880, 19, 33)):
        x, w = case(dtype, K)
        values, bound = (a[:T, :N] for a in product(dtype, K, rounding(level, dtype, T, exact)))
        bias = rng.standard_normal(N, np.float32) * 10
        start = rng.standard_normal((T, N), np.float32) * 100
        for b, s in ((bias, None), (None, start), (bias, start)):
            parts = [0.0 if b is None else b, 0.0 if s is None else s]
            slack = 2 * F32 * (np.abs(values) + sum(abs(np.float64(p)) for p in parts))
            y = linear(w.matrix(N, bias=b), x, T, exact=exact, start=s)
            what = f"T = {T}, N = {N}, K = {K}, bias {b is not None}, add {s is not None}"
            assert_close(y, values + np.float64(parts[0]) + parts[1], bound + slack, what)


@pytest.mark.parametrize("dtype", SLOTS)
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "auto"])
def test_rows_and_columns(level, dtype, exact):
    """Reading from a later row and writing into later columns is the same product."""
    x, w = case(dtype, INPUTS[dtype][-4])
    for row, column, T, N in ((1, 5, 3, 21), (37, 16, 13, 70), (99, 1, 1, 3)):
        expected = linear(w.matrix(N), x[row:].copy(), T, exact=exact)
        assert_same_bits(
            linear(w.matrix(N), x, T, exact=exact, row=row, column=column), expected, f"row {row}, column {column}"
        )


@pytest.mark.parametrize("dtype", SLOTS)
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "auto"])
def test_threads_change_no_bit(level, dtype, exact):
    K = 992 if dtype == "MXFP4" else 1000
    x, w = activations(49, K), Weights(dtype, (1000, K))
    matrix = w.matrix()
    for T in (1, 7, 49):
        one = linear(matrix, x, T, exact=exact)
        for threads in THREADS[1:]:
            assert_same_bits(linear(matrix, x, T, exact=exact, threads=threads), one, f"T = {T}, {threads} threads")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "auto"])
@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_special_values_stay_in_their_row(level, dtype, exact, special):
    """NaN or infinity among the inputs reaches every output of its token, and no other token; NaN or infinity among
    the weights every token's output, and no other output. Also in the tails of K."""
    N, T = 21, 17
    for K, at in ((100, 0), (100, 40), (100, 99), (33, 32), (7, 3)):
        x, w = case(dtype, K)
        clean = linear(w.matrix(N), x, T, exact=exact)
        bad = x.copy()
        bad[5, at] = special
        y = linear(w.matrix(N), bad, T, exact=exact)
        assert not np.isfinite(y[5]).any(), f"x[5, {at}] of K = {K}"
        assert_same_bits(np.delete(y, 5, 0), np.delete(clean, 5, 0), f"the rows beside x[5, {at}] of K = {K}")

        w = Weights(dtype, (N, K))
        clean = linear(w.matrix(), x, T, exact=exact)
        w.data[20, at] = {"F32": special, "F16": special, "BF16": 0x7FC0 if np.isnan(special) else 0x7F80}[dtype]
        y = linear(w.matrix(), x, T, exact=exact)
        assert not np.isfinite(y[:, 20]).any(), f"w[20, {at}] of K = {K}"
        assert_same_bits(np.delete(y, 20, 1), np.delete(clean, 20, 1), f"the outputs beside w[20, {at}] of K = {K}")


def test_one_wrong_weight_is_seen(level):
    """The bound would not hide a weight that is off by its last bit."""
    x, w = case("BF16", 2880)
    values, bound = product("BF16", 2880, False)
    w = Weights("BF16", (70, 2880))
    w.data[69, 2879] ^= 1
    with pytest.raises(AssertionError, match="69"):
        assert_close(linear(w.matrix(), x, 100), values, bound, "perturbed")
