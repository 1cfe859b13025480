"""/v1/responses, without a store: each request brings its whole conversation."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette import requests as http
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from cgpt.errors import CgptError
from cgpt.generation.engine import Job
from cgpt.serve.errors import Json, api_error
from cgpt.serve.openai.body import IGNORED, Body, read_body, read_sampling
from cgpt.serve.openai.dialog import Dialog, choose_tools, read_effort, read_text
from cgpt.serve.openai.items import Items
from cgpt.serve.openai.logprobs import token_entry
from cgpt.serve.stream import respond
from cgpt.serve.turn import Delta, Turn

if TYPE_CHECKING:
    from cgpt.serve.app import Service

FIELDS = IGNORED | {
    "model", "input", "instructions", "max_output_tokens", "temperature", "top_p", "tools", "tool_choice", "stream",
    "stream_options", "reasoning", "text", "include", "parallel_tool_calls", "truncation", "previous_response_id",
    "conversation", "background", "top_logprobs", "max_tool_calls", "prompt",
}  # fmt: skip
NO_STORE = "cannot be used: nothing is kept here; send the whole conversation as input"
LOGPROBS = "message.output_text.logprobs"
TEXTS = {"input_text", "output_text", "text", "refusal"}


@dataclass
class Asked:
    """A request for a response, read. echoed: its fields that the answer repeats."""

    dialog: Dialog
    stream: bool
    echoed: dict[str, Any]


def read_response(body: Body, service: Service) -> Asked:
    limits = service.limits
    body.refuse_unknown(FIELDS, "what /v1/responses takes")
    service.require_model(body)
    service.require_chat()
    for key in ("previous_response_id", "conversation", "prompt"):
        body.refuse_unless(key, [], NO_STORE)
    body.refuse_unless("background", [False], NO_STORE)
    body.refuse_unless("truncation", ["disabled"], "cannot be used: what is too long is refused, not cut")
    metadata = body.values.get("metadata")
    stream = body.boolean("stream", False)
    options = {key: value for key, value in read_sampling(body, limits, service.model.vocab_size).items() if value}
    most = body.integer("max_output_tokens", None, high=limits.max_tokens)
    options["max_new_tokens"] = most or limits.max_tokens
    top = body.integer("top_logprobs", 0, low=0, high=limits.logprobs)
    options["logprobs"] = top if top or LOGPROBS in body.array("include", []) else None
    reasoning, text = body.section("reasoning") or Body({}, "reasoning."), body.section("text") or Body({}, "text.")
    dialog = Dialog(effort=read_effort(reasoning, "effort"), options=options)
    if (form := text.section("format")) is not None:
        dialog.set_format(form, form, limits)
    for tool in body.objects("tools", limits.tools, []):
        tool.refuse_unless("type", ["function"], "must be function: there are no other tools")
        dialog.add_tool(tool, limits)
    choose_tools(body, dialog, lambda choice: choice.text("name"))
    if instructions := body.text("instructions", ""):
        dialog.add("system", instructions)
    if isinstance(body.values.get("input"), str):
        dialog.add("user", body.values["input"])
    else:
        items = body.objects("input", limits.messages, [])
        if not items:
            raise body.refuse("input", "must be a text, or a list of one item at least")
        for item in items:
            _read_item(item, dialog)
    echoed = {
        "instructions": instructions or None,
        "max_output_tokens": most,
        "metadata": metadata if isinstance(metadata, dict) else {},
        "parallel_tool_calls": False,
        "reasoning": {"effort": dialog.effort, "summary": None},
        "temperature": body.number("temperature", 1.0, low=0, high=2),
        "text": {"format": text.values.get("format", {"type": "text"})},
        "tool_choice": body.values.get("tool_choice", "auto"),
        "tools": body.values.get("tools", []),
        "top_logprobs": top,
        "top_p": body.number("top_p", 1.0, high=1),
        "truncation": "disabled",
    }
    return Asked(dialog, stream, echoed)


def _read_item(item: Body, dialog: Dialog) -> None:
    kind = item.text("type", "message")
    if kind == "message":
        role = item.text("role")
        if role not in ("system", "developer", "user", "assistant"):
            raise item.refuse("role", "must be system, developer, user or assistant")
        text = read_text(item, "content", TEXTS)
        if role == "assistant" and item.values.get("phase") == "commentary":
            dialog.add_preamble(text)
        else:
            dialog.add(role, text)
    elif kind == "reasoning":
        if text := read_text(item, "content", {"reasoning_text", "text"}):
            dialog.add_reasoning(text)
    elif kind == "function_call":
        dialog.add_call(item.text("call_id"), item.text("name"), item.text("arguments", "{}"))
    elif kind == "function_call_output":
        dialog.add_result(item.name("call_id"), item.text("call_id"), read_text(item, "output", TEXTS))
    elif kind == "item_reference":
        raise item.refuse("type", NO_STORE)
    else:
        raise item.refuse("type", "must be message, reasoning, function_call or function_call_output")


class Answer:
    """The response object as it grows, and the events that tell of it."""

    def __init__(self, asked: Asked, service: Service, job: Job) -> None:
        self._job, (request,) = job, job.requests
        self._tokenizer = service.tokenizer
        self._turn = Turn(service, request, asked.dialog.seed, asked.dialog.stops)
        self._items = Items()
        self._number = 0  # of the next event
        self._head = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": service.name,
            "error": None,
            "background": False,
            "previous_response_id": None,
            "store": False,
            **asked.echoed,
        }

    def response(self, status: str) -> dict[str, Any]:
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        usage = None if status == "in_progress" else self._usage()
        done = int(time.time()) if status == "completed" else None
        more = {"incomplete_details": cut, "output": self._items.output(), "usage": usage, "completed_at": done}
        return self._head | {"status": status} | more

    def _usage(self) -> dict[str, Any]:
        request, turn = self._turn.request, self._turn
        prompt = len(request.prompt_ids)
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": request.num_cached_tokens, "cache_write_tokens": 0},
            "output_tokens": turn.tokens,
            "output_tokens_details": {"reasoning_tokens": turn.reasoning_tokens},
            "total_tokens": prompt + turn.tokens,
        }

    def _logprobs(self, delta: Delta) -> list[dict[str, Any]]:
        request = self._turn.request
        if request.num_logprobs is None:
            return []
        return [token_entry(self._tokenizer, request, place) for place in delta.ids]

    async def events(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """All of them; the last one holds the whole response."""
        first = True
        async for event in self._job:
            deltas = self._turn.advance(event)
            if first:
                first = False
                for kind in ("response.created", "response.in_progress"):
                    yield self._event(kind, {"response": self.response("in_progress")})
            for delta in deltas:
                for kind, data in self._items.add(delta, self._logprobs(delta)):
                    yield self._event(kind, data)
            if self._turn.finish_reason:
                self._job.cancel()
        cut = self._turn.finish_reason == "length"
        status = "incomplete" if cut else "completed"
        for kind, data in self._items.close(status):
            yield self._event(kind, data)
        yield self._event(f"response.{status}", {"response": self.response(status)})

    async def stream(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """events(); what fails after the first of them is told by one, as nothing else can tell it any more."""
        try:
            async for event in self.events():
                yield event
        except CgptError as problem:
            if self._number == 0:
                raise
            for kind, data in self._items.close("incomplete"):
                yield self._event(kind, data)
            failed = self.response("failed") | {"error": {"code": "server_error", "message": str(api_error(problem))}}
            yield self._event("response.failed", {"response": failed})

    def _event(self, kind: str, data: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        self._number += 1
        return kind, {"type": kind, "sequence_number": self._number - 1, **data}


async def responses(request: http.Request) -> Response:
    service: Service = request.app.state.service
    body = await read_body(request, service.limits)
    asked = read_response(body, service)
    requests = await run_in_threadpool(asked.dialog.requests, service, 1, None)
    job = service.submit(requests, body)
    answer = Answer(asked, service, job)
    return await respond(request, job, asked.stream, answer.stream, lambda: _whole(answer), done=False)


async def _whole(answer: Answer) -> Json:
    last = [data async for _, data in answer.events()][-1]
    return Json(last["response"])
