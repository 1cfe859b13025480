"""The bounds of tolerance.py: wide enough for honest rounding, narrow enough to see one wrong weight."""

import numpy as np
import pytest

from support.tolerance import BF16, assert_close, dot_tolerance, value_tolerance

K = 2880  # the width of gpt-oss


def operands(seed, tokens=3, rows=5):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, K), np.float32)
    w = rng.standard_normal((rows, K), np.float32)
    return x, w, x.astype(np.float64) @ w.astype(np.float64).T


def one_by_one(x, w):
    """The least accurate order of summation: one float32 accumulator."""
    total = np.zeros((len(x), len(w)), np.float32)
    for k in range(x.shape[1]):
        total += x[:, k : k + 1] * w[:, k]
    return total


def to_bf16(x):
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_honest_rounding_passes(seed):
    x, w, exact = operands(seed)
    assert_close(one_by_one(x, w), exact, dot_tolerance(x, w), "one accumulator")
    assert_close(x @ w.T, exact, dot_tolerance(x, w), "BLAS")
    assert_close(to_bf16(x) @ w.T, exact, dot_tolerance(x, w, BF16, 1), "activations in bf16")


def test_a_perturbed_weight_fails():
    x, w, exact = operands(0)
    wrong = w.copy()
    wrong[4, 1234] *= 1 + 2**-7  # the last bit of a bf16 weight
    with pytest.raises(AssertionError, match=r"^perturbed: \d of 15 values .*, the worst at \[\d, 4\]"):
        assert_close(one_by_one(x, wrong), exact, dot_tolerance(x, w), "perturbed")


def test_rounded_activations_fail_the_float32_bound():
    x, w, exact = operands(0)
    with pytest.raises(AssertionError):
        assert_close(to_bf16(x) @ w.T, exact, dot_tolerance(x, w), "activations in bf16")


def test_value_tolerance():
    exact = np.exp(np.linspace(-80, 80, 1001))
    assert_close(exact.astype(np.float32), exact, value_tolerance(exact, terms=1), "rounded")
    with pytest.raises(AssertionError):
        assert_close(exact * (1 + 1e-6), exact, value_tolerance(exact), "off by 1e-6")


@pytest.mark.parametrize(
    "actual, expected",
    [(np.nan, 1.0), (1.0, np.nan), (np.inf, 1.0), (1.0, np.inf), (np.inf, -np.inf), (np.nan, np.inf)],
)
def test_special_values_match_only_themselves(actual, expected):
    assert_close(np.array([actual]), np.array([actual]), 0.0, "itself")
    with pytest.raises(AssertionError):
        assert_close(np.array([actual]), np.array([expected]), 1.0, "another")


def test_shape_and_dtype_are_checked():
    with pytest.raises(AssertionError, match=r"shape \(2,\), expected \(1, 2\)"):
        assert_close(np.zeros(2), np.zeros((1, 2)), 1.0, "shape")
    with pytest.raises(AssertionError, match="float32, not float64"):
        assert_close(np.zeros(2), np.zeros(2, np.float32), 1.0, "dtype")
