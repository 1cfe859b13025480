"""The endpoint /v1/completions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, ValidationInfo, model_validator
from starlette.concurrency import run_in_threadpool
from typing_extensions import Self

from cgpt.chat.grammar import TextConstraint
from cgpt.generation.engine import Event, Job
from cgpt.generation.request import Request
from cgpt.serve.openai import protocol
from cgpt.serve.openai.logprobs import CompletionLogprobs, TokenLog
from cgpt.serve.openai.protocol import Count, Head, SamplingRequest, Usage, usage
from cgpt.serve.service import Service
from cgpt.serve.stream import Events, Generated
from cgpt.serve.validation import Bounds, Invalid, Reads, integer, is_integer, only, token_limit

Prompts = list[str] | list[list[int]]


def _is_id(value: Any) -> bool:
    return is_integer(value) and 0 <= value < 2**31


def _read_prompts(value: Any, _: Bounds) -> Prompts | None:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        return None
    if all(map(_is_id, value)):
        return [value]
    texts = all(isinstance(one, str) for one in value)
    return value if texts or all(isinstance(one, list) and one and all(map(_is_id, one)) for one in value) else None


PROMPT = "a text, a list of token ids, or a list of texts or of lists of token ids"
TEXT = {"type": "string", "minLength": 1}
IDS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0, "maximum": "{max_token_id}"}}
MANY = {"type": "array", "minItems": 1, "maxItems": "{requests}"}
PROMPTS = {"anyOf": [TEXT, MANY | {"items": TEXT}, IDS, MANY | {"items": IDS}]}


class CompletionRequest(SamplingRequest):
    """The body of a request. best_of: choices that are generated for each prompt, of which the n likeliest are sent.
    special: whether the names of special tokens in a prompt stand for these tokens, as in /tokenize.
    skip_special_tokens: whether the text is without such names."""

    prompt: Annotated[Prompts, Reads(_read_prompts, f"must be {PROMPT}", PROMPTS)] = Field(description=PROMPT)
    max_tokens: Annotated[int, token_limit(0)] = 16  # OpenAI's default
    best_of: Annotated[int, integer(1, "n")] = 1
    echo: StrictBool = False
    special: StrictBool = False
    skip_special_tokens: StrictBool = False
    logprobs: Annotated[int | None, integer(0, "logprobs")] = None
    response_format: protocol.Format[protocol.SchemaResponseFormat] = protocol.FreeFormat()
    suffix: Annotated[Any, only("", wanted="cannot be used: these models do not fill in the middle")] = None

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Self:
        bounds: Bounds = info.context or {}
        if "best_of" not in self.model_fields_set:
            self.best_of = self.n
        if self.best_of < self.n:
            raise Invalid(f"must be an integer from {self.n} to {bounds['n']}", "best_of")
        if self.stream and self.best_of > self.n:
            raise Invalid("above n cannot be streamed: the best is known at the end", "best_of")
        if len(self.prompt) * self.best_of > bounds["requests"]:
            raise Invalid(f"may make {bounds['requests']} texts at most, with best_of", "prompt")
        return self

    def requests(self, service: Service) -> list[Request]:
        """Makes best_of requests of each prompt, with consecutive seeds."""
        params = self.sampling(
            max_new_tokens=max(self.max_tokens, 1),
            logprobs=self.logprobs if self.logprobs is not None else self.best_of > self.n or None,
            prompt_logprobs=self.logprobs if self.echo else None,
        )
        form, schema = self.response_format, self.grammar()
        if schema is None:
            schema = protocol.answer_schema(
                form.json_schema if isinstance(form, protocol.SchemaResponseFormat) else form
            )
        matcher = None if schema is None else service.grammars.compile(schema)
        made: list[Request] = []
        for prompt in [service.model.encode_prompt(one, special=self.special) for one in self.prompt]:
            constraints = [matcher and TextConstraint(service.grammars, matcher) for _ in range(self.best_of)]
            made += service.requests(prompt, params, constraints)
        return made


@dataclass
class CompletionChoice:
    """One text of an answer, or what an event adds to it. finish_reason: null until the text ends."""

    index: Count
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None


class Completion(Head):
    object: Literal["text_completion"]
    choices: Annotated[list[CompletionChoice], Field(min_length=1)]
    usage: Usage


class Choice:
    """One text of the answer while it is generated."""

    def __init__(self, body: CompletionRequest, service: Service, request: Request) -> None:
        self.num_ids = 0  # of the text so far
        self._length = 0  # characters of it
        self._max_tokens = body.max_tokens
        self._echoed = (
            service.tokenizer.decode(request.prompt_ids, skip_special_tokens=body.skip_special_tokens)
            if body.echo
            else ""
        )
        self._log = (
            None
            if body.logprobs is None
            else TokenLog(service.tokenizer, request, body.echo, body.return_tokens_as_token_ids)
        )

    def advance(self, event: Event) -> CompletionChoice:
        """Returns what the event adds to the choice."""
        text, num_ids, reason = event.delta, event.num_ids, event.finish_reason
        if not self._max_tokens:
            text, num_ids, reason = "", 0, "length"
        text, self._echoed, self.num_ids = self._echoed + text, "", num_ids
        self._length += len(text)
        log = self._log.take(num_ids, self._length, reason is not None) if self._log else None
        return CompletionChoice(event.index, text, log, reason)


async def completions(service: Service, body: CompletionRequest) -> Generated:
    def made() -> tuple[list[Request], list[Choice]]:
        requests = body.requests(service)
        return requests, [Choice(body, service, one) for one in requests]  # of long prompts it takes seconds

    requests, choices = await run_in_threadpool(made)
    head = service.head("cmpl", "text_completion")
    job = service.submit(requests, body)
    return Generated(job, (_chunks if body.stream else _whole)(job, body, choices, head))


async def _whole(job: Job, body: CompletionRequest, choices: list[Choice], head: dict[str, Any]) -> dict[str, Any]:
    done: dict[int, CompletionChoice] = {}
    async for event in job:
        if event.finish_reason:
            last = replace(event, delta=job.requests[event.index].text)
            done[event.index] = await run_in_threadpool(choices[event.index].advance, last)
    best: list[CompletionChoice] = []
    for first in range(0, len(choices), body.best_of):
        these = list(range(first, first + body.best_of))
        if body.best_of > body.n:
            these.sort(key=lambda i: -sum(job.requests[i].logprobs) / len(job.requests[i].ids))
        best += [replace(done[i], index=len(best) + rank) for rank, i in enumerate(these[: body.n])]
    return head | {"choices": best, "usage": _usage(job, body, choices)}


def _usage(job: Job, body: CompletionRequest, choices: list[Choice]) -> Usage:
    return usage(job.requests, body.best_of, sum(choice.num_ids for choice in choices))


async def _chunks(job: Job, body: CompletionRequest, choices: list[Choice], head: dict[str, Any]) -> Events:
    options = body.stream_options
    async for event in job:
        choice = choices[event.index]
        is_long = body.echo and not choice.num_ids  # the prompt, with its log-probabilities
        part = await run_in_threadpool(choice.advance, event) if is_long else choice.advance(event)
        if part.text or part.finish_reason or (part.logprobs and part.logprobs.tokens):
            yield None, head | {"choices": [part]} | options.usage_so_far(lambda: _usage(job, body, choices))
    if options.include_usage:
        yield None, head | {"choices": [], "usage": _usage(job, body, choices)}
