"""A model on several ranks: how long they take to put vectors together, and what all of them can do together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from cgpt.bench.costs import matrix_bytes
from cgpt.machine import roofline
from cgpt.machine.roofline import Roofline
from cgpt.models.base import Transformer


class GatherClock:
    """with GatherClock(transformer) as clock: transformer.step(..) leaves in it the gathers of rank 0, their seconds,
    which waiting for slower ranks is part of, and the bytes that they completed. All 0 where there is one rank."""

    def __init__(self, model: Transformer) -> None:
        self.ranks: Any = model.ranks
        self.calls, self.seconds, self.bytes = 0, 0.0, 0

    def __enter__(self) -> GatherClock:
        if self.ranks is not None:
            self._kept = self.ranks.gather, self.ranks.collect
            self.ranks.gather, self.ranks.collect = map(self._watched, self._kept)
        return self

    def __exit__(self, *_: object) -> None:
        if self.ranks is not None:
            self.ranks.gather, self.ranks.collect = self._kept

    def _watched(self, gather: Callable[..., None]) -> Callable[..., None]:
        def call(y: Any, bounds: Sequence[int]) -> None:
            start = time.perf_counter()
            gather(y, bounds)
            self.seconds += time.perf_counter() - start
            self.calls += 1
            self.bytes += y.nbytes

        return call


def on_all(model: Transformer, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What function(*args) gives on each rank of a model, which call it at the same time."""
    return [function(*args)] if model.ranks is None else model.ranks.on_all(function, *args)


def measure_roofline(model: Transformer, seconds: float, precision: str) -> Roofline:
    """What all ranks of a model can do together: memory and cores, measured at the same time."""
    found = on_all(model, _roofline, model, seconds, precision)
    read, flops = sum(one.read_bytes_per_s for one in found), sum(one.flops_per_s for one in found)
    return Roofline(read, flops, found[0].level, found[0].dtype, sum(one.threads for one in found))


def _roofline(model: Transformer, seconds: float, precision: str) -> Roofline:
    return roofline.measure(model.threads, seconds, precision)


def ranks_per_first(model: Transformer) -> float:
    """The bytes of the weights of all ranks, in those of rank 0."""
    found = on_all(model, _weights, model)
    return float(sum(found) / found[0])


def _weights(model: Transformer) -> int:
    return sum(matrix_bytes(matrix) for _, matrix in model.matrices())
