"""Who used the CPUs during a measurement: this process, others, or other guests of the same host (steal)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cgpt.machine import sysfs

OTHERS, STOLEN = 0.05, 0.02  # shares of the CPUs' time; below them a measurement stays within a few per cent


@dataclass(frozen=True)
class CpuTime:
    """Seconds of CPU time so far; `system`, `idle` and `stolen` over the CPUs asked for, None where nothing tells."""

    own: float
    busy: float | None
    idle: float | None
    stolen: float | None

    @classmethod
    def now(cls, cpus: set[int], root: Path = Path("/")) -> CpuTime:
        """The counters of `cpus` (proc_stat(5)) and of this process with all its threads."""
        times = os.times()
        ticks = [0, 0, 0]
        for line in sysfs.text(root / "proc/stat").splitlines():
            name, *fields = line.split()
            if name[:3] == "cpu" and name[3:].isdecimal() and int(name[3:]) in cpus and len(fields) >= 8:
                user, nice, system, idle, iowait, irq, softirq, steal = map(int, fields[:8])
                ticks[0] += user + nice + system + irq + softirq
                ticks[1] += idle + iowait
                ticks[2] += steal
        if not sum(ticks):
            return cls(times.user + times.system, None, None, None)
        second = os.sysconf("SC_CLK_TCK")
        return cls(times.user + times.system, *(n / second for n in ticks))

    def shares_since(self, before: CpuTime) -> tuple[float | None, float | None]:
        """(what other processes used, what was stolen), as shares of the CPUs' time since `before`; None: unknown."""
        now, then = (self.busy, self.idle, self.stolen), (before.busy, before.idle, before.stolen)
        passed = [b - a for a, b in zip(then, now, strict=True) if a is not None and b is not None]
        total = sum(passed)
        if len(passed) < len(now) or total <= 0:
            return None, None
        busy, _, stolen = passed
        return max(0.0, busy - (self.own - before.own)) / total, stolen / total
