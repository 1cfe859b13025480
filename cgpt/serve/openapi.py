"""What an endpoint is: how it answers, and its description in an OpenAPI document, which clients read and tests try."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import quote

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import core_schema
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cgpt.serve.body import parse_body, read_body
from cgpt.serve.errors import AnthropicErrorAnswer, ApiError, ErrorAnswer, Json, error_type
from cgpt.serve.guard import OPEN
from cgpt.serve.service import Service
from cgpt.serve.stream import Generated
from cgpt.serve.validation import Bounds, RequestModel, Schema, validate
from cgpt.version import __version__

Input = tuple[str, JsonSchemaMode, TypeAdapter[Any]]
IGNORED, MAX_IGNORED = "x-cgpt-ignored", 32  # the header that names what was left out
JSON, EVENTS = "application/json", "text/event-stream"
SMALL = 16 << 10  # bytes of a body that is read within a millisecond


@dataclass(frozen=True)
class Endpoint:
    """A path and what answers it.

    handler: takes the service, the parameters of the path, and the body or the query. Its result is sent as JSON, or as
    it says.
    gives: the type of its JSON, or the media type of its text. takes: the model of the body of a POST, None for others.
    method: of HTTP; by default POST with a body, and GET without. query: the model of the parameters of the query.
    streams: whether it also answers with events. chats: whether only a model with a chat format has it. links: OpenAPI
    links from its answer to endpoints that take parts of it.
    """

    path: str
    handler: Callable[..., Awaitable[Any]]
    gives: Any
    takes: type[RequestModel] | None = None
    method: str = ""
    query: type[RequestModel] | None = None
    streams: bool = False
    chats: bool = False
    links: Schema = field(default_factory=dict)

    def route(self) -> Route:
        return Route(self.path, self.answer, methods=[self.verb])

    @property
    def name(self) -> str:
        return str(self.handler.__name__)

    @property
    def verb(self) -> str:
        return self.method or ("POST" if self.takes else "GET")

    async def answer(self, request: Request) -> Response:
        service: Service = request.app.state.service
        if self.chats and service.no_chat is not None:
            raise ApiError(service.no_chat, code="model_has_no_chat", param="model")
        given, ignored = list(request.path_params.values()), set[str]()
        bounds = service.bounds | {"ignored": ignored}
        if self.query:
            given.append(validate(self.query, dict(request.query_params), bounds))
        if takes := self.takes:
            raw = await read_body(request, service.limits)

            def read() -> RequestModel:
                return validate(takes, parse_body(raw, service.limits), bounds)

            given.append(read() if len(raw) <= SMALL else await run_in_threadpool(read))
        found = await self.handler(service, *given)
        if isinstance(found, Generated):
            found = await found.response(request.receive)
        answer = found if isinstance(found, Response) else Json(found)
        if ignored:
            names = [quote(name[:64], safe="", errors="replace") for name in sorted(ignored)[:MAX_IGNORED]]
            service.log_ignored(self.path, names)
            answer.headers[IGNORED] = ", ".join(names)
        return answer


def routes(endpoints: Iterable[Endpoint]) -> list[Route]:
    """A route for each path, which has all methods of its endpoints."""
    methods: dict[str, dict[str, Endpoint]] = {}
    for endpoint in endpoints:
        methods.setdefault(endpoint.path, {})[endpoint.verb] = endpoint
    return [Route(path, partial(_answer, these), methods=list(these)) for path, these in methods.items()]


async def _answer(endpoints: dict[str, Endpoint], request: Request) -> Response:
    return await endpoints["GET" if request.method == "HEAD" else request.method].answer(request)


class Schemas(GenerateJsonSchema):
    """Generates the schemas. Where null may stand in a body RequestModel says; an answer holds no undeclared fields."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"]) if self.mode == "validation" else super().nullable_schema(schema)

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        return {"anyOf": super().tagged_union_schema(schema)["oneOf"]}  # "discriminator" has no word for a default

    def typed_dict_schema(self, schema: core_schema.TypedDictSchema) -> JsonSchemaValue:
        return {"additionalProperties": False} | super().typed_dict_schema(schema)

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        return {"additionalProperties": False} | super().dataclass_schema(schema)

    def field_is_required(self, field: Any, total: bool) -> bool:
        return field["type"] == "dataclass-field" or super().field_is_required(field, total)

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def document(service: Service, endpoints: Sequence[Endpoint], key: bool = False) -> Schema:
    """Makes the OpenAPI 3.1 document of this server. key: whether clients need an API key."""
    present = [endpoint for endpoint in endpoints if service.no_chat is None or not endpoint.chats]
    gives: list[Input] = [
        (kind.__name__, "serialization", TypeAdapter(kind)) for kind in (ErrorAnswer, AnthropicErrorAnswer)
    ]
    gives += [(one.name, "serialization", TypeAdapter(one.gives)) for one in present if not isinstance(one.gives, str)]
    takes: list[Input] = [(one.name, "validation", TypeAdapter(one.takes)) for one in present if one.takes]
    template = "#/components/schemas/{model}"
    made, shared = TypeAdapter.json_schemas([*gives, *takes], schema_generator=Schemas, ref_template=template)
    found: Schema = {
        "openapi": "3.1.0",
        "info": {"title": "cgpt", "version": __version__},
        "paths": {one.route().path_format: {} for one in present},
        "components": {"schemas": shared["$defs"]},
    }
    for one in present:
        found["paths"][one.route().path_format][one.verb.lower()] = _operation(one, made)
    if key:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"key": []}]
        for path in OPEN:
            found["paths"][path]["get"]["security"] = []
    bounded: Schema = _with_bounds(found, service.bounds)
    return bounded


def _operation(endpoint: Endpoint, made: dict[Any, Schema]) -> Schema:
    kind, schema = JSON, made.get((endpoint.name, "serialization"))
    if schema is None:
        kind, schema = endpoint.gives, {"type": "string"}
    content = {kind: {"schema": schema}} | ({EVENTS: {}} if endpoint.streams else {})
    answer = {"description": "the answer", "content": content, "links": endpoint.links}
    error = made[error_type(endpoint.path).__name__, "serialization"]
    refusal = {"description": "refused, and why", "content": {JSON: {"schema": error}}}
    answers = {"200": answer, "4XX": refusal, "503": refusal}
    found: Schema = {"operationId": endpoint.name, "responses": answers}
    if endpoint.takes:
        body = {JSON: {"schema": made[endpoint.name, "validation"]}}
        found["requestBody"] = {"required": True, "content": body}
    names = endpoint.route().param_convertors
    if names:
        found["parameters"] = [{"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names]
    if endpoint.query:
        fields = TypeAdapter(endpoint.query).json_schema(schema_generator=Schemas)["properties"]
        found["parameters"] += [{"name": n, "in": "query", "schema": one["anyOf"][0]} for n, one in fields.items()]
    return found


def _with_bounds(schema: Any, bounds: Bounds) -> Any:
    """Puts the values of bounds into a schema that names them, as "{max_tokens}"."""
    if isinstance(schema, dict):
        return {key: _with_bounds(value, bounds) for key, value in schema.items()}
    if isinstance(schema, list):
        return [_with_bounds(value, bounds) for value in schema]
    return bounds.get(schema[1:-1], schema) if isinstance(schema, str) and schema.startswith("{") else schema
