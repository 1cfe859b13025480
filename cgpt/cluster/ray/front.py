"""Lets requests in, hands each to a replica, and sees to it that a lost replica is no lost request."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable
from typing import Any

from ray.exceptions import ObjectLostError, RayActorError, RaySystemError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cgpt.cluster.ray.affinity import prompt_blocks, referred_tag
from cgpt.cluster.ray.messages import Forwarded
from cgpt.cluster.ray.options import FleetOptions, listed
from cgpt.cluster.ray.relay import Relay, replica_lost
from cgpt.errors import EngineClosed, QueueFull
from cgpt.serve.app import guards
from cgpt.serve.body import parse_body, read_raw, unpacked
from cgpt.serve.errors import ApiError, Json, api_error, defect, error_response
from cgpt.serve.limits import Limits
from cgpt.serve.metrics import EXPOSITION, Family, Metrics, exposition
from cgpt.serve.openai.models import Health
from cgpt.serve.openapi import SMALL
from cgpt.serve.stream import ClientGone, while_connected

ATTEMPTS = 3  # replicas that a request may lose
REPLY_SECONDS = 5.0  # for the replicas to say how they are
LOST = (RayActorError, ObjectLostError, RaySystemError)
SECRETS = {b"authorization", b"x-api-key"}  # replicas need not know them
NO_REPLICA = "no replica is ready; try again later"
log = logging.getLogger("cgpt.serve")


class Front:
    """The ASGI application that Ray Serve's proxies hand requests to."""

    def __init__(self, replicas: DeploymentHandle, options: FleetOptions, key: str | None) -> None:
        self._replicas = replicas.options(stream=True, method_name="answer")
        self._options, self._key = options, key
        self._limits, self._metrics = Limits(), Metrics()

    def __serve_build_asgi_app__(self) -> Starlette:
        hosts, origins = listed(self._options.allow_host), listed(self._options.cors)
        handlers: dict[Any, Any] = {ApiError: _refused, Exception: _defect}
        return Starlette(
            routes=[Route("/health", self._health), Route("/metrics", self._report), Mount("/", self._forward)],
            middleware=[Middleware(OneRequestId), *guards(self._metrics, hosts, origins, self._key)],
            exception_handlers=handlers,
        )

    async def _ask_all(self, method: str) -> list[Any]:
        """What the replicas answer, those left out that fail; ApiError where none is left."""
        answers: list[Any] = []
        with contextlib.suppress(DeploymentUnavailableError, TimeoutError):
            told = self._replicas.broadcast(method)
            answers = await told.results_async(timeout_s=REPLY_SECONDS, return_exceptions=True)
        if answers := [one for one in answers if not isinstance(one, BaseException)]:
            return answers
        raise api_error(EngineClosed(NO_REPLICA))

    async def _health(self, _: HttpRequest) -> Response:
        await self._ask_all("check_health")
        return Json(Health())

    async def _report(self, _: HttpRequest) -> Response:
        families = [self._metrics.http(), *by_replica(await self._ask_all("metrics"))]
        return PlainTextResponse(exposition(families), media_type=EXPOSITION)

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = await read_raw(HttpRequest(scope, receive), self._limits)

        def read() -> Forwarded:
            return forwarded(scope, raw, self._limits)

        is_packed = any(name == b"content-encoding" for name, _ in scope["headers"])  # it may be large then
        request = read() if len(raw) <= SMALL and not is_packed else await run_in_threadpool(read)
        relay = Relay(scope["path"], send)
        try:
            await while_connected(receive, self._answer(request, relay))
        except ClientGone:
            if not relay.has_begun:
                await Response(status_code=499)(scope, receive, send)  # for the log: nobody reads it

    async def _answer(self, request: Forwarded, relay: Relay) -> None:
        """Sends a replica's answer, another one's where that is lost before it has told anything."""
        problem = replica_lost()
        for _ in range(ATTEMPTS):
            answer = self._replicas.remote(request)
            try:
                async for messages in answer:
                    await relay.pass_on(messages)
                return
            except LOST as lost:
                log.warning("%s: a replica was lost: %s", request.path, type(lost).__name__)
                if relay.has_told:
                    break
            except BackPressureError:
                problem = api_error(QueueFull(f"{self._options.max_waiting} requests wait; try again later"))
                break
            except DeploymentUnavailableError:
                problem = api_error(EngineClosed(NO_REPLICA))
                break
            except ApiError as other:
                problem = other
                break
            finally:
                answer.cancel()  # where the client has left
        await relay.fail(problem)


class OneRequestId:
    """Middleware that leaves out the guard's x-request-id, as Ray's proxies add one, and it is the same."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [pair for pair in message["headers"] if pair[0] != b"x-request-id"]
            await send(message)

        await self._app(scope, receive, send_without)


def forwarded(scope: Scope, raw: bytes, limits: Limits) -> Forwarded:
    """A request for the replicas, which say what is wrong with a body that cannot be read here."""
    blocks: tuple[int, ...] = ()
    plain = raw
    with contextlib.suppress(ApiError):
        plain = unpacked(raw, Headers(scope=scope).get("content-encoding", "identity"), limits)
        blocks = prompt_blocks(parse_body(plain, limits)) if plain else ()
    headers = tuple((name, value) for name, value in scope["headers"] if name not in SECRETS)
    tag = referred_tag(scope["path"], plain)
    return Forwarded(scope["method"], scope["path"], scope["query_string"], headers, raw, blocks, tag)


def by_replica(counted: Iterable[tuple[str, list[Family]]]) -> list[Family]:
    """The families of all replicas, with the label "replica"."""
    merged: dict[str, Family] = {}
    for replica, families in sorted(counted):
        for family in families:
            samples = merged.setdefault(family.name, family._replace(samples={})).samples
            merged[family.name] = family._replace(samples={**samples, **_labelled(family, replica)})
    return list(merged.values())


def _labelled(family: Family, replica: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in family.samples.items():
        suffix, _, labels = name.partition("{")
        found[f'{suffix}{{replica="{replica}"{"," if labels else "}"}{labels}'] = value
    return found


async def _refused(request: HttpRequest, problem: ApiError) -> Response:
    return error_response(problem, request.url.path)


async def _defect(request: HttpRequest, problem: Exception) -> Response:
    return error_response(defect(problem), request.url.path)
