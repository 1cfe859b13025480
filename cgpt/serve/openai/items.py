"""The output items of /v1/responses: a turn as reasoning, message and function_call items, with their events."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from cgpt.chat.turn import Delta
from cgpt.serve.openai.logprobs import TokenLogprob
from cgpt.serve.sealing import sealed
from cgpt.serve.store import new_number

Events = Iterator[tuple[str, dict[str, Any]]]
Status = Literal["in_progress", "completed", "incomplete"]


@dataclass
class ReasoningText:
    text: str = ""
    type: Literal["reasoning_text"] = "reasoning_text"


@dataclass
class OutputText:
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    annotations: list[Any] = field(default_factory=list)
    type: Literal["output_text"] = "output_text"


@dataclass
class ReasoningItem:
    """encrypted_content: the text once more, for clients that send back nothing else."""

    id: str
    content: list[ReasoningText]
    summary: list[Any] = field(default_factory=list)
    encrypted_content: str | None = None
    status: Status = "in_progress"
    type: Literal["reasoning"] = "reasoning"


@dataclass
class MessageItem:
    """Text for the user. phase: "commentary" where it only leads to a call."""

    id: str
    content: list[OutputText]
    phase: Literal["commentary", "final_answer"]
    role: Literal["assistant"] = "assistant"
    status: Status = "in_progress"
    type: Literal["message"] = "message"


@dataclass
class CallItem:
    """A call of a function. arguments: JSON text, as the model wrote it."""

    id: str
    call_id: str
    name: str | None
    namespace: str | None = None
    arguments: str = ""
    status: Status = "in_progress"
    type: Literal["function_call"] = "function_call"


Item = Annotated[ReasoningItem | MessageItem | CallItem, Field(discriminator="type")]


class Items:
    """The output so far. The last item may be open: text still comes.

    seals: whether to add encrypted_content. spaces: {name of a tool: (its namespace, its name there)}. new_number:
    gives what ids end with.
    """

    def __init__(
        self,
        seals: bool = False,
        spaces: Mapping[str, tuple[str, str]] | None = None,
        new_number: Callable[[], str] = new_number,
    ) -> None:
        self._seals, self._spaces, self._new_number = seals, spaces or {}, new_number
        self._items: list[ReasoningItem | MessageItem | CallItem] = []
        self._open: int | None = None  # the turn's number of it

    def output(self) -> list[ReasoningItem | MessageItem | CallItem]:
        """Returns the items, which go on changing as long as one is open."""
        return list(self._items)

    def add(self, delta: Delta, logprobs: list[TokenLogprob]) -> Events:
        """Adds a delta and yields its events. logprobs: of its tokens, where they are wanted."""
        if delta.item != self._open:
            yield from self.close("completed")
            self._open = delta.item
            yield from self._begin(delta)
        if not delta.text:
            return
        item = self._items[-1]
        if isinstance(item, CallItem):
            item.arguments += delta.text
            yield self._about("response.function_call_arguments.delta", delta=delta.text)
            return
        part, more = item.content[0], {}
        part.text += delta.text
        if isinstance(part, OutputText):
            part.logprobs += logprobs
            more = {"logprobs": logprobs}
        yield self._about(f"response.{part.type}.delta", content_index=0, delta=delta.text, **more)

    def _begin(self, delta: Delta) -> Events:
        number = self._new_number()
        if delta.kind == "call":
            space, name = self._spaces.get(delta.name or "", (None, delta.name))
            self._items.append(CallItem(f"fc_{number}", f"call_{number}", name, space))
        elif delta.kind == "reasoning":
            self._items.append(ReasoningItem(f"rs_{number}", [ReasoningText()]))
        else:
            phase: Literal["commentary", "final_answer"] = "commentary" if delta.kind == "preamble" else "final_answer"
            self._items.append(MessageItem(f"msg_{number}", [OutputText()], phase))
        item = self._items[-1]
        added = copy.copy(item)
        if not isinstance(added, CallItem):
            added.content = []
        yield self._item("response.output_item.added", added)
        if not isinstance(item, CallItem):
            yield self._about("response.content_part.added", content_index=0, part=type(item.content[0])())

    def close(self, status: Status) -> Events:
        """Ends the open item, if there is one, and yields its last events."""
        if self._open is None:
            return
        self._open, item = None, self._items[-1]
        item.status = status
        if isinstance(item, CallItem):
            yield self._about("response.function_call_arguments.done", arguments=item.arguments, name=item.name)
        else:
            part = item.content[0]
            if isinstance(item, ReasoningItem) and self._seals:
                item.encrypted_content = sealed(part.text)
            more = {"logprobs": part.logprobs} if isinstance(part, OutputText) else {}
            yield self._about(f"response.{part.type}.done", content_index=0, text=part.text, **more)
            yield self._about("response.content_part.done", content_index=0, part=part)
        yield self._item("response.output_item.done", item)

    def _item(self, kind: str, item: ReasoningItem | MessageItem | CallItem) -> tuple[str, dict[str, Any]]:
        return kind, {"output_index": len(self._items) - 1, "item": item}

    def _about(self, kind: str, **data: Any) -> tuple[str, dict[str, Any]]:
        return kind, {"output_index": len(self._items) - 1, "item_id": self._items[-1].id, **data}
