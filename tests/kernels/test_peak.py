"""peak, peak_tile and peak_a8: what they add up proves that the operations they count were done."""

import numpy as np
import pytest

from cgpt.errors import KernelError
from cgpt.kernels import _kernels

from support.kernel_cases import THREADS, VARIANTS, check_slots, context, tensor_of


def peak(rounds, tasks=1, threads=1, **how):
    """The results of `tasks` runs, and the operations of one."""
    out = np.full(tasks, np.nan, np.float32)
    flops = _kernels.peak(context(threads=threads), tensor_of(out), rounds, **how)
    assert flops % tasks == 0
    return out, flops // tasks


def has_tile(level):
    return VARIANTS[level][1] != "-"


def test_peak(level):
    check_slots(level, "peak")
    for rounds in (0, 1, 2, 7, 100):
        for x in (1, -2, 0.5):
            out, flops = peak(rounds, x=x)
            assert out == flops / 2 * x, f"{rounds} rounds of {x}"
    one_round = peak(1)[1]
    assert peak(9)[1] == 9 * one_round
    # Each sum is doubled before x is added: 0, 3, 9, 21.
    assert peak(3, one=2, x=3)[0] == 21 * one_round / 2


def test_peak_tile(level):
    check_slots(level, "peak_tile")
    if not has_tile(level):
        with pytest.raises(KernelError, match=f"peak: 1 rounds of bf16 at level {_kernels.level()}"):
            peak(1, dtype="bf16")
        return
    for rounds in (0, 1, 2, 7):
        for one, x in ((1, 1), (2, 3), (1, -0.5)):
            out, flops = peak(rounds, one=one, x=x, dtype="bf16")
            assert out == flops / 2 * one * x, f"{rounds} rounds of {one} * {x}"
    assert peak(1, x=1 + 2**-9, dtype="bf16")[0] == peak(1, dtype="bf16")[0], "factors are rounded to bf16"


def test_peak_a8(level):
    check_slots(level, "peak_a8")
    if _kernels.kernels()["peak_a8"] == "-":
        with pytest.raises(KernelError, match=f"peak: 1 rounds of int8 at level {_kernels.level()}"):
            peak(1, dtype="int8")
        return
    for rounds in (0, 1, 2, 7):
        for one, x in ((1, 1), (2, 3), (1, -2), (200 if "avx512" in _kernels.kernels()["peak_a8"] else 127, 100)):
            out, flops = peak(rounds, one=one, x=x, dtype="int8")
            assert out == flops / 2 * one * x, f"{rounds} rounds of {one} * {x}"


def test_threads_each_do_their_part(level):
    expected = peak(1000)[0][0]
    for threads in THREADS:
        out, flops = peak(1000, tasks=7, threads=threads)
        assert (out == expected).all() and flops == peak(1000)[1], f"{threads} threads"


def test_rounds_are_not_negative():
    with pytest.raises(KernelError, match="peak: -1 rounds"):
        peak(-1)
    with pytest.raises(KernelError, match="rounds of f64"):
        peak(1, dtype="f64")
