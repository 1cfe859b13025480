"""Prefix reuse: a prompt that begins as an earlier text began does not compute that beginning again.

A finished sequence is kept with its ids. Layers without a window still hold every position; those with one, a ring,
have lost all but the last, so their rings are copied now and then (kv_cache.Snapshot: 3 MB in gpt-oss-20b). Any
snapshot within the common beginning is a position to resume at, exactly: in precision="exact" every bit is that of
computing from scratch.
"""

import os
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np

from cgpt.arguments import checked_arguments, require_integer
from cgpt.errors import InputError
from cgpt.generation.prefix_store import DISK_BYTES, PrefixStore
from cgpt.generation.request import TextModel
from cgpt.models.base import Ids, Transformer
from cgpt.models.kv_cache import KVCache, Snapshot

MAX_ENTRIES = 512  # each prompt is compared with all of them, while others wait
SNAPSHOT_INTERVAL = 256  # positions; one more at the end of each prompt, where another answer would begin


@dataclass(eq=False)
class Entry:
    """A sequence that has come to its end. ids: int64 [positions]; snapshots: by position, the last at the end."""

    ids: Ids
    cache: KVCache
    snapshots: list[Snapshot]

    @cached_property
    def nbytes(self) -> int:
        """Bytes of keys, values and snapshots."""
        return self.cache.nbytes + sum(snapshot.nbytes for snapshot in self.snapshots)

    def resumable(self, ids: Ids) -> Snapshot | None:
        """The farthest position where these ids and its own are still the same, of those one can resume at."""
        n = min(len(ids), len(self.ids))
        differ = np.flatnonzero(ids[:n] != self.ids[:n])
        common = int(differ[0]) if len(differ) else n
        if not any(self.snapshots[-1].rings):
            return Snapshot(common, self.snapshots[-1].rings) if common else None
        return max((s for s in self.snapshots if s.position <= common), key=lambda s: s.position, default=None)


class PrefixCache:
    """Keeps finished sequences of one model, the most recently used ones that fit into max_bytes, 512 at most.

    For one thread at a time, the one that runs the model's steps: give it to generate(), stream() or Scheduler.
    num_reused, num_computed: the positions of prompts that were found here, and those that were not, so far;
    num_reused_from_disk: of those that were found, the ones that were read from the directory. store: what is there.
    """

    @checked_arguments
    def __init__(
        self,
        model: TextModel,
        max_bytes: int = 2_000_000_000,
        *,
        directory: str | os.PathLike[str] | None = None,
        disk_bytes: int = DISK_BYTES,
    ) -> None:
        """max_bytes: of keys, values and snapshots in memory. directory: keeps finished sequences there too, for later
        processes and for others beside this one, the most recently used ones of all models that fit into disk_bytes.
        Who may read it reads what was asked: it is made for its owner alone. See prefix_store for what is a miss."""
        if not isinstance(transformer := getattr(model, "transformer", None), Transformer):
            raise InputError(f"a prefix cache belongs to a model, as load() gives it, not to a {type(model).__name__}")
        if directory is not None and transformer.ranks is not None:
            raise InputError(
                "a prefix cache on the disk holds what one process has of a sequence, and this model runs on several; "
                "leave the directory (--prefix-cache-dir) out"
            )
        self.transformer = transformer
        self.max_bytes = require_integer("max_bytes", max_bytes, low=0)
        self.num_reused = self.num_computed = self.num_reused_from_disk = 0
        require_integer("disk_bytes", disk_bytes, low=0)
        self.store = None if directory is None else PrefixStore(transformer, directory, disk_bytes)
        self._entries: list[Entry] = []  # the least recently used first
        self._running: WeakKeyDictionary[KVCache, list[Snapshot]] = WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept."""
        return sum(entry.nbytes for entry in self._entries)

    def lookup(self, transformer: Transformer, ids: list[int], context: int, slack: int = 0) -> KVCache:
        """A cache with room for `context` positions that holds as many of the prompt's ids as can be had, and never its
        last, which is what the answer's first logits come from."""
        if transformer is not self.transformer:
            raise InputError("this prefix cache belongs to another model or precision; make one for this model")

        def new_cache() -> KVCache:
            return transformer.new_cache(context, max(slack, 1))  # on_step() looks back by one

        wanted = np.array(ids[:-1], np.int64)
        found = [(at.position, i, at) for i, entry in enumerate(self._entries) if (at := entry.resumable(wanted))]
        position, i, at = max(found, key=lambda one: one[:2], default=(0, 0, None))
        stored = self.store and self.store.load(wanted, position, new_cache)
        if stored:
            cache, snapshot = stored
            self._running[cache] = [snapshot]
            self.num_reused_from_disk += cache.position
        else:
            cache = new_cache()
            if at is not None:
                entry = self._entries.pop(i)
                self._entries.append(entry)
                cache.resume(entry.cache, at)
                self._running[cache] = [s for s in entry.snapshots if s.position <= position]
        self.num_reused += cache.position
        self.num_computed += len(ids) - cache.position
        return cache

    def on_step(self, cache: KVCache, prompt_length: int) -> None:
        """Takes a snapshot where one is due. To be called after each step of a sequence, whose prompt has so many
        ids."""
        snapshots = self._running.setdefault(cache, [])
        last = snapshots[-1].position if snapshots else 0
        read = cache.position == prompt_length
        at = prompt_length - 1 if read else cache.position  # the same prompt may come again
        if at > last and (read or at >= last + SNAPSHOT_INTERVAL):
            snapshots.append(cache.snapshot(at))

    def fork(self, source: KVCache, cache: KVCache) -> None:
        """Lets `cache`, which resumed where `source` is, share the snapshots of it."""
        self._running[cache] = list(self._running.get(source, ()))

    def insert(self, cache: KVCache, ids: list[int]) -> None:
        """Keeps a sequence that nobody will extend, and the first of these ids, which it holds."""
        snapshots = self._running.pop(cache, [])
        if not snapshots or snapshots[-1].position < cache.position:
            snapshots.append(cache.snapshot())
        new = Entry(np.array(ids[: cache.position], np.int64), cache, snapshots)
        # An entry that the new one begins with serves nobody any more, but for its snapshots.
        covered = [old for old in self._entries if np.array_equal(old.ids, new.ids[: len(old.ids)])]
        by_position = {snapshot.position: snapshot for one in (*covered, new) for snapshot in one.snapshots}
        new.snapshots = [by_position[position] for position in sorted(by_position)]
        self._entries = [old for old in self._entries if old not in covered] + [new]
        while len(self._entries) > MAX_ENTRIES or (self._entries and self.nbytes > self.max_bytes):
            self._entries.pop(0)
        if self.store:
            self.store.put(new.ids, cache, new.snapshots, max_waiting=self.max_bytes)

    def flush(self, timeout: float | None = None) -> None:
        """Waits until what was kept is on the disk, at most `timeout` seconds; not needed at the end of a program."""
        if self.store:
            self.store.flush(timeout)
