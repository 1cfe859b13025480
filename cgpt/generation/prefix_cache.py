"""Prefix reuse: what begins as an earlier text began does not compute that beginning again.

A finished sequence is kept with its ids. Layers without a window still hold every position; those with one, a ring,
have lost all but the last, so their rings are copied now and then (kvcache.Snapshot: 3 MB in gpt-oss-20b). Any
snapshot within the common beginning is a place to go on from, exactly: in precision="exact" every bit is that of
computing from scratch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from cgpt.errors import InputError
from cgpt.generation.sampling import require_integer
from cgpt.models.kv_cache import Sequence, Snapshot

if TYPE_CHECKING:
    from cgpt.models.base import Model

MOST = 512  # sequences; each prompt is compared with all of them, while others wait
EVERY = 256  # positions between snapshots; one more at the end of each prompt, where another answer would begin


@dataclass(eq=False)
class Kept:
    """A sequence that has come to its end. ids: int64 [positions]; snapshots: by position, the last at the end."""

    ids: np.ndarray
    sequence: Sequence
    snapshots: list[Snapshot]

    @cached_property
    def nbytes(self) -> int:
        return self.sequence.nbytes + sum(snapshot.nbytes for snapshot in self.snapshots)

    def resumable(self, ids: np.ndarray) -> Snapshot | None:
        """The farthest place where these ids and its own are still the same."""
        most = min(len(ids), len(self.ids))
        differ = np.flatnonzero(ids[:most] != self.ids[:most])
        common = int(differ[0]) if len(differ) else most
        if not any(self.snapshots[-1].rings):
            return Snapshot(common, self.snapshots[-1].rings) if common else None
        return max((s for s in self.snapshots if s.position <= common), key=lambda s: s.position, default=None)


class PrefixCache:
    """Finished sequences of one model, the most recently used ones that fit into max_bytes; MOST at the most.

    For one thread at a time, the one that runs the model's steps: give it to generate(), stream() or Scheduler.
    reused, computed: the positions of prompts that were found here, and those that were not, so far.
    """

    def __init__(self, model: Model, max_bytes: int = 2_000_000_000) -> None:
        """max_bytes: of keys, values and snapshots."""
        self.model = model
        self.max_bytes = require_integer("max_bytes", max_bytes, low=0)
        self.reused = self.computed = 0
        self._kept: list[Kept] = []  # the least recently used first
        self._running: WeakKeyDictionary[Sequence, list[Snapshot]] = WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def nbytes(self) -> int:
        return sum(kept.nbytes for kept in self._kept)

    def begin(self, model: Model, ids: list[int], context: int, slack: int = 0) -> Sequence:
        """A sequence with room for `context` positions that holds as many of the prompt's ids as can be had, and
        never its last, which is what the answer's first logits come from."""
        if model is not self.model:
            raise InputError("this prefix cache belongs to another model or precision; make one for this model")
        sequence = model.new_sequence(context, max(slack, 1))  # saw() looks back by one
        wanted = np.array(ids[:-1], np.int64)
        found = [(place.position, i, place) for i, kept in enumerate(self._kept) if (place := kept.resumable(wanted))]
        if found:
            _, i, place = max(found, key=lambda one: one[:2])
            kept = self._kept.pop(i)
            self._kept.append(kept)
            sequence.resume(kept.sequence, place)
            self._running[sequence] = [s for s in kept.snapshots if s.position <= place.position]
        self.reused += sequence.position
        self.computed += len(ids) - sequence.position
        return sequence

    def saw(self, sequence: Sequence, prompt: int) -> None:
        """To be told after each step of a sequence whose prompt had so many ids: takes a snapshot where one is due."""
        snapshots = self._running.setdefault(sequence, [])
        last = snapshots[-1].position if snapshots else 0
        place = prompt - 1 if sequence.position == prompt else sequence.position  # the same prompt may come again
        if place > last and (sequence.position == prompt or place >= last + EVERY):
            snapshots.append(sequence.snapshot(place))

    def copied(self, source: Sequence, sequence: Sequence) -> None:
        """To be told of a sequence that resumed where another one is."""
        self._running[sequence] = list(self._running.get(source, ()))

    def keep(self, sequence: Sequence, ids: list[int]) -> None:
        """Keeps a sequence that nobody will extend, and the first of these ids, which it holds."""
        snapshots = self._running.pop(sequence, [])
        if not snapshots or snapshots[-1].position < sequence.position:
            snapshots.append(sequence.snapshot())
        new = Kept(np.array(ids[: sequence.position], np.int64), sequence, snapshots)
        # One that the new one begins with serves nobody any more, but for its snapshots.
        begun = [old for old in self._kept if np.array_equal(old.ids, new.ids[: len(old.ids)])]
        places = {snapshot.position: snapshot for one in (*begun, new) for snapshot in one.snapshots}
        new.snapshots = [places[position] for position in sorted(places)]
        self._kept = [old for old in self._kept if old not in begun] + [new]
        while len(self._kept) > MOST or (self._kept and self.nbytes > self.max_bytes):
            self._kept.pop(0)
