"""Remembers things by their ids for a while, within bounds of bytes, entries and time.

The ids are the server's own and cannot be guessed: who has one was given it, with what it stands for.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


def new_number(tag: str = "") -> str:
    """What follows the prefix of an id: 32 hexadecimal digits, those of the tag first."""
    return tag + uuid.uuid4().hex[len(tag) :]


@dataclass(frozen=True)
class Thought:
    """What the model thought before a call, by the id of the call. arguments: of the call, as the model wrote them,
    where clients get them in another form."""

    text: str
    arguments: str = ""


@dataclass(frozen=True)
class StoredItem:
    """An item of /v1/responses. json: as it was sent."""

    json: str


@dataclass(frozen=True)
class StoredResponse:
    """A response. json: as it was sent; given: a list of the items that it answers, as JSON; previous: the id of the
    response before these. ids: of what else is stored with it."""

    json: str
    given: str
    previous: str | None
    ids: tuple[str, ...]


class Store:
    """Holds values by id, for any thread. What was not used for longest goes first, and what is
    asked for after max_seconds."""

    OVERHEAD = 500  # bytes of an entry beside its text, about

    def __init__(self, max_bytes: int, max_entries: int, max_seconds: float) -> None:
        self._max_bytes, self._max_entries, self._max_seconds = max_bytes, max_entries, max_seconds
        self._entries: OrderedDict[str, tuple[Any, int, float]] = OrderedDict()  # value, bytes, when it was put
        self._lock = threading.RLock()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: str, value: Any, nbytes: int) -> None:
        """Keeps a value, whose text has nbytes, unless it is too large by itself."""
        nbytes += self.OVERHEAD
        with self._lock:
            self.drop(key)
            if nbytes > self._max_bytes:
                return
            self._entries[key] = value, nbytes, time.monotonic()
            self.nbytes += nbytes
            while self._entries and (self.nbytes > self._max_bytes or len(self._entries) > self._max_entries):
                self.drop(next(iter(self._entries)))

    def get(self, key: str, kind: type[T]) -> T | None:
        """The value of an id, if it is there and of this kind."""
        with self._lock:
            value, _, put_at = self._entries.get(key, (None, 0, 0.0))
            if value is not None and time.monotonic() - put_at > self._max_seconds:
                self.drop(key)
                value = None
            if not isinstance(value, kind):
                return None
            self._entries.move_to_end(key)
            return value

    def drop(self, key: str) -> None:
        """Forgets an id, if it is there."""
        with self._lock:
            self.nbytes -= self._entries.pop(key, (None, 0, 0.0))[1]
