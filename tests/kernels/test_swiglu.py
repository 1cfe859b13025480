"""swiglu, as the experts run it, on every level: one expert whose matrices are the identity."""

import numpy as np
import pytest

from cgpt.kernels import _kernels

from support.kernel_cases import assert_same_bits, check_slots, context, tensor_of
from support.tolerance import F32, TINY, assert_close

ALPHA = 1.702


def swiglu(gate_up, limit=7.0, alpha=ALPHA):
    """out [T, I] from gate_up [T, 2 I]. Products with 1 and 0 are exact, so nothing but swiglu shows."""
    T, I = gate_up.shape[0], gate_up.shape[1] // 2
    identity = [_kernels.Matrix("F32", np.eye(n, dtype=np.float32)[None]) for n in (2 * I, I)]
    out, one = np.zeros((T, I), np.float32), np.ones((T, 1), np.float32)
    _kernels.moe(
        context(),
        tensor_of(out),
        tensor_of(gate_up),
        np.zeros((T, 1), np.int32),
        tensor_of(one),
        *identity,
        alpha,
        limit,
        T,
    )
    return out


def exact(gate_up, limit=7.0, alpha=ALPHA):
    """float64, and its bound: a rounding of the argument of e^x counts as often as the argument is large."""
    g = np.minimum(gate_up[:, 0::2].astype(np.float64), limit)
    u = np.clip(gate_up[:, 1::2].astype(np.float64), -limit, limit)
    out = g / (1 + np.exp(-float(np.float32(alpha)) * g)) * (u + 1)
    return out, (8 + 2 * np.abs(alpha * g)) * F32 * np.abs(out) + TINY * (1 + np.abs(g)) * (1 + np.abs(u))


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 65])
@pytest.mark.parametrize("limit", [7.0, 0.5, np.inf])
def test_swiglu(level, width, limit, rng):
    check_slots(level, "swiglu")
    gate_up = rng.standard_normal((9, 2 * width), np.float32) * 6
    assert_close(swiglu(gate_up, limit), *exact(gate_up, limit), f"I = {width}, limit = {limit}")


def test_clamps(level):
    """The gate is clamped from above only, the up on both sides; at the limits themselves nothing changes."""
    values = np.float32([-100, -50, -7.5, -7, -6.5, -1, -0.0, 0, 1, 6.5, 7, 7.5, 50])
    gate, up = np.meshgrid(values, values)
    gate_up = np.stack([gate, up], 2).reshape(len(values), -1)
    with np.errstate(over="ignore"):
        assert_close(swiglu(gate_up), *exact(gate_up), "gates by ups")
    at_limit = np.float32([[7, 7, 8, 8, 7, -7, 9, -9]])
    out = swiglu(at_limit)[0]
    assert_same_bits(out[[1, 3]], out[[0, 2]], "beyond the limit as at the limit")


@pytest.mark.parametrize("at", [0, 1, 10, 37])
def test_nan_stays_in_its_token(level, at, rng):
    """The products with the identity spread NaN over its token; no other token sees it."""
    gate_up = rng.standard_normal((3, 38), np.float32)
    clean = swiglu(gate_up)
    gate_up[1, at] = np.nan
    out = swiglu(gate_up)
    assert np.isnan(out[1]).all()
    assert_same_bits(out[[0, 2]], clean[[0, 2]], "the other tokens")
