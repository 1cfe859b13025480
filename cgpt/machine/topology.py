"""The CPUs of this machine, which of them share a core, and which this process may use. From Linux's sysfs and macOS's
sysctl; elsewhere every CPU counts as a core."""

import os
import platform
import re
from pathlib import Path

from cgpt.kernels import _kernels
from cgpt.machine import sysctl, sysfs

CPU = "sys/devices/system/cpu"
Core = tuple[int | str | None, ...]  # (package, die, core)


def online_cpus(root: Path = Path("/")) -> set[int]:
    """The CPUs of the machine that are switched on."""
    return sysfs.cpus(root / CPU / "online") or set(range(os.cpu_count() or 1))


def usable_cpus(root: Path = Path("/")) -> set[int]:
    """The CPUs this process may run on: its affinity mask, which taskset, Slurm and cpusets set.

    Where OMP_PROC_BIND, OMP_PLACES or GOMP_CPU_AFFINITY bind OpenMP's threads, its runtime has narrowed the mask of
    the thread that loaded it to a single place: then the CPUs of all its places.
    """
    mask = set(_kernels.openmp_places())
    if not mask:
        mask = set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else online_cpus(root)
    return mask & sysfs.cpus(root / CPU / "online") or mask  # places may list what is switched off


def cores(cpus: set[int], root: Path = Path("/")) -> set[Core]:
    """The physical cores that `cpus` belong to, as (package, die, core). A CPU that sysfs does not place is a core."""
    return {_core(cpu, root) for cpu in cpus}


def core_count(cpus: set[int], root: Path = Path("/")) -> int:
    """How many physical cores `cpus` are. On a Mac, which lets no process choose its CPUs, the performance cores:
    threads beyond them run on slow ones, and all wait for the last task."""
    return sysctl.number("hw.perflevel0.physicalcpu") or sysctl.number("hw.physicalcpu") or len(cores(cpus, root))


def _core(cpu: int, root: Path) -> Core:
    place = root / CPU / f"cpu{cpu}" / "topology"
    package, die, core = (sysfs.number(place / f) for f in ("physical_package_id", "die_id", "core_id"))
    return ("cpu", cpu) if core is None else (package, die, core)


def packages(cpus: set[int], root: Path = Path("/")) -> int:
    """The sockets that `cpus` are on."""
    return len({sysfs.number(root / CPU / f"cpu{cpu}" / "topology/physical_package_id") for cpu in cpus})


def efficient_cpus(root: Path = Path("/")) -> set[int]:
    """The efficiency cores of a hybrid Intel machine; empty elsewhere."""
    return sysfs.cpus(root / "sys/devices/cpu_atom/cpus")


def cpu_name(root: Path = Path("/")) -> str:
    """The name the CPU gives itself, else the architecture's."""
    found = re.search(r"^model name\s*:\s*(\S.*)$", sysfs.text(root / "proc/cpuinfo"), re.M)
    told = found[1].strip() if found else sysctl.text("machdep.cpu.brand_string")
    return told or platform.processor() or platform.machine() or "unknown"


def numa_nodes(root: Path = Path("/")) -> dict[int, set[int]]:
    """{node: its CPUs} of the nodes that have CPUs; empty where nothing tells."""
    nodes = {}
    for place in (root / "sys/devices/system/node").glob("node[0-9]*"):
        if place.name[4:].isdecimal() and (cpus := sysfs.cpus(place / "cpulist")):
            nodes[int(place.name[4:])] = cpus
    return dict(sorted(nodes.items()))
