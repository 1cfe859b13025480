"""topk: the router's choice of experts and its softmax, on every level."""

import numpy as np
import pytest

from cgpt.kernels import _kernels

from support.kernel_cases import THREADS, assert_same_bits, check_slots, context, tensor, tensor_of
from support.tolerance import F32, assert_close

SHAPES = ((1, 1), (2, 1), (4, 2), (5, 5), (7, 3), (32, 4), (33, 4), (128, 4), (128, 64))  # experts, chosen


def topk(logits, k, threads=1):
    T = len(logits)
    index, weight = np.full((T + 1, k), -7, np.int32), np.full((T + 1, k), np.float32(7))
    _kernels.topk(context(threads=threads), index, tensor_of(weight), tensor(logits), T)
    assert (index[T] == -7).all() and (weight[T] == 7).all()
    return index[:T], weight[:T]


def exact(logits, k):
    """Indices, and the float64 softmax of the chosen with its bound: e^x's argument is rounded at its own size."""
    index = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    chosen = np.take_along_axis(logits.astype(np.float64), index, 1)
    below = chosen - chosen[:, :1]
    weight = np.exp(below) / np.exp(below).sum(1, keepdims=True)
    return index, weight, F32 * weight * (8 + k + np.abs(below).max(1, keepdims=True)) + 1e-37


@pytest.mark.parametrize("E, k", SHAPES)
@pytest.mark.parametrize("size", [1.0, 60.0])
def test_topk(level, E, k, size, rng):
    check_slots(level, "topk")
    logits = rng.standard_normal((25, E), np.float32) * np.float32(size)
    index, weight = topk(logits, k)
    expected_index, expected_weight, bound = exact(logits, k)
    assert (index == expected_index).all()
    assert_close(weight, expected_weight, bound, f"{k} of {E}")


@pytest.mark.parametrize("E, k", SHAPES)
def test_ties_go_to_the_lower_index(level, E, k, rng):
    logits = rng.integers(0, 3, (25, E)).astype(np.float32)
    logits[0], logits[1] = 0, -np.float32(3e38)
    index, weight = topk(logits, k)
    expected_index, expected_weight, bound = exact(logits, k)
    assert (index == expected_index).all()
    assert_close(weight, expected_weight, bound, f"{k} of {E}")


def test_threads_and_tokens_change_no_bit(level, rng):
    logits = rng.standard_normal((300, 32), np.float32)
    index, weight = topk(logits, 4)
    for threads in THREADS[1:]:
        other_index, other_weight = topk(logits, 4, threads)
        assert (other_index == index).all()
        assert_same_bits(other_weight, weight, f"{threads} threads")
    alone = topk(logits[150:151], 4)
    assert (alone[0] == index[150]).all()
    assert_same_bits(alone[1], weight[150:151], "one token")


@pytest.mark.parametrize("bad", [[5], [0], [31], [2, 9, 17], list(range(32))])
def test_nan_reaches_the_weights(level, bad, rng):
    """A NaN among the logits must not be lost because its expert is not chosen; the indices stay usable."""
    logits = rng.standard_normal((3, 32), np.float32)
    clean_index, clean_weight = topk(logits, 4)
    logits[1, bad] = np.nan
    index, weight = topk(logits, 4)
    assert np.isnan(weight[1]).all()
    assert len(set(index[1])) == 4 and index.min() >= 0 and index.max() < 32
    assert (index[[0, 2]] == clean_index[[0, 2]]).all()
    assert_same_bits(weight[[0, 2]], clean_weight[[0, 2]], "the other tokens")


def test_infinite_logits(level):
    logits = np.zeros((3, 8), np.float32)
    logits[0, 3] = np.inf  # infinity - infinity
    logits[1, :6] = -np.inf
    logits[2] = -np.inf
    index, weight = topk(logits, 4)
    assert np.isnan(weight[0]).all() and np.isnan(weight[2]).all()
    assert list(index[1]) == [6, 7, 0, 1] and list(weight[1]) == [0.5, 0.5, 0, 0]
