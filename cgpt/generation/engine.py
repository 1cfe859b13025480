"""Runs requests that come at any time, from any thread or asyncio task, through one model together.

    engine = Engine(model)
    for event in engine.submit([Request(model, "ROMEO:", SamplingParams(max_new_tokens=20))]):
        print(event.delta, end="")

One thread of its own runs the scheduler's steps; requests join and leave between them. Nothing here knows of HTTP.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cgpt.errors import (
    CgptError,
    CheckpointError,
    CheckpointReadError,
    EngineClosed,
    InputError,
    KernelError,
    ModelClosed,
    OutOfMemoryError,
    QueueFull,
)
from cgpt.generation.prefix_cache import PrefixCache
from cgpt.generation.prefix_store import DISK_BYTES
from cgpt.generation.request import Request, TextModel
from cgpt.generation.scheduler import Scheduler

if TYPE_CHECKING:
    import asyncio


@dataclass(frozen=True)
class Event:
    """What a step gave one request of a job.

    index: of the request in its job. delta: the text, often "", that is certain now. num_ids: its new ids so far,
    request.ids[:num_ids]. finish_reason: with the last event of the request
    """

    index: int
    delta: str
    num_ids: int
    finish_reason: str | None


class Job:
    """Requests that were submitted together. Iterate it, in a thread with `for`, in the asyncio task that submitted
    it with `async for`: Events until every request is finished. A request that fails cancels the others and raises
    its CgptError. Leave early with cancel(), from any thread."""

    def __init__(self, engine: Engine, requests: list[Request]) -> None:
        self.requests = requests
        self._engine = engine
        self._open = set(range(len(requests)))
        # None only wakes the one who iterates: something was cancelled.
        self._events: asyncio.Queue[Event | CgptError | None] | queue.SimpleQueue[Event | CgptError | None]
        self.loop: asyncio.AbstractEventLoop | None = None
        self._events = queue.SimpleQueue()
        if "asyncio" in sys.modules:  # else no loop runs; importing it takes a fifth of the time that cgpt takes
            import asyncio

            with contextlib.suppress(RuntimeError):  # no loop runs in this thread
                self.loop = asyncio.get_running_loop()
                self._events = asyncio.Queue()

    def cancel(self, index: int | None = None) -> None:
        """Ends its requests, or the one of this index, within a step; no event of them comes after it. May be called
        again."""
        left = self._open if index is None else self._open & {index}
        self._open = self._open - left
        if left:
            self._engine._cancel([self.requests[i] for i in left])
            if not self._open:
                self._wake()

    def _wake(self) -> None:
        if self.loop is None:
            self._events.put_nowait(None)
        elif not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._events.put_nowait, None)

    def put(self, event: Event | CgptError) -> None:
        """Hands over an event; for the engine, in the job's loop where it has one."""
        self._events.put_nowait(event)

    def _take(self, event: Event | CgptError | None) -> list[Event]:
        if isinstance(event, CgptError):
            self.cancel()
            raise event
        if event is None or event.index not in self._open:
            return []
        if event.finish_reason:
            self._open = self._open - {event.index}
        return [event]

    def __iter__(self) -> Iterator[Event]:
        assert isinstance(self._events, queue.SimpleQueue)
        while self._open:
            yield from self._take(self._events.get())

    async def __aiter__(self) -> AsyncIterator[Event]:
        assert not isinstance(self._events, queue.SimpleQueue)
        while self._open:
            for event in self._take(await self._events.get()):
                yield event


@dataclass(frozen=True)
class _Entry:
    """A request of the queue, or one that runs."""

    job: Job
    index: int
    submitted_at: float = field(default_factory=time.perf_counter)


@dataclass
class EngineStats:
    """What an engine has done so far.

    seconds: in steps. prompt_tokens: ids of prompts that were read, of which the prefix cache had `cached_tokens`.
    generated_tokens: new ids. draft_tokens: ids that were drafted, of which `accepted_tokens` came true. first_tokens:
    how many requests got one, after first_token_seconds in all since they were submitted. finished: requests by the
    reason that ended them
    """

    steps: int = 0
    seconds: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    first_tokens: int = 0
    first_token_seconds: float = 0.0
    finished: dict[str, int] = field(default_factory=lambda: {"stop": 0, "length": 0, "cancelled": 0, "error": 0})


class Engine:
    """The thread that runs one model for everybody.

    The scheduler says what runs and what waits. While texts are being streamed, prompts are read in chunks that keep
    them waiting for no longer than MAX_PAUSE or so.

    failure: what ended the engine, the model's CheckpointError where its files changed, or ModelClosed; whoever asks
    afterwards gets it. None as long as it runs.
    """

    MAX_PAUSE = 1.0  # seconds
    MIN_CHUNK = 32  # ids; fewer cost nearly as much
    IDLE_SECONDS = 1.0  # from one look at the model's files to the next, while there is nothing to do
    MAX_FLUSH = 10.0  # seconds that close() waits for the disk
    CACHE_SHARE = 0.5  # of the memory that is available at the start, for the caches of what runs

    def __init__(
        self,
        model: TextModel,
        *,
        max_running: int = Scheduler.MAX_RUNNING,
        max_waiting: int = 256,
        kv_cache_bytes: int | None = None,
        prefix_cache_bytes: int | None = None,
        prefix_cache_directory: str | os.PathLike[str] | None = None,
        prefix_cache_disk_bytes: int = DISK_BYTES,
        prompt_lookup_num_tokens: int | None = None,
    ) -> None:
        """max_running, max_waiting: requests that run together, and that wait beside them. kv_cache_bytes: of keys
        and values of what runs at a time; None takes half of the memory that is available now. prefix_cache_bytes: of
        what is kept of finished requests, see PrefixCache; None takes 2 GB, or a quarter of that memory if it is less;
        0 keeps nothing. prefix_cache_directory, prefix_cache_disk_bytes: keeps it on the disk too, see PrefixCache.
        prompt_lookup_num_tokens: what requests that do not say it draft at a time, from the texts of all; None does
        not. How fast a text comes may then tell that another one had the same words, as a prefix cache does."""
        self.model = model
        self.max_running = max_running
        self.max_waiting = max_waiting
        available = model.transformer.available_memory() or sys.maxsize
        self.kv_cache_bytes = int(available * self.CACHE_SHARE) if kv_cache_bytes is None else kv_cache_bytes
        prefix_bytes = min(2_000_000_000, available // 4) if prefix_cache_bytes is None else prefix_cache_bytes
        self.prefix_cache: PrefixCache | None = None
        if prefix_bytes or prefix_cache_directory is not None:
            self.prefix_cache = PrefixCache(
                model, prefix_bytes, directory=prefix_cache_directory, disk_bytes=prefix_cache_disk_bytes
            )
        self.stats = EngineStats()
        self.failure: CgptError | None = None
        self._scheduler = Scheduler(
            model.transformer,
            prefix_cache=self.prefix_cache,
            isolated=True,
            max_running=max_running,
            kv_cache_bytes=self.kv_cache_bytes,
            prompt_lookup_num_tokens=prompt_lookup_num_tokens,
        )
        self._changed = threading.Condition()  # guards what follows
        self._submitted: list[Request] = []
        self._cancelled: list[Request] = []
        self._entries: dict[Request, _Entry] = {}
        self._closing = self._stopping = False
        self._rate: float | None = None  # ids of prompts per second
        self._thread = threading.Thread(target=self._run, name="cgpt-engine", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------------------------ from any thread

    def submit(self, requests: Iterable[Request]) -> Job:
        """Enters new requests, all or none. Raises QueueFull or EngineClosed, and InputError for what could never
        run."""
        requests = list(requests)
        job = Job(self, requests)
        entries = {request: _Entry(job, index) for index, request in enumerate(requests)}
        if len(entries) < len(requests) or any(request.first_step_at or request.finish_reason for request in requests):
            raise InputError("a request runs once; make a new one of the same prompt and parameters")
        for request in requests:
            needed = self._scheduler.cache_bytes(request)
            if needed > self.kv_cache_bytes:
                raise InputError(
                    f"{len(request.prompt_ids)} + {request.max_new_tokens} tokens need {needed / 1e9:.1f} GB for keys "
                    f"and values, and there are {self.kv_cache_bytes / 1e9:.1f} GB for them; ask for fewer tokens"
                )
        limit = self.max_running + self.max_waiting
        if len(requests) > limit:
            raise InputError(f"{len(requests)} requests at once are too many; at most {limit} run or wait")
        with self._changed:
            if self._closing:
                raise self.failure or EngineClosed("the engine is shutting down; ask another one, or later")
            if entries.keys() & self._entries.keys():
                raise InputError("a request runs once; make a new one of the same prompt and parameters")
            if len(self._entries) + len(requests) > limit:
                raise QueueFull(f"{len(self._entries)} requests run or wait, and at most {limit} may; try again later")
            self._submitted += requests
            self._entries |= entries
            self._changed.notify()
        return job

    def _cancel(self, requests: list[Request]) -> None:
        with self._changed:
            self._cancelled += [request for request in requests if self._entries.pop(request, None)]
            self._changed.notify()

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._submitted) + len(self._scheduler.waiting)

    @property
    def running(self) -> int:
        """How many requests run."""
        return len(self._scheduler.running)

    @property
    def retry_after(self) -> int:
        """Seconds until a request may be accepted again, about: what a request has taken so far."""
        done = sum(self.stats.finished.values())
        return max(1, min(60, round(self.stats.seconds / done))) if done else 1

    def close(self, timeout: float | None = 0.0) -> None:
        """Takes no more requests and waits up to `timeout` seconds (None: as long as it takes) for the others; then
        ends with the step that runs. What is not finished by then gets EngineClosed."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()
        if self.prefix_cache is not None:  # it is false while it is empty
            self.prefix_cache.flush(self.MAX_FLUSH)

    def join(self) -> None:
        """Waits until the engine has ended, which a model that is closed, or whose files changed, makes it do soon."""
        self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------ in the engine's thread

    def _run(self) -> None:
        while self._wait():
            try:
                self._enter_and_leave()
                if self._scheduler.has_unfinished:
                    self._step()
                else:
                    self.model.transformer.require_open()
                    self.model.transformer.require_unchanged()
            except Exception as error:
                self._fail(self._begun(), error)
        self._fail([*self._entries], self.failure or EngineClosed("the engine was shut down; ask again"))

    def _begun(self) -> list[Request]:
        """What the scheduler runs, and what it has finished and nobody was told of."""
        with self._changed:
            waiting = {*self._submitted, *self._scheduler.waiting}
            return [request for request in self._entries if request not in waiting]

    def _wait(self) -> bool:
        """Waits until there is something to do, for IDLE_SECONDS at most. False: there will be nothing more."""

        def has_work() -> bool:
            return bool(self._submitted or self._cancelled or self._scheduler.has_unfinished)

        with self._changed:
            self._changed.wait_for(lambda: has_work() or self._closing, self.IDLE_SECONDS)
            return not self._stopping and (has_work() or not self._closing)

    def _enter_and_leave(self) -> None:
        with self._changed:
            new, self._submitted = self._submitted, []
            gone, self._cancelled = self._cancelled, []
        for request in new:
            self._scheduler.add(request)
        for request in gone:
            self.stats.finished["cancelled"] += not (request.finish_reason or request.error)
            self._scheduler.cancel(request)

    def _step(self) -> None:
        new = {request for request in (*self._scheduler.running, *self._scheduler.waiting) if not request.ids}
        streaming = any(request.ids for request in self._scheduler.running)
        started = time.perf_counter()
        deltas = self._scheduler.step(self._chunk() if streaming else None)
        seconds, read = time.perf_counter() - started, self._scheduler.prompt_ids_read
        if read >= self.MIN_CHUNK // 2:  # the least that a chunk beside streams leaves for prompts
            self._rate = read / seconds
        self.stats.steps += 1
        self.stats.seconds += seconds
        self.stats.generated_tokens += len(deltas)
        self.stats.draft_tokens = self._scheduler.speculation.num_drafted
        self.stats.accepted_tokens = self._scheduler.speculation.num_accepted
        texts: dict[Request, str] = {}
        for request, delta in deltas:
            texts[request] = texts.get(request, "") + delta
        for request in texts:
            if request in new and (entry := self._entries.get(request)):
                self.stats.first_tokens += 1
                self.stats.first_token_seconds += request.first_token_at - entry.submitted_at
                self.stats.prompt_tokens += len(request.prompt_ids)
                self.stats.cached_tokens += request.num_cached_tokens
            if request.finish_reason and not request.error:
                self.stats.finished[request.finish_reason] += 1
        self._send({r: (text, len(r.ids), r.finish_reason) for r, text in texts.items() if not r.error})
        for request in self._scheduler.failed:
            assert request.error is not None
            self._fail([request], request.error)

    def _chunk(self) -> int:
        """Ids of prompts to read in a step for which streams wait. Experts from a disk cost the same for many."""
        if self.model.transformer.streaming is not None:
            return self.model.transformer.PREFILL_CHUNK
        expected = int(self._rate * self.MAX_PAUSE) if self._rate else 0
        return max(self.MIN_CHUNK, min(expected, self.model.transformer.PREFILL_CHUNK))

    def _fail(self, requests: list[Request], error: Exception) -> None:
        if isinstance(error, MemoryError) and not isinstance(error, CgptError):
            error = OutOfMemoryError("memory ran out in a step; ask for less at a time")
        elif not isinstance(error, CgptError):
            error = KernelError(f"a step failed: {type(error).__name__}: {error}")
        if isinstance(error, (CheckpointError, ModelClosed)) and not isinstance(error, CheckpointReadError):
            with self._changed:
                self.failure = self.failure or error
                self._closing = self._stopping = True
        for request in requests:
            self._scheduler.discard(request)
        self.stats.finished["error"] += len(requests)
        self._send(dict.fromkeys(requests, error))

    def _send(self, news: Mapping[Request, tuple[str, int, str | None] | CgptError]) -> None:
        """Hands each request's news to its job; one call into an asyncio loop for all that it gets."""
        calls: dict[asyncio.AbstractEventLoop | None, list[tuple[Job, Event | CgptError]]] = {}
        with self._changed:
            for request, new in news.items():
                last = isinstance(new, CgptError) or new[2]
                entry = self._entries.pop(request, None) if last else self._entries.get(request)
                if entry is not None:  # else it was cancelled
                    event = new if isinstance(new, CgptError) else Event(entry.index, *new)
                    calls.setdefault(entry.job.loop, []).append((entry.job, event))
        for loop, events in calls.items():
            if loop is None:
                _put(events)
                continue
            try:
                loop.call_soon_threadsafe(_put, events)
            except RuntimeError:  # the loop is closed: nobody listens any more
                for job, _ in events:
                    job.cancel()


def _put(events: list[tuple[Job, Event | CgptError]]) -> None:
    for job, event in events:
        job.put(event)
