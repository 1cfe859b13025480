"""read against NumPy's exclusive or, on every level."""

import numpy as np
import pytest

from cgpt.errors import KernelError
from cgpt.kernels import _kernels

from support.kernel_cases import THREADS, check_slots, context, tensor_of

SIZES = (1, 3, 15, 16, 17, 127, 128, 511, 512, 513, 2047, 2048, 2049, 5000)


def read(words, threads=1):
    out = np.zeros(len(words), np.int32)
    _kernels.read(context(threads=threads), out, tensor_of(words.view(np.float32)))
    return out.view(np.uint32)


def test_read(level, rng):
    check_slots(level, "read")
    for n in SIZES:
        words = rng.integers(0, 2**32, (5, n), np.uint32)
        assert (read(words) == np.bitwise_xor.reduce(words, 1)).all(), f"n = {n}"


def test_every_word_counts(level):
    """One bit set, in each place in turn."""
    n = 1100
    words = np.zeros((n, n), np.uint32)
    words[np.arange(n), np.arange(n)] = 1 << np.arange(n, dtype=np.uint32) % 32
    assert (read(words) == words.max(1)).all()


def test_threads_change_nothing(level, rng):
    words = rng.integers(0, 2**32, (9, 100_000), np.uint32)
    for threads in THREADS:
        assert (read(words, threads) == np.bitwise_xor.reduce(words, 1)).all(), f"{threads} threads"


@pytest.mark.parametrize("results", [0, 2, 4])
def test_a_result_for_each_row(results):
    with pytest.raises(KernelError, match=f"read: {results} results for 3 rows"):
        _kernels.read(context(), np.zeros(results, np.int32), tensor_of(np.ones((3, 8), np.float32)))
