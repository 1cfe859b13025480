"""The output items of /v1/responses: a turn as reasoning, message and function_call items, with their events."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterator
from typing import Any

from cgpt.serve.turn import CALL, REASONING, Delta

Events = Iterator[tuple[str, dict[str, Any]]]
# Of each kind of content part, what its events are called after.
PART_EVENTS = {"reasoning_text": "response.reasoning_text", "output_text": "response.output_text"}


class Items:
    """The items so far; the last one may be open."""

    def __init__(self) -> None:
        self._items: list[dict[str, Any]] = []
        self._open: int | None = None  # the turn's number of it

    def output(self) -> list[dict[str, Any]]:
        """A copy, for an event that does not change with them."""
        return copy.deepcopy(self._items)

    def add(self, delta: Delta, logprobs: list[dict[str, Any]]) -> Events:
        """Yields the events of a delta. logprobs: of its tokens, where they are wanted."""
        if delta.item != self._open:
            yield from self.close("completed")
            self._open = delta.item
            yield from self._begin(delta)
        if not delta.text:
            return
        item = self._items[-1]
        if delta.kind == CALL:
            item["arguments"] += delta.text
            yield self._about("response.function_call_arguments.delta", delta=delta.text)
            return
        part = item["content"][0]
        part["text"] += delta.text
        more = {"logprobs": logprobs} if part["type"] == "output_text" else {}
        if more:
            part["logprobs"] += logprobs
        yield self._about(f"{PART_EVENTS[part['type']]}.delta", content_index=0, delta=delta.text, **more)

    def _begin(self, delta: Delta) -> Events:
        number, progress = uuid.uuid4().hex, {"status": "in_progress"}
        if delta.kind == CALL:
            call = {"call_id": f"call_{number}", "name": delta.name, "arguments": ""}
            self._items.append({"id": f"fc_{number}", "type": "function_call", **call, **progress})
            part = None
        elif delta.kind == REASONING:
            self._items.append({"id": f"rs_{number}", "type": "reasoning", "summary": [], "content": [], **progress})
            part = {"type": "reasoning_text", "text": ""}
        else:
            phase = "commentary" if delta.is_preamble else "final_answer"
            message = {"type": "message", "role": "assistant", "content": [], "phase": phase}
            self._items.append({"id": f"msg_{number}", **message, **progress})
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        yield self._whole("response.output_item.added")
        if part:
            self._items[-1]["content"].append(part)
            yield self._about("response.content_part.added", content_index=0, part=copy.deepcopy(part))

    def close(self, status: str) -> Events:
        """Ends the open item, if there is one."""
        if self._open is None:
            return
        self._open, item = None, self._items[-1]
        item["status"] = status
        if item["type"] == "function_call":
            done = {"arguments": item["arguments"], "name": item["name"]}
            yield self._about("response.function_call_arguments.done", **done)
        else:
            part = item["content"][0]
            more = {"logprobs": part["logprobs"]} if part["type"] == "output_text" else {}
            yield self._about(f"{PART_EVENTS[part['type']]}.done", content_index=0, text=part["text"], **more)
            yield self._about("response.content_part.done", content_index=0, part=dict(part))
        yield self._whole("response.output_item.done")

    def _whole(self, kind: str) -> tuple[str, dict[str, Any]]:
        return kind, {"output_index": len(self._items) - 1, "item": copy.deepcopy(self._items[-1])}

    def _about(self, kind: str, **data: Any) -> tuple[str, dict[str, Any]]:
        return kind, {"output_index": len(self._items) - 1, "item_id": self._items[-1]["id"], **data}
