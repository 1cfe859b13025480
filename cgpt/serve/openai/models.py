"""The endpoints /v1/models, /tokenize, /detokenize and /health."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, StrictBool, model_validator
from starlette.concurrency import run_in_threadpool
from typing_extensions import Self

from cgpt.serve.errors import ApiError
from cgpt.serve.openai.protocol import Count, OpenAIRequest
from cgpt.serve.service import Service, require_name
from cgpt.serve.validation import Bounds, Invalid, Reads, Text, is_integer


@dataclass
class ModelCard:
    """The model that is served, as clients of OpenAI's API and of Anthropic's look for it. created, created_at: in
    seconds, and in words. max_model_len: tokens of context. max_output_tokens: of one answer. chats: whether it has a
    chat format. sampling_defaults: what its generation_config.json says, for clients that want to follow it."""

    id: str
    display_name: str
    created: Count
    created_at: str
    max_model_len: Count
    max_output_tokens: Count
    chats: bool
    sampling_defaults: dict[str, float]
    owned_by: str = "cgpt"
    object: Literal["model"] = "model"
    type: Literal["model"] = "model"


@dataclass
class ModelList:
    data: list[ModelCard]
    first_id: str
    last_id: str
    has_more: Literal[False] = False
    object: Literal["list"] = "list"


def _one_of(name: str, other: str) -> dict[str, Any]:
    return {"required": [name], "properties": {name: {"type": "string"}, other: {"type": "null"}}}


class TokenizeRequest(OpenAIRequest):
    """The body of a request, with the text under either name. special: whether the names of special tokens in the text
    stand for these tokens; by default one that is the whole text does, as clients that tokenize through the server find
    the ids of those that /tokenizer_info names. add_special_tokens: begin with what the tokenizer puts before a
    prompt."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [_one_of("prompt", "content"), _one_of("content", "prompt")]})

    prompt: Text | None = None
    content: Text | None = None
    special: StrictBool | None = None
    add_special_tokens: StrictBool = True

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.require_equal("prompt", "content")
        if self.prompt is None and self.content is None:
            raise Invalid("is missing", "prompt", shows_value=False)
        return self


@dataclass
class Tokens:
    tokens: list[Count]
    count: Count
    max_model_len: Count


def _read_ids(value: Any, bounds: Bounds) -> list[int] | None:
    good = isinstance(value, list) and len(value) <= bounds["ids"]
    return value if good and all(map(is_integer, value)) else None


ID = {"type": "integer", "minimum": 0, "maximum": "{max_token_id}"}
IDS = {"type": "array", "items": ID, "maxItems": "{ids}"}


class DetokenizeRequest(OpenAIRequest):
    tokens: Annotated[list[int], Reads(_read_ids, "must be a list of token ids, {ids} at most", IDS)]


@dataclass
class Detokenized:
    """The text of tokens; bytes that are not UTF-8 are U+FFFD."""

    prompt: str


@dataclass
class TokenizerInfo:
    """What clients ask for that tokenize through the server: the text of special tokens, null where there is none."""

    tokenizer_class: str
    vocab_size: Count
    model_max_length: Count
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    chat_template: str | None


@dataclass
class Health:
    status: Literal["ok"] = "ok"


# What of an answer another endpoint takes.
TO_MODEL = {"model": {"operationId": "model", "parameters": {"name": "$response.body#/data/0/id"}}}
TO_DETOKENIZE = {"detokenize": {"operationId": "detokenize", "requestBody": {"tokens": "$response.body#/tokens"}}}


def _card(service: Service, name: str) -> ModelCard:
    created_at = datetime.fromtimestamp(service.created, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    length = service.model.transformer.context_length
    defaults, chats = dict(service.model.sampling_defaults), service.no_chat is None
    return ModelCard(name, name, service.created, created_at, length, service.limits.max_tokens, chats, defaults)


async def models(service: Service) -> ModelList:
    return ModelList([_card(service, name) for name in service.names], service.names[0], service.names[-1])


async def model(service: Service, name: str) -> ModelCard:
    require_name(name, service.names)
    return _card(service, name)


async def tokenizer_info(service: Service) -> TokenizerInfo:
    tokenizer, transformer = service.tokenizer, service.model.transformer
    config, end = transformer.config, next(iter(transformer.eos_token_ids), None)
    ids = (end if one is None else one for one in (config.bos_token_id, end, config.pad_token_id))
    bos, eos, pad = (None if one is None else tokenizer.decode([one]) for one in ids)
    return TokenizerInfo("cgpt", tokenizer.vocab_size, transformer.context_length, bos, eos, pad, None)


async def health(service: Service) -> Health:
    if service.engine.failure is not None:
        raise service.engine.failure
    return Health()


async def tokenize(service: Service, body: TokenizeRequest) -> Tokens:
    text = body.prompt or body.content or ""
    is_name = body.special is None and text in service.tokenizer.special_tokens
    special = "all" if body.special or is_name else ()
    ids = await run_in_threadpool(
        lambda: service.tokenizer.encode(text, allowed_special=special, add_special_tokens=body.add_special_tokens)
    )
    if len(ids) > service.limits.ids:
        raise ApiError(f"the text has {len(ids)} tokens; at most {service.limits.ids} are given")
    return Tokens(ids, len(ids), service.model.transformer.context_length)


async def detokenize(service: Service, body: DetokenizeRequest) -> Detokenized:
    return Detokenized(await run_in_threadpool(lambda: service.tokenizer.decode(body.tokens)))
