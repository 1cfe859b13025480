"""The endpoint /v1/chat/completions."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, model_validator
from starlette.concurrency import run_in_threadpool
from typing_extensions import NotRequired, Self, TypedDict

from cgpt.chat.turn import Delta, Turn
from cgpt.generation.engine import Event, Job
from cgpt.generation.sampling import SamplingParams
from cgpt.serve.conversation import Conversation
from cgpt.serve.errors import dumps
from cgpt.serve.openai import protocol
from cgpt.serve.openai.logprobs import TokenLogprob, token_logprobs
from cgpt.serve.service import Service
from cgpt.serve.stream import Events, Generated
from cgpt.serve.validation import (
    Bounds,
    Content,
    Invalid,
    OneOf,
    Reads,
    RequestModel,
    Text,
    integer,
    only,
    size,
    token_limit,
)


class TextPart(RequestModel):
    type: Literal["text", "input_text", "output_text"]
    text: Text


class ThinkingPart(RequestModel):
    type: Literal["thinking"]
    thinking: Text


Texts = Content[Annotated[TextPart, protocol.PART]]


def _read_arguments(value: Any, _: Bounds) -> str | None:
    return dumps(value) if isinstance(value, dict) else value if isinstance(value, str) else None


ARGUMENTS = {"type": ["string", "object"]}


class FunctionCall(RequestModel):
    """The function of a call. arguments: JSON text; some clients send the object."""

    name: Text
    arguments: Annotated[str, Reads(_read_arguments, "must be a string or an object", ARGUMENTS)] = "{}"


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
    """A message that the model wrote before, with its reasoning under either name, or as parts of the content."""

    role: Literal["assistant"]
    content: Content[Annotated[TextPart | protocol.RefusalPart | ThinkingPart, protocol.PART]] = ""
    reasoning: Text | None = None
    reasoning_content: Text = ""
    tool_calls: Annotated[list[ToolCall], size(protocol.MAX_CALLS)] = []
    function_call: FunctionCall | None = None

    def add_to(self, conversation: Conversation, name: str) -> None:
        parts = [] if isinstance(self.content, str) else self.content
        thoughts = "\n".join(part.thinking for part in parts if isinstance(part, ThinkingPart))
        conversation.add_said(self.reasoning or self.reasoning_content or thoughts, "analysis")
        spoken = [part for part in parts if not isinstance(part, ThinkingPart)]
        text = protocol.text_of(self.content if isinstance(self.content, str) else spoken)
        calls = [(call.id, call.function) for call in self.tool_calls]
        if self.function_call:  # the old form: its name stands for its id
            calls.append((self.function_call.name, self.function_call))
        if text or not calls:
            conversation.add_said(text, "commentary" if calls else "final")
        for call_id, function in calls:
            conversation.add_call(call_id, function.name, function.arguments)


class ToolMessage(RequestModel):
    """The result of a call."""

    role: Literal["tool"]
    tool_call_id: Text
    content: Texts = ""

    def add_to(self, conversation: Conversation, name: str) -> None:
        conversation.add_result(f"{name}.tool_call_id", self.tool_call_id, protocol.text_of(self.content))


class FunctionMessage(RequestModel):
    """The result of a function_call, the old form of a call."""

    role: Literal["function"]
    name: Text
    content: Texts = ""

    def add_to(self, conversation: Conversation, name: str) -> None:
        conversation.add_result(f"{name}.name", self.name, protocol.text_of(self.content))


ChatMessage = Annotated[InputMessage | AssistantMessage | ToolMessage | FunctionMessage, OneOf("role")]


class ChatTool(RequestModel):
    type: Literal["function"] = "function"
    function: protocol.FunctionDefinition


class FunctionName(RequestModel):
    name: Text


class NamedTool(protocol.Echoed):
    type: Literal["function"] = "function"
    function: FunctionName


class NamedTools(protocol.Echoed):
    type: Literal["allowed_tools"]
    allowed_tools: protocol.AllowedTools[NamedTool]


MESSAGES = "a list of one message at least"
NamedFunction = tuple[str, list[str] | None] | None  # a mode of Conversation.set_tools, and the function's name


def _read_function_call(value: Any, _: Bounds) -> NamedFunction:
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        return "named", [value["name"]]
    return (value, None) if value in ("auto", "none") else None


FUNCTION_CALL_WANTED = "must be auto, none, or an object with the name of a function"
NAMED_FUNCTION = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
FUNCTION_CALL = {"anyOf": [{"enum": ["auto", "none"]}, NAMED_FUNCTION]}


class ChatRequest(protocol.SamplingRequest):
    """The body of a request. include_reasoning: whether the answer has what the model thought."""

    messages: Annotated[list[ChatMessage], size("messages", 1, MESSAGES)] = Field(description=MESSAGES)
    max_completion_tokens: Annotated[int | None, token_limit(1)] = None
    max_tokens: Annotated[int | None, token_limit(1)] = None  # its old name
    logprobs: StrictBool = False
    top_logprobs: Annotated[int, integer(0, "logprobs")] = 0
    tools: Annotated[list[Annotated[ChatTool | protocol.OtherTool, protocol.TOOL]], size("tools")] = []
    tool_choice: protocol.ToolChoice[NamedTool, NamedTools] = "auto"
    reasoning_effort: protocol.Effort | None = None
    reasoning: protocol.ReasoningOptions = protocol.ReasoningOptions()
    include_reasoning: StrictBool = True
    chat_template_kwargs: protocol.TemplateOptions = protocol.TemplateOptions()
    response_format: protocol.Format[protocol.SchemaResponseFormat] = protocol.FreeFormat()
    modalities: Annotated[Any, only(["text"], wanted="cannot be used: the model writes text")] = None
    functions: Annotated[list[protocol.FunctionDefinition], size("tools")] = []  # the old name of tools
    function_call: Annotated[NamedFunction, Reads(_read_function_call, FUNCTION_CALL_WANTED, FUNCTION_CALL)] = None
    parallel_tool_calls: Any = None
    verbosity: Any = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.require_equal("max_completion_tokens", "max_tokens")
        if self.top_logprobs and not self.logprobs:
            raise Invalid("goes with logprobs: true only", "top_logprobs")
        return self

    def to_conversation(self, service: Service) -> Conversation:
        """Makes the conversation; ApiError where the fields contradict each other."""
        effort = self.reasoning_effort or self.reasoning.effort or self.chat_template_kwargs.reasoning_effort
        made = Conversation(effort=effort or "medium", stops=self.stop, thought_of=service.thought_of)
        form = self.response_format
        self.set_format(made, form.json_schema if isinstance(form, protocol.SchemaResponseFormat) else form)
        functions = [tool.function for tool in self.tools if isinstance(tool, ChatTool)] + self.functions
        choice = self.tool_choice
        if self.function_call:
            mode, names = self.function_call
            made.set_tools(functions, mode, names)
        elif isinstance(choice, NamedTool):
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
        return self.sampling(max_new_tokens=limit, logprobs=self.top_logprobs if self.logprobs else None)


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
    function_call: NotRequired[dict[Literal["name", "arguments"], str]]


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


class ChatCompletion(protocol.Head):
    object: Literal["chat.completion"]
    choices: Annotated[list[ChatChoice], Field(min_length=1)]
    usage: protocol.Usage


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
        self._metrics, self._tokenizer, self._body = service.metrics, service.tokenizer, body
        self._remember = service.remember_thought if body.store is not False else None
        self._thought, self._new_number = "", service.new_number
        self._is_old = bool(body.functions)  # calls in their old form
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
            old = self._is_old and reason == "tool_calls"
            chunks.append(ChunkChoice(index, {}, finish_reason="function_call" if old else reason))
        if self._body.logprobs and chunks:
            indices = [i for delta in deltas for i in delta.indices]
            as_ids = self._body.return_tokens_as_token_ids
            chunks[last].logprobs = ChatLogprobs(token_logprobs(self._tokenizer, self.turn.request, indices, as_ids))
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
            head = {"id": f"call_{self._new_number()}", "type": "function"} if is_new else {}
            if is_new and self._remember:
                self._remember(head["id"], self._thought)
            function = ({"name": delta.name} if is_new else {}) | {"arguments": delta.text}
            if self._is_old:
                return {"function_call": function}
            return {"tool_calls": [{"index": self._calls - 1, **head, "function": function}]}
        # Several messages of a kind become paragraphs of one.
        text = "\n" * (is_new and not is_first) + delta.text
        if kind != "reasoning":
            return {"content": text}
        self._thought += text
        return {"reasoning": text, "reasoning_content": text} if self._body.include_reasoning else None


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
    if old := [chunk.delta["function_call"] for chunk in chunks if "function_call" in chunk.delta]:
        arguments = "".join(one["arguments"] for one in old)
        message["content"], message["function_call"] = content or None, {**old[0], "arguments": arguments}
    logs = [chunk.logprobs.content for chunk in chunks if chunk.logprobs]
    return ChatChoice(
        chunks[-1].index, message, ChatLogprobs(list(chain(*logs))) if logs else None, chunks[-1].finish_reason
    )


async def chat(service: Service, body: ChatRequest) -> Generated:
    params = body.params(service.limits.max_tokens)
    turns = await run_in_threadpool(lambda: body.to_conversation(service).turns(service, body.n, params))
    choices = [Choice(body, turn, service) for turn in turns]
    head = service.head("chatcmpl", "chat.completion.chunk" if body.stream else "chat.completion")
    job = service.submit([turn.request for turn in turns], body)
    return Generated(job, (_chunks if body.stream else _whole)(job, body, choices, head))


async def _whole(job: Job, body: ChatRequest, choices: list[Choice], head: dict[str, Any]) -> dict[str, Any]:
    chunks: list[list[ChunkChoice]] = [[] for _ in choices]
    async for event in job:
        chunks[event.index] += choices[event.index].advance(job, event)
    joint = await run_in_threadpool(lambda: [joined(one) for one in chunks])
    return head | {"choices": joint, "usage": _usage(choices, body)}


async def _chunks(job: Job, body: ChatRequest, choices: list[Choice], head: dict[str, Any]) -> Events:
    options = body.stream_options
    async for event in job:
        for chunk in choices[event.index].advance(job, event):
            yield None, head | {"choices": [chunk]} | options.usage_so_far(lambda: _usage(choices, body))
    if options.include_usage:
        yield None, head | {"choices": [], "usage": _usage(choices, body)}


def _usage(choices: list[Choice], body: ChatRequest) -> protocol.Usage:
    turns = [choice.turn for choice in choices]
    counts = protocol.usage([turn.request for turn in turns], body.n, sum(turn.tokens for turn in turns))
    counts.completion_tokens_details["reasoning_tokens"] = sum(turn.reasoning_tokens for turn in turns)
    return counts
