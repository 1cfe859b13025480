"""Runs the application on uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from cgpt.generation.engine import Engine
from cgpt.serve.errors import ApiError, error_response

CONNECTIONS = 512
OTHER_FILES = 64  # descriptors that are not connections
BACKLOG = 128  # connections that wait to be accepted; asyncio also tries so often before it finds that it cannot
SEND_BUFFER = 64 << 10  # bytes that the system holds for a client that does not read
log = logging.getLogger("cgpt.serve")
SWITCH_SECONDS = 1e-3  # until a thread that computes lets the others have Python's lock; five times as often as usual
KEEP_ALIVE = 65  # seconds; longer than clients keep theirs, so that they do not meet one that closes


def listen(host: str, port: int) -> socket.socket:
    """Opens a listening socket; OSError says why it cannot. Port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as problem:
        raise OSError(f"cannot listen at {host} port {port}: {problem.strerror or problem}") from None
    # Connections inherit it; asyncio sets it only where it made the socket. Without it what follows a first part, a
    # body or the next token, waits for the client's acknowledgement: 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    return listening


def address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Protocol(H11Protocol):
    """uvicorn's HTTP/1.1, with bounds on what a connection may hold.

    Closes a connection that has begun no request `head_seconds` after it was made, or after a head began to come
    (slow-loris), and one whose client does not read what waits for it for `write_seconds`. Where there are as many
    connections as the server takes, a new one takes the place of the one that has been between requests for the
    longest time; where none is, it gets 503.
    """

    max_connections = CONNECTIONS
    _timer: asyncio.TimerHandle | None = None
    _reader_timer: asyncio.TimerHandle | None = None
    _idle_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= self.max_connections:
            self._make_room()
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._arm()

    def _make_room(self) -> None:
        idle = [one for one in self.connections if isinstance(one, Protocol) and one._can_go()]
        if idle:
            min(idle, key=lambda one: one._idle_since).transport.close()
        else:
            busy = f"{self.max_connections} requests are being answered; try again later"
            wait = {"Retry-After": "1", "Connection": "close"}
            self.app = error_response(ApiError(busy, 503, "server_error", "overloaded", headers=wait))

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._between_requests():
            self._disarm()
        elif self._timer is None:
            self._arm()

    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        problem = sys.exc_info()[1]
        status = problem.error_status_hint if isinstance(problem, h11.RemoteProtocolError) else 400
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            why = HTTPStatus(status).phrase
            body = bytes(error_response(ApiError(f"this is no request that the server can read: {why}", status)).body)
            headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
            head = h11.Response(status_code=status, headers=list(headers.items()), reason=why.encode())
            events = (head, h11.Data(data=body), h11.EndOfMessage())
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._reader_timer is None:
            seconds = self.app_state["limits"].write_seconds
            self._reader_timer = self.loop.call_later(seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def _between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _can_go(self) -> bool:
        return self._between_requests() and not self.transport.is_closing()

    def _arm(self) -> None:
        seconds = self.app_state["limits"].head_seconds  # as the application's lifespan has it
        self._timer = self.loop.call_later(seconds, self._expire)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        if self._can_go():
            self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's server, which says where it listens once it does, and ends with its engine. drain: seconds that
    running requests have at shutdown; those that need more are told why they end."""

    WORDS = 2  # seconds for the last words

    def __init__(self, config: uvicorn.Config, engine: Engine, drain: int) -> None:
        super().__init__(config)
        self._engine, self._drain = engine, drain
        config.timeout_graceful_shutdown = drain + self.WORDS

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(Quiet())
        await super().startup(sockets)
        how, streaming = "", self._engine.model.transformer.streaming
        if streaming:
            store = streaming.store
            how = f", with {store.capacity} of {store.experts} experts in memory within {streaming.limit / 1e9:.2f} GB,"
        for listening in sockets or []:
            print(f"cgpt: serving{how} at {address(listening)}", file=sys.stderr, flush=True)

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._engine.failure is not None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._drain, lambda: loop.run_in_executor(None, self._engine.close))
        await super().shutdown(sockets)
        timer.cancel()


class Quiet:
    """Handles what fails in the event loop beside all requests, as where descriptors run out: logs a kind of it once
    a minute."""

    SECONDS = 60.0

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        kind = f"{context['message']} {context.get('exception', '')}"
        if loop.time() - self._last.get(kind, -self.SECONDS) >= self.SECONDS:
            self._last = {kind: loop.time()} if len(self._last) > 100 else self._last | {kind: loop.time()}
            log.error("%s", kind, exc_info=context.get("exception"))


def raise_descriptors() -> int:
    """Takes as many open files as the system allows this process, and returns how many connections that is at most."""
    try:
        import resource
    except ImportError:  # Windows
        return CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS may refuse what it says is the limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return CONNECTIONS if soft == resource.RLIM_INFINITY else max(1, min(CONNECTIONS, soft - OTHER_FILES))


def run(app: Starlette, listening: socket.socket, drain: int) -> None:
    """Serves until SIGINT or SIGTERM; running requests then get at most `drain` seconds to finish. Raises what ended
    the engine, where something did."""
    Protocol.max_connections = raise_descriptors()
    sys.setswitchinterval(SWITCH_SECONDS)
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # any client can make it warn of bad HTTP
    engine: Engine = app.state.service.engine
    Server(config, engine, drain).run(sockets=[listening])
    if engine.failure is not None:
        raise engine.failure
