"""Two ways of doing the same, timed in turn: A B A B, so that what disturbs the machine disturbs both."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import Any

from cgpt.bench.costs import cost
from cgpt.machine.roofline import Roofline

SAMPLE = 0.0005  # seconds that a sample takes at least: short calls are repeated
PAIRS, FEW = 9, 3  # so many, if they fit into LONG; so many in any case
LONG = 2.0  # seconds
Call = partial[None]  # of a kernel


@dataclass(frozen=True)
class Way:
    """turns: what is called, one after the other, then from the first again; several, so that weights and caches come
    from memory. bytes, flops: of one turn. cache: bytes of keys and values that it reads, counted in `bytes`. cached:
    its operands stay in the processor's caches."""

    name: str
    turns: Sequence[Callable[[], object]]
    bytes: int
    flops: int
    cache: int = 0
    parameters: int = 0
    cached: bool = False


@dataclass(frozen=True)
class Case:
    """What is measured. claim, within: as cgpt.evolution.verdict.judge. context: the positions, where they vary."""

    phase: str
    old: Way
    new: Way
    claim: str
    within: float = 0.05
    context: int | None = None

    @property
    def label(self) -> str:
        return self.phase if self.context is None else f"{self.phase} at {self.context:,}"


def way(name: str, turns: Sequence[Sequence[Call]], moved: int = 0, flops: int = 0, **more: Any) -> Way:
    """A way made of kernel calls. Bytes and operations are those that cgpt.bench.costs counts, on average, and
    `moved` and `flops` of what it leaves out: activations."""
    counted = [cost(call.func.__name__, call.args, call.keywords) for turn in turns for call in turn]
    read, done = (round(sum(each) / len(turns)) for each in zip(*counted, strict=True))
    run = [turn[0] if len(turn) == 1 else partial(_run, turn) for turn in turns]
    return Way(name, run, read + moved, done + flops, **more)


def _run(calls: Sequence[Call]) -> None:
    for call in calls:
        call()


def counted(case: Case, roofline: Roofline) -> float | None:
    """How much faster the new way is by its bytes and operations: the ratio of what each takes at the roofline. None
    where that does not bound the times: nothing is counted, or it all lies in caches."""
    if case.claim not in ("faster", "free") or case.old.cached or case.new.cached:
        return None
    old, new = (max(w.bytes / roofline.read_bytes_per_s, w.flops / roofline.flops_per_s) for w in (case.old, case.new))
    return old / new if old and new else None


def alternate(case: Case, seconds: float) -> tuple[list[float], list[float]]:
    """Seconds of a call, of both ways in pairs: PAIRS or the fewer that fit into LONG, at least FEW, and as many as fit
    into `seconds`; after a warm-up."""
    sides = [_Side(case.old), _Side(case.new)]
    enough = min(PAIRS, max(FEW, int(LONG / sum(side.first for side in sides))))
    samples: tuple[list[float], list[float]] = [], []
    end = time.perf_counter() + seconds
    while len(samples[0]) < enough or time.perf_counter() < end:
        for side, found in zip(sides, samples, strict=True):
            found.append(side.sample())
    return samples


class _Side:
    def __init__(self, way: Way) -> None:
        self._turns, self._calls = cycle(way.turns), 1
        self.first = self.sample()  # also the warm-up
        if self.first < SAMPLE:
            self.first = min(self.sample() for _ in range(5))
            self._calls = max(1, round(SAMPLE / self.first))

    def sample(self) -> float:
        turns = islice(self._turns, self._calls)
        start = time.perf_counter()
        for turn in turns:
            turn()
        return (time.perf_counter() - start) / self._calls
