"""Runs the application on uvicorn."""

from __future__ import annotations

import socket
import sys
from typing import Any

import uvicorn

from cgpt.serve.protocol import Protocol

CONNECTIONS = 512
KEEP_ALIVE = 65  # seconds; longer than clients keep theirs, so that they do not meet one that closes


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; OSError says why not. port 0 takes a free one."""
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


class Server(uvicorn.Server):
    """uvicorn, that says where it listens once it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in sockets or []:
            print(f"cgpt: serving at {address(listening)}", file=sys.stderr, flush=True)


def run(app: Any, listening: socket.socket, drain: float) -> None:
    """Serves until SIGINT or SIGTERM; then lets what runs go on for `drain` seconds at most."""
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
    Server(config).run(sockets=[listening])
