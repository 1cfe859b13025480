"""activation: the six functions that GPT-2 configs name, against float64, on every level."""

import math

import numpy as np
import pytest

from cgpt.kernels import _kernels

from support.kernel_cases import THREADS, assert_same_bits, check_slots, context, tensor_of
from support.tolerance import F32, TINY, assert_close

erf = np.vectorize(math.erf)
erfc = np.vectorize(math.erfc)


def sigmoid(x):
    return np.where(x >= 0, 1, np.exp(-np.abs(x))) / (1 + np.exp(-np.abs(x)))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


EXACT = {
    "gelu_tanh": gelu_tanh,
    "gelu_erf": lambda x: 0.5 * x * erfc(-x / math.sqrt(2)),
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * sigmoid(x),
    "tanh": np.tanh,
}


def bound(which, x, exact):
    """gelu: 1 + tanh and 1 + erf cancel for negative x, so the error is a part of |x|; the others are relative to
    the result, where a rounding of e^-x's argument counts |x| times, and results that e^-x overflows to 0 are below
    |x| TINY."""
    if which.startswith("gelu"):
        return 4 * F32 * np.abs(x) + TINY
    terms = {"relu": 0, "tanh": 8}.get(which, 6 + 2 * np.abs(x))
    return terms * F32 * np.abs(exact) + (2 + np.abs(x)) * TINY


def activation(x, which, threads=1, T=None):
    x = x.copy()
    _kernels.activation(context(threads=threads), tensor_of(x), which, len(x) if T is None else T)
    return x


def points():
    wide = np.exp2(np.linspace(-40, 12, 400))
    x = np.concatenate([np.linspace(-12, 12, 4001), np.linspace(-110, 110, 881), wide, -wide, [0.0, -0.0, 3e38, -3e38]])
    return x.astype(np.float32)[None]


@pytest.mark.parametrize("which", _kernels.ACTIVATIONS)
def test_values(level, which):
    check_slots(level, "activation")
    x = points()
    with np.errstate(over="ignore"):
        exact = EXACT[which](x.astype(np.float64))
        assert_close(activation(x, which), exact, bound(which, x.astype(np.float64), exact), which)


@pytest.mark.parametrize("which", _kernels.ACTIVATIONS)
def test_widths(level, which, rng):
    """Every width gives the bits of the widest; rows beyond T stay."""
    x = rng.standard_normal((6, 100), np.float32) * 3
    whole = activation(x, which)
    for C in (1, 3, 4, 7, 8, 15, 16, 17, 31, 33, 65):
        assert_same_bits(activation(x[:, :C].copy(), which), whole[:, :C], f"C = {C}")
    some = activation(x, which, T=4)
    assert_same_bits(some[:4], whole[:4], "the first 4")
    assert_same_bits(some[4:], x[4:], "the others")


@pytest.mark.parametrize("which", _kernels.ACTIVATIONS)
def test_threads_change_no_bit(level, which, rng):
    x = rng.standard_normal((50, 333), np.float32) * 3
    one = activation(x, which)
    for threads in THREADS[1:]:
        assert_same_bits(activation(x, which, threads), one, f"{threads} threads")


@pytest.mark.parametrize("which", _kernels.ACTIVATIONS)
def test_special_values(level, which):
    x = np.ones((1, 19), np.float32)
    x[0, [0, 5, 18]] = np.nan
    out = activation(x, which)
    assert np.isnan(out[0, [0, 5, 18]]).all() and np.isfinite(np.delete(out, [0, 5, 18])).all()
    x[0, [0, 5, 18]] = np.inf
    assert (activation(x, which)[0, [0, 5, 18]] == (1 if which == "tanh" else np.inf)).all()
