"""mxfp4_dequantize exactly; linear_mxfp4, linear_mxfp4_tile and linear_mxfp4_a16 against float64, on every level."""

import functools
import signal
import subprocess
import sys

import numpy as np
import pytest

from cgpt.kernels import _kernels

from reference.mxfp4 import dequantise
from support.kernel_cases import (
    MASKS,
    TOKENS,
    Weights,
    activations,
    assert_same_bits,
    check_slots,
    linear,
    operand,
    rounding,
    true_product,
)
from support.tolerance import TINY, assert_close, dot_tolerance

INPUTS = (32, 64, 96, 128, 160, 2880)
OUTPUTS = (1, 3, 16, 21, 70)
MOST = max(TOKENS), max(OUTPUTS)


@functools.cache
def case(K):
    """x [100, K], weights [70, K]."""
    return activations(MOST[0], K), Weights("MXFP4", (MOST[1], K))


@functools.cache
def product(K, how):
    """x @ w.T, float64, and its bound, with activations rounded as `how` says."""
    return true_product(*case(K), how)


def every_code_and_scale():
    """blocks [256, 2, 16], scales [256, 2]: each scale with all 16 codes, in low and in high nibbles."""
    codes = np.arange(16, dtype=np.uint8)
    blocks = np.stack([codes | codes[::-1] << 4, codes[::-1] | codes << 4])
    return np.tile(blocks, (256, 1, 1)), np.repeat(np.arange(256, dtype=np.uint8)[:, None], 2, 1)


def test_dequantize_is_exact(level):
    check_slots(level, "mxfp4_dequantize")
    blocks, scales = every_code_and_scale()
    with np.errstate(over="ignore"):
        expected = dequantise(blocks, scales).astype(np.float32)  # 4 * 2^127 is infinite in both
    found = _kernels.mxfp4_dequantize(blocks, scales)
    assert np.isnan(found[255]).all() and np.isnan(expected[255]).all()
    assert_same_bits(found[:255], expected[:255], "all codes and scales")
    e2m1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
    assert_same_bits(found[127, 0:32:2], np.float32(e2m1), "the low nibbles at scale 127")
    assert_same_bits(found[127, 1:32:2], np.float32(e2m1[::-1]), "the high nibbles at scale 127")


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 90), (2, 3, 4), (0,)])
def test_dequantize_shapes(level, shape, rng):
    blocks, scales = rng.integers(0, 256, (*shape, 16), np.uint8), rng.integers(100, 140, shape, np.uint8)
    found = _kernels.mxfp4_dequantize(blocks, scales)
    assert found.dtype == np.float32 and found.shape == (*shape[:-1], shape[-1] * 32)
    assert_same_bits(found, dequantise(blocks, scales).astype(np.float32), f"{shape}")
    strided = np.zeros((*shape, 32), np.uint8)
    strided[..., ::2] = blocks
    assert_same_bits(_kernels.mxfp4_dequantize(strided[..., ::2], scales), found, "not contiguous")


def test_auto(level):
    """precision auto: activations rounded to bf16 from some tokens on, before to 16 bits per group."""
    check_slots(level, "linear_mxfp4_tile", "linear_mxfp4_a16")
    for K in INPUTS:
        x, w = case(K)
        exact = linear(w.matrix(), x, MOST[0])
        for N in OUTPUTS:
            matrix = w.matrix(N)
            for T in TOKENS:
                y, how = linear(matrix, x, T, exact=False), rounding(level, "MXFP4", T)
                what = f"T = {T}, N = {N}, K = {K}"
                if how:
                    values, bound = product(K, how)
                    assert_close(y, values[:T, :N], bound[:T, :N], what)
                else:
                    assert_same_bits(y, exact[:T, :N], what)
                if how and N == OUTPUTS[-1]:
                    assert (y != exact[:T, :N]).any(), f"{what}: the activations were not rounded"


def test_every_tail(level):
    """precision auto: rows of up to two blocks of 16 groups and one more, 1 to 12 tokens: against float64, and as long
    as rounding is that of one token, to the bit what each token gets alone."""
    for groups in range(1, 34):
        x, w = activations(12, 32 * groups), Weights("MXFP4", (3, 32 * groups))
        alone = np.concatenate([linear(w.matrix(), x, 1, exact=False, row=t) for t in range(12)])
        for T in range(1, 13):
            y, what = linear(w.matrix(), x, T, exact=False), f"{groups} groups, T = {T}"
            how = rounding(level, "MXFP4", T)
            values, bound = true_product(x, w, how)
            assert_close(y, values[:T], bound[:T], what)
            if how == rounding(level, "MXFP4", 1):
                assert_same_bits(y, alone[:T], what)


def test_largest_sums(level):
    """precision auto: every weight 6 or -6 and every activation as large as its group's largest, of the same signs: the
    sums of integers that could overflow, or be saturated, first."""
    signs = np.random.default_rng(1).choice(np.float32([-1, 1]), (1, 320))
    codes = np.where(signs < 0, 15, 7).astype(np.uint8).reshape(1, 10, 16, 2)
    matrix = _kernels.Matrix("MXFP4", codes[..., 0] | codes[..., 1] << 4, np.full((1, 10), 127, np.uint8))
    for T in range(1, 10):
        x = np.repeat(signs, T, 0)
        assert_close(linear(matrix, x, T, exact=False), np.full((T, 1), 6.0 * 320), 320 * 6.0 * 2.0**-22, f"T = {T}")


BEYOND = """
import mmap, sys, tempfile
import numpy as np
from cgpt.kernels import _kernels

def at_the_end(shape):  # of memory: what follows is mapped, but no longer in the file, and reading it kills the process
    size = int(np.prod(shape))
    length = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    with tempfile.TemporaryFile() as file:
        file.truncate(length + mmap.PAGESIZE)
        pages = mmap.mmap(file.fileno(), length + mmap.PAGESIZE)
        file.truncate(length)
    return np.frombuffer(pages, np.uint8)[length - size : length].reshape(shape), pages

_kernels.use_level(sys.argv[1], mask=sys.argv[2])
for groups in range(1, 34):
    (blocks, pages), (scales, _) = at_the_end((3, groups, 16)), at_the_end((3, groups))
    scales[:] = 127
    matrix = _kernels.Matrix("MXFP4", blocks, scales)
    for T in (1, 2, 3, 4, 5, 9, 33):
        x, y = np.ones((T, 32 * groups), np.float32), np.ones((T, 3), np.float32)
        for precision in _kernels.PRECISIONS:
            _kernels.linear(_kernels.Context(1, precision), _kernels.Tensor(y), _kernels.Tensor(x), matrix, T)
            assert (y == 0).all()
print("all read", flush=True)
if sys.argv[3]:
    pages[-1]
"""


def read_to_the_end(level, then=""):
    name, _, masked = level.partition("-")
    command = [sys.executable, "-c", BEYOND, name, MASKS.get(masked, ""), then]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a file cut under its mapping")
def test_nothing_is_read_beyond_the_last_row(level):
    done = read_to_the_end(level)
    assert done.stdout.strip() == "all read" and not done.returncode, f"{done.returncode} {done.stderr[-2000:]}"
    killed = read_to_the_end("ref", "beyond")
    assert killed.stdout.strip() == "all read", killed.stderr[-2000:]
    assert killed.returncode == -signal.SIGBUS or "SIGBUS" in killed.stderr or " BUS " in killed.stderr


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "auto"])
def test_every_scale(level, exact, rng):
    """One scale per row, every scale there is. Codes are small enough that weights fit in float32; the denormal
    ones (scales 0, 1, 2) may count as zero. Scale 255 must not end in a finite number."""
    K = 160
    small = np.array([0, 1, 2, 3, 8, 9, 10, 11], np.uint8)  # up to 1.5: times 2^127 is still finite
    blocks = small[rng.integers(0, 8, (256, 5, 16))] | small[rng.integers(0, 8, (256, 5, 16))] << 4
    scales = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 5, 1)
    matrix = _kernels.Matrix("MXFP4", blocks, scales)
    for T in (1, 5, 17, 25):
        x = rng.standard_normal((T, K), np.float32) * np.float32(2**-10)
        y = linear(matrix, x, T, exact=exact)
        values = dequantise(blocks, scales)
        rounded, off = operand(x, rounding(level, "MXFP4", T, exact))
        bound = dot_tolerance(rounded, values[:255]) + off @ np.abs(values[:255]).T
        bound += K * TINY  # bf16 products flush every partial sum
        assert_close(y[:, :255], rounded.astype(np.float64) @ values[:255].T, bound, f"T = {T}")
        assert not np.isfinite(y[:, 255]).any(), f"T = {T}: scale 255 is not to be seen"


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "auto"])
def test_mixed_scales(level, exact, rng):
    """Scales at the edges of every path side by side in one row: the smallest and the largest, and common ones."""
    K, N = 224, 21
    edges = np.array([0, 1, 2, 3, 120, 127, 130], np.uint8)
    blocks = rng.integers(0, 256, (N, 7, 16), np.uint8)
    scales = rng.permuted(np.tile(edges, (N, 1)), axis=1)
    matrix, values = _kernels.Matrix("MXFP4", blocks, scales), dequantise(blocks, scales)
    for T in (1, 4, 5, 9, 33):
        x = rng.standard_normal((T, K), np.float32)
        rounded, off = operand(x, rounding(level, "MXFP4", T, exact))
        bound = dot_tolerance(rounded, values) + off @ np.abs(values).T
        assert_close(linear(matrix, x, T, exact=exact), rounded.astype(np.float64) @ values.T, bound, f"T = {T}")


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "auto"])
@pytest.mark.parametrize("special", [np.nan, np.inf])
@pytest.mark.parametrize("T", [3, 17, 25])
def test_special_values_stay_in_their_row(level, exact, special, T):
    N, bad_row = 21, T - 2
    for K, at in ((32, 31), (160, 0), (160, 130), (2880, 2879)):
        x, w = case(K)
        clean = linear(w.matrix(N), x, T, exact=exact)
        bad = x.copy()
        bad[bad_row, at] = special
        y = linear(w.matrix(N), bad, T, exact=exact)
        assert not np.isfinite(y[bad_row][w.values[:N, at] != 0]).any(), f"x[{bad_row}, {at}] of K = {K}"
        assert np.isnan(y[bad_row][w.values[:N, at] == 0]).all(), f"x[{bad_row}, {at}] of K = {K} times 0"
        what = f"the rows beside x[{bad_row}, {at}] of K = {K}"
        assert_same_bits(np.delete(y, bad_row, 0), np.delete(clean, bad_row, 0), what)

        w = Weights("MXFP4", (N, K))
        clean = linear(w.matrix(), x, T, exact=exact)
        w.scales[20, at // 32] = 255
        y = linear(w.matrix(), x, T, exact=exact)
        assert not np.isfinite(y[:, 20]).any(), f"scale 255 at {at} of K = {K}"
        assert_same_bits(y[:, :20], clean[:, :20], f"the outputs beside scale 255 at {at} of K = {K}")
