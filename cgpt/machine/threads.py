"""How many threads a model uses unless told otherwise: the physical cores this process may really have."""

import os
from pathlib import Path

from cgpt.arguments import require_integer
from cgpt.machine import cgroups, sysfs, topology

MAX_THREADS = 4096


def thread_count(threads: int | None) -> int:
    """The threads to run on: `threads`, or default_threads() for None. InputError where it is no number from 1 to
    MAX_THREADS."""
    return default_threads() if threads is None else require_integer("threads", threads, low=1, high=MAX_THREADS)


def default_threads(root: Path = Path("/")) -> int:
    """The physical cores of the affinity mask, no more than the cgroups' CPU quota pays for (2.5 for 2), at least 1.

    Two threads on one core share its caches and arithmetic: they gain nothing and wait for each other. On a hybrid
    machine performance and efficiency cores count alike: tasks are dealt out one by one as threads become free
    (csrc/core/parallel.c), so a slow core does less instead of holding the others up. Whoever wants the fast cores
    alone, to save the battery, gives their number or uses taskset. On a Mac only the performance cores count.

    OMP_NUM_THREADS and OMP_THREAD_LIMIT, which Slurm, joblib and users set to leave room for others, lower this number.
    They never raise it: they are often set once to all CPUs, siblings included. load(threads=..) is free to.

    root: the root of the file system that holds proc and sys.
    """
    most = [topology.core_count(topology.usable_cpus(root), root)]
    if (quota := cpu_quota(root)) is not None:
        most.append(int(quota))
    names = "OMP_NUM_THREADS", "OMP_THREAD_LIMIT"
    most += [limit for name in names if (limit := openmp_limit(os.environ.get(name, "")))]
    return max(1, min(most))


def openmp_limit(setting: str) -> int | None:
    """The number of threads that OpenMP's variables ask for at the outermost level ("4" or "4,2"); None where it is no
    number, which OpenMP ignores too."""
    first = setting.split(",")[0].strip()
    return int(first) or None if first.isdecimal() else None


def cpu_quota(root: Path = Path("/")) -> float | None:
    """The smallest CPU quota of this process's cgroups, in CPUs; None where there is none."""
    quotas = [_quota(*found) for found in cgroups.directories("cpu", root)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(version: int, directory: Path) -> float | None:
    """None for "max" or -1, which mean no quota, and for what is no quota at all."""
    if version == 2:
        quota, _, period = sysfs.text(directory / "cpu.max").partition(" ")
    else:
        quota, period = (sysfs.text(directory / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    if not (quota.isdecimal() and period.isdecimal() and int(quota) and int(period)):
        return None
    return int(quota) / int(period)
