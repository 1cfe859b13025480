"""/v1/chat/completions."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette import requests as http
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from cgpt.generation.engine import Job
from cgpt.generation.request import Request
from cgpt.serve.errors import Json
from cgpt.serve.openai.body import IGNORED, SAMPLING, Body, read_body, read_sampling
from cgpt.serve.openai.completions import read_include_usage, usage
from cgpt.serve.openai.dialog import CALLS, Dialog, choose_tools, read_effort, read_text
from cgpt.serve.openai.logprobs import token_entry
from cgpt.serve.stream import respond
from cgpt.serve.turn import CALL, REASONING, TEXT, Delta, Turn

if TYPE_CHECKING:
    from cgpt.serve.app import Service

FIELDS = IGNORED | SAMPLING | {
    "model", "messages", "max_tokens", "max_completion_tokens", "n", "stream", "stream_options", "logprobs",
    "top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "reasoning_effort", "response_format", "modalities",
    "verbosity",
}  # fmt: skip


@dataclass
class Asked:
    """A request for a chat completion, read."""

    dialog: Dialog
    n: int
    seed: int | None
    logprobs: bool
    stream: bool
    include_usage: bool


def read_chat(body: Body, service: Service) -> Asked:
    limits = service.limits
    body.refuse_unknown(FIELDS, "what /v1/chat/completions takes")
    service.require_model(body)
    service.require_chat()
    body.refuse_unless("modalities", [["text"]], "cannot be used: the model writes text")
    stream, logprobs = body.boolean("stream", False), body.boolean("logprobs", False)
    top = body.integer("top_logprobs", 0, low=0, high=limits.logprobs)
    if top and not logprobs:
        raise body.refuse("top_logprobs", "goes with logprobs: true only")
    options = read_sampling(body, limits, service.model.vocab_size)
    seed = options.pop("seed")
    dialog = Dialog(effort=read_effort(body, "reasoning_effort"), stops=options.pop("stop"), options=options)
    most = body.integer("max_completion_tokens", None, high=limits.max_tokens, aliases=["max_tokens"])
    options |= {"max_new_tokens": most or limits.max_tokens, "logprobs": top if logprobs else None}
    if (form := body.section("response_format")) is not None:
        dialog.set_format(form, form.section("json_schema"), limits)
    for tool in body.objects("tools", limits.tools, []):
        tool.refuse_unless("type", ["function"], "must be function: there are no other tools")
        function = tool.section("function")
        if function is None:
            raise tool.refuse("function", "is missing")
        dialog.add_tool(function, limits)
    choose_tools(body, dialog, lambda choice: choice.section("function") and choice.section("function").text("name"))
    messages = body.objects("messages", limits.messages)
    if not messages:
        raise body.refuse("messages", "must be a list of one message at least")
    for message in messages:
        _read_message(message, dialog)
    n = body.integer("n", 1, high=limits.n)
    return Asked(dialog, n, seed, logprobs, stream, read_include_usage(body, stream))


def _read_message(message: Body, dialog: Dialog) -> None:
    role = message.text("role")
    if role in ("system", "developer", "user"):
        dialog.add(role, read_text(message, "content", {"text"}))
    elif role == "assistant":
        reasoning = message.text("reasoning", message.text("reasoning_content", ""))
        if reasoning:
            dialog.add_reasoning(reasoning)
        text, calls = read_text(message, "content", {"text", "refusal"}), message.objects("tool_calls", CALLS, [])
        if calls and text:
            dialog.add_preamble(text)
        elif not calls:
            dialog.add("assistant", text)
        for call in calls:
            function = call.section("function")
            if function is None:
                raise call.refuse("function", "is missing")
            dialog.add_call(call.text("id"), function.text("name"), function.text("arguments", "{}"))
    elif role == "tool":
        call_id = message.text("tool_call_id")
        dialog.add_result(message.name("tool_call_id"), call_id, read_text(message, "content", {"text"}))
    else:
        raise message.refuse("role", "must be system, developer, user, assistant or tool")


class Choice:
    """One answer, as it comes."""

    def __init__(self, asked: Asked, service: Service, request: Request) -> None:
        self.turn = Turn(service, request, asked.dialog.seed, asked.dialog.stops)
        self._asked, self._tokenizer = asked, service.tokenizer
        self._calls: list[int] = []  # items
        self._last: dict[str, int] = {}  # the newest item of a kind that has text

    def part(self, delta: Delta) -> dict[str, Any] | None:
        """The delta as OpenAI writes it; None for nothing new."""
        if delta.kind == CALL:
            if delta.item not in self._calls:
                self._calls.append(delta.item)
                head = {"id": f"call_{uuid.uuid4().hex}", "type": "function"}
                return self._call(head, {"name": delta.name, "arguments": delta.text})
            return self._call({}, {"arguments": delta.text}) if delta.text else None
        if not delta.text:
            return None
        # Several messages of a kind become paragraphs of one.
        text = "\n" * (self._last.setdefault(delta.kind, delta.item) != delta.item) + delta.text
        self._last[delta.kind] = delta.item
        return {"reasoning": text, "reasoning_content": text} if delta.kind == REASONING else {"content": text}

    def _call(self, head: dict[str, Any], function: dict[str, Any]) -> dict[str, Any]:
        return {"tool_calls": [{"index": len(self._calls) - 1, **head, "function": function}]}

    def logprobs(self, deltas: list[Delta]) -> dict[str, Any] | None:
        """Of the tokens of the text for the user."""
        if not self._asked.logprobs:
            return None
        places = [place for delta in deltas if delta.kind == TEXT for place in delta.ids]
        return {"content": [token_entry(self._tokenizer, self.turn.request, place) for place in places]}


async def chat(request: http.Request) -> Response:
    service: Service = request.app.state.service
    body = await read_body(request, service.limits)
    asked = read_chat(body, service)
    requests = await run_in_threadpool(asked.dialog.requests, service, asked.n, asked.seed)
    job = service.submit(requests, body)
    head = service.head("chatcmpl", "chat.completion.chunk" if asked.stream else "chat.completion")
    answer = job, asked, service, head
    return await respond(request, job, asked.stream, lambda: _chunks(*answer), lambda: _whole(*answer))


async def _parts(
    job: Job, choices: list[Choice]
) -> AsyncIterator[tuple[int, list[dict[str, Any]], dict[str, Any] | None, str | None]]:
    """(index, deltas, logprobs, finish_reason) of each event."""
    async for event in job:
        choice = choices[event.index]
        deltas = choice.turn.advance(event)
        if choice.turn.finish_reason:
            job.cancel(event.index)
        parts = [part for delta in deltas if (part := choice.part(delta))]
        yield event.index, parts, choice.logprobs(deltas), choice.turn.finish_reason


async def _whole(job: Job, asked: Asked, service: Service, head: dict[str, Any]) -> Json:
    choices = [Choice(asked, service, request) for request in job.requests]
    messages: list[dict[str, Any]] = [{"role": "assistant", "content": None, "refusal": None} for _ in choices]
    logs: list[list] = [[] for _ in choices]
    async for index, parts, logprobs, _ in _parts(job, choices):
        logs[index] += logprobs["content"] if logprobs else []
        for part in parts:
            _merge(messages[index], part)
    for message in messages:
        if message["content"] is None and "tool_calls" not in message:
            message["content"] = ""
        for call in message.get("tool_calls", ()):
            del call["index"]
    done = [
        {
            "index": i,
            "message": message,
            "logprobs": {"content": logs[i], "refusal": None} if asked.logprobs else None,
            "finish_reason": choices[i].turn.finish_reason,
        }
        for i, message in enumerate(messages)
    ]
    return Json(head | {"choices": done, "usage": _usage(choices, asked)})


def _merge(message: dict[str, Any], part: dict[str, Any]) -> None:
    for key, value in part.items():
        if key != "tool_calls":
            message[key] = (message.get(key) or "") + value
            continue
        (call,) = value
        calls = message.setdefault("tool_calls", [])
        if call["index"] == len(calls):
            calls.append(call)
        else:
            calls[-1]["function"]["arguments"] += call["function"]["arguments"]


async def _chunks(
    job: Job, asked: Asked, service: Service, head: dict[str, Any]
) -> AsyncIterator[tuple[None, dict[str, Any]]]:
    choices = [Choice(asked, service, request) for request in job.requests]
    empty = {"usage": None} if asked.include_usage else {}

    def chunk(index: int, delta: dict[str, Any], logprobs: Any = None, reason: str | None = None) -> tuple:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return None, head | {"choices": [choice]} | empty

    begun: set[int] = set()
    async for index, parts, logprobs, reason in _parts(job, choices):
        if index not in begun:
            begun.add(index)
            yield chunk(index, {"role": "assistant", "content": ""})
        for i, part in enumerate(parts):
            yield chunk(index, part, logprobs if i == len(parts) - 1 else None)
        if reason:
            yield chunk(index, {}, None if parts else logprobs, reason)
    if asked.include_usage:
        yield None, head | {"choices": [], "usage": _usage(choices, asked)}


def _usage(choices: list[Choice], asked: Asked) -> dict[str, Any]:
    turns = [choice.turn for choice in choices]
    requests = [turn.request for turn in turns]
    found = usage(requests, asked.n, sum(turn.tokens for turn in turns))
    return found | {"completion_tokens_details": {"reasoning_tokens": sum(turn.reasoning_tokens for turn in turns)}}
