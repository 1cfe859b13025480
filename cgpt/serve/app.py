"""The application: its routes, and what they share."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from cgpt.chat.grammar import Grammars
from cgpt.chat.messages import SpecialTokens
from cgpt.errors import CgptError, ChatError
from cgpt.generation.engine import Engine, Job
from cgpt.generation.request import Request
from cgpt.serve.errors import ApiError, api_error, error_response
from cgpt.serve.guard import Guard
from cgpt.serve.limits import Limits
from cgpt.serve.metrics import Metrics, metrics
from cgpt.serve.openai import models
from cgpt.serve.openai.body import Body
from cgpt.serve.openai.chat import chat
from cgpt.serve.openai.completions import completions
from cgpt.serve.openai.openapi import openapi
from cgpt.serve.openai.responses import responses
from cgpt.serve.page import page
from cgpt.serve.stream import ClientGone
from cgpt.version import __version__

ROUTES = [
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/chat/completions", chat, methods=["POST"]),
    Route("/v1/responses", responses, methods=["POST"]),
    Route("/v1/models", models.models),
    Route("/v1/models/{name:path}", models.model),
    Route("/tokenize", models.tokenize, methods=["POST"]),
    Route("/detokenize", models.detokenize, methods=["POST"]),
    Route("/health", models.health),
    Route("/metrics", metrics),
    Route("/openapi.json", openapi),
    Route("/", page),
]
log = logging.getLogger("cgpt.serve")


class Service:
    """What the endpoints share: one engine, and how it is presented."""

    def __init__(self, engine: Engine, name: str, limits: Limits, log_prompts: bool = False) -> None:
        """name: what clients call the model."""
        self.engine, self.name, self.limits, self.log_prompts = engine, name, limits, log_prompts
        self.model = engine.model
        self.tokenizer = engine.model.tokenizer  # TokenizerError here, where the model has none
        try:
            SpecialTokens(self.tokenizer)
            self.no_chat = None
        except ChatError as problem:
            self.no_chat = f"{problem}; here that is /v1/completions"
        self.metrics = Metrics(route.path for route in ROUTES)
        self.created = int(time.time())
        self.fingerprint = f"cgpt-{__version__}"

    @cached_property
    def grammars(self) -> Grammars:
        """Takes about a second for a large vocabulary."""
        return Grammars(self.tokenizer)

    def head(self, prefix: str, kind: str) -> dict[str, Any]:
        """What every part of an answer begins with. prefix: of its id; kind: what OpenAI calls the object."""
        return {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": self.name,
            "system_fingerprint": self.fingerprint,
        }

    def submit(self, requests: list[Request], body: Body) -> Job:
        """Enters what `body` asked for into the engine."""
        if self.log_prompts:
            log.info("%r", body.values)
        return self.engine.submit(requests)

    def require_model(self, body: Body) -> None:
        if "model" in body:
            self.require_name(body.text("model"))

    def require_chat(self) -> None:
        """ApiError where the model has no chat format."""
        if self.no_chat is not None:
            raise ApiError(self.no_chat, code="model_has_no_chat", param="model")

    def require_name(self, name: str) -> None:
        if name != self.name:
            message = f"there is no model {name[:80]!r} here; this server has {self.name!r}"
            raise ApiError(message, 404, code="model_not_found", param="model")


def make_app(
    service: Service, hosts: tuple[str, ...] = (), origins: tuple[str, ...] = (), key: str | None = None
) -> Starlette:
    """hosts, origins, key: see guard.Guard. The engine is closed with the application."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        service.engine.close()

    middleware = [Middleware(Guard, service, hosts, origins, key)]
    if origins:
        cors: dict[str, Any] = {"allow_methods": ["GET", "POST"], "allow_headers": ["*"]}
        middleware.insert(0, Middleware(CORSMiddleware, allow_origins=origins, **cors))
    handlers = {CgptError: _failed, HTTPException: _http, ClientGone: _gone, Exception: _defect}
    app = Starlette(routes=ROUTES, middleware=middleware, exception_handlers=handlers, lifespan=lifespan)
    app.state.service, app.state.key = service, key is not None
    return app


async def _failed(request: HttpRequest, problem: CgptError) -> Response:
    return error_response(api_error(problem, request.app.state.service.engine.retry_after))


async def _http(_: HttpRequest, problem: HTTPException) -> Response:
    return error_response(
        ApiError(
            f"{problem.detail}; the endpoints are {', '.join(r.path for r in ROUTES)}",
            problem.status_code,
            headers=problem.headers,
        )
    )


async def _gone(_: HttpRequest, __: ClientGone) -> Response:
    return Response(status_code=499)  # for the log: nobody reads it


async def _defect(_: HttpRequest, problem: Exception) -> Response:
    message = f"a defect of the server: {type(problem).__name__}; its log says more"
    return error_response(ApiError(message, 500, "server_error", "internal_error"))
