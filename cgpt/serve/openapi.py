"""/openapi.json: what the endpoints take and give, for clients that read it and tests that try it.

The fields are those that change something here; each may be null, which is as good as absent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.requests import Request

import cgpt
from cgpt.serve.errors import Json

if TYPE_CHECKING:
    from cgpt.serve.app import Service

Schema = dict[str, Any]
TEXT: Schema = {"type": ["string", "null"]}
FLAG: Schema = {"type": ["boolean", "null"]}
IDS: Schema = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}


def _number(low: float, high: float, kind: str = "number") -> Schema:
    return {"type": [kind, "null"], "minimum": low, "maximum": high}


def _integer(low: int, high: int) -> Schema:
    return _number(low, high, "integer")


def _object(required: list[str], **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _list(items: Schema, most: int) -> Schema:
    return {"type": ["array", "null"], "items": items, "maxItems": most}


def _sampling(service: Service) -> dict[str, Schema]:
    limits = service.limits
    stop = {"type": "string", "maxLength": limits.stop_length}
    return {
        "model": {"enum": [service.name, None]},
        "temperature": _number(0, 2),
        "top_p": _number(1e-6, 1),
        "top_k": _integer(1, 2**31),
        "min_p": _number(0, 1),
        "presence_penalty": _number(-2, 2),
        "frequency_penalty": _number(-2, 2),
        "repetition_penalty": _number(0.01, 100),
        "seed": _integer(-(2**63), 2**63 - 1),
        "stop": {"anyOf": [stop, _list(stop, limits.stops)]},
        "logit_bias": {"type": ["object", "null"], "additionalProperties": _number(-100, 100)},
        "stream": FLAG,
        "stream_options": {"anyOf": [_object([], include_usage=FLAG), {"type": "null"}]},
    }


def _bodies(service: Service) -> dict[str, Schema]:
    limits, sampling = service.limits, _sampling(service)
    parts = {"type": "array", "items": _object(["type", "text"], type={"const": "text"}, text={"type": "string"})}
    roles = {"enum": ["system", "developer", "user", "assistant", "tool"]}
    content = {"anyOf": [TEXT, parts]}
    message = {"type": "object", "properties": {"role": roles, "content": content}, "required": ["role"]}
    tool = {"type": "object", "properties": {"type": {"const": "function"}}, "required": ["type"]}
    some = {key: sampling[key] for key in ("model", "temperature", "top_p", "stream")}
    prompt = {"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {"type": "string"}}, IDS,
                        {"type": "array", "minItems": 1, "items": IDS}]}  # fmt: skip
    return {
        "/v1/completions": _object(
            ["prompt"], **sampling, prompt=prompt, max_tokens=_integer(0, limits.max_tokens), echo=FLAG,
            n=_integer(1, limits.n), best_of=_integer(1, limits.n), logprobs=_integer(0, limits.logprobs),
        ),
        "/v1/chat/completions": _object(
            ["messages"], **sampling, messages={"type": "array", "minItems": 1, "items": message},
            max_tokens=_integer(1, limits.max_tokens), max_completion_tokens=_integer(1, limits.max_tokens),
            n=_integer(1, limits.n), logprobs=FLAG, top_logprobs=_integer(0, limits.logprobs),
            reasoning_effort={"enum": ["low", "medium", "high", None]}, tools=_list(tool, limits.tools), tool_choice={},
            response_format={"type": ["object", "null"]},
        ),
        "/v1/responses": _object(
            ["input"], **some, input={"anyOf": [{"type": "string"}, _list({"type": "object"}, limits.messages)]},
            instructions=TEXT, max_output_tokens=_integer(1, limits.max_tokens), tools=_list(tool, limits.tools),
            tool_choice={}, reasoning={"type": ["object", "null"]}, text={"type": ["object", "null"]},
            top_logprobs=_integer(0, limits.logprobs),
        ),
        "/tokenize": _object(["prompt"], prompt={"type": "string"}, special=FLAG),
        "/detokenize": _object(["tokens"], tokens={"type": "array", "items": {"type": "integer"}}),
    }  # fmt: skip


def _answers(ok: str = "application/json") -> Schema:
    kinds: Schema = {ok: {"schema": {"type": "object"} if ok == "application/json" else {"type": "string"}}}
    if ok == "application/json":
        kinds["text/event-stream"] = {"schema": {"type": "string"}}
    refused = {"description": "refused, and why", "content": {"application/json": {"schema": _error()}}}
    return {"200": {"description": "the answer", "content": kinds}, "4XX": refused, "503": refused}


def _error() -> Schema:
    parts = {"message": {"type": "string"}, "type": {"type": "string"}, "param": TEXT, "code": TEXT}
    return _object(["error"], error=_object(list(parts), **parts))


def document(service: Service) -> Schema:
    """The OpenAPI 3.1 document of this server."""
    paths: Schema = {
        path: {"post": {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
                        "responses": _answers()}}
        for path, schema in _bodies(service).items()
    }  # fmt: skip
    gets = dict.fromkeys(("/v1/models", "/health"), "application/json") | {"/metrics": "text/plain", "/": "text/html"}
    paths |= {path: {"get": {"responses": _answers(kind)}} for path, kind in gets.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "cgpt", "version": cgpt.__version__},
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
    }


async def openapi(request: Request) -> Json:
    return Json(document(request.app.state.service))
