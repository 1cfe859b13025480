"""Answers the requests of a batch by the server's own application, in this process and without a socket."""

from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
import json
import logging
import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

from cgpt.arguments import warn_caller
from cgpt.batch.request import HASH_BYTES, BatchRecord, BatchRequest, BatchResponse
from cgpt.generation.engine import Engine
from cgpt.serve.app import make_app
from cgpt.serve.limits import Limits
from cgpt.serve.openapi import IGNORED
from cgpt.serve.service import Service

Answers = queue.SimpleQueue["concurrent.futures.Future[BatchRecord]"]
IDLE_SECONDS = 0.5  # without a record
BYTES_IN_FLIGHT = 64 << 20  # of lines
HEADERS = [(b"host", b"localhost"), (b"content-type", b"application/json")]
log = logging.getLogger("cgpt.batch")


def fingerprint(service: Service) -> bytes:
    """See Runner. The kernels, the version and the threads are no part of it: a batch may go on elsewhere."""
    transformer = service.model.transformer
    weights = [(name, matrix.dtype, matrix.shape) for name, matrix in transformer.matrices()]
    asked = [service.bounds[name] for name in ("models", "max_tokens", "strict")]
    what = (transformer.config, transformer.precision, transformer.kv_cache_dtype, weights, asked)
    hashed = hashlib.blake2b(repr(what).encode(), digest_size=HASH_BYTES)
    if transformer.files is not None:
        hashed.update(transformer.files.digest())
    return hashed.digest()


class LocalRunner:
    """A Runner over an engine, which it closes in the end.

    Twice as many lines are handed over as texts run together, so that some wait always. Nothing is remembered of
    answers, since lines come in no order: a previous_response_id is refused.
    """

    def __init__(
        self, engine: Engine, names: Sequence[str], *, max_tokens: int = Limits.max_tokens, strict: bool = False
    ) -> None:
        """engine: which lets runner.MAX_WAITING requests wait. names: what the bodies may call the model.
        max_tokens, strict: as those of a server, see Limits and Service."""
        service = Service(engine, names, Limits(max_tokens=max_tokens, stored_bytes=0), strict=strict)
        self._service, self._app = service, make_app(service)
        self.fingerprint = fingerprint(service)
        self._named: set[str] = set()  # what was left out of bodies
        self._started: concurrent.futures.Future[asyncio.AbstractEventLoop] = concurrent.futures.Future()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=asyncio.run, args=[self._live()], name="cgpt-batch", daemon=True)
        self._thread.start()
        self._loop = self._started.result()

    async def _live(self) -> None:
        async with self._app.router.lifespan_context(self._app):
            self._started.set_result(asyncio.get_running_loop())
            await self._stop.wait()

    def close(self) -> None:
        """Ends what runs, with the engine."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def __enter__(self) -> LocalRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, requests: Iterable[BatchRequest]) -> Generator[BatchRecord | None, None, None]:
        """See Runner."""
        answers: Answers = queue.SimpleQueue()
        running: dict[concurrent.futures.Future[BatchRecord], int] = {}  # bytes of the line
        room = 2 * self._service.engine.max_running

        def taken(wait: bool) -> Iterator[BatchRecord | None]:
            try:
                future = answers.get(wait, IDLE_SECONDS)
            except queue.Empty:
                if wait:
                    yield None
                return
            del running[future]
            yield future.result()

        try:
            for request in requests:
                future = self.submit(request)
                running[future] = request.nbytes
                future.add_done_callback(answers.put)
                yield from taken(wait=False)
                while len(running) >= room or sum(running.values()) > BYTES_IN_FLIGHT:
                    yield from taken(wait=True)
            while running:
                yield from taken(wait=True)
        finally:
            for future in running:
                future.cancel()

    def submit(self, request: BatchRequest) -> concurrent.futures.Future[BatchRecord]:
        """The record of one request, once it is there; see answer()."""
        return asyncio.run_coroutine_threadsafe(self.answer(request), self._loop)

    async def answer(self, request: BatchRequest) -> BatchRecord:
        """The record of one request; for any asyncio loop. Raises what ended the engine."""
        if request.refusal is not None:
            return request.record(None)
        response = await self._post(request.url, json.dumps(request.body).encode("ascii"))
        engine = self._service.engine
        if response["status_code"] == 503 and engine.model.transformer.closed:
            await asyncio.to_thread(engine.join)  # the service may see that the model is closed before the engine does
        if response["status_code"] == 503 and engine.failure is not None:
            raise engine.failure
        return request.record(response)

    async def _post(self, url: str, body: bytes) -> BatchResponse:
        """Sends a request through the application, as a server would that has read all of it."""
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": url,
            "query_string": b"",
            "headers": HEADERS,
        }
        coming: list[Any] = [{"type": "http.request", "body": body}]
        sent: list[Any] = []

        async def receive() -> Any:
            return coming.pop() if coming else await asyncio.Event().wait()  # the client never leaves

        async def send(message: Any) -> None:
            sent.append(message)

        try:
            await self._app(scope, receive, send)
        except Exception:  # it was answered, as a defect
            log.exception("a request failed")
        headers = dict(sent[0]["headers"])
        for name in headers.get(IGNORED.encode(), b"").decode("ascii").split(", "):
            self._note(name)
        text = b"".join(message["body"] for message in sent[1:])
        return {
            "status_code": sent[0]["status"],
            "request_id": headers[b"x-request-id"].decode("ascii"),
            "body": json.loads(text),
        }

    def _note(self, name: str) -> None:
        if name and name not in self._named:
            self._named.add(name)
            warn_caller(f"left out of bodies, as it means nothing here: {name}")
