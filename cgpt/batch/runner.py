"""What answers the requests of a batch: LocalRunner in this process, or another one on a cluster."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Protocol

from cgpt.batch.request import BatchRecord, BatchRequest

MAX_WAITING = 1 << 16  # requests that an Engine for a batch lets wait; what is handed over at a time asks for fewer


class Runner(Protocol):
    """Answers requests, many at a time."""

    @property
    def fingerprint(self) -> bytes:
        """HASH_BYTES that tell what answers from everything else that would answer otherwise: another model, other
        options."""

    def run(self, requests: Iterable[BatchRequest]) -> Generator[BatchRecord | None, None, None]:
        """The record of each request, as they finish; None now and then while none does. It takes no more requests than
        it works on, leaves alone what is refused but for its record, and ends its work where the iterator is closed. A
        failure of all of them is raised, and is no record."""

    def close(self) -> None:
        """Ends it for good."""
