"""How many threads a model uses unless told otherwise: the CPUs this process may really have."""

import os
from pathlib import Path


def usable_cpus(root: Path = Path("/")) -> int:
    """CPUs of the affinity mask, no more than the cgroup's quota (v2 or v1) pays for, at least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(root)
    return max(1, min(cpus, int(quota))) if quota else max(1, cpus)


def _quota(root: Path) -> float | None:
    """The smallest CPU quota of this process's cgroups and their parents, in CPUs; None where there is none."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0":
            base, read = root / "sys/fs/cgroup", _quota_v2
        elif "cpu" in controllers.split(","):
            base, read = root / "sys/fs/cgroup/cpu", _quota_v1
        else:
            continue
        directory = base / path.lstrip("/")
        while True:
            quotas.append(read(directory))
            if directory == base:
                break
            directory = directory.parent
    return min((q for q in quotas if q), default=None)


def _quota_v2(directory: Path) -> float | None:
    try:
        quota, period = (directory / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(directory: Path) -> float | None:
    try:
        quota = int((directory / "cpu.cfs_quota_us").read_text())
        return quota / int((directory / "cpu.cfs_period_us").read_text()) if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
