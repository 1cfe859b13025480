"""Which requests belong together: those whose prompts begin alike, and those that refer to what a replica remembers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from cgpt.serve.errors import dumps

BLOCK, MAX_BLOCKS = 64, 1024  # characters of a block; blocks that count
HEAD, PROMPTS = ("tools", "functions", "instructions", "system"), ("messages", "input", "prompt")
# What answers and calls are known by; clients send it back in the body or ask for it in the path.
NUMBER = re.compile(rb"(?:resp|rs|msg|fc|call|toolu)_([0-9a-f]{8})[0-9a-f]{24}(?![0-9a-f])")


def prompt_blocks(body: Mapping[str, Any]) -> tuple[int, ...]:
    """A number for each whole block of the prompt, which stands for all before it too: what two prompts share of their
    numbers they begin with. The numbers are good in this process."""
    text = dumps([body[name] for name in (*HEAD, *PROMPTS) if body.get(name)])
    blocks: list[int] = []
    for begin, end in pairwise(range(0, min(len(text), BLOCK * MAX_BLOCKS) + 1, BLOCK)):
        blocks.append(hash((blocks[-1] if blocks else 0, text[begin:end])))
    return tuple(blocks)


def referred_tag(path: str, raw: bytes) -> str:
    """The tag of the replica that gave the last id in a request, "" where there is none."""
    found = NUMBER.findall(raw) or NUMBER.findall(path.encode("utf-8", "replace"))
    return found[-1].decode("ascii") if found else ""
