"""A step of which some sequences fail: they are told from the others, which get what they would get without them."""

from __future__ import annotations

from collections.abc import Sequence as Places
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from cgpt.models.base import Model
    from cgpt.models.kv_cache import Sequence

Batch = list[tuple["Sequence", np.ndarray]]


def step_apart(model: Model, batch: Batch, **how: Any) -> tuple[np.ndarray | None, dict[int, Exception]]:
    """model.step(batch, **how), and for each place in the batch that failed why it did. The rows of these mean nothing,
    nor do their sequences hold anything; where all failed there are no rows.

    An error that names its sequences (NumericsError) costs another step, of the others. Any other is looked for by
    halves: it may go with a smaller batch, as where memory is short.
    """
    try:
        return model.step(batch, **how), {}
    except Exception as failure:
        problem = failure
    blamed = {id(sequence) for sequence in getattr(problem, "sequences", ())}
    bad = [place for place, (sequence, _) in enumerate(batch) if id(sequence) in blamed or len(batch) == 1]
    good, half = [place for place in range(len(batch)) if place not in bad], len(batch) // 2
    groups = [good] if bad else [good[:half], good[half:]]
    problems, out = dict.fromkeys(bad, problem), None
    for group in filter(None, groups):
        for place in group:
            batch[place][0].undo()
        found, failed = step_apart(model, [batch[place] for place in group], **how)
        problems |= {group[place]: why for place, why in failed.items()}
        if found is not None:
            rows = _rows(batch, how.get("rows"))
            out = np.zeros((rows[-1].stop, found.shape[1]), np.float32) if out is None else out
            out[np.concatenate([rows[place] for place in group])] = found
    return out, problems


def _rows(batch: Batch, rows: str | None) -> Places[range]:
    """Where a step's result has each sequence's rows."""
    ends = np.cumsum([len(ids) if rows == "all" else 1 for _, ids in batch])
    return [range(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
