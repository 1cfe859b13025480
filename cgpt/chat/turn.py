"""The model's turn: one rule for what it is made of, and the turn as it comes, id by id.

Everything that has to know what a message of the model is asks `message_kind`: the Chat, the server, and the constraint
that keeps a turn to a schema (cgpt.chat.grammar).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from cgpt.chat.messages import Developer, Message, SpecialTokens, System
from cgpt.chat.parse import Header, MessageDelta, Parser
from cgpt.errors import InputError
from cgpt.generation.engine import Event
from cgpt.generation.request import Request, TextModel
from cgpt.generation.text_stream import StopFilter

Kind = Literal["answer", "reasoning", "preamble", "call", "malformed"]
_EVERYBODY = (None, "all", "user", "assistant")  # recipients that are no tools


def message_kind(header: Header | Message, offered: Collection[str], has_schema: bool = False) -> Kind:
    """What a message of the model's turn is, by its header. The first row that fits counts:

        role        recipient                   channel             kind        with a schema
        not assistant                                               malformed   malformed
        assistant   a tool that was offered                         call        call
        assistant   anybody else's name                             malformed   malformed
        assistant   -                           analysis            reasoning   reasoning
        assistant   -                           final               answer      answer
        assistant   -                           commentary          preamble    malformed
        assistant   -                           none, any other     answer      malformed

    "-" is no recipient, or "all", "user" or "assistant". The content type makes no difference.

    offered: the recipients that may be called, as `offered_recipients` gives them; "NAME" stands for "functions.NAME"
        too. has_schema: whether the answer must conform to a schema. Then nothing is shown to the user but what has the
        header of an answer, which the constraint knows: no text without a channel, and no preamble, which an endpoint
        would join with the answer.
    """
    recipient = header.recipient
    if header.role != "assistant":
        return "malformed"
    if recipient in offered:
        return "call"
    if recipient not in _EVERYBODY:
        return "call" if f"functions.{recipient}" in offered else "malformed"
    if header.channel == "analysis":
        return "reasoning"
    if header.channel == "commentary":
        return "malformed" if has_schema else "preamble"
    return "answer" if header.channel == "final" or not has_schema else "malformed"


def function_name(recipient: str) -> str:
    """The name of the tool that is called: "get_weather" of "functions.get_weather", "browser.search" of itself."""
    return recipient.removeprefix("functions.")


def offered_recipients(system: System, developer: Developer) -> frozenset[str]:
    """The recipients of calls of all tools that the two messages offer."""
    spaces = [*system.namespaces, *developer.all_namespaces]
    return frozenset(name for space in spaces for name in space.recipients)


@dataclass(frozen=True)
class TurnRules:
    """What holds for one turn. offered, has_schema: see message_kind. prefix: the ids at the prompt's end, after
    `<|start|>assistant`, that begin the turn's first message, as that of a forced call. stop_ids: end the turn, and are
    no text of it."""

    offered: frozenset[str] = frozenset()
    has_schema: bool = False
    prefix: tuple[int, ...] = ()
    stop_ids: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Delta:
    """Text that a message of the turn has got; the first delta of a message may have the text "".

    kind: "answer", "reasoning", "preamble" or "call", whose text is its arguments. item: the number of the message
    among those that the turn shows, from 0. name: of the tool that is called. indices: into request.ids, of the tokens
    that begin within this text, where it is for the user; those that a stop string has cut away are not among them.
    """

    kind: Kind
    text: str
    item: int
    name: str | None = None
    indices: tuple[int, ...] = ()

    @property
    def is_for_user(self) -> bool:
        return self.kind in ("answer", "preamble")


class Turn:
    """Sorts what one request writes into reasoning, preambles, the answer and calls, as it comes.

    The turn ends where the model ends it; with the first complete call, or malformed message; where the model begins
    to speak for somebody else; or at a stop string in the text for the user (reasoning and arguments may hold it).

    finish_reason: "stop", "tool_calls" or "length"; None until the turn ends. parser: what reads the ids; it has the
    complete messages of any kind, the repairs, and the raw text. tokens, reasoning_tokens: how many ids have come, and
    how many of them are reasoning.
    """

    def __init__(self, model: TextModel, request: Request, rules: TurnRules, stop: Iterable[str] = ()) -> None:
        self.request = request
        self.finish_reason: str | None = None
        self.tokens = self.reasoning_tokens = 0
        self._rules = rules
        self.parser = Parser(model.tokenizer)
        self._ends = SpecialTokens(model.tokenizer).ends
        silent = rules.stop_ids.union(model.transformer.eos_token_ids)
        self._silent = silent.difference(self._ends)  # as <|endoftext|>: no text
        self._kinds: list[Kind] = []  # of each message, the one that has begun included
        self._items: dict[int, int] = {}  # what is shown: the number of the message in _kinds -> Delta.item
        self._stop = StopFilter(stop)
        self._user_delta: Delta | None = None  # the last one for the user
        self._waiting: list[int] = []  # indices of ids whose text is not complete
        self._written = self._given = 0  # characters for the user, and how many of them no stop string can cut away
        self._held: deque[tuple[int, int]] = deque()  # of each token among the others: where it begins, and its index
        self._first = self._deltas(self.parser.push_all(rules.prefix))

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the turn."""
        return self._stop.found

    def of_kind(self, kind: Kind) -> list[Message]:
        """The complete messages of one kind."""
        return [message for message, one in zip(self.parser.messages, self._kinds, strict=False) if one == kind]

    def unknown_calls(self) -> list[Message]:
        """The complete messages for somebody who is no tool that was offered."""
        return [m for m in self.of_kind("malformed") if m.role == "assistant" and m.recipient not in _EVERYBODY]

    def advance(self, event: Event) -> list[Delta]:
        """What the ids add that have come since, in order. InputError where the constraint had to give up."""
        if problem := getattr(self.request.constraint, "problem", None):
            raise InputError(f"the answer could not be kept to its schema: {problem}")
        deltas, self._first = self._first, []
        while self.tokens < event.num_ids and not self.finish_reason:
            deltas += self._push(self.tokens)
            self.tokens += 1
            self.finish_reason = self._end()
        self.tokens = event.num_ids
        if event.finish_reason and not self.finish_reason:
            deltas += self.close()
            self.finish_reason = "length" if event.finish_reason == "length" else self._end() or "stop"
        return deltas + (self._held_back() if self.finish_reason else [])

    def _held_back(self) -> list[Delta]:
        """What might have been the beginning of a stop string, once no more text for the user comes."""
        if not (self._user_delta and (rest := self._stop.flush())):
            return []
        last = self._user_delta
        return [Delta(last.kind, rest, last.item, indices=self._certain(rest))]

    def close(self) -> list[Delta]:
        """Completes the message that has begun, when no more ids come."""
        return self._deltas(self.parser.finish())

    def _push(self, index: int) -> list[Delta]:
        token_id = self.request.ids[index]
        if token_id in self._silent:
            return []
        if token_id in self._ends:
            self._waiting = []
        else:
            self._waiting.append(index)
        deltas = self._deltas(self.parser.push(token_id))
        self.reasoning_tokens += len(self._kinds) > len(self.parser.messages) and self._kinds[-1] == "reasoning"
        return deltas

    def _end(self) -> str | None:
        """Why the turn is over by what has come: "tool_calls" or "stop"; None if it is not."""
        complete = self._kinds[: len(self.parser.messages)]
        if "call" in complete:
            return "tool_calls"
        is_over = "malformed" in complete or self.parser.role != "assistant" or self._stop.stopped
        return "stop" if is_over else None

    def _deltas(self, parsed: list[MessageDelta]) -> list[Delta]:
        found = []
        for delta in parsed:
            if delta.index == len(self._kinds):
                self._kinds.append(message_kind(delta.header, self._rules.offered, self._rules.has_schema))
            kind = self._kinds[delta.index]
            if kind == "malformed":
                continue
            item = self._items.setdefault(delta.index, len(self._items))
            if kind in ("answer", "preamble"):
                found.append(self._for_user(kind, delta.text, item))
            else:
                found += self._held_back() if kind == "call" else []  # which ends the turn
                recipient = delta.header.recipient if kind == "call" else None
                found.append(Delta(kind, delta.text, item, recipient and function_name(recipient)))
            self._waiting = []
        return found

    def _for_user(self, kind: Kind, text: str, item: int) -> Delta:
        """The delta of what is certain of the text for the user once `text` is known."""
        self._held.extend((self._written, index) for index in self._waiting if text)
        self._written += len(text)
        certain = self._stop.push(text)
        self._user_delta = Delta(kind, certain, item, indices=self._certain(certain))
        return self._user_delta

    def _certain(self, text: str) -> tuple[int, ...]:
        """The indices of the tokens that begin within this much more of the text for the user."""
        self._given += len(text)
        indices = []
        while self._held and self._held[0][0] < self._given:
            indices.append(self._held.popleft()[1])
        return tuple(indices)
