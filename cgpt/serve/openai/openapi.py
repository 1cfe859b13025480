"""/openapi.json: what the endpoints take and give, for clients that read it and tests that try it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from cgpt.serve.errors import Json
from cgpt.serve.guard import OPEN
from cgpt.serve.openai import schemas
from cgpt.serve.openai.schemas import STRING, TEXT, Schema, list_of, or_null
from cgpt.version import __version__

if TYPE_CHECKING:
    from cgpt.serve.app import Service

COUNT: Schema = {"type": "integer", "minimum": 0}
JSON, EVENTS = "application/json", "text/event-stream"


def _object(**fields: Schema) -> Schema:
    """An object of an answer: all its fields are there, and no others."""
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


ERROR = _object(error=_object(message=STRING, type=STRING, param=TEXT, code=TEXT))
MODEL = _object(
    id=STRING, object={"const": "model"}, created=COUNT, owned_by=STRING, max_model_len=COUNT, chats={"type": "boolean"}
)
CALL = _object(id=STRING, type={"const": "function"}, function=_object(name=STRING, arguments=STRING))
CACHED = _object(cached_tokens=COUNT)
REASONED = _object(reasoning_tokens=COUNT)
COUNTS: dict[str, Schema] = {
    "prompt_tokens": COUNT,
    "completion_tokens": COUNT,
    "total_tokens": COUNT,
    "prompt_tokens_details": CACHED,
}


def _answer(kind: str, choice: Schema, usage: Schema) -> Schema:
    about = {"id": STRING, "object": {"const": kind}, "created": COUNT, "model": STRING, "system_fingerprint": STRING}
    return _object(**about, choices={**list_of(choice), "minItems": 1}, usage=usage)


def _completion() -> Schema:
    number, top = {"type": ["number", "null"]}, {"type": ["object", "null"], "additionalProperties": {"type": "number"}}
    log = _object(
        tokens=list_of(STRING), token_logprobs=list_of(number), top_logprobs=list_of(top), text_offset=list_of(COUNT)
    )
    choice = _object(index=COUNT, text=STRING, logprobs=or_null(log), finish_reason={"enum": ["stop", "length"]})
    return _answer("text_completion", choice, _object(**COUNTS))


def _chat() -> Schema:
    message = _object(role={"const": "assistant"}, content=TEXT, refusal=TEXT)
    message["properties"] |= {"reasoning": STRING, "reasoning_content": STRING, "tool_calls": list_of(CALL)}
    token = {"token": STRING, "logprob": {"type": "number"}, "bytes": list_of({**COUNT, "maximum": 255})}
    log = _object(content=list_of(_object(**token, top_logprobs=list_of(_object(**token)))), refusal={"type": "null"})
    reason = {"enum": ["stop", "length", "tool_calls"]}
    choice = _object(index=COUNT, message=message, logprobs=or_null(log), finish_reason=reason)
    return _answer("chat.completion", choice, _object(**COUNTS, completion_tokens_details=REASONED))


def _response() -> Schema:
    """But for what it repeats of the request."""
    item = {
        "type": "object",
        "properties": {"type": {"enum": ["message", "reasoning", "function_call"]}, "id": STRING},
        "required": ["type", "id", "status"],
    }
    read = _object(cached_tokens=COUNT, cache_write_tokens=COUNT)
    usage = _object(
        input_tokens=COUNT,
        input_tokens_details=read,
        output_tokens=COUNT,
        output_tokens_details=REASONED,
        total_tokens=COUNT,
    )
    status = {"enum": ["completed", "incomplete"]}
    cut = or_null(_object(reason={"const": "max_output_tokens"}))
    response = _object(
        id=STRING,
        object={"const": "response"},
        created_at=COUNT,
        model=STRING,
        status=status,
        output=list_of(item),
        usage=usage,
        error={"type": "null"},
        incomplete_details=cut,
    )
    return {**response, "additionalProperties": True}


def _responses(content: dict[str, Schema], **more: Schema) -> Schema:
    refused = {"description": "refused, and why", "content": {JSON: {"schema": ERROR}}}
    kinds = {kind: {"schema": schema} for kind, schema in content.items()}
    return {"200": {"description": "the answer", "content": kinds, **more}, "4XX": refused, "503": refused}


def _post(name: str, body: Schema, answer: Schema, streams: bool, **more: Schema) -> Schema:
    content = {JSON: answer} | ({EVENTS: {}} if streams else {})
    takes = {"required": True, "content": {JSON: {"schema": body}}}
    return {"post": {"operationId": name, "requestBody": takes, "responses": _responses(content, **more)}}


def _paths(service: Service) -> Schema:
    ids = {"detokenize": {"operationId": "detokenize", "requestBody": {"tokens": "$response.body#/tokens"}}}
    tokens = _object(tokens=list_of(COUNT), count=COUNT, max_model_len=COUNT)
    card = {"model": {"operationId": "model", "parameters": {"name": "$response.body#/data/0/id"}}}
    gets: dict[str, tuple[str, dict[str, Schema], Schema]] = {
        "/v1/models": ("models", {JSON: _object(object={"const": "list"}, data=list_of(MODEL))}, {"links": card}),
        "/v1/models/{name}": ("model", {JSON: MODEL}, {}),
        "/health": ("health", {JSON: _object(status={"const": "ok"})}, {}),
        "/metrics": ("metrics", {"text/plain": STRING}, {}),
        "/openapi.json": ("openapi", {JSON: {"type": "object"}}, {}),
        "/": ("page", {"text/html": STRING}, {}),
    }
    paths: Schema = {
        "/v1/completions": _post("completions", schemas.completion_body(service), _completion(), True),
        "/tokenize": _post("tokenize", schemas.tokenize_body(service), tokens, False, links=ids),
        "/detokenize": _post("detokenize", schemas.detokenize_body(service), _object(prompt=STRING), False),
    }
    if service.no_chat is None:
        paths["/v1/chat/completions"] = _post("chat", schemas.chat_body(service), _chat(), True)
        paths["/v1/responses"] = _post("responses", schemas.response_body(service), _response(), True)
    for path, (name, content, more) in gets.items():
        paths[path] = {"get": {"operationId": name, "responses": _responses(content, **more)}}
    name = {"name": "name", "in": "path", "required": True, "schema": STRING}
    paths["/v1/models/{name}"]["get"]["parameters"] = [name]
    return paths


def document(service: Service, key: bool = False) -> Schema:
    """The OpenAPI 3.1 document of this server. key: whether it wants one."""
    paths = _paths(service)
    found: Schema = {"openapi": "3.1.0", "info": {"title": "cgpt", "version": __version__}, "paths": paths}
    if key:
        found["components"] = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
        found["security"] = [{"key": []}]
        for path in OPEN:
            paths[path]["get"]["security"] = []
    return found


async def openapi(request: Request) -> Json:
    state: Any = request.app.state
    return Json(document(state.service, state.key))
