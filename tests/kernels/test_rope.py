"""rope against float64, on every level."""

import numpy as np
import pytest

from cgpt.kernels import _kernels

from reference.rope import Rope, rotate, tables
from support.kernel_cases import THREADS, assert_same_bits, check_slots, context, tensor, tensor_of
from support.tolerance import F32, TINY, assert_close

POSITIONS = 200


def rope(x, cos, sin, heads, D, row=0, start=0, T=None, threads=1):
    x = x.copy()
    T = len(x) - row if T is None else T
    _kernels.rope(context(threads=threads), tensor_of(x), tensor(cos), tensor(sin), row, start, heads, D, T)
    return x


def float32_tables(D):
    return tuple(a.astype(np.float32) for a in tables(Rope(), D, np.arange(POSITIONS)))


@pytest.mark.parametrize("D", [2, 6, 8, 16, 20, 32, 64, 80])
@pytest.mark.parametrize("heads", [1, 3, 10])
def test_rope(level, D, heads, rng):
    """The first `heads` heads of each row turn; columns beyond them and rows beside do not."""
    check_slots(level, "rope")
    T, row, start = 13, 2, 150
    cos, sin = float32_tables(D)
    x = rng.standard_normal((T + row + 1, (heads + 1) * D), np.float32)
    out = rope(x, cos, sin, heads, D, row, start, T)

    at, turned = slice(start, start + T), (slice(row, row + T), slice(0, heads * D))
    q = x[turned].reshape(T, heads, D).astype(np.float64)
    expected = rotate(q, cos[at].astype(np.float64), sin[at].astype(np.float64))
    size = np.abs(rotate(np.abs(q), np.abs(cos[at]).astype(np.float64), -np.abs(sin[at]).astype(np.float64)))
    size = np.maximum(size, rotate(np.abs(q), np.abs(cos[at]).astype(np.float64), np.abs(sin[at]).astype(np.float64)))
    assert_close(out[turned].reshape(q.shape), expected, 2 * F32 * size + TINY, f"heads = {heads}, D = {D}")

    untouched = np.ones(x.shape, bool)
    untouched[turned] = False
    assert_same_bits(out[untouched], x[untouched], "beside the heads")


def test_position_0_without_concentration_changes_nothing(level, rng):
    x = rng.standard_normal((1, 64), np.float32)
    assert_same_bits(rope(x, np.ones((1, 32)), np.zeros((1, 32)), 1, 64), x, "a turn by 0")


def test_threads_and_tokens_change_no_bit(level, rng):
    D, heads, T = 64, 12, 100
    cos, sin = float32_tables(D)
    x = rng.standard_normal((T, heads * D), np.float32)
    whole = rope(x, cos, sin, heads, D)
    for threads in THREADS[1:]:
        assert_same_bits(rope(x, cos, sin, heads, D, threads=threads), whole, f"{threads} threads")
    for t in (0, 57, 99):
        one = rope(x[t : t + 1], cos, sin, heads, D, start=t)
        assert_same_bits(one, whole[t : t + 1], f"token {t} alone")


def test_nan_stays_in_its_pair(level, rng):
    D = 20
    cos, sin = float32_tables(D)
    x = rng.standard_normal((3, 2 * D), np.float32)
    clean, bad = rope(x, cos, sin, 2, D, start=5), x.copy()
    bad[1, D + 3] = np.nan
    out = rope(bad, cos, sin, 2, D, start=5)
    expected = np.zeros(x.shape, bool)
    expected[1, [D + 3, D + 13]] = True
    assert (np.isnan(out) == expected).all()
    assert_same_bits(out[~expected], clean[~expected], "the other pairs")
