"""One model over several processes, its ranks: who computes which outputs, and what they need of each other.

The outputs of every product are split between the ranks, and what they computed is gathered. A sum is never split, so
the results have the bits of one process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

OUTPUTS = 16  # the unit of a split: what kernels compute together


class Ranks(Protocol):
    """The processes that compute one model together: distributed.Session. Each does the same steps in the same order,
    as rank 0 says, who alone is asked for anything."""

    rank: int
    size: int
    on_host: int  # how many of them share this one's machine

    def gather(self, y: npt.NDArray[np.float32], bounds: Sequence[int]) -> None:
        """Completes y [T, N], of which each rank has the columns from bounds[rank] up to bounds[rank + 1], on all."""

    def collect(self, y: npt.NDArray[np.float32], bounds: Sequence[int]) -> None:
        """The same on rank 0 alone. The others' y [T, n] has their own columns only."""

    def lead(self, what: str, model: object, *args: Any, **options: Any) -> AbstractContextManager[None]:
        """Within it all ranks call the method `what` of their model, which rank 0 begins, one such call at a time."""

    def on_all(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What function(*args) gives on each rank, which all call at once."""

    def track(self, what: str, source: object, made: object, *args: Any) -> None:
        """Rank 0 made an object (a cache, a snapshot, a model) by the method `what` of another one: the others do, too,
        until it is gone."""

    def record(self, what: str, target: object, *args: Any) -> None:
        """Rank 0 called a method of a tracked object: the others do, before the next step."""


@dataclass(frozen=True)
class Split:
    """Who has which of the outputs of a product: rank r those from bounds[r] up to bounds[r + 1], and this one `count`
    from `start` on."""

    bounds: tuple[int, ...]
    start: int
    count: int

    def rows(self, first: int = 0) -> slice:
        """Those of this rank, where the outputs are numbered from `first` on."""
        return slice(first + self.start, first + self.start + self.count)

    def times(self, n: int) -> Split:
        """The same split where each output stands for n."""
        return Split(tuple(bound * n for bound in self.bounds), self.start * n, self.count * n)


def split(outputs: int, ranks: Ranks | None, unit: int = 1) -> Split:
    """As even a split as there is in whole units, if there is one for each rank."""
    if ranks is None:
        return Split((0, outputs), 0, outputs)
    unit = unit if outputs >= unit * ranks.size else 1
    bounds = (*(outputs // unit * r // ranks.size * unit for r in range(ranks.size)), outputs)
    start, end = bounds[ranks.rank : ranks.rank + 2]
    return Split(bounds, start, end - start)
