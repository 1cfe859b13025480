"""The endpoint /v1/responses, without a store: each request brings its whole conversation."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, with_config
from pydantic.json_schema import SkipJsonSchema
from starlette.concurrency import run_in_threadpool
from typing_extensions import TypedDict

from cgpt.chat.turn import Turn
from cgpt.errors import CgptError
from cgpt.generation.engine import Job
from cgpt.generation.sampling import SamplingParams
from cgpt.serve.errors import api_error
from cgpt.serve.openai import protocol
from cgpt.serve.openai.conversation import Conversation
from cgpt.serve.openai.items import Item, Items, Status
from cgpt.serve.openai.logprobs import token_logprobs
from cgpt.serve.service import Service
from cgpt.serve.stream import Generated
from cgpt.serve.validation import Content, Invalid, OneOf, RequestModel, Text, TextOr, integer, only, size

NO_STORE = "cannot be used: nothing is kept here; send the whole conversation as input"
LOGPROBS = "message.output_text.logprobs"
Kept = SkipJsonSchema[Annotated[Any, only(wanted=NO_STORE)]]  # what only a server that keeps something could use


class TextPart(RequestModel):
    type: Literal["input_text", "output_text", "text"]
    text: Text


Texts = Content[Annotated[TextPart | protocol.RefusalPart, protocol.PART]]


class ReasoningPart(RequestModel):
    type: Literal["reasoning_text", "text"]
    text: Text


class InputMessage(RequestModel):
    """A message. phase: "commentary" for what the assistant said before a call."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Texts = ""
    phase: Any = None

    def add_to(self, conversation: Conversation, name: str) -> None:
        text = protocol.text_of(self.content)
        if self.role == "assistant" and self.phase == "commentary":
            conversation.add_said(text, "commentary")
        else:
            conversation.add(self.role, text)


class InputReasoning(RequestModel):
    type: Literal["reasoning"]
    content: Content[Annotated[ReasoningPart, protocol.PART]] = ""

    def add_to(self, conversation: Conversation, name: str) -> None:
        conversation.add_said(protocol.text_of(self.content), "analysis")


class InputCall(RequestModel):
    """A call that the model made before. arguments: JSON text."""

    type: Literal["function_call"]
    call_id: Text
    name: Text
    arguments: Text = "{}"

    def add_to(self, conversation: Conversation, name: str) -> None:
        conversation.add_call(self.call_id, self.name, self.arguments)


class InputResult(RequestModel):
    type: Literal["function_call_output"]
    call_id: Text
    output: Texts = ""

    def add_to(self, conversation: Conversation, name: str) -> None:
        conversation.add_result(f"{name}.call_id", self.call_id, protocol.text_of(self.output))


def _refuse_reference(item: Any) -> Any:
    if isinstance(item, dict) and item.get("type") == "item_reference":
        raise Invalid(NO_STORE, "type")
    return item


InputItem = Annotated[
    InputMessage | InputReasoning | InputCall | InputResult,
    OneOf("type", "message"),
    BeforeValidator(_refuse_reference),
]


class ResponseTool(protocol.FunctionDefinition):
    type: protocol.FunctionType = "function"


class NamedTool(protocol.Echoed):
    type: Literal["function"] = "function"
    name: Text


class NamedTools(protocol.AllowedTools[NamedTool], protocol.Echoed):
    type: Literal["allowed_tools"]


class SchemaTextFormat(protocol.SchemaFormat):
    type: Literal["json_schema"]


class TextOptions(RequestModel):
    format: protocol.Format[SchemaTextFormat] = protocol.FreeFormat()


class ReasoningOptions(RequestModel):
    effort: protocol.Effort = "medium"


INPUT = "a text, or a list of one item at least"


class ResponseRequest(protocol.GenerationRequest):
    input: TextOr[Annotated[list[InputItem], size("messages", 1, INPUT)]] = Field(description=INPUT)
    instructions: Text = ""
    max_output_tokens: Annotated[int | None, integer(1, "max_tokens")] = None
    top_logprobs: Annotated[int, integer(0, "logprobs")] = 0
    include: list[Any] = []
    tools: Annotated[list[ResponseTool], size("tools")] = []
    tool_choice: protocol.ToolChoice[NamedTool, NamedTools] = "auto"
    reasoning: ReasoningOptions = ReasoningOptions()
    text: TextOptions = TextOptions()
    truncation: Annotated[Any, only("disabled", wanted="cannot be used: what is too long is refused, not cut")] = None
    background: Annotated[Any, only(False, wanted=NO_STORE)] = None
    previous_response_id: Kept = None
    conversation: Kept = None
    prompt: Kept = None
    stream_options: Any = None
    parallel_tool_calls: Any = None
    max_tool_calls: Any = None

    def to_conversation(self) -> Conversation:
        """Makes the conversation; ApiError where the fields contradict each other."""
        made = Conversation(effort=self.reasoning.effort)
        made.set_format(self.text.format)
        choice = self.tool_choice
        if isinstance(choice, NamedTool):
            made.set_tools(self.tools, "named", [choice.name])
        elif isinstance(choice, NamedTools):
            made.set_tools(self.tools, choice.mode, [tool.name for tool in choice.tools])
        else:
            made.set_tools(self.tools, choice)
        if self.instructions:
            made.add("system", self.instructions)
        if isinstance(self.input, str):
            made.add("user", self.input)
        else:
            for i, item in enumerate(self.input):
                item.add_to(made, f"input[{i}]")
        return made

    def params(self, max_tokens: int) -> SamplingParams:
        """Makes the parameters of sampling, without the stops. max_tokens: where the body sets no limit."""
        logprobs = self.top_logprobs if self.top_logprobs or LOGPROBS in self.include else None
        return self.sampling(max_new_tokens=self.max_output_tokens or max_tokens, logprobs=logprobs)

    def echoed(self) -> dict[str, Any]:
        """Returns the fields that the answer repeats."""
        fields = {"max_output_tokens", "temperature", "top_p", "top_logprobs", "tools", "tool_choice", "text"}
        return self.model_dump(include=fields, by_alias=True) | {
            "instructions": self.instructions or None,
            "metadata": self.metadata if isinstance(self.metadata, dict) else {},
            "reasoning": {"effort": self.reasoning.effort, "summary": None},
            "parallel_tool_calls": False,
            "truncation": "disabled",
        }


@dataclass
class ResponseUsage:
    input_tokens: protocol.Count
    input_tokens_details: dict[Literal["cached_tokens", "cache_write_tokens"], protocol.Count]
    output_tokens: protocol.Count
    output_tokens_details: dict[Literal["reasoning_tokens"], protocol.Count]
    total_tokens: protocol.Count


@with_config(ConfigDict(extra="allow"))
class ResponseObject(TypedDict):
    """The answer. It also repeats fields of the request; see ResponseRequest.echoed."""

    id: str
    object: Literal["response"]
    created_at: protocol.Count
    completed_at: protocol.Count | None
    model: str
    status: Literal["completed", "incomplete"]
    output: list[Item]
    usage: ResponseUsage
    error: None
    incomplete_details: dict[Literal["reason"], Literal["max_output_tokens"]] | None


class Answer:
    """The response object while it grows, and its events."""

    def __init__(self, body: ResponseRequest, turn: Turn, service: Service) -> None:
        self._turn, self._tokenizer, self._metrics = turn, service.tokenizer, service.metrics
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
            **body.echoed(),
        }

    def response(self, status: str) -> dict[str, Any]:
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        usage = None if status == "in_progress" else self._usage()
        done = int(time.time()) if status == "completed" else None
        more = {"incomplete_details": cut, "output": self._items.output(), "usage": usage, "completed_at": done}
        return self._head | {"status": status} | more

    def _usage(self) -> ResponseUsage:
        request, tokens = self._turn.request, self._turn.tokens
        return ResponseUsage(
            input_tokens=len(request.prompt_ids),
            input_tokens_details={"cached_tokens": request.num_cached_tokens, "cache_write_tokens": 0},
            output_tokens=tokens,
            output_tokens_details={"reasoning_tokens": self._turn.reasoning_tokens},
            total_tokens=len(request.prompt_ids) + tokens,
        )

    async def events(self, job: Job) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Yields the events of the job; the last one holds the whole response."""
        async for event in job:
            deltas = self._turn.advance(event)
            if self._number == 0:
                for kind in ("response.created", "response.in_progress"):
                    yield self._event(kind, {"response": self.response("in_progress")})
            for delta in deltas:
                entries = token_logprobs(self._tokenizer, self._turn.request, delta.indices)
                for kind, data in self._items.add(delta, entries):
                    yield self._event(kind, data)
            if self._turn.finish_reason:
                self._metrics.repairs.update(self._turn.parser.repairs)
                job.cancel()
        status: Status = "incomplete" if self._turn.finish_reason == "length" else "completed"
        for kind, data in self._items.close(status):
            yield self._event(kind, data)
        yield self._event(f"response.{status}", {"response": self.response(status)})

    async def stream(self, job: Job) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Yields events(). A failure after the first of them becomes an event, as the status has been sent."""
        try:
            async for event in self.events(job):
                yield event
        except CgptError as problem:
            if self._number == 0:
                raise
            for kind, data in self._items.close("incomplete"):
                yield self._event(kind, data)
            failed = self.response("failed") | {"error": {"code": "server_error", "message": str(api_error(problem))}}
            yield self._event("response.failed", {"response": failed})

    async def whole(self, job: Job) -> Any:
        *_, (_, last) = [event async for event in self.events(job)]
        return last["response"]

    def _event(self, kind: str, data: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        self._number += 1
        return kind, {"type": kind, "sequence_number": self._number - 1, **data}


async def responses(service: Service, body: ResponseRequest) -> Generated:
    conversation, params = body.to_conversation(), body.params(service.limits.max_tokens)
    (turn,) = await run_in_threadpool(conversation.turns, service, 1, params)
    answer = Answer(body, turn, service)
    job = service.submit([turn.request], body)
    return Generated(job, answer.stream(job) if body.stream else answer.whole(job), done=False)
