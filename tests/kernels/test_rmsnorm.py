"""rmsnorm against float64, on every level."""

import numpy as np
import pytest

from cgpt.kernels import _kernels

from support.kernel_cases import THREADS, assert_same_bits, check_slots, context, tensor, tensor_of
from support.tolerance import assert_close, value_tolerance

WIDTHS = (1, 3, 7, 8, 15, 16, 17, 31, 33, 65, 768, 2880)


def rmsnorm(x, weight, eps=1e-5, threads=1, in_place=False):
    x = x.copy()
    out = x if in_place else np.full_like(x, 7)
    _kernels.rmsnorm(context(threads=threads), tensor_of(out), tensor_of(x), tensor(weight), eps, len(x))
    return out


def exact(x, weight, eps=1e-5):
    x, eps = x.astype(np.float64), float(np.float32(eps))
    out = x / np.sqrt((x * x).mean(1, keepdims=True) + eps) * weight
    return out, value_tolerance(out, terms=6 + np.sqrt(x.shape[1] / 4))  # squares of one sign, in at least 4 lanes


def operands(rng, T, C):
    x = rng.standard_normal((T, C), np.float32) * np.exp2(rng.integers(-12, 13, (T, 1))).astype(np.float32)
    return x, rng.standard_normal(C, np.float32)


@pytest.mark.parametrize("eps", [1e-5, 1e-12])
def test_rmsnorm(level, eps, rng):
    check_slots(level, "rmsnorm")
    for C in WIDTHS:
        x, weight = operands(rng, 13, C)
        out = rmsnorm(x, weight, eps)
        assert_close(out, *exact(x, weight, eps), f"C = {C}")
        assert_same_bits(rmsnorm(x, weight, eps, in_place=True), out, f"in place, C = {C}")
        assert_same_bits(rmsnorm(x[5:6], weight, eps), out[5:6], f"one row, C = {C}")


def test_threads_change_no_bit(level, rng):
    operand = operands(rng, 100, 769)
    one = rmsnorm(*operand)
    for threads in THREADS[1:]:
        assert_same_bits(rmsnorm(*operand, threads=threads), one, f"{threads} threads")


def test_rows_beyond_T_stay(level, rng):
    x, weight = operands(rng, 5, 17)
    out = np.full_like(x, 7)
    _kernels.rmsnorm(context(), tensor_of(out), tensor_of(x), tensor(weight), 1e-5, 3)
    assert_same_bits(out[:3], rmsnorm(x, weight)[:3], "the first 3")
    assert (out[3:] == 7).all()


def test_special_values_stay_in_their_row(level, rng):
    for C in (7, 33):
        x, weight = operands(rng, 4, C)
        clean = rmsnorm(x, weight)
        for at in (0, C - 1):
            bad = x.copy()
            bad[2, at] = np.nan
            out = rmsnorm(bad, weight)
            assert np.isnan(out[2]).all(), f"NaN at {at} of {C}"
            assert_same_bits(np.delete(out, 2, 0), np.delete(clean, 2, 0), "the rows beside NaN")
            bad[2, at] = np.inf  # infinity / infinity there; the others are finite / infinity = 0
            assert np.isnan(rmsnorm(bad, weight)[2, at]), f"infinity at {at} of {C}"
