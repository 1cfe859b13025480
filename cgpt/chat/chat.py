"""A conversation with gpt-oss in the harmony format.

    chat = cgpt.load("demo-gpt-oss").chat()
    print(chat.send("What is 17 + 25?").text)

A Chat renders its messages, lets a Request run through a Scheduler, and sorts what comes by the rule of
cgpt.chat.turn. Its prefix cache remembers what was computed: what the next prompt has in common with earlier ones is
not computed again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from cgpt.arguments import checked_arguments, require_integer
from cgpt.chat import IDENTITY, KNOWLEDGE_CUTOFF
from cgpt.chat.builtin_tools import builtin_namespaces
from cgpt.chat.functions import as_tools, run_tool
from cgpt.chat.messages import Developer, Message, Namespace, ResponseFormat, SpecialTokens, System, tool_result
from cgpt.chat.render import content_text, head_messages, render_conversation, render_message
from cgpt.chat.turn import Delta, Kind, Turn, TurnRules, function_name, offered_recipients
from cgpt.errors import ContextLengthError, InputError
from cgpt.fields import shown
from cgpt.generation.engine import Event
from cgpt.generation.prefix_cache import PrefixCache
from cgpt.generation.request import Request, TextModel
from cgpt.generation.sampling import SamplingParams
from cgpt.generation.scheduler import Scheduler

Effort = Literal["low", "medium", "high"]
MAX_NEW_TOKENS = 4096  # of a reply with its reasoning


@dataclass(frozen=True)
class ToolCall:
    """A call that the model asks for.

    recipient: as the model wrote it: "functions.NAME", or that of a built-in tool as "browser.search" or "python".
    arguments: JSON text, as the model wrote it, which may be no JSON at all, and for "python" is code. channel: of the
    call. name: the recipient without "functions.".
    """

    recipient: str
    arguments: str
    channel: str = "commentary"

    @property
    def name(self) -> str:
        return function_name(self.recipient)


@dataclass(frozen=True)
class Reply:
    """What the model said in answer to one prompt; messages of a kind (cgpt.chat.turn.message_kind) are joined by LF.

    messages: everything the model wrote. text: the answer, with what has no channel or an unknown one. reasoning: the
    thoughts before it. preamble: what the model tells the user before a call. tool_calls: the complete calls; send
    their results back, or let Chat.run do it. unknown_calls: calls of tools that were not offered.
    finish_reason: "stop", "tool_calls", "length" (max_new_tokens, or the context is full), or "cancelled".
    raw_text: what the model wrote, with special tokens. repairs: how often the parser mended the format, by kind.
    prompt_tokens, num_cached_tokens: of the prompt, and how many of these were computed before. completion_tokens: all
    new ones. first_token_seconds: from the call to the first new token, in seconds; None where there is none.
    """

    messages: list[Message]
    text: str
    reasoning: str
    preamble: str
    tool_calls: list[ToolCall]
    unknown_calls: list[ToolCall]
    finish_reason: str
    raw_text: str
    repairs: dict[str, int]
    prompt_tokens: int
    num_cached_tokens: int
    completion_tokens: int
    first_token_seconds: float | None


class Chat:
    """A conversation; made by model.chat(). It computes on one thread at a time.

    messages: the conversation after the system and developer messages, yours to read, to fill and to change. reply: the
    newest Reply. system, developer: the contents of these messages.
    """

    def __init__(
        self,
        model: TextModel,
        *,
        system: str | None = None,
        tools: Iterable[Any] = (),
        builtin_tools: Iterable[str | Namespace] = (),
        reasoning: Effort = "medium",
        response_format: ResponseFormat | None = None,
        identity: str | None = IDENTITY,
        knowledge_cutoff: str | None = KNOWLEDGE_CUTOFF,
        date: str | None = None,
    ) -> None:
        """system: instructions, which harmony puts into the developer message. tools: Python functions, schemas in
        OpenAI's shape or Tools. builtin_tools: "browser", "python", which the model was trained to use, or a Namespace;
        nothing here runs them: answer their calls by add_result(), or by run_call of run(). reasoning: how long to
        think. response_format: a schema that the model is asked to follow; nothing enforces it here. identity,
        knowledge_cutoff, date: lines of the system message, None for none.

        Raises ChatError where the model has no chat format, InputError for an argument that cannot be used.
        """
        self.model = model
        self.special = SpecialTokens(model.tokenizer)
        self.tools = as_tools(tools)
        self.developer = Developer(system, self.tools, (), response_format)
        self.system = System(identity, knowledge_cutoff, date, reasoning, namespaces=builtin_namespaces(builtin_tools))
        self.messages: list[Message] = []
        self.reply: Reply | None = None
        self._prefix_cache = PrefixCache(model)
        self._loop: tuple[list[int], list[Message]] | None = None  # in a tool loop: ids so far, and their messages

    @checked_arguments
    def send(
        self,
        text: str | None = None,
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        prompt_lookup_num_tokens: int | None = None,
    ) -> Reply:
        """Sends a message of the user and returns the reply; with None the model goes on, as after tool results.

        max_new_tokens: the most tokens of the reply with its reasoning, 4,096 unless the checkpoint says otherwise.
        temperature: 0 takes the likeliest token each time. prompt_lookup_num_tokens: draft tokens of a step. All are as
        in Model.generate, where None takes what the checkpoint's generation_config.json says. Raises ContextLengthError
        where the conversation has become too long, InputError for an argument that cannot be used;
        the conversation is then what it was.
        """
        return _last(self._reply(text, self._params(locals())))

    @checked_arguments
    def stream(
        self,
        text: str | None = None,
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        prompt_lookup_num_tokens: int | None = None,
    ) -> Generator[Delta, None, Reply]:
        """Does what send() does, and gives the reply as it comes, in deltas of a kind: "answer", "reasoning",
        "preamble" or "call". At the end `chat.reply` is the whole.

        Closing it, or Ctrl-C, stops the reply ("cancelled") and keeps the chat: an answer that has begun stays in the
        conversation; without one the turn is taken back.
        """
        return self._reply(text, self._params(locals()))

    @checked_arguments
    def run(
        self,
        text: str | None = None,
        *,
        run_call: Callable[[ToolCall], str] | None = None,
        max_rounds: int = 8,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        prompt_lookup_num_tokens: int | None = None,
    ) -> Reply:
        """Does what send() does, runs the tools that the reply calls and sends their results, until a reply calls none;
        returns the last reply.

        run_call: a function that gives the result of a ToolCall; without it the chat's functions run, and their errors
        are results. It gets calls of tools that were offered; for any other the model is told that there is no such
        tool. max_rounds: the most rounds of calls; after these the reply still holds the next ones. The other arguments
        are those of send(), for each reply.
        """
        return _last(self._rounds(text, self._params(locals()), run_call, max_rounds))

    @checked_arguments
    def run_stream(
        self,
        text: str | None = None,
        *,
        run_call: Callable[[ToolCall], str] | None = None,
        max_rounds: int = 8,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        prompt_lookup_num_tokens: int | None = None,
    ) -> Generator[Delta, None, Reply]:
        """Does what run() does, and gives the deltas of all its replies as they come.

        Closing it, or an exception, stops it: an answer that has begun stays in the conversation; without one the turn
        is taken back, calls, results and all.
        """
        return self._rounds(text, self._params(locals()), run_call, max_rounds)

    def add_result(self, call: ToolCall, result: str) -> None:
        """Adds a call's result to the conversation; send() then lets the model go on."""
        if not isinstance(call, ToolCall):
            raise InputError(f"a result is that of a ToolCall, as a Reply has them, not of {shown(call)}")
        channel = "commentary" if call.recipient.startswith("functions.") else call.channel
        self.messages.append(tool_result(call.recipient, result, channel))

    def reset(self) -> None:
        """Forgets the conversation; instructions and tools stay."""
        self.messages.clear()
        self.reply = self._loop = None

    # ------------------------------------------------------------------------------------------------ one reply

    def _params(self, arguments: dict[str, Any]) -> SamplingParams:
        return SamplingParams.pick(arguments, {"max_new_tokens": MAX_NEW_TOKENS, **self.model.sampling_defaults})

    def _reply(self, text: str | None, params: SamplingParams) -> Generator[Delta, None, Reply]:
        if text is not None and not isinstance(text, str):
            raise InputError(f"a message is a str, not {type(text).__name__}")
        said = [] if text is None else [Message("user", text)]
        ids = self._prompt(said)
        positions = self.model.transformer.context_length
        if len(ids) >= positions:
            raise ContextLengthError(
                f"the conversation has {len(ids)} tokens, the model {positions} positions; "
                f"begin a new chat, or drop some of chat.messages"
            )
        params = replace(params, stop=self.special.stops, detokenize=False)  # the turn makes the text
        return self._run(Request(self.model, ids, params), said)

    def _rounds(
        self, text: str | None, params: SamplingParams, run_call: Callable[[ToolCall], str] | None, max_rounds: int
    ) -> Generator[Delta, None, Reply]:
        if run_call is not None and not callable(run_call):
            raise InputError(f"run_call is a function of a ToolCall, not {shown(run_call)}")
        rounds_left = require_integer("max_rounds", max_rounds, low=0)
        before, is_whole = len(self.messages), False
        try:
            reply = yield from self._reply(text, params)
            while rounds_left and (reply.tool_calls or reply.unknown_calls):
                rounds_left -= 1
                for call in reply.unknown_calls:
                    self.add_result(call, self._run_call(call))  # an error that names the functions there are
                for call in reply.tool_calls:
                    self.add_result(call, (run_call or self._run_call)(call))
                reply = yield from self._reply(None, params)
            is_whole = reply.finish_reason in ("stop", "tool_calls")
            return reply
        finally:
            if len(self.messages) > before and not is_whole and self.messages[-1].channel != "final":
                del self.messages[before:]
                self._loop = None

    def _run_call(self, call: ToolCall) -> str:
        return run_tool(self.tools, call.name, call.arguments)

    def _prompt(self, said: list[Message]) -> list[int]:
        """The ids of the conversation. Within a tool loop the model sees what it wrote, not how it is rendered."""
        tokenizer = self.model.tokenizer
        if self._loop:
            ids, known = self._loop
            if self.messages[: len(known)] == known and not said:
                new = [render_message(tokenizer, self.special, m) for m in self.messages[len(known) :]]
                new.append([self.special.start, *tokenizer.encode_part("assistant")])
                return [*ids, *(i for part in new for i in part)]
        return render_conversation(tokenizer, [*head_messages(self.system, self.developer), *self.messages, *said])

    def _run(self, request: Request, said: list[Message]) -> Generator[Delta, None, Reply]:
        began = time.perf_counter()
        turn = Turn(self.model, request, TurnRules(offered_recipients(self.system, self.developer)))
        scheduler = Scheduler(self.model.transformer, prefix_cache=self._prefix_cache)
        scheduler.add(request)
        try:
            while not turn.finish_reason:
                scheduler.step()
                for delta in turn.advance(Event(0, "", len(request.ids), request.finish_reason)):
                    if delta.text:
                        yield delta
        finally:
            scheduler.cancel(request)
            self.reply = _reply(turn, request.first_token_at - began if request.ids else None)
            self._remember(self.reply, request, said)
        return self.reply

    def _remember(self, reply: Reply, request: Request, said: list[Message]) -> None:
        if reply.finish_reason in ("stop", "tool_calls"):
            self.messages += [*said, *(m for m in reply.messages if m.role == "assistant")]
        elif reply.text:  # cut off: an answer that has begun stays, unfinished thoughts and calls do not
            self.messages += [*said, Message("assistant", reply.text, "final")]
        else:
            return
        has_calls = reply.tool_calls or reply.unknown_calls
        self._loop = ([*request.prompt_ids, *request.ids], list(self.messages)) if has_calls else None


def _reply(turn: Turn, first_token_seconds: float | None) -> Reply:
    """The reply that the turn gives, which may be cut off."""
    turn.close()
    has_ended = turn.finish_reason in ("stop", "tool_calls")
    return Reply(
        messages=turn.parser.messages,
        text=_joined(turn, "answer"),
        reasoning=_joined(turn, "reasoning"),
        preamble=_joined(turn, "preamble"),
        tool_calls=[_call(message) for message in turn.of_kind("call") if has_ended],
        unknown_calls=[_call(message) for message in turn.unknown_calls() if has_ended],
        finish_reason=turn.finish_reason or "cancelled",
        raw_text=turn.parser.raw_text,
        repairs=dict(turn.parser.repairs),
        prompt_tokens=len(turn.request.prompt_ids),
        num_cached_tokens=turn.request.num_cached_tokens,
        completion_tokens=len(turn.request.ids),
        first_token_seconds=first_token_seconds,
    )


def _joined(turn: Turn, kind: Kind) -> str:
    return "\n".join(content_text(message.content) for message in turn.of_kind(kind))


def _call(message: Message) -> ToolCall:
    return ToolCall(message.recipient or "", content_text(message.content), message.channel or "commentary")


def _last(deltas: Generator[Delta, None, Reply]) -> Reply:
    """What the generator returns at its end."""
    while True:
        try:
            next(deltas)
        except StopIteration as end:
            return cast(Reply, end.value)
