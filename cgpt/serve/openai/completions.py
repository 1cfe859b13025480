"""/v1/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette import requests as http
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from cgpt.generation.engine import Event, Job
from cgpt.generation.request import Request
from cgpt.generation.sampling import SamplingParams
from cgpt.serve.errors import Json
from cgpt.serve.openai.body import IGNORED, SAMPLING, Body, read_body, read_sampling
from cgpt.serve.openai.logprobs import TokenLog
from cgpt.serve.stream import respond

if TYPE_CHECKING:
    from cgpt.serve.app import Service

FIELDS = (
    IGNORED
    | SAMPLING
    | {"model", "prompt", "max_tokens", "n", "best_of", "echo", "logprobs", "stream", "stream_options", "suffix"}
)
DEFAULT_MAX_TOKENS = 16  # OpenAI's


@dataclass
class Asked:
    """A request for completions, read. options: of SamplingParams, but the seed."""

    prompts: list[str] | list[list[int]]
    n: int
    best_of: int
    echo: bool
    logprobs: int | None
    max_tokens: int
    stream: bool
    include_usage: bool
    seed: int | None
    options: dict[str, Any]

    def requests(self, service: Service) -> list[Request]:
        """best_of for each prompt, of seeds one after another."""
        made: list[Request] = []
        for prompt in self.prompts:
            for i in range(self.best_of):
                seed = None if self.seed is None else self.seed + i
                made.append(Request(service.model, prompt, SamplingParams(seed=seed, **self.options)))
                prompt = made[-1].prompt_ids  # a text is encoded once
        return made


def read_completion(body: Body, service: Service) -> Asked:
    """Checks everything but the prompts' tokens."""
    limits = service.limits
    body.refuse_unknown(FIELDS, "what /v1/completions takes")
    service.require_model(body)
    body.refuse_unless("suffix", [""], "cannot be used: these models do not fill in the middle")
    n = body.integer("n", 1, high=limits.n)
    best_of = body.integer("best_of", n, low=n, high=limits.n)
    echo, stream = body.boolean("echo", False), body.boolean("stream", False)
    if stream and best_of > n:
        raise body.refuse("best_of", "above n cannot be streamed: the best is known at the end")
    logprobs = body.integer("logprobs", None, low=0, high=limits.logprobs)
    max_tokens = body.integer("max_tokens", DEFAULT_MAX_TOKENS, low=0, high=limits.max_tokens)
    prompts = _read_prompts(body)
    if len(prompts) * best_of > limits.requests:
        raise body.refuse("prompt", f"may make {limits.requests} texts at most, with best_of")
    options = read_sampling(body, limits, service.model.vocab_size)
    seed = options.pop("seed")
    options |= {
        "max_new_tokens": max(max_tokens, 1),
        "logprobs": logprobs if logprobs is not None else best_of > n or None,
        "prompt_logprobs": logprobs if echo else None,
    }
    usage = read_include_usage(body, stream)
    return Asked(prompts, n, best_of, echo, logprobs, max_tokens, stream, usage, seed, options)


def read_include_usage(body: Body, stream: bool) -> bool:
    """stream_options."""
    section = body.section("stream_options")
    if section is None:
        return False
    if not stream:
        raise body.refuse("stream_options", "goes with stream: true only")
    section.refuse_unknown({"include_usage", "include_obfuscation"}, "stream_options")
    return section.boolean("include_usage", False)


def _read_prompts(body: Body) -> list[str] | list[list[int]]:
    prompt = body.values.get("prompt")
    if isinstance(prompt, str):
        return [prompt]
    good = isinstance(prompt, list) and bool(prompt)
    if good and all(map(_is_id, prompt)):
        return [prompt]
    if good and (
        all(isinstance(one, str) for one in prompt)
        or all(isinstance(one, list) and one and all(map(_is_id, one)) for one in prompt)
    ):
        return prompt
    raise body.refuse("prompt", "must be a text, a list of token ids, or a list of texts or of lists of token ids")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


class Choice:
    """One text of the answer, as it comes."""

    def __init__(self, asked: Asked, service: Service, request: Request) -> None:
        self.request = request
        self.text, self.finish_reason = "", None
        self._asked = asked
        self._echoed = service.tokenizer.decode(request.prompt_ids) if asked.echo else ""
        self._log = None if asked.logprobs is None else TokenLog(service.tokenizer, request, asked.echo)

    def advance(self, event: Event) -> dict[str, Any]:
        """What the event adds to the choice, as a choice of its own."""
        piece, num_ids, self.finish_reason = event.delta, event.num_ids, event.finish_reason
        if not self._asked.max_tokens:
            piece, num_ids, self.finish_reason = "", 0, "length"
        piece, self._echoed = self._echoed + piece, ""
        self.text += piece
        log = self._log and self._log.take(num_ids, len(self.text), self.finish_reason is not None)
        return {"text": piece, "logprobs": log, "finish_reason": self.finish_reason}


def usage(requests: list[Request], per_prompt: int, generated: int) -> dict[str, Any]:
    """requests: per_prompt of each prompt."""
    prompts = requests[::per_prompt]
    prompt = sum(len(request.prompt_ids) for request in prompts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": sum(request.num_cached_tokens for request in prompts)},
    }


async def completions(request: http.Request) -> Response:
    service: Service = request.app.state.service
    body = await read_body(request, service.limits)
    asked = read_completion(body, service)
    requests = await run_in_threadpool(asked.requests, service)
    job = service.submit(requests, body)
    head = service.head("cmpl", "text_completion")
    answer = job, asked, service, head
    return await respond(request, job, asked.stream, lambda: _chunks(*answer), lambda: _whole(*answer))


async def _whole(job: Job, asked: Asked, service: Service, head: dict[str, Any]) -> Json:
    choices = [Choice(asked, service, request) for request in job.requests]
    parts: list[list[dict]] = [[] for _ in choices]
    async for event in job:
        parts[event.index].append(choices[event.index].advance(event))
    done = [_joined(part) for part in parts]
    best: list[dict] = []
    for first in range(0, len(done), asked.best_of):
        these = list(range(first, first + asked.best_of))
        if asked.best_of > asked.n:
            these.sort(key=lambda i: -sum(job.requests[i].logprobs) / len(job.requests[i].ids))
        best += [{"index": len(best) + i, **done[which]} for i, which in enumerate(these[: asked.n])]
    return Json(head | {"choices": best, "usage": _usage(job, asked)})


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    logs = [part["logprobs"] for part in parts]
    log = None if logs[0] is None else {key: [x for log in logs for x in log[key]] for key in logs[0]}
    text = "".join(part["text"] for part in parts)
    return {"text": text, "logprobs": log, "finish_reason": parts[-1]["finish_reason"]}


def _usage(job: Job, asked: Asked) -> dict[str, Any]:
    generated = sum(len(request.ids) for request in job.requests) if asked.max_tokens else 0
    return usage(job.requests, asked.best_of, generated)


async def _chunks(
    job: Job, asked: Asked, service: Service, head: dict[str, Any]
) -> AsyncIterator[tuple[None, dict[str, Any]]]:
    choices = [Choice(asked, service, request) for request in job.requests]
    empty = {"usage": None} if asked.include_usage else {}
    async for event in job:
        part = choices[event.index].advance(event)
        if part["text"] or part["finish_reason"] or (part["logprobs"] and part["logprobs"]["tokens"]):
            yield None, head | {"choices": [{"index": event.index, **part}]} | empty
    if asked.include_usage:
        yield None, head | {"choices": [], "usage": _usage(job, asked)}
