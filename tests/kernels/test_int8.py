"""quantize_int8; linear_int8, linear_int8_a16 and linear_int8_tile against float64, on every level."""

import functools

import numpy as np
import pytest

from cgpt.errors import KernelError
from cgpt.kernels import _kernels

from support.kernel_cases import (
    FLOATS,
    THREADS,
    TOKENS,
    Weights,
    activations,
    assert_same_bits,
    check_slots,
    from_bf16,
    linear,
    rounding,
    to_bf16,
    true_product,
)
from support.tolerance import F32, assert_close

INPUTS = (1, 63, 64, 65, 128, 200, 2880)
OUTPUTS = (1, 3, 16, 21, 70)
MOST = max(TOKENS), max(OUTPUTS)


@functools.cache
def case(K):
    """x [100, K], weights [70, K]."""
    return activations(MOST[0], K), Weights("INT8", (MOST[1], K))


@functools.cache
def product(K, how):
    """x @ w.T, float64, and its bound, with activations rounded as `how` says."""
    return true_product(*case(K), how)


def quantize(x, dtype="F32", threads=1, transposed=False):
    stored = {"F32": np.float32, "F16": np.float16, "BF16": to_bf16}[dtype](x.T if transposed else x)
    return _kernels.quantize_int8(np.ascontiguousarray(stored), dtype, threads, transposed=transposed)


# ------------------------------------------------------------------------------------------------------ quantise


@pytest.mark.parametrize("dtype", FLOATS)
def test_quantize_from_an_odd_address(level, dtype, rng):
    """Tensors of a file may begin anywhere. What this reads, the sanitizers see."""
    x = rng.standard_normal((5, 130), np.float32)
    x = x.astype(np.float16) if dtype == "F16" else to_bf16(x) if dtype == "BF16" else x
    odd = np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    odd[...] = x
    for transposed in (False, True):
        found, expected = (_kernels.quantize_int8(a, dtype, 1, transposed=transposed) for a in (odd, x))
        assert all((a == b).all() for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("K", [1, 63, 64, 130, 768])
def test_quantize(level, dtype, K, rng):
    """The scale is the smallest bf16 that keeps the largest within 127; each integer is the nearest."""
    check_slots(level, "quantize_int8")
    x = rng.standard_normal((20, K), np.float32) * np.exp2(rng.integers(-20, 20, (20, 1))).astype(np.float32)
    if dtype == "F16":
        x = np.clip(x, -60000, 60000)
    q, scales = quantize(x, dtype)
    x = from_bf16(to_bf16(x)) if dtype == "BF16" else x.astype(np.float16) if dtype == "F16" else x
    groups = -(-K // 64)
    assert q.dtype == np.int8 and q.shape == (20, groups * 64) and scales.shape == (20, groups)
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, -K % 64)]).reshape(20, groups, 64)
    scale, below = from_bf16(scales).astype(np.float64), from_bf16(scales - 1).astype(np.float64)
    top = np.abs(padded).max(-1)
    zero = top < 2.0**-100
    assert (scales[zero] == 0).all() and (scale[~zero] * 127 >= top[~zero] * (1 - 2 * F32)).all()
    assert (below[~zero] * 127 < top[~zero] * (1 + 2 * F32)).all()
    integers = q.reshape(20, groups, 64).astype(np.float64)
    assert np.abs(integers).max() <= 127 and (q[:, K:] == 0).all()
    error = np.abs(integers * scale[..., None] - padded)
    assert (error <= 0.5001 * scale[..., None]).all()
    assert (np.abs(integers).max(-1)[~zero] >= 126).all(), "the range is not used"


def test_quantize_special_values(level):
    x = np.ones((5, 128), np.float32)
    x[0, 3], x[1, 100], x[2, 70], x[3, :64], x[4, :64] = np.nan, np.inf, -np.inf, 0, 2.0**-110
    q, scales = quantize(x)
    assert np.argwhere(np.isnan(from_bf16(scales))).tolist() == [[0, 0], [1, 1], [2, 1]]
    assert (scales[3:, 0] == 0).all() and not q[3:, :64].any() and (q[3:, 64:] > 0).all()


def test_quantize_is_the_same_on_every_level(level, rng):
    x = rng.standard_normal((50, 300), np.float32)
    q, scales = quantize(x)
    _kernels.use_level("ref")
    for threads in THREADS:
        again = quantize(x, threads=threads)
        assert (again[0] == q).all() and (again[1] == scales).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("N, K", [(1, 1), (16, 64), (37, 130), (48, 63)])
def test_quantize_what_is_stored_by_columns(level, dtype, N, K, rng):
    """Conv1D's [K, N] gives what its transpose gives."""
    x = rng.standard_normal((N, K), np.float32)
    for threads in THREADS:
        for found, expected in zip(quantize(x, dtype, threads, transposed=True), quantize(x, dtype), strict=True):
            assert (found == expected).all()


def test_quantize_refuses_what_is_not_rows_of_floats():
    for array, dtype in ((np.zeros(64, np.float32), "F32"), (np.zeros((2, 64), np.uint8), "U8")):
        with pytest.raises(KernelError, match="quantize_int8"):
            _kernels.quantize_int8(array, dtype, 1)


# ------------------------------------------------------------------------------------------------------ products


def test_auto(level):
    """precision auto: activations to 16 bits per group of 64, with the same bits for any T; or bf16 tiles."""
    check_slots(level, "linear_int8_a16", "linear_int8_tile")
    for K in INPUTS:
        x, w = case(K)
        exact = linear(w.matrix(), x, MOST[0])
        rounded = np.concatenate([linear(w.matrix(), x, 1, exact=False, row=t) for t in range(MOST[0])])
        assert_close(rounded, *product(K, "a16 64"), f"one token, K = {K}")
        if K > 1:
            assert (rounded != exact).any(), f"K = {K}: the activations were not rounded"
        for N in OUTPUTS:
            matrix = w.matrix(N)
            for T in TOKENS:
                y, what = linear(matrix, x, T, exact=False), f"T = {T}, N = {N}, K = {K}"
                if rounding(level, "INT8", T) == "bf16":
                    values, bound = product(K, "bf16")
                    assert_close(y, values[:T, :N], bound[:T, :N], what)
                else:
                    assert_same_bits(y, rounded[:T, :N], what)


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "auto"])
def test_extremes_do_not_overflow(level, exact):
    """Every integer at its largest, every activation too: the sums of a group are the largest there are."""
    K = 4096
    for sign in (1, -1):
        ones = np.full((17, K // 64), 0x3F80, np.uint16)
        matrix = _kernels.Matrix("INT8", np.full((17, K), sign * 127, np.int8), ones)
        for T in (1, 4, 9):
            y = linear(matrix, np.full((T, K), 3.0, np.float32), T, exact=exact)
            assert_close(y, np.full((T, 17), sign * 127.0 * 3 * K), 127 * 3 * K * 2.0**-16, f"T = {T}")


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "auto"])
@pytest.mark.parametrize("special", [np.nan, np.inf])
@pytest.mark.parametrize("T", [3, 17])
def test_special_values_stay_in_their_row(level, exact, special, T):
    N, bad_row = 21, T - 2
    for K, at in ((65, 64), (200, 0), (2880, 2879)):
        x, w = case(K)
        clean = linear(w.matrix(N), x, T, exact=exact)
        bad = x.copy()
        bad[bad_row, at] = special
        y = linear(w.matrix(N), bad, T, exact=exact)
        assert not np.isfinite(y[bad_row]).any(), f"x[{bad_row}, {at}] of K = {K}"
        what = f"the rows beside x[{bad_row}, {at}] of K = {K}"
        assert_same_bits(np.delete(y, bad_row, 0), np.delete(clean, bad_row, 0), what)

        w = Weights("INT8", (N, K))
        clean = linear(w.matrix(), x, T, exact=exact)
        w.scales[20, at // 64] = 0x7FC0
        y = linear(w.matrix(), x, T, exact=exact)
        assert not np.isfinite(y[:, 20]).any(), f"scale NaN at {at} of K = {K}"
        assert_same_bits(y[:, :20], clean[:, :20], f"the outputs beside scale NaN at {at} of K = {K}")


def test_matrix_refuses_other_shapes():
    q, scales = np.zeros((3, 128), np.int8), np.zeros((3, 2), np.uint16)
    _kernels.Matrix("INT8", q, scales, columns=65)
    for data, s, columns in (
        (q, scales, 64),
        (q, scales, 129),
        (q, None, 128),
        (q, scales[:, :1], 128),
        (q.view(np.uint8), scales, 128),
        (q[:, :100], scales, 100),
    ):
        with pytest.raises(KernelError, match="INT8"):
            _kernels.Matrix("INT8", data, s, columns=columns)
