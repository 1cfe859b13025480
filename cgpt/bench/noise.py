"""Whether something disturbed a measurement. Said beside the figures, never corrected for."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence

from cgpt.cpu_time import CpuTime
from cgpt.roof import Roof

STOLEN, OTHERS = 0.02, 0.05  # shares of the CPUs' time
SPREAD = 0.10  # between the slowest and the fastest repetition, of the median
DRIFT = 0.15  # between the bandwidth before and after


class Watch:
    """The CPUs this process may use, from its making on."""

    def __init__(self) -> None:
        self._cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
        self._start = CpuTime.now(self._cpus)

    def shares(self) -> tuple[float | None, float | None]:
        """(what other processes used, what the host took away), as shares of the CPUs' time; None: unknown."""
        return CpuTime.now(self._cpus).shares_since(self._start)


def spread(samples: Sequence[float]) -> float:
    """How far apart slowest and fastest are, as a share of the median."""
    return (max(samples) - min(samples)) / statistics.median(samples)


def warnings(
    samples: Sequence[float], others: float | None, stolen: float | None, before: Roof, after: Roof
) -> list[str]:
    """What makes figures doubtful, a few words each."""
    found = []
    if stolen is not None and stolen > STOLEN:
        found.append(f"the host took {stolen:.0%} of the CPUs' time")
    if others is not None and others > OTHERS:
        found.append(f"other processes used {others:.0%} of the CPUs' time")
    if spread(samples) > SPREAD:
        found.append(f"repetitions differ by {spread(samples):.0%}")
    slow, fast = sorted((before.read_bytes_per_s, after.read_bytes_per_s))
    if fast - slow > DRIFT * fast:
        found.append(f"memory was read with {slow / 1e9:.1f} to {fast / 1e9:.1f} GB/s")
    return found
