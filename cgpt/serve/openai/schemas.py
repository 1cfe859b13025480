"""JSON schemas of the bodies that the endpoints take and give: the parts of /openapi.json.

A field that is null is as good as absent, whatever its name. What a schema cannot say, the endpoints' errors do: that
best_of is at least n, that tool_choice names one of the tools, how long texts may be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cgpt.chat.messages import EFFORTS
from cgpt.serve.openai.body import IGNORED
from cgpt.serve.openai.dialog import CALLS, NAME

if TYPE_CHECKING:
    from cgpt.serve.app import Service

Schema = dict[str, Any]
STRING: Schema = {"type": "string"}
TEXT: Schema = {"type": ["string", "null"]}
FLAG: Schema = {"type": ["boolean", "null"]}
ANY_OBJECT: Schema = {"type": ["object", "null"]}


def _number(low: float, high: float, kind: str = "number") -> Schema:
    return {"type": [kind, "null"], "minimum": low, "maximum": high}


def _integer(low: int, high: int) -> Schema:
    return _number(low, high, "integer")


def _enum(*values: Any) -> Schema:
    return {"enum": [*values, None]}


def _any_of(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def or_null(schema: Schema) -> Schema:
    return _any_of(schema, {"type": "null"})


def _taken(required: list[str], *ignored: str, **properties: Schema) -> Schema:
    """An object whose other fields are refused, but for those that are ignored."""
    anything: Schema = {"patternProperties": {f"^({'|'.join(sorted(ignored))})$": {}}} if ignored else {}
    return {**_open(required, **properties), **anything, "additionalProperties": {"type": "null"}}


def _open(required: list[str], **properties: Schema) -> Schema:
    """An object whose other fields change nothing."""
    return {"type": "object", "properties": properties, "required": required}


def _list(items: Schema, most: int) -> Schema:
    return {"type": ["array", "null"], "items": items, "maxItems": most}


def _some(items: Schema, most: int | None = None) -> Schema:
    return {"type": "array", "items": items, "minItems": 1} | ({} if most is None else {"maxItems": most})


def list_of(items: Schema) -> Schema:
    return {"type": "array", "items": items}


STREAM_OPTIONS = _taken([], "include_obfuscation", include_usage=FLAG)
STREAMED: Schema = {
    "if": _open(["stream_options"], stream_options={"type": "object"}),
    "then": _open(["stream"], stream={"const": True}),
}


def _sampling(service: Service) -> dict[str, Schema]:
    limits = service.limits
    stop = {"type": "string", "maxLength": limits.stop_length}
    biases = {
        "type": ["object", "null"],
        "propertyNames": {"pattern": "^[0-9]{1,9}$"},  # below the size of the vocabulary
        "additionalProperties": _number(-100, 100),
        "maxProperties": limits.logit_biases,
    }
    return {
        "temperature": _number(0, 2),
        "top_p": _number(1e-6, 1),
        "top_k": _integer(1, 2**31),
        "min_p": _number(0, 1),
        "presence_penalty": _number(-2, 2),
        "frequency_penalty": _number(-2, 2),
        "repetition_penalty": _number(0.01, 100),
        "seed": _integer(-(2**63), 2**63 - 1),
        "stop": _any_of(stop, _list(stop, limits.stops)),
        "logit_bias": biases,
    }


def _model(service: Service) -> dict[str, Schema]:
    return {"model": _enum(service.name)}


def _content(*kinds: str) -> Schema:
    """A text, or parts of it."""
    texts = [kind for kind in kinds if kind != "refusal"]
    parts = [_open(["type", "text"], type={"enum": texts}, text=STRING)]
    if "refusal" in kinds:
        parts.append(_open(["type", "refusal"], type={"const": "refusal"}, refusal=STRING))
    return _any_of(TEXT, {"type": "array", "items": _any_of(*parts)})


def _message() -> Schema:
    """One of a chat."""
    call = _open(["id", "function"], id=STRING, function=_open(["name"], name=STRING, arguments=TEXT))
    assistant = {
        "content": _content("text", "refusal"),
        "reasoning": TEXT,
        "reasoning_content": TEXT,
        "tool_calls": _list(call, CALLS),
    }
    return _any_of(
        _open(["role"], role={"enum": ["system", "developer", "user"]}, content=_content("text")),
        _open(["role"], role={"const": "assistant"}, **assistant),
        _open(["role", "tool_call_id"], role={"const": "tool"}, tool_call_id=STRING, content=_content("text")),
    )


def _item(texts: tuple[str, ...] = ("input_text", "output_text", "text", "refusal")) -> Schema:
    """One of a response's input."""
    roles = {"enum": ["system", "developer", "user", "assistant"]}
    call = {"call_id": STRING, "name": STRING, "arguments": TEXT}
    return _any_of(
        _open(["role"], type=_enum("message"), role=roles, content=_content(*texts)),
        _open(["type"], type={"const": "reasoning"}, content=_content("reasoning_text", "text")),
        _open(["type", "call_id", "name"], type={"const": "function_call"}, **call),
        _open(["type", "call_id"], type={"const": "function_call_output"}, call_id=STRING, output=_content(*texts)),
    )


def _function() -> dict[str, Schema]:
    """strict: where a grammar can be made of the parameters."""
    name = {"type": "string", "pattern": f"^{NAME.pattern}$"}
    return {"name": name, "description": TEXT, "parameters": ANY_OBJECT, "strict": FLAG}


def _tool_choice(named: Schema, nested: bool) -> Schema:
    """nested: whether the tools that are allowed are in an object of their own."""
    named = named | {"properties": {**named["properties"], "type": _enum("function")}}
    tools = {"mode": _enum("auto", "required"), "tools": _some(named)}
    inside = {"allowed_tools": _open(["tools"], **tools)} if nested else tools
    allowed = _open(["type", "allowed_tools" if nested else "tools"], type={"const": "allowed_tools"}, **inside)
    return _any_of(_enum("auto", "none", "required"), named, allowed) | {"default": "auto"}


def _format(named: bool) -> Schema:
    """What the answer is kept to. named: whether the schema is in an object of its own."""
    about = {"name": TEXT, "description": TEXT, "strict": {}}
    schema = _open(["schema"], schema={"type": "object"}, **about)
    free = {"json_schema": ANY_OBJECT} if named else {}
    if named:
        kept = _open(["type", "json_schema"], type={"const": "json_schema"}, json_schema=schema)
    else:
        kept = _open(["type", "schema"], type={"const": "json_schema"}, **schema["properties"])
    return _any_of(_open([], type=_enum("text", "json_object"), **free), kept, {"type": "null"})


def completion_body(service: Service) -> Schema:
    limits = service.limits
    ids = _some({"type": "integer", "minimum": 0, "maximum": service.model.vocab_size - 1})
    text = {"type": "string", "minLength": 1}
    body = _taken(
        ["prompt"],
        *IGNORED,
        **_model(service),
        **_sampling(service),
        prompt=_any_of(text, _some(text, limits.requests), ids, _some(ids, limits.requests)),
        max_tokens=_integer(0, limits.max_tokens),
        n=_integer(1, limits.n),
        best_of=_integer(1, limits.n),
        echo=FLAG,
        logprobs=_integer(0, limits.logprobs),
        suffix=_enum(""),
        stream=FLAG,
        stream_options=or_null(STREAM_OPTIONS),
    )
    return body | STREAMED


def chat_body(service: Service) -> Schema:
    limits = service.limits
    tool = _open(["function"], type=_enum("function"), function=_open(["name"], **_function()))
    named = _open(["function"], function=_open(["name"], name=STRING))
    most = _integer(1, limits.max_tokens)
    body = _taken(
        ["messages"], *IGNORED, "verbosity", "parallel_tool_calls", **_model(service), **_sampling(service),
        messages=_some(_message(), limits.messages), max_tokens=most, max_completion_tokens=most,
        n=_integer(1, limits.n), logprobs=FLAG, top_logprobs=_integer(0, limits.logprobs), modalities=_enum(["text"]),
        reasoning_effort=_enum(*EFFORTS), tools=_list(tool, limits.tools), tool_choice=_tool_choice(named, nested=True),
        response_format=_format(named=True), stream=FLAG, stream_options=or_null(STREAM_OPTIONS),
    )  # fmt: skip
    return body | STREAMED


def response_body(service: Service) -> Schema:
    limits, sampling = service.limits, _sampling(service)
    tool = _open(["name"], type=_enum("function"), **_function())
    named = _open(["name"], name=STRING)
    return _taken(
        ["input"], *IGNORED, "stream_options", "parallel_tool_calls", "max_tool_calls",
        **_model(service), temperature=sampling["temperature"], top_p=sampling["top_p"],
        input=_any_of(STRING, _some(_item(), limits.messages)), instructions=TEXT,
        max_output_tokens=_integer(1, limits.max_tokens), tools=_list(tool, limits.tools),
        tool_choice=_tool_choice(named, nested=False), reasoning=or_null(_open([], effort=_enum(*EFFORTS))),
        text=or_null(_open([], format=_format(named=False))), stream=FLAG, truncation=_enum("disabled"),
        background=_enum(False), include={"type": ["array", "null"]}, top_logprobs=_integer(0, limits.logprobs),
    )  # fmt: skip


def tokenize_body(service: Service) -> Schema:
    more = _model(service) | {"special": FLAG}
    return _any_of(*(_taken([name], **{name: STRING}, **more) for name in ("prompt", "content")))


def detokenize_body(service: Service) -> Schema:
    ids = list_of({"type": "integer", "minimum": 0, "maximum": service.model.vocab_size - 1})
    return _taken(["tokens"], **_model(service), tokens=ids)
