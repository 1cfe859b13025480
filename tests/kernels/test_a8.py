"""linear_int8_a8, linear_int8_a8_few, linear_mxfp4_a8 (precision int8): against float64, or the bits of auto."""

import functools

import numpy as np
import pytest

from cgpt.kernels import _kernels

from support.kernel_cases import (
    A8_TOKENS,
    THREADS,
    Weights,
    activations,
    assert_same_bits,
    check_slots,
    has_a8,
    linear,
    rounding,
    true_product,
)
from support.tolerance import assert_close

INPUTS = {"INT8": (1, 63, 64, 200, 768, 800), "MXFP4": (32, 64, 96, 768, 800)}
OUTPUTS = (1, 3, 21, 70)
TOKENS = (1, 5, 6, 8, 9, 16, 17, 32, 33, 49, 100)
MOST = 401, max(OUTPUTS)  # more tokens and outputs than share a decoding
GROUPS = {"INT8": "a8 64", "MXFP4": "a8 32"}


@functools.cache
def case(dtype, K):
    """x [401, K], weights [70, K]."""
    return activations(MOST[0], K), Weights(dtype, (MOST[1], K))


@functools.cache
def product(dtype, K):
    """x @ w.T with x in 8 bits, float64, and its bound."""
    return true_product(*case(dtype, K), GROUPS[dtype])


@pytest.mark.parametrize("dtype", INPUTS)
def test_products(level, dtype):
    """From A8_TOKENS on: activations in steps of 1/127 of the largest in each group, sums exact within it."""
    check_slots(level, "linear_int8_a8", "linear_mxfp4_a8", "linear_int8_a8_few")
    sizes = [(K, N, T) for K in INPUTS[dtype] for N in OUTPUTS for T in TOKENS]
    for K, N, T in [*sizes, (2048, 40, 8), (2880, 21, 33), (800, MOST[1], MOST[0])]:
        x, w = case(dtype, K)
        y, what = linear(w.matrix(N), x, T, exact="int8"), f"T = {T}, N = {N}, K = {K}"
        if rounding(level, dtype, T, "int8") == GROUPS[dtype]:
            values, bound = product(dtype, K)
            assert_close(y, values[:T, :N], bound[:T, :N], what)
        else:
            assert T < A8_TOKENS[dtype] or not has_a8(level, dtype)
            assert_same_bits(y, linear(w.matrix(N), x, T, exact=False), what)


@pytest.mark.parametrize("T", [7, 49])
@pytest.mark.parametrize("dtype", INPUTS)
def test_bias_columns_and_sums(level, dtype, T, rng):
    """What all products do with what they have summed, and the same bits for any threads."""
    x, w = case(dtype, 800)
    bias, start = rng.standard_normal(MOST[1], np.float32), rng.standard_normal((T, MOST[1]), np.float32)
    plain = linear(w.matrix(), x, T, exact="int8", row=5)
    whole = linear(w.matrix(bias=bias), x, T, exact="int8", row=5, column=3, start=start)
    assert_close(whole, plain.astype(np.float64) + bias + start, 1e-5 * (np.abs(plain) + 10), "bias and start")
    for threads in THREADS:
        again = linear(w.matrix(bias=bias), x, T, exact="int8", row=5, column=3, start=start, threads=threads)
        assert_same_bits(again, whole, f"{threads} threads")


@pytest.mark.parametrize("sign", [1, -1])
def test_extremes_do_not_overflow(level, sign):
    """Every weight at its largest, every activation too: the sums of a group are the largest there are."""
    K, T = 4096, 17
    ones = np.full((17, K // 64), 0x3F80, np.uint16)
    codes = np.full((17, K // 32, 16), 0x77 if sign > 0 else 0xFF, np.uint8)
    int8 = _kernels.Matrix("INT8", np.full((17, K), sign * 127, np.int8), ones)
    mxfp4 = _kernels.Matrix("MXFP4", codes, np.full((17, K // 32), 127, np.uint8))
    for matrix, largest in ((int8, 127.0), (mxfp4, 6.0)):
        for x in (3.0, -3.0):
            y, most = linear(matrix, np.full((T, K), x, np.float32), T, exact="int8"), largest * 3 * K
            assert_close(y, np.full((T, 17), sign * largest * x * K), most * 2.0**-16, f"{matrix.dtype}, {x}")


@pytest.mark.parametrize("dtype", INPUTS)
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("T", [7, 17])
def test_special_values_stay_in_their_row(level, dtype, T, special):
    N, bad_row = 21, T - 2
    for K, at in ((64, 63), (2880, 2879), (2880, 0)):
        x, w = case(dtype, K)
        clean = linear(w.matrix(N), x, T, exact="int8")
        bad = x.copy()
        bad[bad_row, at] = special
        y = linear(w.matrix(N), bad, T, exact="int8")
        assert not np.isfinite(y[bad_row]).any(), f"x[{bad_row}, {at}] of K = {K}"
        what = f"the rows beside x[{bad_row}, {at}] of K = {K}"
        assert_same_bits(np.delete(y, bad_row, 0), np.delete(clean, bad_row, 0), what)
        spoilt = Weights(dtype, (N, K))
        clean = linear(spoilt.matrix(), x, T, exact="int8")
        spoilt.scales[20, -1 if at else 0] = 0xFF if dtype == "MXFP4" else 0x7FC0
        y = linear(spoilt.matrix(), x, T, exact="int8")
        assert not np.isfinite(y[:, 20]).any(), f"a scale that is NaN, K = {K}"
        assert_same_bits(y[:, :20], clean[:, :20], f"beside a scale that is NaN, K = {K}")


def test_every_code_and_scale(level):
    """MXFP4: each code by itself, at scales from denormal to large."""
    if not has_a8(level, "MXFP4"):
        pytest.skip("what auto runs has its own tests")
    codes = np.zeros((16, 1, 16), np.uint8)
    codes[:, 0, 5] = np.arange(16) | np.arange(16)[::-1] << 4  # elements 10 and 11
    e2m1 = np.float64([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    values = np.concatenate([e2m1, -e2m1])
    x = np.zeros((12, 32), np.float32)
    x[0, 10] = x[1, 11] = x[2, 12] = 127.0
    for scale in (0, 1, 100, 127, 200, 240):
        y = linear(_kernels.Matrix("MXFP4", codes, np.full((16, 1), scale, np.uint8)), x, 12, exact="int8")
        factor = 127.0 * 2.0 ** (scale - 127)
        bound = 2.0**-20 * 6 * factor
        assert_close(y[0], values * factor, bound, f"low nibbles, scale {scale}")
        assert_close(y[1], values[::-1] * factor, bound, f"high nibbles, scale {scale}")
        assert (y[2:] == 0).all()
