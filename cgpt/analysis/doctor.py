"""What this machine offers cgpt, and what stands in the way: the facts of `cgpt doctor`."""

import os
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cgpt.analysis.advice import advice
from cgpt.analysis.info import plural
from cgpt.kernels import _kernels, isa
from cgpt.machine import huge_pages, sysfs, topology
from cgpt.machine.cpu_time import CpuTime
from cgpt.machine.disk import DiskRate
from cgpt.machine.memory import available_memory
from cgpt.machine.roofline import Roofline
from cgpt.machine.threads import cpu_quota, default_threads, thread_count
from cgpt.models.forecast import CONTEXT, REACHED, VARIANTS, forecast
from cgpt.models.streaming_speed import said
from cgpt.version import __version__

Rows = list[tuple[str, ...]]
WIDTH = 110
DENSE = {
    None: "as published",
    "bf16": 'dense="bf16"',
    "bf16-packed": 'dense="bf16-packed"',
    "int8": 'dense="int8"',
    "int4": 'dense="int4"',
}
ENVIRONMENT = (
    "CGPT_ISA CGPT_MASK OMP_NUM_THREADS OMP_THREAD_LIMIT OMP_WAIT_POLICY GOMP_SPINCOUNT OMP_PROC_BIND OMP_PLACES "
    "GOMP_CPU_AFFINITY"
).split()


def examine(
    threads: int | None = None,
    measure: Callable[[int], Roofline] | None = None,
    root: Path = Path("/"),
    disk: tuple[Path, DiskRate] | None = None,
) -> dict[str, Any]:
    """Facts about this machine, which json can write. Numbers are bytes, bytes/s, FLOP/s or counts; None: unknown.

    threads: as load() would be told; default its default. measure: takes a number of threads and gives the roofline as
    machine.roofline.measure does; None measures nothing. root: the root of the file system that holds proc and sys.
    disk: a file of a checkpoint, and the rate machine.disk.disk_rate found there.
    The result holds
      cgpt: the version; environment: the variables set that change what cgpt does;
      level: in_use, and missing {level: what keeps it out, or None};
      cpu: of the machine: name, packages, cores, efficient_cores (of these), cpus, numa_nodes [{node, cpus, memory}];
      usable: of these: cpus (affinity), cores, quota (in CPUs);
      threads: default, in_use, runtime ("OpenMP" or "pthreads");
      memory: available (within the cgroup), total; huge_pages: transparent ("always", "madvise" or "never"), and of
        hugetlb's reserved, free and size;
      load: average (of the last minute, in CPUs), others and stolen (shares of the usable CPUs while measuring);
      roofline: read_bytes_per_s, flops_per_s, level, dtype and threads, or None;
      disk: file, bytes_per_second, request_bytes, readers and direct, or None;
      models: what cgpt.models.forecast says of each, at `context` tokens, with `reached` as shares of at_most;
      advice: sentences, where something stands in the way.
    """
    usable = topology.usable_cpus(root)
    default = default_threads(root)
    in_use = thread_count(default if threads is None else threads)
    before = CpuTime.now(usable, root)
    roofline = measure(in_use) if measure else None
    others, stolen = CpuTime.now(usable, root).shares_since(before) if measure else (None, None)
    rate = None if disk is None else disk[1]
    sizes = [forecast(name, dense, roofline, root, rate) for name, dense in VARIANTS]
    facts = {
        "cgpt": __version__,
        "environment": {name: os.environ[name] for name in ENVIRONMENT if os.environ.get(name)},
        "level": {"in_use": isa.level(), "missing": isa.levels()},
        "cpu": _cpu(root),
        "usable": {"cpus": len(usable), "cores": len(topology.cores(usable, root)), "quota": cpu_quota(root)},
        "threads": {"default": default, "in_use": in_use, "runtime": _kernels.thread_runtime()},
        "memory": _memory(root),
        "load": {"average": _load_average(root), "others": others, "stolen": stolen},
        "roofline": None if roofline is None else asdict(roofline),
        "disk": None if disk is None else {"file": str(disk[0]), **asdict(disk[1])},
        "models": {"context": CONTEXT, "reached": REACHED, "sizes": sizes},
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
    return {
        "available": available_memory(root),
        "total": found.get("MemTotal:"),
        "huge_pages": {
            "transparent": huge_pages.transparent(root),
            "reserved": found.get("HugePages_Total:"),
            "free": found.get("HugePages_Free:"),
            "size": found.get("Hugepagesize:"),
        },
    }


def _load_average(root: Path) -> float | None:
    found = re.match(r"\d+\.\d+", sysfs.text(root / "proc/loadavg"))
    return float(found[0]) if found else None


# -------------------------------------------------------------------------------------------------------- text


def render(facts: Mapping[str, Any]) -> str:
    """What examine() found, to be read at one glance."""
    lines = [
        ("level", _level_text(facts["level"]) + _settings(facts["environment"], "CGPT_")),
        ("cores", _cores_text(facts["cpu"], facts["usable"])),
        ("threads", _threads_text(facts["threads"]) + _settings(facts["environment"], "OMP_", "GOMP_")),
        ("memory", _memory_text(facts["memory"])),
        ("load", _load_text(facts["load"])),
        ("measured", _roofline_text(facts["roofline"])),
        *([("disk", _disk_text(facts["disk"]))] if facts["disk"] else []),
    ]
    parts = [f"cgpt {facts['cgpt']} on {facts['cpu']['name']}", *(f"  {label:<10}{text}" for label, text in lines)]
    parts += ["", *_table(facts["models"]), "", *_footnote(facts)]
    for line in facts["advice"]:
        parts += textwrap.wrap(line, WIDTH, initial_indent="! ", subsequent_indent="  ", break_long_words=False)
    return "\n".join(parts if facts["advice"] else [*parts, "nothing stands in the way"])


def _level_text(level: Mapping[str, Any]) -> str:
    above = next((f"{name} needs {missing}" for name, missing in level["missing"].items() if missing), None)
    return str(level["in_use"]) + (f"; {above}" if above else "")


def _cores_text(cpu: Mapping[str, Any], usable: Mapping[str, Any]) -> str:
    text = plural(cpu["cores"], "core")
    if cpu["efficient_cores"]:
        text += f" ({cpu['cores'] - cpu['efficient_cores']} performance, {cpu['efficient_cores']} efficiency)"
    text += f", {plural(cpu['cpus'], 'CPU')} ({'SMT' if cpu['cpus'] > cpu['cores'] else 'no SMT'})"
    text += f", {plural(cpu['packages'], 'socket')}"
    if cpu["numa_nodes"]:
        text += f", {plural(len(cpu['numa_nodes']), 'NUMA node')}"
    usable_text = f"{plural(usable['cores'], 'core')} and {plural(usable['cpus'], 'CPU')}"
    if (usable["cores"], usable["cpus"]) == (cpu["cores"], cpu["cpus"]):
        usable_text = "all of them"
    quota = "no quota" if usable["quota"] is None else f"a quota of {usable['quota']:.3g} CPUs"
    return f"{text}; this process may use {usable_text}, {quota}"


def _threads_text(threads: Mapping[str, Any]) -> str:
    text = f"{threads['default']} by default"
    if threads["in_use"] != threads["default"]:
        text += f", {threads['in_use']} asked for"
    return f"{text}, {threads['runtime']}"


def _settings(environment: Mapping[str, str], *prefixes: str) -> str:
    return "".join(f"; {name}={value}" for name, value in environment.items() if name.startswith(prefixes))


def _memory_text(memory: Mapping[str, Any]) -> str:
    available = "unknown" if memory["available"] is None else f"{memory['available'] / 1e9:.1f} GB available"
    if memory["total"] is not None:
        available += f" of {memory['total'] / 1e9:.1f} GB"
    pages = memory["huge_pages"]
    reserved = f", {pages['reserved']} reserved" if pages["reserved"] else ""
    uses = " (--huge-pages copies mapped weights there)" if pages["transparent"] in ("always", "madvise") else ""
    return f"{available}; transparent huge pages: {pages['transparent'] or 'unknown'}{uses}{reserved}"


def _load_text(load: Mapping[str, Any]) -> str:
    parts = [] if load["average"] is None else [f"{load['average']:g} in the last minute"]
    if load["others"] is not None:
        parts.append(f"other processes used {load['others']:.0%} while measuring, steal {load['stolen']:.0%}")
    return "; ".join(parts) or "unknown"


def _roofline_text(roofline: Mapping[str, Any] | None) -> str:
    if roofline is None:
        return "nothing (--no-measure)"
    return (
        f"{roofline['read_bytes_per_s'] / 1e9:.1f} GB/s read, {_flops(roofline['flops_per_s'])} in {roofline['dtype']} "
        f"({roofline['level']}), by {plural(roofline['threads'], 'thread')}"
    )


def _disk_text(disk: Mapping[str, Any]) -> str:
    how = "past the page cache" if disk["direct"] else "through the page cache, which may hold a part of it"
    return (
        f"{disk['bytes_per_second'] / 1e9:.2f} GB/s in requests of {disk['request_bytes'] / 1e6:.1f} MB by "
        f"{plural(disk['readers'], 'thread')}, {how}, from {disk['file']}"
    )


def _flops(rate: float) -> str:
    return f"{rate / 1e12:.2f} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:.0f} GFLOP/s"


def _table(models: Mapping[str, Any]) -> list[str]:
    rows: Rows = [("", "", "weights", "fits up to", "decode tok/s", f"prompt of {models['context']} tok/s")]
    before = None
    for size in models["sizes"]:
        name, before = "" if size["name"] == before else size["name"], size["name"]
        fits = size["max_context"] != 0  # what does not fit comes from the disk, at no such rate
        rates = [_rate(size[what] if fits else None) for what in ("decode", "prompt")]
        rows.append((name, DENSE[size["dense"]], f"{size['weights'] / 1e9:.2f} GB", _fits(size), *rates))
    if all(size["decode"] is None for size in models["sizes"]):
        rows = [row[:4] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [c.ljust(w) if n < 2 else c.rjust(w) for n, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append(("  " + "   ".join(cells)).rstrip())
    return lines


def _fits(size: Mapping[str, Any]) -> str:
    if size["max_context"] is None:
        return "unknown"
    streaming = size["streaming"]
    if streaming and streaming["memory"]:
        speeds = streaming["tokens_per_second"]
        return f"streamed, {said(speeds)}" if speeds else "streamed"
    if not size["max_context"]:
        return "does not fit"
    return f"{size['max_context']:,}" + ("" if size["fits"] else f" of {size['context']:,}")


def _rate(rate: Mapping[str, float] | None) -> str:
    return "-" if rate is None else f"{_figures(rate['expected'])} (< {_figures(rate['at_most'])})"


def _figures(number: float) -> str:
    """Two figures: an estimate has no more."""
    return f"{float(f'{number:.2g}'):,.{1 if number < 9.95 else 0}f}"


def _footnote(facts: Mapping[str, Any]) -> list[str]:
    if facts["roofline"] is None:
        return []
    reached, context = facts["models"]["reached"], facts["models"]["context"]
    text = (
        f"Estimates, not measurements. In brackets the bound: bandwidth / bytes that a token reads after {context} "
        f"tokens; peak / FLOPs of a token of the prompt. Before it what to expect: {reached['decode']:.0%} and "
        f"{reached['prompt']:.0%} of the bound, which cgpt reached where it was measured (bench/SPEED.md)."
    )
    return [*textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  "), ""]
