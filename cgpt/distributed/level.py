"""The kernels that all ranks of a session can use: those of different levels give different bits."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from cgpt.errors import KernelError
from cgpt.kernels import _kernels, isa

MASKS = ("", *reversed(_kernels.FEATURES[1:]))  # from nothing on to all that can be
_lock = threading.Lock()
Candidate = tuple[str, str]


def use_common_level(exchange: Callable[[Any], list[Any]]) -> tuple[str, list[str]]:
    """Takes the best level, with as little masked as goes, at which all ranks have the same kernels, and none a better
    one than it has now. Returns what it now is and what each rank could have; exchange: gives every rank's value."""
    with _lock:
        before = _kernels.level(), os.environ.get("CGPT_MASK", "")
        offered = kernel_tables(before)
    found = exchange((_name(before), offered))
    for name, mask in reversed(offered):
        if all(others.get((name, mask)) == offered[name, mask] for _, others in found):
            if _kernels.kernels() != offered[name, mask]:
                _kernels.use_level(name, mask=mask)
            return _name((name, mask)), [own for own, _ in found]
    raise KernelError("the ranks have no kernels in common; use machines of one architecture")


def kernel_tables(before: Candidate) -> dict[Candidate, dict[str, str]]:
    """{(level, mask): its kernels} of what this process may use, the best last."""
    tables = {}
    names, masks = list(_kernels.levels()), MASKS[MASKS.index(before[1]) :]
    try:
        for name in names[: names.index(before[0]) + 1]:
            for mask in reversed(masks):
                try:
                    _kernels.use_level(name, mask=mask)
                except KernelError:
                    continue
                tables[name, mask] = isa.kernels()
    finally:
        _kernels.use_level(before[0], mask=before[1])
    return tables


def _name(candidate: Candidate) -> str:
    level, mask = candidate
    return f"{level} without {mask}" if mask else level
