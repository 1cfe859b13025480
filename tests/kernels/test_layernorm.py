"""layernorm against float64, on every level."""

import numpy as np
import pytest

from cgpt.kernels import _kernels

from support.kernel_cases import THREADS, assert_same_bits, check_slots, context, tensor, tensor_of
from support.tolerance import F32, TINY, assert_close

WIDTHS = (1, 3, 7, 8, 15, 16, 17, 31, 33, 65, 768, 1600, 2880)


def layernorm(x, weight, bias, eps=1e-5, threads=1, in_place=False):
    x = x.copy()
    out = x if in_place else np.full_like(x, 7)
    _kernels.layernorm(
        context(threads=threads), tensor_of(out), tensor_of(x), tensor(weight), tensor(bias), eps, len(x)
    )
    return out


def exact(x, weight, bias, eps=1e-5):
    """float64 result and its bound: the error of the mean moves every difference, the errors of the squares and of
    the mean move the variance, and a handful of roundings follow."""
    x, eps = x.astype(np.float64), float(np.float32(eps))
    mean = x.mean(1, keepdims=True)
    d = x - mean
    var = (d * d).mean(1, keepdims=True)
    scale = 1 / np.sqrt(var + eps)
    off_mean = 8 * F32 * np.abs(x).mean(1, keepdims=True)
    terms = 8 + np.sqrt(x.shape[1] / 4)  # terms of one sign, in at least 4 lanes
    off_var = terms * F32 * var + 2 * off_mean * np.abs(d).mean(1, keepdims=True) + off_mean**2
    relative = off_var / (var + eps) / 2 + 4 * F32
    out = d * scale * weight
    bound = np.abs(scale * weight) * (off_mean + F32 * np.abs(d)) + np.abs(out) * relative + 2 * F32 * np.abs(bias)
    return out + bias, bound + TINY


def operands(rng, T, C, offset=0.0):
    x = rng.standard_normal((T, C), np.float32) * np.exp2(rng.integers(-8, 9, (T, 1))).astype(np.float32)
    return (x + np.float32(offset), *rng.standard_normal((2, C), np.float32))


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("eps", [1e-5, 1e-12])
def test_layernorm(level, offset, eps, rng):
    check_slots(level, "layernorm")
    for C in WIDTHS:
        x, weight, bias = operands(rng, 13, C, offset)
        out = layernorm(x, weight, bias, eps)
        assert_close(out, *exact(x, weight, bias, eps), f"C = {C}")
        assert_same_bits(layernorm(x, weight, bias, eps, in_place=True), out, f"in place, C = {C}")
        assert_same_bits(layernorm(x[5:6], weight, bias, eps), out[5:6], f"one row, C = {C}")


def test_threads_change_no_bit(level, rng):
    operand = operands(rng, 100, 769)
    one = layernorm(*operand)
    for threads in THREADS[1:]:
        assert_same_bits(layernorm(*operand, threads=threads), one, f"{threads} threads")


def test_rows_beyond_T_stay(level, rng):
    x, weight, bias = operands(rng, 5, 17)
    out = np.full_like(x, 7)
    _kernels.layernorm(context(), tensor_of(out), tensor_of(x), tensor(weight), tensor(bias), 1e-5, 3)
    assert_same_bits(out[:3], layernorm(x, weight, bias)[:3], "the first 3")
    assert (out[3:] == 7).all()


def test_special_values_stay_in_their_row(level, rng):
    for C in (7, 33):
        x, weight, bias = operands(rng, 4, C)
        clean = layernorm(x, weight, bias)
        for special in (np.nan, np.inf):
            for at in (0, C - 1):
                bad = x.copy()
                bad[2, at] = special
                out = layernorm(bad, weight, bias)
                assert np.isnan(out[2]).all(), f"{special} at {at} of {C}"
                assert_same_bits(np.delete(out, 2, 0), np.delete(clean, 2, 0), f"the rows beside {special}")
