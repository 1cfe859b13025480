"""Sends answers as server-sent events, and ends the work when the client disconnects."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from cgpt.errors import CgptError
from cgpt.generation.engine import Job
from cgpt.serve.errors import ApiError, ErrorAnswer, Json, api_error, defect, dumps, json_parts, sliced_dumps

T = TypeVar("T")
log = logging.getLogger("cgpt.serve")
HEAD_SECONDS = 0.25  # until the head of a stream is sent, with or without a first event
PAUSE_EVERY = 32 << 10  # characters of an event
COMMENT_SECONDS = 3.0  # between comments while no event comes: proxies and clients give up a silent connection
COMMENT = ": keep-alive\n\n"
Event = tuple[str | None, Any]  # name of the event or None, JSON object
Events = AsyncIterator[Event]
Whole = Coroutine[Any, Any, Any]


class ClientGone(Exception):
    """The client has disconnected; nobody waits for the answer."""


async def while_connected(receive: Receive, work: Awaitable[T]) -> T:
    """Waits for the result of `work`; if the client disconnects first, cancels it and raises ClientGone. The body of
    the request must have been read."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)  # until both have cleaned up


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def framed(event: Event, text: str | None = None) -> str:
    """The text of an event, whose data is `text` where that was made already."""
    name, data = event
    return (f"event: {name}\n" if name else "") + f"data: {dumps(data) if text is None else text}\n\n"


@dataclass(frozen=True)
class Generated:
    """An answer that is made from a job: events as they come, or one answer.

    done: whether `[DONE]` ends the events. failure: the event that tells of a failure between them. idle: what is sent
    while none comes, once the first one has; a comment until then.
    """

    job: Job
    answer: Events | Whole
    done: bool = True
    failure: Callable[[ApiError], Event] = lambda problem: (None, ErrorAnswer.of(problem))
    idle: str = COMMENT

    async def response(self, receive: Receive) -> Response:
        """Waits for the one answer; or for a moment for the first event, so that what fails at once can still be an
        answer of its own. The job ends with it, or with the stream."""
        try:
            if not isinstance(self.answer, AsyncIterator):
                whole = await while_connected(receive, self.answer)
                return Json(await run_in_threadpool(sliced_dumps, whole))
            first = asyncio.ensure_future(_next(self.answer))
            try:
                await while_connected(receive, asyncio.wait([first], timeout=HEAD_SECONDS))
                if first.done():
                    first.result()
            except BaseException:
                first.cancel()
                raise
        except BaseException:
            self.job.cancel()
            raise
        return EventStream(self.job, _framed(first, self.answer, self))


async def _next(events: Events) -> Event | None:
    return await anext(events, None)


async def paused_dumps(data: dict[str, Any]) -> str:
    """The same text as dumps(data), of what may hold thousands of log-probabilities, with pauses for other tasks."""
    parts, length = [], 0
    for part in json_parts(data):
        parts.append(part)
        length += len(part)
        if length > PAUSE_EVERY:
            length = 0
            await asyncio.sleep(0)
    return "".join(parts)


async def _framed(coming: asyncio.Task[Event | None], events: Events, generated: Generated) -> AsyncIterator[str]:
    """The text of the events, of the one that comes and the others, with comments while none comes. A failure in the
    middle becomes an event, which clients raise."""
    is_large = any(request.num_logprobs is not None for request in generated.job.requests)
    pause, idle = 0.0, COMMENT
    try:
        while True:
            await asyncio.wait([coming], timeout=pause)
            pause = COMMENT_SECONDS
            if not coming.done():
                yield idle
                continue
            if (event := coming.result()) is None:
                break
            yield framed(event, await paused_dumps(event[1]) if is_large else None)
            idle, coming = generated.idle, asyncio.ensure_future(_next(events))
    except Exception as problem:
        answered = api_error(problem) if isinstance(problem, CgptError) else defect(problem)
        if answered.status == 500:
            log.error("a stream failed", exc_info=problem)
        yield framed(generated.failure(answered))
    finally:
        coming.cancel()
    if generated.done:
        yield "data: [DONE]\n\n"


class EventStream(StreamingResponse):
    """Sends server-sent events. The job is cancelled when the client disconnects."""

    media_type = "text/event-stream"

    def __init__(self, job: Job, events: AsyncIterator[str]) -> None:
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self.stream_response(send))
        except ClientGone:
            pass
        finally:
            self._job.cancel()
