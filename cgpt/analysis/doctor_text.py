"""What cgpt.analysis.doctor found, as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

WIDTH = 110
DENSE = {None: "as published", "bf16": 'dense="bf16"', "int8": 'dense="int8"'}


def render(facts: Mapping[str, Any]) -> str:
    """The facts of cgpt.analysis.doctor.examine, to be read at one glance."""
    lines = [
        ("level", _level(facts["level"]) + _settings(facts["environment"], "CGPT_")),
        ("cores", _cores(facts["cpu"], facts["usable"])),
        ("threads", _threads(facts["threads"]) + _settings(facts["environment"], "OMP_", "GOMP_")),
        ("memory", _memory(facts["memory"])),
        ("load", _load(facts["load"])),
        ("measured", _roof(facts["roof"])),
    ]
    parts = [f"cgpt {facts['cgpt']} on {facts['cpu']['name']}", *(f"  {label:<10}{text}" for label, text in lines)]
    parts += ["", *_table(facts["models"]), "", *_footnote(facts)]
    for line in facts["advice"]:
        parts += textwrap.wrap(line, WIDTH, initial_indent="! ", subsequent_indent="  ", break_long_words=False)
    return "\n".join(parts if facts["advice"] else [*parts, "nothing stands in the way"])


def _level(level: Mapping[str, Any]) -> str:
    above = next((f"{name} needs {missing}" for name, missing in level["missing"].items() if missing), None)
    return level["in_use"] + (f"; {above}" if above else "")


def _cores(cpu: Mapping[str, Any], usable: Mapping[str, Any]) -> str:
    text = _of(cpu["cores"], "core")
    if cpu["efficient_cores"]:
        text += f" ({cpu['cores'] - cpu['efficient_cores']} performance, {cpu['efficient_cores']} efficiency)"
    text += f", {_of(cpu['cpus'], 'CPU')} ({'SMT' if cpu['cpus'] > cpu['cores'] else 'no SMT'})"
    text += f", {_of(cpu['packages'], 'socket')}"
    if cpu["numa_nodes"]:
        text += f", {_of(len(cpu['numa_nodes']), 'NUMA node')}"
    usable_text = f"{_of(usable['cores'], 'core')} and {_of(usable['cpus'], 'CPU')}"
    if (usable["cores"], usable["cpus"]) == (cpu["cores"], cpu["cpus"]):
        usable_text = "all of them"
    quota = "no quota" if usable["quota"] is None else f"a quota of {usable['quota']:.3g} CPUs"
    return f"{text}; this process may use {usable_text}, {quota}"


def _threads(threads: Mapping[str, Any]) -> str:
    text = f"{threads['default']} by default"
    if threads["in_use"] != threads["default"]:
        text += f", {threads['in_use']} asked for"
    return text + (", OpenMP" if threads["openmp"] else ", no OpenMP in this build")


def _settings(environment: Mapping[str, str], *prefixes: str) -> str:
    return "".join(f"; {name}={value}" for name, value in environment.items() if name.startswith(prefixes))


def _memory(memory: Mapping[str, Any]) -> str:
    available = "unknown" if memory["available"] is None else f"{memory['available'] / 1e9:.1f} GB available"
    if memory["total"] is not None:
        available += f" of {memory['total'] / 1e9:.1f} GB"
    pages = memory["huge_pages"]
    reserved = f", {pages['reserved']} reserved" if pages["reserved"] else ""
    uses = " (--huge-pages copies mapped weights there)" if pages["transparent"] in ("always", "madvise") else ""
    return f"{available}; transparent huge pages: {pages['transparent'] or 'unknown'}{uses}{reserved}"


def _load(load: Mapping[str, Any]) -> str:
    parts = [] if load["average"] is None else [f"{load['average']:g} in the last minute"]
    if load["others"] is not None:
        parts.append(f"other processes used {load['others']:.0%} while measuring, steal {load['stolen']:.0%}")
    return "; ".join(parts) or "unknown"


def _roof(roof: Mapping[str, Any] | None) -> str:
    if roof is None:
        return "nothing (--no-measure)"
    return (
        f"{roof['read_bytes_per_s'] / 1e9:.1f} GB/s read, {_flops(roof['flops_per_s'])} in {roof['dtype']} "
        f"({roof['level']}), by {_of(roof['threads'], 'thread')}"
    )


def _flops(rate: float) -> str:
    return f"{rate / 1e12:.2f} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:.0f} GFLOP/s"


def _table(models: Mapping[str, Any]) -> list[str]:
    rows = [("", "", "weights", "fits up to", "decode tok/s", f"prompt of {models['context']} tok/s")]
    before = None
    for size in models["sizes"]:
        name, before = "" if size["name"] == before else size["name"], size["name"]
        fits = size["max_context"] != 0  # what does not fit comes from the disk, at no such rate
        rates = [_rate(size[what] if fits else None) for what in ("decode", "prompt")]
        rows.append((name, DENSE[size["dense"]], f"{size['weights'] / 1e9:.2f} GB", _fits(size), *rates))
    if all(size["decode"] is None for size in models["sizes"]):
        rows = [row[:4] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = [
        [
            *(c.ljust(w) for c, w in zip(row[:2], widths, strict=False)),
            *(c.rjust(w) for c, w in zip(row[2:], widths[2:], strict=False)),
        ]
        for row in rows
    ]
    return [("  " + "   ".join(row)).rstrip() for row in cells]


def _fits(size: Mapping[str, Any]) -> str:
    if size["max_context"] is None:
        return "unknown"
    if not size["max_context"]:
        return "does not fit"
    return f"{size['max_context']:,}" + ("" if size["fits"] else f" of {size['context']:,}")


def _rate(rate: Mapping[str, float] | None) -> str:
    return "-" if rate is None else f"{_figures(rate['expected'])} (< {_figures(rate['at_most'])})"


def _figures(number: float) -> str:
    """Two figures: an estimate has no more."""
    return f"{float(f'{number:.2g}'):,.{1 if number < 9.95 else 0}f}"


def _footnote(facts: Mapping[str, Any]) -> list[str]:
    if facts["roof"] is None:
        return []
    reached, context = facts["models"]["reached"], facts["models"]["context"]
    text = (
        f"Estimates, not measurements. In brackets the bound: bandwidth / bytes that a token reads after {context} "
        f"tokens; peak / FLOPs of a token of the prompt. Before it what to expect: {reached['decode']:.0%} and "
        f"{reached['prompt']:.0%} of the bound, which cgpt reached where it was measured (bench/SPEED.md)."
    )
    return [*textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  "), ""]


def _of(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
