"""What this machine offers cgpt, and what stands in the way: the facts of `cgpt doctor`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cgpt.analysis.advice import advice
from cgpt.kernels import _kernels, isa
from cgpt.machine import huge_pages, sysfs, topology
from cgpt.machine.cpu_time import CpuTime
from cgpt.machine.memory import available_memory
from cgpt.machine.threads import cpu_quota, default_threads
from cgpt.models.forecast import CONTEXT, REACHED, VARIANTS, forecast
from cgpt.version import __version__

ENVIRONMENT = (
    "CGPT_ISA",
    "CGPT_MASK",
    "OMP_NUM_THREADS",
    "OMP_THREAD_LIMIT",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
    "OMP_PROC_BIND",
    "OMP_PLACES",
    "GOMP_CPU_AFFINITY",
)


def examine(
    threads: int | None = None, measure: Callable[[int], Any] | None = None, root: Path = Path("/")
) -> dict[str, Any]:
    """Facts about this machine, which json can write. Numbers are bytes, bytes/s, FLOP/s or counts; None: unknown.

    threads: as load() would be told; default its default. measure: takes a number of threads and gives the roof as
    machine.roofline.measure does; None measures nothing. root: the root of the file system that holds proc and sys.
    The result holds
      cgpt: the version; environment: the variables set that change what cgpt does;
      level: in_use, and missing {level: what keeps it out, or None};
      cpu: of the machine: name, packages, cores, efficient_cores (of these), cpus, numa_nodes [{node, cpus, memory}];
      usable: of these: cpus (affinity), cores, quota (in CPUs);
      threads: default, in_use, openmp (whether the build has it);
      memory: available (within the cgroup), total; huge_pages: transparent ("always", "madvise" or "never"), and of
        hugetlb's reserved, free and size;
      load: average (of the last minute, in CPUs), others and stolen (shares of the usable CPUs while measuring);
      roof: read_bytes_per_s, flops_per_s, level, dtype and threads, or None;
      models: what cgpt.models.forecast says of each, at `context` tokens, with `reached` as shares of at_most;
      advice: sentences, where something stands in the way.
    """
    usable = topology.usable_cpus(root)
    default = default_threads(root)
    in_use = threads or default
    before = CpuTime.now(usable, root)
    roof = measure(in_use) if measure else None
    others, stolen = CpuTime.now(usable, root).shares_since(before) if measure else (None, None)
    facts = {
        "cgpt": __version__,
        "environment": {name: os.environ[name] for name in ENVIRONMENT if os.environ.get(name)},
        "level": {"in_use": isa.level(), "missing": isa.levels()},
        "cpu": _cpu(root),
        "usable": {
            "cpus": len(usable),
            "cores": len(topology.cores(usable, root)),
            "quota": cpu_quota(root),
        },
        "threads": {"default": default, "in_use": in_use, "openmp": _kernels.has_openmp()},
        "memory": _memory(root),
        "load": {"average": _load_average(root), "others": others, "stolen": stolen},
        "roof": None
        if roof is None
        else {
            "read_bytes_per_s": roof.read_bytes_per_s,
            "flops_per_s": roof.flops_per_s,
            "level": roof.level,
            "dtype": roof.dtype,
            "threads": in_use,
        },
        "models": {
            "context": CONTEXT,
            "reached": REACHED,
            "sizes": [forecast(name, dense, roof, root) for name, dense in VARIANTS],
        },
    }
    return facts | {"advice": advice(facts)}


def _cpu(root: Path) -> dict[str, Any]:
    online = topology.online_cpus(root)
    nodes = [
        {"node": node, "cpus": len(cpus & online), "memory": _node_memory(root, node)}
        for node, cpus in topology.numa_nodes(root).items()
    ]
    return {
        "name": topology.cpu_name(root),
        "packages": topology.packages(online, root),
        "cores": len(topology.cores(online, root)),
        "efficient_cores": len(topology.cores(online & topology.efficient_cpus(root), root)),
        "cpus": len(online),
        "numa_nodes": nodes,
    }


def _node_memory(root: Path, node: int) -> int | None:
    text = sysfs.text(root / f"sys/devices/system/node/node{node}/meminfo")
    found = re.search(r"MemTotal:\s*(\d+) kB", text)
    return int(found[1]) * 1024 if found else None


def _memory(root: Path) -> dict[str, Any]:
    found = sysfs.numbers(root / "proc/meminfo")
    total = found.get("MemTotal:")
    return {
        "available": available_memory(root),
        "total": None if total is None else total * 1024,
        "huge_pages": {
            "transparent": huge_pages.transparent(root),
            "reserved": found.get("HugePages_Total:"),
            "free": found.get("HugePages_Free:"),
            "size": found["Hugepagesize:"] * 1024 if "Hugepagesize:" in found else None,
        },
    }


def _load_average(root: Path) -> float | None:
    try:
        return float(sysfs.text(root / "proc/loadavg").split()[0])
    except (IndexError, ValueError):
        return None
