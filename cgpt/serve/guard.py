"""Checks who may use the server, by Host, Origin and API key; counts and logs requests, without their prompts."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import re
import time
import uuid
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cgpt.serve.errors import ApiError, error_response
from cgpt.serve.metrics import Metrics

Names = Collection[str]
OPEN = {"/", "/health"}  # without a key, and so is what is below ASSETS: the files of the page
ASSETS = "/page/"
HOST = re.compile(r"(\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[\w.-]+))(:\d{0,5})?", re.ASCII)
REQUEST_ID = re.compile(r"[!-~]{1,128}")
log = logging.getLogger("cgpt.serve")


class Guard:
    """Middleware that refuses requests before an endpoint sees them.

    paths: those that are counted by name, so that clients cannot make up new ones. hosts: names that the server is
    called by, beside its addresses and localhost. A page that had its own name point here (DNS rebinding) sends that
    name. origins: of pages that may ask, beside the server's own. "*" is any.
    key: what `Authorization: Bearer` or `x-api-key` must hold; None for no key
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, paths: Names, hosts: Names, origins: Names, key: str | None
    ) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths
        self._hosts = {name.lower() for name in hosts}
        self._origins = origins
        self._key = None if key is None else key.encode("utf-8")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", number), (b"request-id", number)]
            await send(message)

        headers = Headers(scope=scope)
        asked = headers.get("x-request-id", "")
        number = (asked if REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex).encode("ascii")
        problem = self._refusal(scope["path"], headers)
        try:
            await (error_response(problem, scope["path"]) if problem else self._app)(scope, receive, send_and_note)
        finally:
            seconds, path = time.perf_counter() - began, scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.count(path, status)
            log.info("%s %s %s %.2f s", scope["method"], path, status, seconds)

    def _refusal(self, path: str, headers: Headers) -> ApiError | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_ours(host):
            hint = "the server goes by its address, localhost, and what --allow-host names"
            return ApiError(f"the Host {host[:80]!r} is not this server's: {hint}", 403, code="host_not_allowed")
        if origin is not None and not {"*", origin} & set(self._origins) and not _same(origin, host):
            return ApiError(f"pages of {origin[:80]!r} may not ask; --cors allows it", 403, code="origin_not_allowed")
        if self._key is not None and path not in OPEN and not path.startswith(ASSETS):
            kind, _, key = headers.get("authorization", "").partition(" ")
            given = [key.strip()] * (kind.lower() == "bearer") + headers.getlist("x-api-key")
            if not any(hmac.compare_digest(one.encode("latin-1"), self._key) for one in given):  # as they came
                message = "this server wants its API key, as Authorization: Bearer KEY or x-api-key: KEY"
                return ApiError(message, 401, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return None

    def _is_ours(self, host: str) -> bool:
        if "*" in self._hosts:
            return True
        if not (parts := HOST.fullmatch(host)):
            return False
        name = (parts["v6"] or parts["name"]).lower().removesuffix(".")
        if name == "localhost" or name.endswith(".localhost") or name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _same(origin: str, host: str) -> bool:
    scheme, _, origin_host = origin.partition("://")
    return scheme in ("http", "https") and origin_host.lower() == host.lower()
