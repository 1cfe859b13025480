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
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
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

PREPARED = 1 << 30  # bytes of memory that are ready before experts come; page by page, as they come, is late
PREPARED_AT_ONCE = 64 << 20
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
    """Rows of the blocks or scales of the experts of a layer: those of expert e are `nbytes` at first + e * stride in
    the file, and go to `at` in a slot, rounded outward to ALIGN."""

    tensor: StoredTensor
    first: int
    stride: int
    nbytes: int
    at: int

    def offset(self, expert: int) -> int:
        """Where an expert's first byte is in the file."""
        return self.first + expert * self.stride

    def span(self, expert: int) -> tuple[int, int, int]:
        """What is read: where it begins in the file, its bytes, and those before the expert's first."""
        begin = self.offset(expert)
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
    unread: list[_Part]  # the next one last
    reading: int = 0  # parts, now
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
        self._fresh = 0  # the slots from here on were never used,
        self._prepared = 0  # and their memory is there up to here
        self._closed = False
        self._begin()
        _stores.append(weakref.ref(self, _stores.remove))

    def _begin(self) -> None:
        self._changed = threading.Condition()  # guards entries, slots, stats: a read has ended, or a pin was taken off
        self._reading = 0
        self._paused = self._preparing = False
        self._pool: Executor | None = None

    # ------------------------------------------------------------------------------------------------ building it

    def add_layer(
        self,
        pairs: Sequence[tuple[StoredTensor, StoredTensor]],
        biases: Sequence[npt.NDArray[np.float32]],
        rows: Sequence[slice] = (slice(None), slice(None)),
    ) -> list[Matrix]:
        """The matrices of a layer's gate_up and down, whose (blocks, scales) are `pairs`: [E, N, K/32, 16] and
        [E, N, K/32], and the rows of each that are wanted."""
        E = pairs[0][0].shape[0]
        layer, at = _Layer([], [np.zeros((E, 2), np.uint64) for _ in pairs]), 0
        shapes = []
        for pair, part in zip(pairs, rows, strict=True):
            start, stop, _ = part.indices(pair[0].shape[1])
            for tensor in pair:
                row = tensor.nbytes // (E * tensor.shape[1])
                nbytes = (stop - start) * row
                first, stride = tensor.offset + start * row, tensor.nbytes // E
                layer.parts.append(_Part(tensor, first, stride, nbytes, at))
                at += -(-nbytes // ALIGN) * ALIGN + ALIGN
            shapes.append((E, stop - start, pair[0].shape[2] * 32))
        self._layers.append(layer)
        self.slot_bytes = max(self.slot_bytes, -(-at // mmap.PAGESIZE) * mmap.PAGESIZE)
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
        self._prepare_more()

    def resize(self, slots: int) -> None:
        """Uses no more than so many slots from now on, and gives the memory of the others back, as far as no step
        pins them."""
        with self._changed:
            self.capacity = max(1, min(slots, len(self._free) + len(self._entries)))
            if self._prepared > self.capacity:
                self._give_back(self._fresh, self._prepared)
                self._prepared = self._fresh
            self._shrink()

    def _shrink(self) -> None:
        while len(self._entries) > self.capacity and self._memory and (victim := self._victim()):
            self._evict(victim)
            self._give_back(victim.slot, victim.slot + 1)

    def _give_back(self, first: int, end: int) -> None:
        """Gives the memory of slots from `first` on back to the system; what it held is lost."""
        if self._memory and end > first:
            huge_pages.give_back(self._memory, first * self.slot_bytes, (end - first) * self.slot_bytes)

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

    def stream(
        self, layer: int, experts: Iterable[int], following: Iterable[int] = (), hold: bool = False
    ) -> Iterator[Experts]:
        """Yields the chosen experts of a layer, those that are in memory first, the others as they arrive; each is
        there until the next are asked for; hold: until more are asked for than there were. following: experts of the
        next layer that will be wanted for certain, which are read when nothing else is left to read.

        CheckpointReadError where one cannot be read, CheckpointError where its file has changed.
        """
        waiting = deque(int(expert) for expert in experts)
        newest = len(waiting) * len(self._layers) > self.capacity
        ahead = deque((layer + 1, int(expert)) for expert in following)
        coming: list[_Entry] = []
        held: list[_Entry] = []
        used: list[_Entry] = []
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
                    if hold:
                        used, held = used + held, []
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
                self._unpin(held + used + coming)

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
        parts = self._layers[layer].parts
        entry = self._entries[layer, expert] = _Entry(layer, expert, self._free.pop(), parts[::-1], ahead=is_ahead)
        self._reading += 1
        try:
            # The parts of one expert at once, so that it is multiplied while the next one is read.
            self._submit(self._load, entry)
            with suppress(RuntimeError):  # no further thread: the ones that there are read what is left
                for _ in parts[1:]:
                    self._submit(self._load, entry)
        except BaseException as problem:
            self._reading -= 1
            self._free.append(self._entries.pop((layer, expert)).slot)
            if not isinstance(problem, RuntimeError):
                raise
            raise CheckpointReadError(f"there is no thread to read experts with: {problem}") from None
        self._fresh = max(self._fresh, entry.slot + 1)
        if (self._prepared - self._fresh) * self.slot_bytes < PREPARED // 2:
            self._prepare_more()
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

    def _submit(self, job: Callable[..., None], *args: Any) -> None:
        """Lets a thread run the job. RuntimeError where none can be started, though one that runs may take it."""
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor  # which brings logging along; few models need it

            self._pool = ThreadPoolExecutor(self._readers + 1, "cgpt-reader")
        self._pool.submit(job, *args)

    def _prepare_more(self) -> None:
        """Lets a thread make memory ready for the next experts, unless one does."""
        if not self._preparing and self._prepared < self.capacity:
            self._preparing = True
            with suppress(RuntimeError):  # then experts make it ready as they come
                self._submit(self._prepare)

    def _prepare(self) -> None:
        at_once = max(1, PREPARED_AT_ONCE // self.slot_bytes)
        with self._changed:
            try:
                while not self._closed:
                    first = max(self._prepared, self._fresh)
                    end = min(first + at_once, self.capacity, self._fresh + max(1, PREPARED // self.slot_bytes))
                    if end <= first:
                        break
                    self._prepared = end
                    with self._unlocked():
                        huge_pages.populate(self._base + first * self.slot_bytes, (end - first) * self.slot_bytes)
                    if self._prepared < end:  # resize() has given it back in the meantime
                        self._give_back(max(first, self._fresh), end)
            finally:
                self._preparing = False

    @contextmanager
    def _unlocked(self) -> Iterator[None]:
        """Lets others work while something takes long."""
        self._changed.release()
        try:
            yield
        finally:
            self._changed.acquire()

    def _load(self, entry: _Entry) -> None:
        """Reads parts of an expert until none is left; the last one to end hands the expert over."""
        with self._changed:
            while self._entries.get((entry.layer, entry.expert)) is entry and entry.unread:
                part = entry.unread.pop()
                entry.reading += 1
                try:
                    with self._unlocked():
                        self._read_part(entry, part)
                    self.stats.bytes_read += part.span(entry.expert)[1]
                except BaseException as problem:  # nobody may wait for ever
                    if not isinstance(problem, CheckpointError):
                        what = f"expert {entry.expert} of layer {entry.layer} was not read: {problem!r}"
                        problem = CheckpointReadError(what)
                    entry.error = entry.error or problem
                    entry.unread.clear()
                entry.reading -= 1
                if not entry.reading and not entry.unread:
                    self._hand_over(entry)

    def _read_part(self, entry: _Entry, part: _Part) -> None:
        memory = self._memory
        assert memory is not None
        offset, size, before = part.span(entry.expert)
        at = entry.slot * self.slot_bytes + part.at
        try:
            with memoryview(memory) as whole, whole[at : at + size] as into:
                self._read(part.tensor.file, offset, into, before + part.nbytes)
        except (OSError, EOFError) as problem:
            raise _named(problem, part, entry.expert) from None
        if self.watch is not None:
            self.watch.require_unchanged()

    def _hand_over(self, entry: _Entry) -> None:
        """Ends the reading of an expert, whose parts were read, or one of them could not be."""
        self._reading -= 1
        layer = self._layers[entry.layer]
        if entry.error is None:
            slot = self._base + entry.slot * self.slot_bytes
            places = [slot + part.at + part.span(entry.expert)[2] for part in layer.parts]
            for table, at in zip(layer.addresses, (0, 2), strict=True):
                table[entry.expert] = places[at : at + 2]
            entry.loaded = True
            self._policy.use((entry.layer, entry.expert))
        else:
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
    tensor, at = part.tensor, part.offset(expert)
    why = "the file ends before" if isinstance(problem, EOFError) else problem.strerror or problem
    return CheckpointReadError(
        f"{tensor.file}: expert {expert} of {tensor.name} ({part.nbytes} bytes at {at}) cannot be read: {why}"
    )
