"""Runs the application on uvicorn."""

from __future__ import annotations

import asyncio
import socket
import sys

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from cgpt.generation.engine import Engine

CONNECTIONS = 512
KEEP_ALIVE = 65  # seconds; longer than clients keep theirs, so that they do not meet one that closes


def listen(host: str, port: int) -> socket.socket:
    """Opens a listening socket; OSError says why it cannot. Port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=CONNECTIONS)
    except OSError as problem:
        raise OSError(f"cannot listen at {host} port {port}: {problem.strerror or problem}") from None
    # Connections inherit it; asyncio sets it only where it made the socket. Without it what follows a first part, a
    # body or the next token, waits for the client's acknowledgement: 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Protocol(H11Protocol):
    """uvicorn's HTTP/1.1, with a time by which the head of a request must have come (against slow-loris).

    Closes a connection that has begun no request `head_seconds` after it was made, or after a head began to come.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._between_requests():
            self._disarm()
        elif self._timer is None:
            self._arm()

    def _between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _arm(self) -> None:
        seconds = self.app_state["limits"].head_seconds  # as the application's lifespan has it
        self._timer = self.loop.call_later(seconds, self._expire)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        if self._between_requests() and not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's server, which says where it listens once it does, and ends with its engine."""

    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        super().__init__(config)
        self._engine = engine

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._engine.failure is not None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in sockets or []:
            print(f"cgpt: serving at {address(listening)}", file=sys.stderr, flush=True)


def run(app: Starlette, listening: socket.socket, drain: int) -> None:
    """Serves until SIGINT or SIGTERM; running requests then get at most `drain` seconds to finish. Raises what ended
    the engine, where something did."""
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
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=drain,
    )
    engine: Engine = app.state.service.engine
    Server(config, engine).run(sockets=[listening])
    if engine.failure is not None:
        raise engine.failure
