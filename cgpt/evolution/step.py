"""What a step is: a claim, what is run to test it, and what is only counted."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cgpt.evolution.measure import Case
from cgpt.evolution.setting import Setting


@dataclass(frozen=True)
class Fact:
    """A figure that no timing is needed for. unit: as cgpt.evolution.units knows it. old: GPT-2's way of it, if there
    is one. claimed: between what `new` should lie, where something is claimed of it."""

    label: str
    unit: str
    new: float
    old: float | None = None
    claimed: tuple[float, float] | None = None

    @property
    def holds(self) -> bool | None:
        return None if self.claimed is None else self.claimed[0] <= self.new <= self.claimed[1]


@dataclass(frozen=True)
class Step:
    """cases: one at a time, so that the operands of each can go before the next are made. note: what the figures leave
    out."""

    number: int
    title: str
    cases: Callable[[Setting], Iterator[Case]]
    facts: Callable[[Setting], list[Fact]]
    claim: str
    note: str = ""


def tokens(T: int) -> str:
    """What is read at once, in words."""
    return "one token" if T == 1 else f"prompt of {T}"


def rounded(value: float, digits: int, unit: float = 1) -> tuple[float, float]:
    """The bounds of what rounds to a published `value` of so many decimals, times `unit`."""
    half = 0.5 * 10.0**-digits
    return (value - half) * unit, (value + half) * unit
