"""A conversation as all endpoints of chats share it, and the requests of its next turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from cgpt.chat.grammar import Grammar, TurnGrammar
from cgpt.chat.messages import (
    CONSTRAIN,
    Developer,
    Message,
    ResponseFormat,
    SpecialTokens,
    System,
    Tool,
    tool_result,
)
from cgpt.chat.render import head_messages, kept_messages, render_conversation, render_message
from cgpt.chat.turn import Turn
from cgpt.fields import shown
from cgpt.generation.sampling import SamplingParams
from cgpt.serve.errors import ApiError
from cgpt.serve.service import Service
from cgpt.tokenizer.tokenizer import Tokenizer


class Function(Protocol):
    """A function that the model may call. strict: whether its arguments must conform to their schema, `parameters`."""

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def parameters(self) -> dict[str, Any] | None: ...
    @property
    def strict(self) -> bool: ...


@dataclass
class Conversation:
    """A conversation, and the rules of its next turn.

    tools: that the model may call. forced: the names of those of which it must call one. strict: the names of those
    whose arguments must conform to their schema. answer_schema: of the final text. stops: strings that end it.
    instructions: before the first message. calls: the functions of earlier calls, by the calls' ids, and where in
    messages the calls are; results: where the last result of each is. thought_of, arguments_of: what the model thought
    before a call, and its arguments as written, by its id; None if not known. truncates: whether the oldest messages go
    where not all fit the context.
    """

    tools: list[Tool] = field(default_factory=list)
    strict: list[str] = field(default_factory=list)
    forced: list[str] = field(default_factory=list)
    answer_schema: dict[str, Any] | Grammar | None = None
    effort: str = "medium"
    response_format: ResponseFormat | None = None
    stops: list[str] = field(default_factory=list)
    instructions: list[str] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    calls: dict[str, tuple[str, int]] = field(default_factory=dict)
    results: dict[int, int] = field(default_factory=dict)
    thought_of: Callable[[str], str | None] = lambda call_id: None
    arguments_of: Callable[[str], str | None] = lambda call_id: None
    truncates: bool = False

    def add(self, role: str, text: str) -> None:
        """Adds a message. role: "user" or "assistant"; or "system" or "developer", whose text is an instruction for all
        that follows."""
        if role == "assistant":
            self.add_said(text, "final")
        elif role == "user":
            self.messages.append(Message(role, text))
        elif self.messages:
            self.messages.append(Message("developer", Developer(text)))
        else:
            self.instructions.append(text)

    def add_said(self, text: str, channel: str) -> None:
        """Adds what the assistant thought ("analysis"), said before a call ("commentary") or answered ("final")."""
        if text or channel != "analysis":
            self.messages.append(Message("assistant", text, channel))

    def add_call(self, call_id: str, name: str, arguments: str) -> None:
        for i in reversed(range(len(self.messages))):  # no answer ends a turn that goes on with a call
            if self.messages[i].role in ("user", "developer") or self.messages[i].recipient is not None:
                break  # what is before an earlier call was seen to by that one
            if self.messages[i].channel == "final":
                self.messages[i] = replace(self.messages[i], channel="commentary")
        self._put_back(call_id)
        self.calls[call_id] = name, len(self.messages)
        self.messages.append(Message("assistant", arguments, "commentary", f"functions.{name}", f"{CONSTRAIN}json"))

    def _put_back(self, call_id: str) -> None:
        """Adds what the model thought before a call, where the client has dropped it."""
        at = len(self.messages)
        while at and self.messages[at - 1].role == "assistant" and self.messages[at - 1].recipient is None:
            if self.messages[at - 1].channel == "analysis":
                return
            at -= 1
        if thought := self.thought_of(call_id):
            self.messages.insert(at, Message("assistant", thought, "analysis"))

    def add_result(self, param: str, call_id: str, text: str) -> None:
        """Adds the result of a call. param: the field that names the call, for the error if there is no such call."""
        if call_id not in self.calls:
            raise ApiError(f"{param} {shown(call_id)} is no earlier call's", param=param)
        name, call = self.calls[call_id]
        self.results[call] = len(self.messages)
        self.messages.append(tool_result(f"functions.{name}", text))

    def set_tools(self, functions: Sequence[Function], mode: str, chosen: list[str] | None = None) -> None:
        """Offers functions to the model. mode: whether it may ("auto"), must ("required") or cannot ("none") call one.
        chosen: the names of the only ones that are offered; with the mode "named", of one that must be called."""
        names = [one.name for one in functions]
        if len(set(names)) < len(names):
            raise ApiError(f"tools must have names of their own, found {shown(names)}", param="tools")
        if chosen is not None and (not chosen or not set(chosen) <= set(names)):
            raise ApiError(f"tool_choice must name one of the tools, found {shown(chosen)}", param="tool_choice")
        if mode == "required" and not names:
            raise ApiError("tool_choice must be auto or none where there are no tools", param="tool_choice")
        if mode in ("required", "named"):
            self.forced = names if chosen is None else chosen
        offered = [] if mode == "none" else names if chosen is None or mode == "named" else chosen
        self.tools = [Tool(one.name, one.description, one.parameters) for one in functions if one.name in offered]
        self.strict = [one.name for one in functions if one.strict]

    def _truncated(self, tokenizer: Tokenizer, excess: int) -> list[Message]:
        """The messages without the oldest, which have `excess` ids at least, as far as these may go: instructions, the
        last message, and a call whose result stays, with what the model thought and said before it, may not."""
        special, kept = SpecialTokens(tokenizer), set(map(id, kept_messages(self.messages)))
        cut = gone = answered = 0
        for i, message in enumerate(self.messages[:-1]):
            if message.role != "developer" and id(message) in kept:
                gone += len(render_message(tokenizer, special, message))
            answered = max(answered, self.results.get(i, 0))
            leads = message.role == self.messages[i + 1].role == "assistant" and message.channel != "final"
            if answered <= i and not leads:
                cut = i + 1
                if gone >= excess:
                    break
        return [one for one in self.messages[:cut] if one.role == "developer"] + self.messages[cut:]

    def prompt(self, service: Service, max_new_tokens: int = 0) -> tuple[list[int], TurnGrammar]:
        """The ids that the model reads before its turn, of up to `max_new_tokens`, and what the turn may consist of.
        ChatError where the model has no chat format."""
        developer = Developer("\n\n".join(self.instructions) or None, tuple(self.tools), (), self.response_format)
        head = head_messages(System(reasoning=self.effort), developer)
        compiler, schema = service.grammars, self.answer_schema
        grammar = TurnGrammar(compiler, self.tools, answer_schema=schema, strict=self.strict, forced=self.forced)
        ids = [*render_conversation(service.tokenizer, [*head, *self.messages]), *grammar.rules.prefix]
        excess = len(ids) - (positions := service.model.transformer.context_length)
        if self.truncates and excess > 0:
            room = min(max_new_tokens, positions // 8)  # for the answer
            messages = self._truncated(service.tokenizer, excess + room)
            ids = [*render_conversation(service.tokenizer, [*head, *messages]), *grammar.rules.prefix]
        return ids, grammar

    def turns(self, service: Service, count: int, params: SamplingParams) -> list[Turn]:
        """Makes `count` turns with a request each, with consecutive seeds. ChatError: see prompt."""
        ids, grammar = self.prompt(service, params.max_new_tokens)
        if params.ignore_eos:  # the model may not end the turn
            params = replace(params, min_new_tokens=params.max_new_tokens)
        params = replace(params, stop=(*service.grammars.special.stops, *params.stop_ids), detokenize=False)
        constraints = [grammar.constraint() for _ in range(count)]
        rules = replace(grammar.rules, stop_ids=frozenset(params.stop_ids))
        requests = service.requests(ids, params, constraints)
        return [Turn(service.model, request, rules, self.stops) for request in requests]
