"""The endpoints /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.concurrency import run_in_threadpool

from cgpt.chat.turn import Delta, Turn
from cgpt.generation.engine import Job
from cgpt.serve.anthropic.protocol import INVALID_JSON, MessagesRequest
from cgpt.serve.body import parse_body
from cgpt.serve.errors import AnthropicErrorAnswer, ApiError, dumps
from cgpt.serve.openai.protocol import Count
from cgpt.serve.sealing import sealed
from cgpt.serve.service import Service
from cgpt.serve.stream import Event, Events, Generated, framed

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
STOP_REASONS: dict[str | None, StopReason] = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


@dataclass
class TextBlock:
    text: str = ""
    type: Literal["text"] = "text"


@dataclass
class ThinkingBlock:
    """signature: the text once more, for clients that are not shown it; they send both back."""

    thinking: str = ""
    signature: str = ""
    type: Literal["thinking"] = "thinking"


@dataclass
class ToolUseBlock:
    """A call. input: its arguments, or {"INVALID_JSON": the text} where the model wrote no JSON object."""

    id: str
    name: str
    input: dict[str, Any] = field(default_factory=dict)
    type: Literal["tool_use"] = "tool_use"


Block = Annotated[TextBlock | ThinkingBlock | ToolUseBlock, Field(discriminator="type")]


@dataclass
class MessageUsage:
    """input_tokens: of the prompt, those that were computed; with those of the cache they are all."""

    input_tokens: Count
    cache_creation_input_tokens: Count
    cache_read_input_tokens: Count
    output_tokens: Count
    output_tokens_details: dict[Literal["thinking_tokens"], Count]


@dataclass
class Message:
    """The answer."""

    id: str
    model: str
    content: list[Block]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"


class Answer:
    """The message while it grows, and its events. The last block may be open: text still comes."""

    def __init__(self, body: MessagesRequest, turn: Turn, service: Service) -> None:
        self._turn, self._service = turn, service
        self._shows_thinking, self._omits = body.thinking.type != "disabled", body.thinking.display == "omitted"
        self._eager = {tool.name for tool in body.functions if tool.eager_input_streaming}
        self._is_stored = body.store is not False
        self._open: int | None = None  # the turn's number of the open block
        self._thoughts: dict[int, str] = {}  # by the turn's number
        self._arguments = ""  # of the open call
        self._message = Message(f"msg_{service.new_number()}", service.name, [], None, None, self._usage())

    def _usage(self) -> MessageUsage:
        request, thinking = self._turn.request, self._turn.reasoning_tokens
        cached = request.num_cached_tokens
        return MessageUsage(
            len(request.prompt_ids) - cached, 0, cached, self._turn.tokens, {"thinking_tokens": thinking}
        )

    async def events(self, job: Job) -> Events:
        """Yields the events of the job."""
        has_begun = False
        async for event in job:
            deltas = self._turn.advance(event)
            if not has_begun:
                has_begun = True
                yield _event("message_start", message=replace(self._message, content=[], usage=self._usage()))
            for delta in deltas:
                for one in self._add(delta):
                    yield one
            if self._turn.finish_reason:
                self._service.metrics.repairs.update(self._turn.parser.repairs)
                job.cancel()
        for one in self._close():
            yield one
        message, stop = self._message, self._turn.stop_string
        message.stop_reason = "stop_sequence" if stop is not None else STOP_REASONS[self._turn.finish_reason]
        message.stop_sequence, message.usage = stop, self._usage()
        ended = {"stop_reason": message.stop_reason, "stop_sequence": stop}
        yield _event("message_delta", delta=ended, usage=message.usage)
        yield _event("message_stop")

    async def whole(self, job: Job) -> Message:
        async for _ in self.events(job):
            pass
        return self._message

    def _add(self, delta: Delta) -> Iterator[Event]:
        """Adds a delta and yields its events."""
        if delta.kind == "reasoning":
            self._thoughts[delta.item] = self._thoughts.get(delta.item, "") + delta.text
            if not self._shows_thinking:
                return
        if delta.item != self._open and (delta.text or delta.kind == "call"):
            yield from self._close()
            self._open = delta.item
            yield from self._begin(delta)
        if not delta.text:
            return
        block = self._message.content[-1]
        if isinstance(block, TextBlock):
            block.text += delta.text
            yield self._delta("text_delta", text=delta.text)
        elif isinstance(block, ToolUseBlock):
            self._arguments += delta.text
            if block.name in self._eager:
                yield self._delta("input_json_delta", partial_json=delta.text)
        elif not self._omits:
            block.thinking += delta.text
            yield self._delta("thinking_delta", thinking=delta.text)

    def _begin(self, delta: Delta) -> Iterator[Event]:
        block: TextBlock | ThinkingBlock | ToolUseBlock
        if delta.kind == "call":
            self._arguments = ""
            block = ToolUseBlock(f"toolu_{self._service.new_number()}", delta.name or "")
        else:
            block = ThinkingBlock() if delta.kind == "reasoning" else TextBlock()
        self._message.content.append(block)
        yield self._about("content_block_start", content_block=replace(block))

    def _close(self) -> Iterator[Event]:
        """Ends the open block, if there is one, and yields its last events."""
        if self._open is None:
            return
        block = self._message.content[-1]
        if isinstance(block, ThinkingBlock):
            block.signature = sealed(self._thoughts[self._open])
            yield self._delta("signature_delta", signature=block.signature)
        elif isinstance(block, ToolUseBlock):
            block.input, text = self._read_arguments()
            if self._is_stored:
                written = "" if INVALID_JSON in block.input else text
                self._service.remember_thought(block.id, "\n".join(self._thoughts.values()), written)
            if block.name not in self._eager:
                yield self._delta("input_json_delta", partial_json=text)
        self._open = None
        yield self._about("content_block_stop")

    def _read_arguments(self) -> tuple[dict[str, Any], str]:
        """The input that the model wrote, and its JSON. Clients fail where they get what is no JSON."""
        try:
            return parse_body(self._arguments.encode("utf-8", "replace"), self._service.limits), self._arguments
        except ApiError:
            wrapped = {INVALID_JSON: self._arguments}
            return wrapped, dumps(wrapped)

    def _delta(self, kind: str, **data: Any) -> Event:
        return self._about("content_block_delta", delta={"type": kind, **data})

    def _about(self, kind: str, **data: Any) -> Event:
        return _event(kind, index=len(self._message.content) - 1, **data)


def _event(kind: str, **data: Any) -> Event:
    return kind, {"type": kind, **data}


def _failure(problem: ApiError) -> Event:
    return "error", AnthropicErrorAnswer.of(problem)


PING = framed(_event("ping"))


async def messages(service: Service, body: MessagesRequest) -> Generated:
    params = body.params(service.limits.max_tokens)
    (turn,) = await run_in_threadpool(lambda: body.to_conversation(service).turns(service, 1, params))
    answer = Answer(body, turn, service)
    job = service.submit([turn.request], body)
    events = answer.events(job) if body.stream else answer.whole(job)
    return Generated(job, events, done=False, failure=_failure, idle=PING)


@dataclass
class TokenCount:
    input_tokens: Count


async def count_tokens(service: Service, body: MessagesRequest) -> TokenCount:
    ids, _ = await run_in_threadpool(lambda: body.to_conversation(service).prompt(service))
    return TokenCount(len(ids))
