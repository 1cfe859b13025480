"""Sends answers as server-sent events, and ends the work when the client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from cgpt.errors import CgptError
from cgpt.generation.engine import Job
from cgpt.serve.errors import api_error, dumps, error_answer

T = TypeVar("T")
Events = AsyncIterator[tuple[str | None, dict[str, Any]]]  # name of the event or None, JSON object
Whole = Coroutine[Any, Any, Response]


class ClientGone(Exception):
    """The client has disconnected; nobody waits for the answer."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
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


async def respond(request: Request, job: Job, answer: Events | Whole, done: bool = True) -> ASGIApp:
    """Answers a request from a job, by events as they come (done: see EventStream) or by one answer. The job ends
    with it."""
    if isinstance(answer, AsyncIterator):
        return await EventStream(job, answer, done).begin(request)
    try:
        return await while_connected(request.receive, answer)
    finally:
        job.cancel()


class EventStream:
    """An ASGI application that sends server-sent events, framed as OpenAI frames them.

    The job is cancelled when the client disconnects. A failure in the middle becomes an error object, which OpenAI's
    clients raise. done: whether `[DONE]` ends the stream.
    """

    HEADERS = [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
    ]

    def __init__(self, job: Job, events: Events, done: bool = True) -> None:
        self._job, self._events, self._done = job, events, done

    async def begin(self, request: Request) -> EventStream:
        """Waits for the first event, so that what fails before it can still be an answer of its own."""
        try:
            self._begun = await while_connected(request.receive, self._next())
        except BaseException:
            self._job.cancel()
            raise
        return self

    async def _next(self) -> tuple[str | None, dict[str, Any]] | None:
        return await anext(self._events, None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.HEADERS})
            await while_connected(receive, self._pump(send))
        except ClientGone:
            pass
        finally:
            self._job.cancel()

    async def _pump(self, send: Send) -> None:
        event = self._begun
        try:
            while event is not None:
                await _send(send, *event)
                event = await self._next()
        except CgptError as problem:
            await _send(send, None, error_answer(api_error(problem)))
        end = b"data: [DONE]\n\n" if self._done else b""
        await send({"type": "http.response.body", "body": end, "more_body": False})


async def _send(send: Send, name: str | None, data: Any) -> None:
    text = f"event: {name}\ndata: {dumps(data)}\n\n" if name else f"data: {dumps(data)}\n\n"
    await send({"type": "http.response.body", "body": text.encode("ascii"), "more_body": True})
