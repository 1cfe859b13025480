"""What the front and the replicas say to each other."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True)
class Forwarded:
    """A request that the front has let in.

    blocks: what its prompt begins with, see affinity.prompt_blocks. tag: of the replica that remembers what the request
    refers to, "" where it refers to nothing.
    """

    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes
    blocks: tuple[int, ...] = ()
    tag: str = ""


def replica_tag(unique_id: str) -> str:
    """What the ids that a replica gives begin with: 8 hexadecimal digits of Ray's id of it."""
    return hashlib.sha256(unique_id.encode()).hexdigest()[:8]
