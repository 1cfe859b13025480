"""What was found, on a terminal: a block for each step, and all verdicts at a glance."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import wrap
from typing import Any

from cgpt.analysis.info import plural
from cgpt.bench.report import columns, span
from cgpt.evolution.units import shown
from cgpt.evolution.verdict import UNCLEAR, percent, times

WIDTH = 126
_COLUMNS = (-40, 9, 9, 9, 9, 19, 17)  # the first to the left
Found = Mapping[str, Any]


def render(result: Found) -> str:
    """The dictionary of cgpt.evolution.session.run as text."""
    return "\n\n".join([heading(result), *(_step(step) for step in result["steps"]), glance(result["steps"])])


def heading(result: Found) -> str:
    """The machine and the shapes."""
    s, (reads, peaks) = result["setting"], rooflines(result)
    contexts = ", ".join(f"{n:,}" for n in s["contexts"])
    return (
        f"{result['cpu_info']}, {result['level']}, {plural(result['threads'], 'thread')}: memory {reads} GB/s, "
        f"{peaks} GFLOP/s {result['rooflines'][0]['dtype']}\nwidth {s['width']:,}, {s['heads']} query heads on "
        f"{s['kv_heads']} key/value heads; contexts {contexts}; prompts of {s['prompt']}"
    )


def rooflines(result: Found) -> tuple[str, str]:
    """(GB/s, GFLOP/s) that the machine reached, as ranges."""
    found = result["rooflines"]
    return span((r["read_bytes_per_s"] for r in found), 0), span((r["flops_per_s"] for r in found), 0)


def _step(step: Found) -> str:
    title = f"{step['number']:2d}  {step['title']}"
    lines = [f"{title:{WIDTH - 16}}{step['verdict']:>16}", *_wrapped("claimed: " + step["claim"])]
    if step["cases"]:
        lines.append(columns(["", "old", "new", "ratio", "counted", "bytes", "operations"], _COLUMNS))
    for old, new in dict.fromkeys(_names(case) for case in step["cases"]):
        lines.append(f"   {old} -> {new}")
        lines += [_case(case) for case in step["cases"] if _names(case) == (old, new)]
    lines += [f"    {fact_text(fact)}" for fact in step["facts"]]
    lines += _wrapped("here: " + step["line"])
    lines += [f"    noisy: {warning}" for warning in step["warnings"]]
    return "\n".join(lines)


def _names(case: Found) -> tuple[str, str]:
    return case["old"]["name"], case["new"]["name"]


def _case(case: Found) -> str:
    old, new = case["old"], case["new"]
    cells = [f"    {case['label']}", shown(old["median_s"], "s"), shown(new["median_s"], "s"), ratio(case)]
    cells.append(times(case["counted"]) if case["counted"] else "")
    cells += [pair(old["bytes"], new["bytes"], "B"), pair(old["flops"], new["flops"], "FLOP")]
    return f"{columns(cells, _COLUMNS)}  {case['verdict']}"


def ratio(case: Found) -> str:
    """Old time / new time, or a part's share of the whole."""
    return percent(case["ratio"]) if case["claim"] in ("share", "portion") else times(case["ratio"])


def pair(old: float, new: float, unit: str) -> str:
    """The two figures as text: one where they are the same, none where nothing was counted."""
    if not (old or new):
        return ""
    texts = [shown(value, unit).removesuffix("FLOP") for value in (old, new)]
    return texts[0] if texts[0] == texts[1] else " > ".join(texts)


def fact_text(fact: Found) -> str:
    mark = {None: "", True: ", as claimed", False: ", NOT as claimed"}[fact["holds"]]
    old = "" if fact["old"] is None else f"{shown(fact['old'], fact['unit'])} -> "
    return f"{fact['label']}: {old}{shown(fact['new'], fact['unit'])}{mark}"


def glance(steps: list[Found]) -> str:
    """A line for each step."""
    lines = [f"{step['number']:2d}  {step['title']:46}{step['verdict']:16}{extremes(step)}".rstrip() for step in steps]
    return "\n".join(["At a glance: the claim, and old time / new time", *lines])


def extremes(step: Found) -> str:
    """The least and the most that a step's new way gained; else the largest share that it has."""
    clear = [case for case in step["cases"] if case["verdict"] != UNCLEAR]
    ratios = sorted(case["ratio"] for case in clear if case["claim"] in ("faster", "free"))
    if not ratios:
        shares = [case["ratio"] for case in clear if case["claim"] == "share"]
        return f"{percent(max(shares))} of a block" if shares else ""
    return times(ratios[0]) if len(ratios) == 1 else f"{times(ratios[0])} to {times(ratios[-1])}"


def _wrapped(text: str) -> list[str]:
    return wrap(text, WIDTH, initial_indent="    ", subsequent_indent="      ", break_on_hyphens=False)
