"""Runs requests that come at any time, from any thread or asyncio task, through one model together.

    engine = Engine(model)
    for event in engine.submit([Request(model, "ROMEO:", max_new_tokens=20)]):
        print(event.piece, end="")

One thread of its own runs the scheduler's steps; requests join and leave between them. Nothing here knows of HTTP.
"""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

from cgpt.errors import CgptError, EngineClosed, InputError, KernelError, OutOfMemoryError, QueueFull
from cgpt.generation.generate import Request
from cgpt.generation.prefix_cache import PrefixCache
from cgpt.generation.scheduler import Scheduler
from cgpt.machine.memory import available_memory
from cgpt.models.accounting import cache_bytes
from cgpt.models.base import Model


@dataclass(frozen=True)
class Event:
    """What a step gave one request of a job.

    index: of the request in its job. piece: the text, often "", that is certain now. num_ids: its new ids so far,
    request.ids[:num_ids]. finish_reason: with the last event of the request
    """

    index: int
    piece: str
    num_ids: int
    finish_reason: str | None


class Job:
    """Requests that were submitted together. Iterate it, in a thread with `for`, in the asyncio task that submitted
    it with `async for`: Events until every request is finished. A request that fails cancels the others and raises
    its CgptError. Leave early with cancel()."""

    def __init__(self, engine: Engine, requests: list[Request]) -> None:
        self.requests = requests
        self._engine = engine
        self._open = set(range(len(requests)))
        try:
            self.loop = asyncio.get_running_loop()
            self._events: asyncio.Queue | queue.SimpleQueue = asyncio.Queue()
        except RuntimeError:
            self.loop, self._events = None, queue.SimpleQueue()

    def cancel(self, index: int | None = None) -> None:
        """Gives the places of its requests back, or of one, within a step; nothing comes after it. May be called
        again."""
        left = self._open if index is None else self._open & {index}
        self._open = self._open - left
        if left:
            self._engine._cancel([self.requests[i] for i in left])

    def put(self, event: Event | CgptError) -> None:
        """For the engine: to be called in the job's loop where it has one."""
        self._events.put_nowait(event)

    def _take(self, event: Event | CgptError) -> list[Event]:
        if isinstance(event, CgptError):
            self.cancel()
            raise event
        if event.index not in self._open:
            return []
        if event.finish_reason:
            self._open = self._open - {event.index}
        return [event]

    def __iter__(self) -> Iterator[Event]:
        while self._open:
            yield from self._take(self._events.get())

    async def __aiter__(self) -> AsyncIterator[Event]:
        while self._open:
            for event in self._take(await self._events.get()):
                yield event


@dataclass(frozen=True)
class _Place:
    job: Job
    index: int
    needed: int  # bytes of cache at full length
    submitted: float = field(default_factory=time.perf_counter)


@dataclass
class Counts:
    """What an engine has done so far.

    seconds: in steps. prompt: ids of prompts that were read, of which the prefix cache had `cached`. first_tokens: how
    many requests got one, after first_token_seconds in all since they were submitted
    """

    steps: int = 0
    seconds: float = 0.0
    prompt: int = 0
    cached: int = 0
    generated: int = 0
    first_tokens: int = 0
    first_token_seconds: float = 0.0
    finished: dict[str, int] = field(default_factory=lambda: {"stop": 0, "length": 0, "cancelled": 0, "error": 0})


class Engine:
    """The thread that runs one model for everybody.

    In order of arrival, as many requests run together as there are places, and memory for their caches at full
    length; the others wait. While texts are being streamed, prompts are read in chunks that keep them waiting for
    no longer than PAUSE or so.
    """

    PAUSE = 1.0  # seconds
    LEAST_CHUNK = 32  # ids; fewer cost nearly as much
    CACHE_SHARE = 0.5  # of the memory that is available at the start, for the caches of what runs

    def __init__(
        self,
        model: Model,
        *,
        max_running: int = Scheduler.MAX_RUNNING,
        max_waiting: int = 256,
        kv_cache_bytes: int | None = None,
        prefix_cache_bytes: int | None = None,
    ) -> None:
        """max_running, max_waiting: requests that run together, and that wait beside them. kv_cache_bytes: of keys
        and values of what runs at a time; None takes half of the memory that is available now. prefix_cache_bytes: of
        what is kept of finished requests, see prefix_cache; None takes 2 GB, or a quarter of that memory if it is
        less; 0 keeps nothing."""
        self.model = model
        self.max_running = min(max_running, Scheduler.MAX_RUNNING)
        self.max_waiting = max_waiting
        available = available_memory() or sys.maxsize
        self.kv_cache_bytes = int(available * self.CACHE_SHARE) if kv_cache_bytes is None else kv_cache_bytes
        prefix_bytes = min(2_000_000_000, available // 4) if prefix_cache_bytes is None else prefix_cache_bytes
        self.prefix_cache = PrefixCache(model, prefix_bytes) if prefix_bytes else None
        self.counts = Counts()
        self._scheduler = Scheduler(model, prefix_cache=self.prefix_cache, apart=True)
        self._changed = threading.Condition()  # guards what follows
        self._waiting: deque[Request] = deque()
        self._cancelled: list[Request] = []
        self._places: dict[Request, _Place] = {}
        self._closing = self._stopping = False
        self._rate: float | None = None  # ids of prompts per second
        self._thread = threading.Thread(target=self._run, name="cgpt-engine", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------------------------ from any thread

    def submit(self, requests: list[Request]) -> Job:
        """Enters requests, all or none. Raises QueueFull or EngineClosed, and InputError for what could never run."""
        job = Job(self, requests)
        places = {request: _Place(job, index, self._cache_needed(request)) for index, request in enumerate(requests)}
        for request, place in places.items():
            if place.needed > self.kv_cache_bytes:
                raise InputError(
                    f"{len(request.prompt_ids)} + {request.limit} tokens need {place.needed / 1e9:.1f} GB for keys and "
                    f"values, and there are {self.kv_cache_bytes / 1e9:.1f} GB for them; ask for fewer tokens"
                )
        most = self.max_running + self.max_waiting
        if len(requests) > most:
            raise InputError(f"{len(requests)} requests at once are too many; at most {most} have a place or can wait")
        with self._changed:
            if self._closing:
                raise EngineClosed("the engine is shutting down; ask another one, or later")
            if len(self._places) + len(requests) > most:
                raise QueueFull(f"{len(self._places)} requests run or wait, and at most {most} may; try again later")
            self._waiting.extend(requests)
            self._places.update(places)
            self._changed.notify()
        return job

    def _cancel(self, requests: list[Request]) -> None:
        with self._changed:
            self._cancelled += [request for request in requests if self._places.pop(request, None)]
            self._changed.notify()

    def _cache_needed(self, request: Request) -> int:
        positions = len(request.prompt_ids) + request.limit - 1
        return cache_bytes(self.model.config, positions, self.model.kv_cache_dtype)

    @property
    def waiting(self) -> int:
        """Requests that have no place yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that have one."""
        return len(self._scheduler.requests)

    @property
    def retry_after(self) -> int:
        """Seconds until a place may be free, about: what a request has taken so far."""
        done = sum(self.counts.finished.values())
        return max(1, min(60, round(self.counts.seconds / done))) if done else 1

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

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------ in the engine's thread

    def _run(self) -> None:
        while self._wait():
            try:
                self._leave_and_join()
                self._step()
            except Exception as problem:
                self._fail(self._begun(), problem)
        self._fail([*self._scheduler.requests, *self._waiting], EngineClosed("the engine was shut down; ask again"))

    def _begun(self) -> list[Request]:
        """All that do not wait: what the scheduler has, and what it has finished and nobody was told of."""
        with self._changed:
            waiting = set(self._waiting)
            return list(dict.fromkeys([*self._scheduler.requests, *(r for r in self._places if r not in waiting)]))

    def _wait(self) -> bool:
        """Until there is something to do. False: there will be nothing more."""
        with self._changed:
            while not (self._waiting or self._cancelled or self._scheduler.requests or self._closing):
                self._changed.wait()
            return not self._stopping and bool(self._waiting or self._cancelled or self._scheduler.requests)

    def _leave_and_join(self) -> None:
        with self._changed:
            gone, self._cancelled = self._cancelled, []
            running = self._scheduler.requests
            for request in gone:
                self.counts.finished["cancelled"] += request in running or request in self._waiting
                self._scheduler.cancel(request)
            if gone and self._waiting:
                self._waiting = deque(request for request in self._waiting if request in self._places)
            taken = sum(self._places[request].needed for request in running)
            while self._waiting and len(running) < self.max_running:
                taken += self._places[self._waiting[0]].needed
                if running and taken > self.kv_cache_bytes:
                    break
                running.append(self._waiting.popleft())

    def _step(self) -> None:
        if not self._scheduler.requests:
            return
        new, begun = {request for request in self._scheduler.requests if not request.ids}, time.perf_counter()
        streaming = len(new) < len(self._scheduler.requests)
        pieces = self._scheduler.step(self._chunk() if streaming else None)
        seconds, read = time.perf_counter() - begun, self._scheduler.prompt_ids_read
        if read >= self.LEAST_CHUNK // 2:  # the least that a chunk beside streams leaves for prompts
            self._rate = read / seconds
        self.counts.steps += 1
        self.counts.seconds += seconds
        self.counts.generated += len(pieces)
        texts: dict[Request, str] = {}
        for request, piece in pieces:
            texts[request] = texts.get(request, "") + piece
        for request in texts:
            if request in new and (place := self._places.get(request)):
                self.counts.first_tokens += 1
                self.counts.first_token_seconds += request.answered - place.submitted
                self.counts.prompt += len(request.prompt_ids)
                self.counts.cached += request.num_cached_tokens
            if request.finish_reason and not request.problem:
                self.counts.finished[request.finish_reason] += 1
        self._send({r: (piece, len(r.ids), r.finish_reason) for r, piece in texts.items() if not r.problem})
        for request in self._scheduler.failed:
            self._fail([request], request.problem)

    def _chunk(self) -> int:
        """Ids of prompts to read in a step for which streams wait."""
        expected = int(self._rate * self.PAUSE) if self._rate else 0
        return max(self.LEAST_CHUNK, min(expected, self.model.PREFILL_CHUNK))

    def _fail(self, requests: list[Request], problem: Exception) -> None:
        if isinstance(problem, MemoryError) and not isinstance(problem, CgptError):
            problem = OutOfMemoryError("memory ran out in a step; ask for less at a time")
        elif not isinstance(problem, CgptError):
            problem = KernelError(f"a step failed: {type(problem).__name__}: {problem}")
        for request in requests:
            if request in self._scheduler.requests:
                self._scheduler.requests.remove(request)
            request.sequence = None
        self.counts.finished["error"] += len(requests)
        self._send(dict.fromkeys(requests, problem))

    def _send(self, news: dict[Request, tuple[str, int, str | None] | CgptError]) -> None:
        """Hands each request's news to its job; one call into an asyncio loop for all that it gets."""
        calls: dict[asyncio.AbstractEventLoop | None, list[tuple[Job, Event | CgptError]]] = {}
        with self._changed:
            for request, new in news.items():
                last = isinstance(new, CgptError) or new[2]
                place = self._places.pop(request, None) if last else self._places.get(request)
                if place is not None:  # else it was cancelled
                    event = new if isinstance(new, CgptError) else Event(place.index, *new)
                    calls.setdefault(place.job.loop, []).append((place.job, event))
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
