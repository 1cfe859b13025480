"""Failures within a step: the sequences that fail are told from the others, which get what they would get alone."""

import numpy as np

from cgpt.errors import CheckpointError, ModelClosed
from cgpt.models.base import Floats, Ids, Rows, Transformer
from cgpt.models.kv_cache import KVCache


def step_isolated(
    transformer: Transformer, batch: list[tuple[KVCache, Ids]], *, rows: Rows = "last", head: bool = True
) -> tuple[Floats | None, dict[int, Exception]]:
    """Steps over the batch; returns the step's result and, by index in the batch, why each sequence that failed did.

    The rows of those that failed mean nothing, nor do their caches hold anything; where all failed there is no result.
    An error that names its caches (NumericsError) costs another step, of the others. The cause of any other is searched
    for by halves: it may go with a smaller batch, as where memory is short. A model that is gone fails for all at once.
    """
    try:
        return transformer.step(batch, rows=rows, head=head), {}
    except (CheckpointError, ModelClosed) as gone:
        return None, dict.fromkeys(range(len(batch)), gone)
    except Exception as raised:
        error = raised
    blamed = {id(cache) for cache in getattr(error, "caches", ())}
    bad = [i for i, (cache, _) in enumerate(batch) if id(cache) in blamed or len(batch) == 1]
    good, half = [i for i in range(len(batch)) if i not in bad], len(batch) // 2
    groups = [good] if bad else [good[:half], good[half:]]
    errors: dict[int, Exception] = dict.fromkeys(bad, error)
    out = None
    for group in filter(None, groups):
        for i in group:
            batch[i][0].rollback()
        found, failed = step_isolated(transformer, [batch[i] for i in group], rows=rows, head=head)
        errors |= {group[i]: why for i, why in failed.items()}
        if found is not None:
            of_each = _rows(batch, rows)
            out = np.zeros((of_each[-1].stop, found.shape[1]), np.float32) if out is None else out
            out[np.concatenate([of_each[i] for i in group])] = found
    return out, errors


def _rows(batch: list[tuple[KVCache, Ids]], rows: Rows) -> list[range]:
    """The rows of a step's result that belong to each sequence."""
    ends = np.cumsum([len(ids) if rows == "all" else 1 for _, ids in batch]).tolist()
    return [range(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
