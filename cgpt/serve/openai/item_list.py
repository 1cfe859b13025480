"""The items that a response answers, as OpenAI lists them."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cgpt.fields import shown
from cgpt.serve.errors import ApiError
from cgpt.serve.validation import Bounds, Reads, RequestModel, Text, only

ID_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fco"}


def _read_limit(value: Any, _: Bounds) -> int | None:
    good = isinstance(value, str) and len(value) < 4 and value.isascii() and value.isdigit()
    return int(value) if good and 1 <= int(value) <= 100 else None


LIMIT = {"type": "integer", "minimum": 1, "maximum": 100}


class ItemsQuery(RequestModel):
    """Which items to list. after: the id of the item before the first of them. limit: how many at most. order: the
    newest first, or the oldest."""

    unknown_prefix = ""

    after: Text | None = None
    limit: Annotated[int, Reads(_read_limit, "must be an integer from 1 to 100", LIMIT)] = 20
    order: Annotated[str, only("asc", "desc", wanted="must be asc or desc")] = "desc"
    include: Any = None


@dataclass
class ItemList:
    """Items of an input, each as OpenAI lists it. has_more: whether there are others after the last one."""

    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


def with_ids(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items, those without an id with a new one."""
    made: list[dict[str, Any]] = []
    for item in items:
        kind = item.get("type", "message")
        own = item.get("id")
        name = own if isinstance(own, str) and own else f"{ID_PREFIXES.get(kind, 'item')}_{uuid.uuid4().hex}"
        made.append(item | {"id": name, "type": kind})
    return made


def list_items(items: list[dict[str, Any]], query: ItemsQuery) -> ItemList:
    """The page of these items, the oldest first, that is asked for; ApiError where `after` is none of them."""
    found = list({item["id"]: item for item in items}.values())
    if query.order == "desc":
        found.reverse()
    start = 0
    if query.after is not None:
        start = next((i + 1 for i, item in enumerate(found) if item["id"] == query.after), 0)
        if not start:
            raise ApiError(f"after {shown(query.after)} is no item of this input", param="after")
    page = [_listed(item) for item in found[start : start + query.limit]]
    first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    return ItemList(page, first, last, start + query.limit < len(found))


def _listed(item: dict[str, Any]) -> dict[str, Any]:
    """An item as OpenAI lists it, with the parts of its text."""
    kind, content = item["type"], item.get("content")
    said = {"type": "output_text", "annotations": []} if item.get("role") == "assistant" else {"type": "input_text"}
    part = {"type": "reasoning_text"} if kind == "reasoning" else said
    parts = [{"text": content}] if isinstance(content, str) and content else content or []
    if kind in ("message", "reasoning"):
        item = item | {"content": [one | part if one.get("type") != "refusal" else one for one in parts]}
    return {"status": "completed"} | ({"summary": []} if kind == "reasoning" else {}) | item
