"""The steps, run: one dictionary with everything that was found, which json can write."""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from typing import Any

from cgpt.bench.noise import Watch, warnings
from cgpt.checkpoint.sizes import SIZES
from cgpt.evolution import verdict
from cgpt.evolution.measure import Case, Way, alternate, counted
from cgpt.evolution.setting import Setting
from cgpt.evolution.step import Step
from cgpt.evolution.steps_attention import VARIANTS
from cgpt.evolution.verdict import Verdict
from cgpt.kernels import isa
from cgpt.machine import roofline, topology
from cgpt.machine.roofline import Roofline
from cgpt.models.accounting import cache_bytes
from cgpt.models.description import describe
from cgpt.version import __version__

ROOFLINE_SECONDS = 0.4  # for each of the rooflines at most
DISTURBED = 0.2  # of the CPUs' time; beyond it threads wait for others at every barrier, and ratios are of the waiting
LONG_ENOUGH = 0.25  # seconds for which the system's counters, which count hundredths, say as much
CONTEXTS = tuple(2**n for n in range(7, 18))  # 128 to 131,072: those of the cache's curves


def run(setting: Setting, steps: Sequence[Step], say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Everything that is measured and counted at `setting`; say(text) is told what comes next. The result holds
    cgpt_version, test_time, cpu_info, level, threads, setting; rooflines (before each step and at the end), steps (see
    _step), models {published size: parameters and checkpoint} and caches {variant: [[positions, bytes], ..]}.
    """
    rooflines, found = [_roofline(setting)], []
    for step in steps:
        say(f"{step.number:2d} {step.title}")
        found.append(_step(setting, step, rooflines, say))
    return {
        "cgpt_version": __version__,
        "test_time": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "cpu_info": topology.cpu_name(),
        "level": isa.level(),
        "threads": setting.threads,
        "setting": _fields(setting, "width", "heads", "kv_heads", "contexts", "prompt", "seconds"),
        "rooflines": [asdict(top) for top in rooflines],
        "steps": found,
        "models": {name: _model(name) for name in SIZES},
        "caches": {name: [[n, cache_bytes(c, n)] for n in CONTEXTS] for name, c in VARIANTS.items()},
    }


def _roofline(setting: Setting) -> Roofline:
    return roofline.measure(setting.threads, min(ROOFLINE_SECONDS, 2 * setting.seconds))


def _step(setting: Setting, step: Step, rooflines: list[Roofline], say: Callable[[str], None]) -> dict[str, Any]:
    """A step: number, title, claim, note, cases, facts, verdict (one word), line (one sentence), warnings."""
    watch, timed = Watch(), []
    for case in step.cases(setting):
        say(f"   {case.label}")
        during, start = Watch(), time.perf_counter()
        samples = alternate(case, setting.seconds)
        taken = _taken(during) if time.perf_counter() - start >= LONG_ENOUGH else None
        case = replace(case, old=replace(case.old, turns=()), new=replace(case.new, turns=()))
        timed.append((case, *samples, taken))  # its operands go before the next are made
        gc.collect()
    shares, faults, overall = watch.shares(), watch.faults(), _taken(watch)
    rooflines.append(_roofline(setting))
    cases, found = [], []
    for case, old, new, taken in timed:
        promised, share = counted(case, _best(rooflines)), overall if taken is None else taken
        judged = verdict.judge(case.claim, old, new, promised, case.within)
        judged = verdict.disturbed(judged, share) if share > DISTURBED else judged
        cases.append(_case(case, old, new, promised, judged))
        found.append((case.label, judged))
    facts = step.facts(setting)
    return {
        **_fields(step, "number", "title", "claim", "note"),
        "cases": cases,
        "facts": [asdict(fact) | {"holds": fact.holds} for fact in facts],
        "verdict": verdict.of_step([judged.kind for _, judged in found], [fact.holds for fact in facts]),
        "line": verdict.line(found, [(fact.label, fact.holds) for fact in facts]),
        # How far repetitions differ is in each ratio's interval.
        "warnings": warnings([1.0], *shares, rooflines[-2], rooflines[-1], faults),
    }


def _taken(watch: Watch) -> float:
    """What others and the host took of the CPUs' time, 0 where nothing tells."""
    return sum(share or 0.0 for share in watch.shares())


def _best(rooflines: Sequence[Roofline]) -> Roofline:
    """The most that was reached so far: what disturbs a roofline can only lower it."""
    read = max(roofline.read_bytes_per_s for roofline in rooflines)
    return replace(rooflines[-1], read_bytes_per_s=read, flops_per_s=max(top.flops_per_s for top in rooflines))


def _case(case: Case, old: list[float], new: list[float], promised: float | None, found: Verdict) -> dict[str, Any]:
    """The row of a case: label, phase, context, claim, within, old and new (see _way), counted, ratio, low, high,
    verdict, text; the figures of the ratio as in cgpt.evolution.verdict.Verdict."""
    return {
        **_fields(case, "label", "phase", "context", "claim", "within"),
        "old": _way(case.old, old),
        "new": _way(case.new, new),
        "counted": promised,
        **_fields(found, "ratio", "low", "high"),
        "verdict": found.kind,
        "text": found.text,
    }


def _way(way: Way, samples: list[float]) -> dict[str, Any]:
    return {
        "name": way.name,
        "median_s": statistics.median(samples),
        "samples_s": samples,
        "bytes": way.bytes,
        "flops": way.flops,
        "cache_bytes": way.cache,
        "parameters": way.parameters,
    }


def _fields(source: object, *names: str) -> dict[str, Any]:
    """{name: value} of some attributes, in this order."""
    return {name: getattr(source, name) for name in names}


def _model(name: str) -> dict[str, Any]:
    facts = describe(name)
    return {"parameters": facts["parameters"], "disk": facts["bytes"]["disk"]}
