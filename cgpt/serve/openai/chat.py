"""The endpoint /v1/chat/completions."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, model_validator
from starlette.concurrency import run_in_threadpool
from typing_extensions import NotRequired, Self, TypedDict

from cgpt.chat.turn import Delta, Turn
from cgpt.generation.engine import Event, Job
from cgpt.generation.sampling import SamplingParams
from cgpt.serve.openai import protocol
from cgpt.serve.openai.conversation import Conversation
from cgpt.serve.openai.logprobs import TokenLogprob, token_logprobs
from cgpt.serve.service import Service
from cgpt.serve.stream import Events, Generated
from cgpt.serve.validation import Content, Invalid, OneOf, RequestModel, Text, integer, only, size


class TextPart(RequestModel):
    type: Literal["text"]
    text: Text


Texts = Content[Annotated[TextPart, protocol.PART]]


class FunctionCall(RequestModel):
    """The function of a call. arguments: JSON text."""

    name: Text
    arguments: Text = "{}"


class ToolCall(RequestModel):
    id: Text
    function: FunctionCall


class InputMessage(RequestModel):
    """A message of the user, or an instruction; "system" and "developer" mean the same here."""

    role: Literal["system", "developer", "user"]
    content: Texts = ""

    def add_to(self, conversation: Conversation, name: str) -> None:
        conversation.add(self.role, protocol.text_of(self.content))


class AssistantMessage(RequestModel):
    """A message that the model wrote before, with its reasoning under either name."""

    role: Literal["assistant"]
    content: Content[Annotated[TextPart | protocol.RefusalPart, protocol.PART]] = ""
    reasoning: Text | None = None
    reasoning_content: Text = ""
    tool_calls: Annotated[list[ToolCall], size(protocol.MAX_CALLS)] = []

    def add_to(self, conversation: Conversation, name: str) -> None:
        conversation.add_said(self.reasoning_content if self.reasoning is None else self.reasoning, "analysis")
        text = protocol.text_of(self.content)
        if text or not self.tool_calls:
            conversation.add_said(text, "commentary" if self.tool_calls else "final")
        for call in self.tool_calls:
            conversation.add_call(call.id, call.function.name, call.function.arguments)


class ToolMessage(RequestModel):
    """The result of a call."""

    role: Literal["tool"]
    tool_call_id: Text
    content: Texts = ""

    def add_to(self, conversation: Conversation, name: str) -> None:
        conversation.add_result(f"{name}.tool_call_id", self.tool_call_id, protocol.text_of(self.content))


ChatMessage = Annotated[InputMessage | AssistantMessage | ToolMessage, OneOf("role")]


class ChatTool(RequestModel):
    type: protocol.FunctionType = "function"
    function: protocol.FunctionDefinition


class FunctionName(RequestModel):
    name: Text


class NamedTool(protocol.Echoed):
    type: Literal["function"] = "function"
    function: FunctionName


class NamedTools(protocol.Echoed):
    type: Literal["allowed_tools"]
    allowed_tools: protocol.AllowedTools[NamedTool]


class SchemaResponseFormat(RequestModel):
    type: Literal["json_schema"]
    json_schema: protocol.SchemaFormat


MESSAGES = "a list of one message at least"


class ChatRequest(protocol.SamplingRequest):
    messages: Annotated[list[ChatMessage], size("messages", 1, MESSAGES)] = Field(description=MESSAGES)
    max_completion_tokens: Annotated[int | None, integer(1, "max_tokens")] = None
    max_tokens: Annotated[int | None, integer(1, "max_tokens")] = None  # its old name
    logprobs: StrictBool = False
    top_logprobs: Annotated[int, integer(0, "logprobs")] = 0
    tools: Annotated[list[ChatTool], size("tools")] = []
    tool_choice: protocol.ToolChoice[NamedTool, NamedTools] = "auto"
    reasoning_effort: protocol.Effort = "medium"
    response_format: protocol.Format[SchemaResponseFormat] = protocol.FreeFormat()
    modalities: Annotated[Any, only(["text"], wanted="cannot be used: the model writes text")] = None
    parallel_tool_calls: Any = None
    verbosity: Any = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.require_equal("max_completion_tokens", "max_tokens")
        if self.top_logprobs and not self.logprobs:
            raise Invalid("goes with logprobs: true only", "top_logprobs")
        return self

    def to_conversation(self) -> Conversation:
        """Makes the conversation; ApiError where the fields contradict each other."""
        made = Conversation(effort=self.reasoning_effort, stops=self.stop)
        form = self.response_format
        made.set_format(form.json_schema if isinstance(form, SchemaResponseFormat) else form)
        functions, choice = [tool.function for tool in self.tools], self.tool_choice
        if isinstance(choice, NamedTool):
            made.set_tools(functions, "named", [choice.function.name])
        elif isinstance(choice, NamedTools):
            allowed = choice.allowed_tools
            made.set_tools(functions, allowed.mode, [tool.function.name for tool in allowed.tools])
        else:
            made.set_tools(functions, choice)
        for i, message in enumerate(self.messages):
            message.add_to(made, f"messages[{i}]")
        return made

    def params(self, max_tokens: int) -> SamplingParams:
        """Makes the parameters of sampling, without the stops. max_tokens: where the body sets no limit."""
        limit = self.max_completion_tokens or self.max_tokens or max_tokens
        return self.sampling(max_new_tokens=limit, logprobs=self.top_logprobs if self.logprobs else None, stop=None)


class AnsweredCall(TypedDict):
    id: str
    type: Literal["function"]
    function: dict[Literal["name", "arguments"], str]


class AnswerMessage(TypedDict):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    reasoning: NotRequired[str]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[AnsweredCall]]


@dataclass
class ChatLogprobs:
    content: list[TokenLogprob]
    refusal: None = None


@dataclass
class ChatChoice:
    index: protocol.Count
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None


@dataclass
class ChatUsage(protocol.Usage):
    completion_tokens_details: dict[Literal["reasoning_tokens"], protocol.Count]


class ChatCompletion(protocol.Head):
    object: Literal["chat.completion"]
    choices: Annotated[list[ChatChoice], Field(min_length=1)]
    usage: ChatUsage


@dataclass
class ChunkChoice:
    """What an event adds to a choice. delta: as OpenAI writes it, the fields of a message with what they have got."""

    index: int
    delta: dict[str, Any]
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class Choice:
    """One answer while it is generated. turn: sorts what the model writes."""

    def __init__(self, body: ChatRequest, turn: Turn, service: Service) -> None:
        self.turn = turn
        self._metrics, self._tokenizer, self._logs = service.metrics, service.tokenizer, body.logprobs
        self._has_begun = False
        self._last: dict[str, int] = {}  # the newest item of a kind
        self._calls = 0

    def advance(self, job: Job, event: Event) -> list[ChunkChoice]:
        """Returns what an event of the job adds, with the log-probabilities where they are wanted. The end of the turn
        cancels the request."""
        deltas, index = self.turn.advance(event), event.index
        chunks = [ChunkChoice(index, part) for delta in deltas if (part := self._part(delta))]
        last = max(len(chunks) - 1, 0)
        if reason := self.turn.finish_reason:
            job.cancel(index)
            self._metrics.repairs.update(self.turn.parser.repairs)
            chunks.append(ChunkChoice(index, {}, finish_reason=reason))
        if self._logs and chunks:
            indices = [i for delta in deltas for i in delta.indices]
            chunks[last].logprobs = ChatLogprobs(token_logprobs(self._tokenizer, self.turn.request, indices))
        if not self._has_begun:
            self._has_begun = True
            chunks.insert(0, ChunkChoice(index, {"role": "assistant", "content": ""}))
        return chunks

    def _part(self, delta: Delta) -> dict[str, Any] | None:
        kind = "content" if delta.is_for_user else delta.kind
        is_new = self._last.get(kind) != delta.item
        if not delta.text and not (is_new and kind == "call"):
            return None
        is_first, self._last[kind] = kind not in self._last, delta.item
        if kind == "call":
            self._calls += is_new
            head = {"id": f"call_{uuid.uuid4().hex}", "type": "function"} if is_new else {}
            function = ({"name": delta.name} if is_new else {}) | {"arguments": delta.text}
            return {"tool_calls": [{"index": self._calls - 1, **head, "function": function}]}
        # Several messages of a kind become paragraphs of one.
        text = "\n" * (is_new and not is_first) + delta.text
        return {"reasoning": text, "reasoning_content": text} if kind == "reasoning" else {"content": text}


def joined(chunks: list[ChunkChoice]) -> ChatChoice:
    """Joins all that was added to a choice. The chunks may change."""
    calls: list[AnsweredCall] = []
    for call in [call for chunk in chunks for call in chunk.delta.get("tool_calls", ())]:
        if call.pop("index") == len(calls):
            calls.append(call)
        else:
            calls[-1]["function"]["arguments"] += call["function"]["arguments"]
    content, reasoning = ("".join(chunk.delta.get(name, "") for chunk in chunks) for name in ("content", "reasoning"))
    message = AnswerMessage(role="assistant", content=content or (None if calls else ""), refusal=None)
    if reasoning:
        message["reasoning"] = message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    logs = [chunk.logprobs.content for chunk in chunks if chunk.logprobs]
    return ChatChoice(
        chunks[-1].index, message, ChatLogprobs(list(chain(*logs))) if logs else None, chunks[-1].finish_reason
    )


async def chat(service: Service, body: ChatRequest) -> Generated:
    conversation, params = body.to_conversation(), body.params(service.limits.max_tokens)
    turns = await run_in_threadpool(conversation.turns, service, body.n, params)
    choices = [Choice(body, turn, service) for turn in turns]
    head = service.head("chatcmpl", "chat.completion.chunk" if body.stream else "chat.completion")
    job = service.submit([turn.request for turn in turns], body)
    return Generated(job, (_chunks if body.stream else _whole)(job, body, choices, head))


async def _whole(job: Job, body: ChatRequest, choices: list[Choice], head: dict[str, Any]) -> dict[str, Any]:
    chunks: list[list[ChunkChoice]] = [[] for _ in choices]
    async for event in job:
        chunks[event.index] += choices[event.index].advance(job, event)
    return head | {"choices": [joined(one) for one in chunks], "usage": _usage(choices, body)}


async def _chunks(job: Job, body: ChatRequest, choices: list[Choice], head: dict[str, Any]) -> Events:
    empty = {"usage": None} if body.stream_options.include_usage else {}
    async for event in job:
        for chunk in choices[event.index].advance(job, event):
            yield None, head | {"choices": [chunk]} | empty
    if body.stream_options.include_usage:
        yield None, head | {"choices": [], "usage": _usage(choices, body)}


def _usage(choices: list[Choice], body: ChatRequest) -> ChatUsage:
    turns = [choice.turn for choice in choices]
    counts = protocol.usage([turn.request for turn in turns], body.n, sum(turn.tokens for turn in turns))
    reasoning = sum(turn.reasoning_tokens for turn in turns)
    return ChatUsage(**vars(counts), completion_tokens_details={"reasoning_tokens": reasoning})
