"""Experts that are read from the checkpoint when tokens choose them, into a bounded number of slots of memory.

A mapped file does not do for a model that is larger than memory: its pages come one by one, and go in no useful order.
Here an expert is read whole, past the page cache where the file system allows (O_DIRECT), by a few threads, while
those that are in memory are multiplied. Least recently used ones give their slots up, but not to a pass over more
than there are slots, as of a long prompt. Nothing is predicted: in gpt-oss neither the previous token nor the previous
layer says which experts come next.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cgpt.checkpoint.changes import FileWatch
from cgpt.checkpoint.file_reader import FileReader, ReadBytes
from cgpt.checkpoint.safetensors import Checkpoint, StoredTensor
from cgpt.errors import CheckpointError, CheckpointReadError, ModelClosed
from cgpt.kernels._kernels import Matrix
from cgpt.machine import huge_pages
from cgpt.machine.disk import ALIGN

if TYPE_CHECKING:
    from concurrent.futures import Executor

AHEAD = 32  # reads that are begun for the next layer: what a disk does while the layer's attention is computed
READERS = 4  # threads; a disk that has few requests to choose from may give less than it can
Experts = npt.NDArray[np.int32]


@dataclass
class ExpertStats:
    """What a store has done: experts that were in memory when they were wanted (`hits`) and that were not (`misses`),
    the bytes read, and the seconds that steps waited for a read with nothing to multiply."""

    hits: int = 0
    misses: int = 0
    bytes_read: int = 0
    wait_seconds: float = 0.0

    def __sub__(self, other: ExpertStats) -> ExpertStats:
        return ExpertStats(*(getattr(self, name) - getattr(other, name) for name in vars(self)))

    @property
    def hit_rate(self) -> float:
        """The share of hits; 1 where nothing was wanted."""
        return self.hits / wanted if (wanted := self.hits + self.misses) else 1.0


class LeastRecentlyUsed:
    """Which key gives up its slot: a policy may be replaced by any class with these methods."""

    def __init__(self) -> None:
        self._keys: OrderedDict[Hashable, None] = OrderedDict()

    def use(self, key: Hashable) -> None:
        """`key` is used now, perhaps for the first time."""
        self._keys[key] = None
        self._keys.move_to_end(key)

    def remove(self, key: Hashable) -> None:
        """`key` is not in memory any more."""
        self._keys.pop(key, None)

    def victims(self, newest: bool) -> Iterator[Any]:
        """The keys, the first to go first. newest: for a pass over more than there is room for, of which the least
        recently used would all be gone when it comes to them again; so those go that it took last."""
        return reversed(self._keys) if newest else iter(self._keys)


@dataclass(frozen=True)
class _Part:
    """Blocks or scales of the experts of a layer: those of expert e are `nbytes` at offset + e * nbytes, and go to
    `at` in a slot, rounded outward to ALIGN."""

    tensor: StoredTensor
    nbytes: int
    at: int

    def span(self, expert: int) -> tuple[int, int, int]:
        """What is read: where it begins in the file, its bytes, and those before the expert's first."""
        begin = self.tensor.offset + expert * self.nbytes
        first = begin // ALIGN * ALIGN
        return first, -(-(begin + self.nbytes - first) // ALIGN) * ALIGN, begin - first


@dataclass
class _Layer:
    """parts: blocks and scales of gate_up, blocks and scales of down. addresses: of each matrix, uint64 [E, 2]."""

    parts: list[_Part]
    addresses: list[npt.NDArray[np.uint64]]


@dataclass(eq=False)
class _Entry:
    """An expert that is in a slot, or on its way there. pins: the steps that use it, or wait for it."""

    layer: int
    expert: int
    slot: int
    pins: int = 0
    loaded: bool = False
    ahead: bool = False  # it was read before anybody chose it, so its first use is no hit
    error: CheckpointError | None = None


class ExpertStore:
    """The MXFP4 experts of a model, of which as many are in memory as `resize()` allows.

    add_layer() gives the matrices that kernels.moe() multiplies by; stream() brings in what a step has chosen. Threads
    may share it: what a step uses is pinned until it asks for more.
    """

    def __init__(self, checkpoint: Checkpoint, read: ReadBytes | None = None, readers: int = READERS) -> None:
        """read: None takes a FileReader. readers: threads."""
        self.checkpoint = checkpoint
        self.stats = ExpertStats()
        self.slot_bytes = 0
        self.watch: FileWatch | None = None
        self.capacity = 0  # slots that may be used now
        self._layers: list[_Layer] = []
        self._read = read or FileReader(checkpoint)
        self._readers = readers
        self._policy = LeastRecentlyUsed()
        self._entries: dict[tuple[int, int], _Entry] = {}
        self._free: list[int] = []
        self._memory: mmap.mmap | None = None
        self._base = 0
        self._closed = False
        self._begin()
        _stores.append(weakref.ref(self, _stores.remove))

    def _begin(self) -> None:
        self._changed = threading.Condition()  # guards entries, slots, stats: a read has ended, or a pin was taken off
        self._reading = 0
        self._paused = False
        self._pool: Executor | None = None

    # ------------------------------------------------------------------------------------------------ building it

    def add_layer(
        self, pairs: Sequence[tuple[StoredTensor, StoredTensor]], biases: Sequence[npt.NDArray[np.float32]]
    ) -> list[Matrix]:
        """The matrices of a layer's gate_up and down, whose (blocks, scales) are `pairs`: [E, N, K/32, 16] and
        [E, N, K/32]."""
        E = pairs[0][0].shape[0]
        layer, at = _Layer([], [np.zeros((E, 2), np.uint64) for _ in pairs]), 0
        for tensor in (tensor for pair in pairs for tensor in pair):
            layer.parts.append(_Part(tensor, tensor.nbytes // E, at))
            at += -(-(tensor.nbytes // E) // ALIGN) * ALIGN + ALIGN
        self._layers.append(layer)
        self.slot_bytes = max(self.slot_bytes, -(-at // mmap.PAGESIZE) * mmap.PAGESIZE)
        shapes = [(E, blocks.shape[1], blocks.shape[2] * 32) for blocks, _ in pairs]
        return [Matrix.of_experts(*args) for args in zip(layer.addresses, shapes, biases, strict=True)]

    @property
    def experts(self) -> int:
        """How many there are in all layers."""
        return sum(len(layer.addresses[0]) for layer in self._layers)

    @property
    def request_bytes(self) -> int:
        """The bytes of the largest read."""
        return max(part.span(0)[1] for layer in self._layers for part in layer.parts)

    @property
    def resident(self) -> int:
        """How many are in memory."""
        return sum(entry.loaded for entry in list(self._entries.values()))

    def allocate(self, slots: int) -> None:
        """Takes address space for up to `slots` experts, which becomes memory as they come. OutOfMemoryError where the
        system refuses."""
        slots = min(slots, self.experts)
        what = f"{slots} experts of {self.slot_bytes / 1e6:.1f} MB; give less `memory`"
        self._memory = huge_pages.anonymous(slots * self.slot_bytes, what)
        self._base = np.frombuffer(self._memory, np.uint8).ctypes.data
        self._free = [*range(slots)][::-1]
        self.capacity = slots

    def resize(self, slots: int) -> None:
        """Uses no more than so many slots from now on, and gives the memory of the others back, as far as no step
        pins them."""
        with self._changed:
            self.capacity = max(1, min(slots, len(self._free) + len(self._entries)))
            self._shrink()

    def _shrink(self) -> None:
        while len(self._entries) > self.capacity and self._memory and (victim := self._victim()):
            self._evict(victim)
            self._memory.madvise(mmap.MADV_DONTNEED, victim.slot * self.slot_bytes, self.slot_bytes)

    def close(self) -> None:
        """Ends the threads, once the reads that run have ended, and gives the memory back."""
        with self._changed:
            self._closed = True
            pool, self._pool = self._pool, None
            self._changed.notify_all()
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
        with self._changed:
            self._reading, self._memory = 0, None  # what was cancelled never ends

    # ------------------------------------------------------------------------------------------------ using it

    def stream(self, layer: int, experts: Iterable[int], following: Iterable[int] = ()) -> Iterator[Experts]:
        """Yields the chosen experts of a layer, those that are in memory first, the others as they arrive; each is
        there until the next are asked for. following: experts of the next layer that will be wanted for certain,
        which are read when nothing else is left to read.

        CheckpointReadError where one cannot be read, CheckpointError where its file has changed.
        """
        waiting = deque(int(expert) for expert in experts)
        newest = len(waiting) * len(self._layers) > self.capacity
        ahead = deque((layer + 1, int(expert)) for expert in following)
        coming: list[_Entry] = []
        held: list[_Entry] = []
        try:
            with self._changed:
                for _ in range(len(waiting)):
                    found = self._entries.get((layer, waiting[0]))
                    if found is None or not found.loaded:
                        waiting.rotate(-1)
                        continue
                    waiting.popleft()
                    self._pin(found)
                    held.append(found)
                hits = sum(not entry.ahead for entry in held)
                self.stats.hits += hits
                self.stats.misses += len(waiting) + len(held) - hits
                for entry in held:
                    entry.ahead = False
                for expert in range(len(self._layers[layer].addresses[0])) if newest else ():
                    if (found := self._entries.get((layer, expert))) is not None:
                        found.ahead = False  # nobody chose it
                self._start(layer, waiting, coming, ahead, newest)
            if held:
                yield _experts(held)
            while True:
                with self._changed:
                    self._unpin(held)
                    self._start(layer, waiting, coming, ahead, newest)
                    if not waiting and not coming:
                        return
                    began = time.perf_counter()
                    while not any(entry.loaded or entry.error for entry in coming):
                        self._require_open()
                        self._changed.wait()
                        self._start(layer, waiting, coming, ahead, newest)
                    self.stats.wait_seconds += time.perf_counter() - began
                    held, coming = _parted(coming)
                    for entry in held:
                        if entry.error:
                            raise entry.error
                yield _experts(held)
        finally:
            with self._changed:
                self._unpin(held)
                self._unpin(coming)

    def _start(
        self, layer: int, waiting: deque[int], coming: list[_Entry], ahead: deque[tuple[int, int]], newest: bool
    ) -> None:
        """Begins the reads for which there are slots: of `waiting`, which go to `coming`, and then of `ahead`. newest:
        which experts give theirs up."""
        self._require_open()
        while waiting and len(coming) < 2 * self._readers:
            entry = self._entries.get((layer, waiting[0])) or self._begin_read(layer, waiting[0], newest)
            if entry is None:
                return
            waiting.popleft()
            entry.ahead = False
            self._pin(entry)
            coming.append(entry)
        while ahead and not waiting and self._reading < min(AHEAD, self.capacity // 4):
            if ahead[0] not in self._entries:
                if self._begin_read(*ahead[0], newest, is_ahead=True) is None:
                    return
            ahead.popleft()

    def _begin_read(self, layer: int, expert: int, newest: bool, is_ahead: bool = False) -> _Entry | None:
        """The entry of an expert that is being read from now on; None where no slot can be had. is_ahead: before
        anybody has chosen it."""
        if self._paused:
            return None
        if len(self._entries) >= self.capacity or not self._free:
            if (victim := self._victim(newest, spare=is_ahead)) is None:
                return None
            self._evict(victim)
        entry = self._entries[layer, expert] = _Entry(layer, expert, self._free.pop(), ahead=is_ahead)
        self._reading += 1
        try:
            if self._pool is None:
                from concurrent.futures import ThreadPoolExecutor  # which brings logging along; few models need it

                self._pool = ThreadPoolExecutor(self._readers, "cgpt-reader")
            self._pool.submit(self._load, entry)
        except BaseException as problem:
            self._reading -= 1
            self._free.append(self._entries.pop((layer, expert)).slot)
            if not isinstance(problem, RuntimeError):
                raise
            raise CheckpointReadError(f"there is no thread to read experts with: {problem}") from None
        return entry

    def _victim(self, newest: bool = False, spare: bool = False) -> _Entry | None:
        """The expert that gives up its slot. newest: rather none that was read ahead. spare: none of those at all."""
        read_ahead = None
        for entry in map(self._entries.__getitem__, self._policy.victims(newest)):
            if not entry.pins and not (newest and entry.ahead):
                return entry
            if not entry.pins and read_ahead is None:
                read_ahead = entry
        return None if spare else read_ahead

    def _evict(self, entry: _Entry) -> None:
        """Frees the slot of an expert that nobody pins."""
        key = entry.layer, entry.expert
        for table in self._layers[entry.layer].addresses:
            table[entry.expert] = 0
        self._policy.remove(key)
        self._free.append(self._entries.pop(key).slot)

    def _pin(self, entry: _Entry) -> None:
        entry.pins += 1
        if entry.loaded:
            self._policy.use((entry.layer, entry.expert))

    def _unpin(self, entries: list[_Entry]) -> None:
        while entries:
            entry = entries.pop()
            entry.pins -= 1
            if entry.loaded:
                self._policy.use((entry.layer, entry.expert))
        self._changed.notify_all()
        self._shrink()

    def _require_open(self) -> None:
        if self._closed:
            raise ModelClosed("the model was closed while it ran")

    # ------------------------------------------------------------------------------------------------ its threads

    def _load(self, entry: _Entry) -> None:
        with self._changed:
            if self._entries.get((entry.layer, entry.expert)) is not entry:
                return  # it could not be handed over, and was given up
        layer, read = self._layers[entry.layer], 0
        error: CheckpointError | None = None
        addresses: list[int] = []
        try:
            memory = self._memory
            assert memory is not None
            for part in layer.parts:
                offset, size, before = part.span(entry.expert)
                at = entry.slot * self.slot_bytes + part.at
                try:
                    with memoryview(memory) as whole, whole[at : at + size] as into:
                        self._read(part.tensor.file, offset, into, before + part.nbytes)
                except (OSError, EOFError) as problem:
                    raise _named(problem, part, entry.expert) from None
                addresses.append(self._base + at + before)
                read += size
            if self.watch is not None:
                self.watch.require_unchanged()
        except CheckpointError as problem:
            error = problem
        except BaseException as problem:  # nobody may wait for ever
            error = CheckpointReadError(f"expert {entry.expert} of layer {entry.layer} was not read: {problem!r}")
        with self._changed:
            self._reading -= 1
            self.stats.bytes_read += read
            if error is None:
                for table, at in zip(layer.addresses, (0, 2), strict=True):
                    table[entry.expert] = addresses[at : at + 2]
                entry.loaded = True
                self._policy.use((entry.layer, entry.expert))
            else:
                entry.error = error
                del self._entries[entry.layer, entry.expert]
                self._free.append(entry.slot)
            self._changed.notify_all()

    # ------------------------------------------------------------------------------------------------ forks

    def pause(self) -> None:
        """Before a fork: waits until no read runs, since a disk must not write to memory that two processes share."""
        self._changed.acquire()
        self._paused = True
        while self._reading:
            self._changed.wait()

    def go_on(self, in_child: bool) -> None:
        """After a fork. The child's threads are gone, and so are the steps that pinned anything."""
        if in_child:
            self._begin()
            for entry in self._entries.values():
                entry.pins = 0
        else:
            self._paused = False
            self._changed.notify_all()
            self._changed.release()


_stores: list[weakref.ref[ExpertStore]] = []  # those that there are
_paused: list[ExpertStore] = []  # those that wait for the end of a fork


def _pause_all() -> None:
    _paused.extend(store for found in list(_stores) if (store := found()) is not None)
    for store in _paused:
        store.pause()


def _go_on(in_child: bool) -> None:
    while _paused:
        _paused.pop().go_on(in_child)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_pause_all, after_in_parent=partial(_go_on, False), after_in_child=partial(_go_on, True))


def _parted(coming: list[_Entry]) -> tuple[list[_Entry], list[_Entry]]:
    """Those whose reads have ended, and the others."""
    ended = [entry for entry in coming if entry.loaded or entry.error]
    return ended, [entry for entry in coming if entry not in ended]


def _experts(entries: list[_Entry]) -> Experts:
    return np.array([entry.expert for entry in entries], np.int32)


def _named(problem: OSError | EOFError, part: _Part, expert: int) -> CheckpointReadError:
    tensor, at = part.tensor, part.tensor.offset + expert * part.nbytes
    why = "the file ends before" if isinstance(problem, EOFError) else problem.strerror or problem
    return CheckpointReadError(
        f"{tensor.file}: expert {expert} of {tensor.name} ({part.nbytes} bytes at {at}) cannot be read: {why}"
    )
