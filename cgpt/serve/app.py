"""The ASGI application: its endpoints, the middleware around them, and what becomes of exceptions."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from anyio import to_thread
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response

from cgpt.errors import CgptError
from cgpt.serve.anthropic.messages import Message, TokenCount, count_tokens, messages
from cgpt.serve.anthropic.protocol import MessagesRequest
from cgpt.serve.errors import ApiError, api_error, defect, error_response
from cgpt.serve.guard import Guard, Names
from cgpt.serve.metrics import EXPOSITION, Metrics, exposition
from cgpt.serve.openai import models
from cgpt.serve.openai.chat import ChatCompletion, ChatRequest, chat
from cgpt.serve.openai.completions import Completion, CompletionRequest, completions
from cgpt.serve.openai.item_list import ItemList, ItemsQuery
from cgpt.serve.openai.responses import (
    TO_DELETE,
    TO_RESPONSE,
    Deleted,
    ResponseObject,
    ResponseRequest,
    delete_response,
    input_items,
    responses,
    stored_response,
)
from cgpt.serve.openapi import Endpoint, document, routes
from cgpt.serve.page import assets
from cgpt.serve.page.markdown import MarkdownRequest, Rendered, markdown
from cgpt.serve.service import Service
from cgpt.serve.stream import ClientGone
from cgpt.serve.validation import Schema

THREADS = 2  # for what takes long; each that computes makes the others wait for Python's lock
log = logging.getLogger("cgpt.serve")


async def openapi(service: Service) -> Schema:
    if service.document is None:
        service.document = await run_in_threadpool(document, service, ENDPOINTS, service.has_key)
    return service.document


async def metrics(service: Service) -> PlainTextResponse:
    families = [service.metrics.http(), *service.metrics.families(service.engine)]
    return PlainTextResponse(exposition(families), media_type=EXPOSITION)


ENDPOINTS = [
    Endpoint("/v1/completions", completions, Completion, CompletionRequest, streams=True),
    Endpoint("/v1/chat/completions", chat, ChatCompletion, ChatRequest, streams=True, chats=True),
    Endpoint("/v1/responses", responses, ResponseObject, ResponseRequest, streams=True, chats=True, links=TO_RESPONSE),
    Endpoint("/v1/responses/{response_id}", stored_response, ResponseObject, chats=True, links=TO_DELETE),
    Endpoint("/v1/responses/{response_id}", delete_response, Deleted, chats=True, method="DELETE"),
    Endpoint("/v1/responses/{response_id}/input_items", input_items, ItemList, chats=True, query=ItemsQuery),
    Endpoint("/v1/messages", messages, Message, MessagesRequest, streams=True, chats=True),
    Endpoint("/v1/messages/count_tokens", count_tokens, TokenCount, MessagesRequest, chats=True),
    Endpoint("/v1/models", models.models, models.ModelList, links=models.TO_MODEL),
    Endpoint("/v1/models/{name:path}", models.model, models.ModelCard),
    Endpoint("/tokenize", models.tokenize, models.Tokens, models.TokenizeRequest, links=models.TO_DETOKENIZE),
    Endpoint("/detokenize", models.detokenize, models.Detokenized, models.DetokenizeRequest),
    Endpoint("/tokenizer_info", models.tokenizer_info, models.TokenizerInfo),
    Endpoint("/health", models.health, models.Health),
    Endpoint("/metrics", metrics, "text/plain"),
    Endpoint("/openapi.json", openapi, dict[str, Any]),
    Endpoint("/markdown", markdown, Rendered, MarkdownRequest),
    Endpoint("/", assets.page, "text/html"),
]
ROUTES = [*routes(ENDPOINTS), assets.ROUTE]
PATHS = frozenset(route.path for route in ROUTES)


def guards(metrics: Metrics, hosts: Names, origins: Names, key: str | None) -> list[Middleware]:
    """The middleware that lets requests in, and counts them in `metrics`. hosts, origins, key: see guard.Guard."""
    guard = Middleware(Guard, metrics, PATHS, hosts, origins, key)
    if not origins:
        return [guard]
    cors: dict[str, Any] = {"allow_methods": ["GET", "POST", "DELETE"], "allow_headers": ["*"]}
    return [Middleware(CORSMiddleware, allow_origins=origins, **cors), guard]


def make_app(service: Service, hosts: Names = (), origins: Names = (), key: str | None = None) -> Starlette:
    """Makes the ASGI application of a server. hosts, origins, key: see guard.Guard."""
    return unguarded_app(service, key is not None, guards(service.metrics, hosts, origins, key))


def unguarded_app(service: Service, has_key: bool, middleware: Sequence[Middleware] = ()) -> Starlette:
    """Makes the ASGI application, with this middleware around the endpoints. has_key: whether clients need an API key,
    which others check. The engine is closed with the application."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
        to_thread.current_default_thread_limiter().total_tokens = THREADS  # run_in_threadpool's
        yield {"limits": service.limits}
        service.engine.close()

    handlers: dict[Any, Any] = {CgptError: _failed, HTTPException: _http, ClientGone: _gone, Exception: _defect}
    app = Starlette(routes=ROUTES, middleware=middleware, exception_handlers=handlers, lifespan=lifespan)
    app.state.service, service.has_key = service, has_key
    return app


async def _failed(request: HttpRequest, problem: CgptError) -> Response:
    answered = api_error(problem, request.app.state.service.engine.retry_after)
    if answered.status == 500:
        log.error("%s: %s", type(problem).__name__, problem)
    return error_response(answered, request.url.path)


async def _http(request: HttpRequest, problem: HTTPException) -> Response:
    message = f"{problem.detail}; the endpoints are {', '.join(route.path for route in ROUTES)}"
    answered = ApiError(message, problem.status_code, headers=dict(problem.headers or {}))
    return error_response(answered, request.url.path)


async def _gone(_: HttpRequest, __: ClientGone) -> Response:
    return Response(status_code=499)  # for the log: nobody reads it


async def _defect(request: HttpRequest, problem: Exception) -> Response:
    return error_response(defect(problem), request.url.path)
