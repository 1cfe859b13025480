"""Whether something disturbed a measurement. Said beside the figures, never corrected for."""

import resource
import statistics
from collections.abc import Sequence

from cgpt.machine.cpu_time import OTHERS, STOLEN, CpuTime
from cgpt.machine.roofline import Roofline
from cgpt.machine.topology import usable_cpus

SPREAD = 0.10  # between the slowest and the fastest repetition, of the median
DRIFT = 0.15  # between the bandwidth before and after
FAULTS = 100  # pages of the checkpoint that had to come from disk


class Watch:
    """The CPUs this process may use, from its making on."""

    def __init__(self) -> None:
        self._cpus = usable_cpus()
        self._start = CpuTime.now(self._cpus)
        self._faults = _major_faults()

    def shares(self) -> tuple[float | None, float | None]:
        """(what other processes used, what the host took away), as shares of the CPUs' time; None: unknown."""
        return CpuTime.now(self._cpus).shares_since(self._start)

    def faults(self) -> int:
        """Page faults of this process that waited for a disk."""
        return _major_faults() - self._faults


def _major_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def spread(samples: Sequence[float]) -> float:
    """How far apart slowest and fastest are, as a share of the median."""
    return (max(samples) - min(samples)) / statistics.median(samples)


def warnings(
    samples: Sequence[float], others: float | None, stolen: float | None, before: Roofline, after: Roofline, faults: int
) -> list[str]:
    """What makes figures doubtful, a few words each."""
    found = []
    if stolen is not None and stolen > STOLEN:
        found.append(f"the host took {stolen:.0%} of the CPUs' time")
    if others is not None and others > OTHERS:
        found.append(f"other processes used {others:.0%} of the CPUs' time")
    if spread(samples) > SPREAD:
        found.append(f"repetitions differ by {spread(samples):.0%}")
    if faults > FAULTS:
        found.append(f"{faults:,} reads of the model waited for the disk")
    slow, fast = sorted((before.read_bytes_per_s, after.read_bytes_per_s))
    if fast - slow > DRIFT * fast:
        found.append(f"memory was read with {slow / 1e9:.1f} to {fast / 1e9:.1f} GB/s")
    return found
