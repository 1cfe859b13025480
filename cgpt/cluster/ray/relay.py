"""Passes an answer on to a client, and knows how much of it the client has."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import Message, Send

from cgpt.serve.errors import ApiError, error_type
from cgpt.serve.openapi import EVENTS
from cgpt.serve.stream import framed


class Relay:
    """The answer that a client gets, from one replica or, where that is lost, from another one too.

    has_begun: whether the head was sent. has_told: whether more than the head of a stream and comments was, so that no
    other replica can take over.
    """

    def __init__(self, path: str, send: Send) -> None:
        self._path, self._send = path, send
        self._head: Message | None = None  # waits for the first part of the body
        self._streams = False
        self.has_begun = self.has_told = False

    async def pass_on(self, messages: Sequence[Message]) -> None:
        """Sends the ASGI messages of a replica. ApiError where the head of a second one does not go with the first."""
        for message in messages:
            if message["type"] == "http.response.start":
                kind = Headers(raw=message["headers"]).get("content-type", "")
                streams = message["status"] == 200 and kind.startswith(EVENTS)
                if self.has_begun and not streams:
                    raise replica_lost(f"another one answers with {message['status']}")
                self._streams, self._head = streams, message
                continue
            if self._head is not None and not self.has_begun:
                await self._send(self._head)
                self.has_begun = True
            self.has_told |= not (self._streams and message.get("body", b"").startswith(b":"))
            await self._send(message)

    async def fail(self, problem: ApiError) -> None:
        """Ends the answer with an error. ApiError, for who answers with it, where nothing was sent."""
        if not self.has_begun:
            raise problem
        if not self._streams:
            raise RuntimeError(f"{self._path}: the answer ends in its middle: {problem}")  # closes the connection
        answer = error_type(self._path).of(problem)
        text = framed(("error" if hasattr(answer, "type") else None, answer))
        text += "data: [DONE]\n\n" * self._path.endswith("completions")
        await self._send({"type": "http.response.body", "body": text.encode("ascii"), "more_body": False})


def replica_lost(more: str = "ask again") -> ApiError:
    """The error of an answer whose replica is gone."""
    return ApiError(f"the replica that made this answer was lost; {more}", 503, "server_error", "replica_lost")
