"""One turn of a chat as the engine gives it: ids to reasoning, text and calls."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cgpt.chat.messages import SpecialTokens
from cgpt.chat.parse import Parser, Piece
from cgpt.errors import InputError
from cgpt.generation.engine import Event
from cgpt.generation.request import Request
from cgpt.generation.text_stream import StopFilter

if TYPE_CHECKING:
    from cgpt.serve.service import Service

REASONING, TEXT, CALL = "reasoning", "text", "call"


@dataclass(frozen=True)
class Delta:
    """Text that something has got.

    kind: REASONING, TEXT or CALL, whose text is its arguments. item: counts what the turn consists of, from 0.
    name: of the function that is called. ids: the places in request.ids of the tokens that begin within the text
    for the user, so that those which a stop string has cut away are none of them. is_preamble: of a TEXT, whether it
    only leads to a call
    """

    kind: str
    text: str
    item: int
    name: str | None = None
    ids: tuple[int, ...] = ()
    is_preamble: bool = False


class Turn:
    """Takes the events of one request. Ends at the model's own end, at a complete call, or at a stop string in the
    text for the user; the reasoning may hold such strings.

    finish_reason: "stop", "length", "tool_calls"; None until then. tokens, reasoning_tokens: how many have come.
    seed: ids at the prompt's end that begin a message
    """

    def __init__(self, service: Service, request: Request, seed: list[int], stops: list[str]) -> None:
        self.request = request
        self.finish_reason: str | None = None
        self.tokens = self.reasoning_tokens = 0
        self._service = service
        self._parser = Parser(service.tokenizer)
        self._special = SpecialTokens(service.tokenizer)
        self._filter = StopFilter(stops)
        self._text_item = 0
        self._items: dict[int, int] = {}  # by number of the message
        self._waiting: list[int] = []  # places of ids whose text is not complete
        self._written = self._given = 0  # characters of the text for the user, and of these the certain ones
        self._held: deque[tuple[int, int]] = deque()  # where a token of it begins, and its place, if not given
        self._last: Piece | None = None
        self._begun = self._parser.push_all(seed)

    def advance(self, event: Event) -> list[Delta]:
        """What the event adds, in order."""
        problem = getattr(self.request.constraint, "problem", None)
        if problem:
            raise InputError(f"the answer could not be kept to its schema: {problem}")
        deltas, self._begun = self._deltas(self._begun), []
        for place in range(self.tokens, event.num_ids):
            deltas += self._push(place)
            if self._has_call() or self._filter.stopped:
                self.finish_reason = "tool_calls" if self._has_call() else "stop"
                break
        self.tokens = event.num_ids
        if event.finish_reason and not self.finish_reason:
            deltas += self._deltas(self._parser.finish())
            ended = "tool_calls" if self._has_call() else "stop"
            self.finish_reason = "length" if event.finish_reason == "length" else ended
        if self.finish_reason:
            if rest := self._filter.flush():
                deltas.append(Delta(TEXT, rest, self._text_item, ids=self._give(rest)))
            self._service.metrics.repairs.update(self._parser.repairs)
        return deltas

    def _push(self, place: int) -> list[Delta]:
        token = self.request.ids[place]
        if token in self._service.model.eos_token_ids and token not in self._special.ends:
            return []  # <|endoftext|> ends the text and is no part of it
        if token not in self._special.ends:
            self._waiting.append(place)
        deltas = self._deltas(self._parser.push(token))
        if self._last and _kind(self._last) == REASONING and token not in self._special.ends:
            self.reasoning_tokens += 1
        if token in self._special.ends:
            self._waiting, self._last = [], None
        return deltas

    def _has_call(self) -> bool:
        messages = self._parser.messages
        return bool(messages) and messages[-1].role == "assistant" and messages[-1].recipient is not None

    def _deltas(self, pieces: list[Piece]) -> list[Delta]:
        found = []
        for piece in pieces:
            self._last, kind, text = piece, _kind(piece), piece.text
            if kind is None:
                continue
            item = self._items.setdefault(piece.index, len(self._items))
            ids: tuple[int, ...] = ()
            if kind == TEXT:
                self._text_item = item
                self._held.extend((self._written, place) for place in self._waiting if text)
                self._written += len(text)
                text = self._filter.push(text)
                ids = self._give(text)
            name = piece.recipient.removeprefix("functions.") if kind == CALL else None
            found.append(Delta(kind, text, item, name, ids, kind == TEXT and piece.channel == "commentary"))
            self._waiting = []
        return found

    def _give(self, text: str) -> tuple[int, ...]:
        """The places of the tokens that begin within this much more of the text for the user."""
        self._given += len(text)
        places = []
        while self._held and self._held[0][0] < self._given:
            places.append(self._held.popleft()[1])
        return tuple(places)


def _kind(piece: Piece) -> str | None:
    if piece.role != "assistant":
        return None
    if piece.recipient is not None:
        return CALL
    return REASONING if piece.channel == "analysis" else TEXT
