"""A conversation with gpt-oss in the harmony format.

    chat = cgpt.load("demo-gpt-oss").chat()
    print(chat.send("What is 17 + 25?").text)

A Chat renders its messages, lets a Request run through a Scheduler, and parses the ids as they come. Its
prefix cache remembers what was computed: what the next prompt has in common with earlier ones is not computed again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cgpt.chat import messages
from cgpt.chat.builtin_tools import builtin_namespaces
from cgpt.chat.functions import as_tools, run_tool
from cgpt.chat.messages import Developer, Message, Namespace, ResponseFormat, SpecialTokens, System, tool_result
from cgpt.chat.parse import Parser, Piece
from cgpt.chat.render import render_conversation, render_message
from cgpt.errors import ContextLengthError, InputError
from cgpt.generation.prefix_cache import PrefixCache
from cgpt.generation.request import Request, TextModel
from cgpt.generation.sampling import SamplingParams
from cgpt.generation.scheduler import Scheduler

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "prompt_lookup_num_tokens")


@dataclass(frozen=True)
class ToolCall:
    """A call that the model asks for. recipient: as it wrote it, "functions.NAME", or that of a built-in tool as
    "browser.search" or "python"; name: without "functions."; arguments: JSON text, as it wrote it, which may be no JSON
    at all, and for "python" is code. channel: of the call."""

    recipient: str
    arguments: str
    channel: str = "commentary"

    @property
    def name(self) -> str:
        return self.recipient.removeprefix("functions.")


@dataclass(frozen=True)
class Reply:
    """What the model said in answer to one prompt.

    messages: all of it. text: the final channel's, or, if there is none, what is in no channel; so no answer is lost
        that the model put in the wrong place. reasoning: the analysis channel's. commentary: what the model says to
        the user before it calls. tool_calls: those that are complete; send their results back, or let Chat.run do it.
    finish_reason: "stop", "tool_calls", "length" (max_new_tokens, or the context is full), or "cancelled".
    raw_text: what the model wrote, with special tokens. repairs: how often the parser had to guess, by kind.
    prompt_tokens, reused_tokens: of the prompt, and of these the ones that were computed before.
    completion_tokens; first_token_seconds: from the call to the first new id.
    """

    messages: list[Message]
    finish_reason: str
    raw_text: str
    repairs: dict[str, int]
    prompt_tokens: int
    reused_tokens: int
    completion_tokens: int
    first_token_seconds: float | None
    tool_calls: list[ToolCall] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self._of("final") or self._of(None)

    @property
    def reasoning(self) -> str:
        return self._of("analysis")

    @property
    def commentary(self) -> str:
        return self._of("commentary")

    def _of(self, channel: str | None) -> str:
        found = [m for m in self.messages if m.channel == channel and m.role == "assistant" and not is_call(m)]
        return "\n".join(message.content for message in found)


class Chat:
    """A conversation; made by model.chat().

    system: instructions, which harmony puts into the developer message. tools: Python functions, schemas in OpenAI's
        shape or Tools. builtin_tools: "browser", "python", which the model was trained to use, or a Namespace; nothing
        here runs them: answer their calls by add_result(), or by run_call of run(). reasoning: "low", "medium" or
        "high". response_format: a schema that the model is asked to follow. identity, knowledge_cutoff, date: lines of
        the system message; date is not given unless asked for.
    messages: the conversation after those two, yours to read, to fill and to change.
    """

    def __init__(
        self,
        model: TextModel,
        *,
        system: str | None = None,
        tools: Iterable[Any] = (),
        builtin_tools: Iterable[str | Namespace] = (),
        reasoning: str = "medium",
        response_format: ResponseFormat | None = None,
        identity: str | None = messages.IDENTITY,
        knowledge_cutoff: str | None = messages.KNOWLEDGE_CUTOFF,
        date: str | None = None,
    ) -> None:
        self.model = model
        self.special = SpecialTokens(model.tokenizer)
        self.tools = as_tools(tools)
        self.developer = Developer(system, self.tools, (), response_format)
        self.system = System(identity, knowledge_cutoff, date, reasoning, namespaces=builtin_namespaces(builtin_tools))
        self.messages: list[Message] = []
        self.reply: Reply | None = None  # the newest
        self._kept = PrefixCache(model)
        self._loop: tuple[list[int], list[Message]] | None = None  # in a tool loop: ids so far, and their messages

    def send(self, text: str | None = None, *, max_new_tokens: int = 4096, **sampling: Any) -> Reply:
        """Says something and gives the reply; None lets the model go on, as after tool results.

        sampling: temperature (0 unless given), top_k, top_p, min_p, repetition_penalty, seed and
        prompt_lookup_num_tokens, as in generation.generate. Raises ContextLengthError where the conversation has
        become too long, InputError for a bad argument; the conversation is then what it was.
        """
        for _ in self.stream(text, max_new_tokens=max_new_tokens, **sampling):
            pass
        return self.reply

    def stream(self, text: str | None = None, *, max_new_tokens: int = 4096, **sampling: Any) -> Iterator[Piece]:
        """The reply as it comes: pieces of text with their channel. When it ends, `chat.reply` is what send() gives.

        Closing it, or Ctrl-C, stops the answer ("cancelled") and keeps the chat: a final text that has begun stays in
        the conversation; without one the turn is taken back.
        """
        if unknown := sampling.keys() - set(SAMPLING):
            raise InputError(f"a chat takes no {min(unknown)}; it takes max_new_tokens, {', '.join(SAMPLING)}")
        if text is not None and not isinstance(text, str):
            raise InputError(f"a message is a str, not {type(text).__name__}")
        said = [] if text is None else [Message("user", text)]
        ids = self._prompt(said)
        if len(ids) >= self.model.transformer.context_length:
            raise ContextLengthError(
                f"the conversation has {len(ids)} tokens, the model {self.model.transformer.context_length} positions; "
                f"begin a new chat, or drop some of chat.messages"
            )
        params = SamplingParams(max_new_tokens=max_new_tokens, stop=self.special.stops, detokenize=False, **sampling)
        request = Request(self.model, ids, params)
        return self._run(request, said)

    def run(self, text: str | None = None, **options: Any) -> Reply:
        """send(), and as long as the reply calls functions, runs them and sends the results: the last reply.

        run_call: gives the result of a ToolCall; without it the chat's functions do, and their errors are results.
        max_rounds of calls (8); after these the reply still holds the next ones. Other options as for send().
        """
        for _ in self.run_stream(text, **options):
            pass
        return self.reply

    def run_stream(
        self,
        text: str | None = None,
        *,
        run_call: Callable[[ToolCall], str] | None = None,
        max_rounds: int = 8,
        **options: Any,
    ) -> Iterator[Piece]:
        """run() as it comes: the pieces of all its replies.

        Closing it, or an exception, stops it: a final text that has begun stays in the conversation; without one the
        turn is taken back, calls, results and all.
        """
        run_call = run_call or (lambda call: run_tool(self.tools, call.name, call.arguments))
        before, reply = len(self.messages), None
        try:
            yield from self.stream(text, **options)
            for _ in range(max_rounds):
                if not self.reply.tool_calls:
                    break
                for call in self.reply.tool_calls:
                    self.add_result(call, run_call(call))
                yield from self.stream(**options)
            reply = self.reply
        finally:
            whole = reply is not None and reply.finish_reason in ("stop", "tool_calls")
            if len(self.messages) > before and not whole and self.messages[-1].channel != "final":
                del self.messages[before:]
                self._loop = None

    def add_result(self, call: ToolCall, result: str) -> None:
        """Adds a call's result to the conversation; send() then lets the model go on."""
        channel = "commentary" if call.recipient.startswith("functions.") else call.channel
        self.messages.append(tool_result(call.recipient, result, channel))

    def reset(self) -> None:
        """Forgets the conversation; instructions and tools stay."""
        self.messages.clear()
        self.reply = self._loop = None

    # ------------------------------------------------------------------------------------------------ one reply

    def _prompt(self, said: list[Message]) -> list[int]:
        """The ids of the conversation. Within a tool loop the model sees what it wrote, not how it is rendered."""
        tokenizer = self.model.tokenizer
        if self._loop:
            ids, known = self._loop
            if self.messages[: len(known)] == known and not said:
                new = [render_message(tokenizer, self.special, m) for m in self.messages[len(known) :]]
                return [*ids, *(i for part in new for i in part), self.special.start, *tokenizer.encode("assistant")]
        head = [Message("system", self.system)]
        if self.developer != Developer():
            head.append(Message("developer", self.developer))
        return render_conversation(tokenizer, [*head, *self.messages, *said])

    def _run(self, request: Request, said: list[Message]) -> Iterator[Piece]:
        began = time.perf_counter()
        parser = Parser(self.model.tokenizer)
        scheduler, reason = Scheduler(self.model.transformer, prefix_cache=self._kept), "cancelled"
        scheduler.add(request)
        try:
            while scheduler.has_unfinished and not self._is_over(parser):
                before = len(request.ids)
                scheduler.step()
                for token_id in request.ids[before:]:
                    for piece in self._push(parser, token_id):
                        yield piece
            for piece in parser.finish():
                yield piece
            reason = request.finish_reason or "stop"
        finally:
            scheduler.cancel(request)
            parser.finish()
            called = [m for m in parser.messages if is_call(m) and reason == "stop"]
            calls = [ToolCall(m.recipient, m.content, m.channel or "commentary") for m in called]
            first = request.first_token_at - began if request.ids else None
            self.reply = Reply(
                parser.messages,
                "tool_calls" if calls else reason,
                parser.raw_text,
                dict(parser.repairs),
                len(request.prompt_ids),
                request.num_cached_tokens,
                len(request.ids),
                first,
                calls,
            )
            self._remember(request, said)

    def _push(self, parser: Parser, token_id: int) -> list[Piece]:
        if token_id in self.model.transformer.eos_token_ids and token_id not in self.special.ends:
            return []  # <|endoftext|> ends the text and is no part of it
        return [piece for piece in parser.push(token_id) if piece.text]

    def _is_over(self, parser: Parser) -> bool:
        """Whether a call is complete, or somebody else is made to speak: the model should have stopped by itself."""
        last = parser.messages[-1] if parser.messages else None
        return parser.role != "assistant" or (last is not None and is_call(last))

    def _remember(self, request: Request, said: list[Message]) -> None:
        reply = self.reply
        if reply.finish_reason in ("stop", "tool_calls"):
            self.messages += [*said, *(m for m in reply.messages if m.role == "assistant")]
        elif reply.text:  # cut off: an answer that has begun stays, unfinished thoughts and calls do not
            self.messages += [*said, Message("assistant", reply.text, "final")]
        else:
            return
        self._loop = ([*request.prompt_ids, *request.ids], list(self.messages)) if reply.tool_calls else None


def is_call(message: Message | Piece) -> bool:
    """Whether it is for a tool, and not for somebody in the conversation."""
    return message.role == "assistant" and message.recipient not in (None, "all", "user", "assistant")
