"""What the modules of several commands share."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from cgpt.models.kv_cache import KV_DTYPES

DEFAULT_MODEL = "demo-gpt2"


def add_kv_cache_dtype(add: Callable[..., Any], default: str) -> None:
    """The option --kv-cache-dtype; add: a parser's or a group's add_argument."""
    add("--kv-cache-dtype", choices=KV_DTYPES, help=f"what keys and values are kept as (default: {default})")


class ProgressBar:
    """Shows how many bytes are done, on stderr where that is a terminal, if the work takes a while."""

    DELAY, INTERVAL, CELLS = 0.5, 0.1, 30  # seconds before the first drawing, between drawings; width

    def __init__(self, label: str, unit: str = "GB") -> None:
        self._label, self._unit = label, unit
        self._next = time.monotonic() + self.DELAY
        self._drawn = False

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now < self._next or not sys.stderr.isatty():
            return
        self._next, self._drawn = now + self.INTERVAL, True
        filled = self.CELLS * done // total if total else self.CELLS
        bar = "#" * filled + "." * (self.CELLS - filled)
        shown = f"{done / 1e9:.2f} of {total / 1e9:.2f}" if self._unit == "GB" else f"{done} of {total}"
        sys.stderr.write(f"\r{self._label} [{bar}] {shown} {self._unit}\x1b[K")
        sys.stderr.flush()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
