"""Reads the JSON files of a checkpoint: bounded, without surprises, and field by field with checked types."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from cgpt.errors import CgptError, ConfigError

MAX_BYTES = 4 << 20  # config.json has a few KB, the largest index some 100 KB
MAX_VALUES = 1 << 22  # of one JSON file, lists and objects included; a vocabulary of 200,000 tokens has half as many
_UNMARKED = bytes(set(range(256)) - set(b'",:[{'))

_REQUIRED = _REFUSED = object()  # no default; null is an error


def require_regular_file(path: Path, error: type[CgptError]) -> int:
    """The size of `path` in bytes; `error` where it is missing, a directory, or a pipe, which could block."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as problem:  # ValueError: a name the system cannot hold
        raise error(f"{path}: {getattr(problem, 'strerror', None) or problem}") from None
    if not stat.S_ISREG(status.st_mode):
        raise error(f"{path}: is {'a directory' if stat.S_ISDIR(status.st_mode) else 'not a regular file'}")
    return status.st_size


def decode_utf8(text: bytes) -> str:
    """The text of a file in UTF-8; ValueError for anything else, which says what it is where that can be told."""
    if text.startswith(b"\xef\xbb\xbf"):
        raise ValueError("it is UTF-8 with a byte order mark (BOM); save it without one")
    if re.match(rb"\xff\xfe|\xfe\xff|[!-~]\0|\0[!-~]", text):
        raise ValueError("it is UTF-16; save it as UTF-8")
    return text.decode("utf-8")


def _require_few(text: bytes, path: Path | str, error: type[CgptError], max_values: int, max_keys: int) -> None:
    """Raises `error` where JSON holds more values or keys, without parsing it: a few milliseconds for each MB."""
    marks = text.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _UNMARKED)
    if marks.count(b'"') <= 2 * (max_values + max_keys):
        outside = b"".join(marks.split(b'"')[::2])  # of strings
        if outside.count(b",") + outside.count(b"[") + outside.count(b"{") <= max_values:
            if outside.count(b":") <= max_keys:
                return
    raise error(f"{path}: the JSON holds too much; at most {max_values} values and {max_keys} keys are read")


def parse_json_object(
    text: bytes,
    path: Path | str,
    error: type[CgptError],
    parse_float: Callable[[str], float] = float,
    max_values: int = MAX_VALUES,
    max_keys: int = MAX_VALUES,
) -> dict[str, Any]:
    """The JSON object in `text`; anything else, a repeated key or a NaN is `error`, naming `path`.

    parse_float: reads a number that is not written as an integer; ValueError where it is none. max_values, max_keys:
    more of them are `error` before they take memory or time; lists and objects are values, too
    """
    _require_few(text, path, error, max_values, max_keys)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise ValueError(f"the key {shown(key)} appears twice; keep one of the two")
            result[key] = value
        return result

    def no_constant(name: str) -> None:
        raise ValueError(f"{name} is not a JSON number")

    hooks: dict[str, Any] = {"object_pairs_hook": unique, "parse_constant": no_constant, "parse_float": parse_float}
    try:
        value = json.loads(decode_utf8(text), **hooks)
    except RecursionError:
        raise error(f"{path}: the JSON is nested too deeply") from None
    except ValueError as problem:  # bad UTF-8, bad JSON, numbers of thousands of digits
        raise error(f"{path}: not valid JSON: {problem}") from None
    if not isinstance(value, dict):
        raise error(f"{path}: expected a JSON object, found {shown(value)}")
    return value


def read_json_object(path: Path, error: type[CgptError], max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The JSON object in the file `path`; see parse_json_object."""
    size = require_regular_file(path, error)
    if size > max_bytes:
        raise error(f"{path}: {size} bytes are too many for this file; at most {max_bytes} are read")
    try:
        text = path.read_bytes()
    except OSError as problem:
        raise error(f"{path}: {problem.strerror}") from None
    return parse_json_object(text, path, error)


def json_levels(value: Any) -> Iterator[list[Any]]:
    """The lists and objects in a JSON value: first itself, then those directly in it, and so on, level by level."""
    level = [value]
    while level := [one for one in level if isinstance(one, (dict, list))]:
        yield level
        level = [v for one in level for v in (one.values() if isinstance(one, dict) else one)]


def shown(value: Any) -> str:
    """`value` as text short enough for a message."""
    try:
        text = repr(value)
    except Exception:  # another's __repr__
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


class Fields:
    """The keys of one JSON object of a config.

    Each reader returns `default` where the key is absent (an error if there is none) and `null` where it
    holds null (an error if not given), and raises ConfigError naming the key where the value has the wrong
    type, lies outside its range, or differs from that of an alias. A subclass may raise another `error`.
    """

    error: type[CgptError] = ConfigError

    def __init__(self, values: dict[str, Any], prefix: str = "") -> None:
        self.values = values
        self._prefix = prefix

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def name(self, key: str) -> str:
        """The key as messages call it: "rope_scaling.factor"."""
        return self._prefix + key

    def refuse(self, key: str, why: str) -> CgptError:
        """The exception to raise for what `key` holds."""
        return self.error(f"{self.name(key)} {why}, found {shown(self.values.get(key))}")

    def refuse_unknown(self, known: Iterable[str], what: str) -> None:
        """Raises ConfigError where a key is not in `known`."""
        unknown = sorted(set(self.values) - set(known))
        if unknown:
            raise self.error(f"{', '.join(map(self.name, unknown[:5]))}: no such key in {what}")

    def integer(self, key: str, default: Any = _REQUIRED, low: int = 1, high: int = 2**31, **how: Any) -> Any:
        def valid(value: Any) -> bool:
            return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

        return self._read(key, default, valid, f"an integer from {low} to {high}", **how)

    def number(self, key: str, default: Any = _REQUIRED, low: float = 0, high: float = 1, **how: Any) -> Any:
        def valid(value: Any) -> bool:
            return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high

        value = self._read(key, default, valid, f"a number from {low:g} to {high:g}", **how)
        return value if value is None else float(value)

    def boolean(self, key: str, default: Any = _REQUIRED, **how: Any) -> Any:
        return self._read(key, default, lambda value: isinstance(value, bool), "true or false", **how)

    def text(self, key: str, default: Any = _REQUIRED, **how: Any) -> Any:
        return self._read(key, default, lambda value: isinstance(value, str), "a string", **how)

    def array(self, key: str, default: Any = _REQUIRED, **how: Any) -> Any:
        return self._read(key, default, lambda value: isinstance(value, list), "a list", **how)

    def section(self, key: str) -> Fields | None:
        """The object under `key`, or None where it is absent or null."""
        values = self._read(key, None, lambda value: isinstance(value, dict), "an object", null=None)
        return None if values is None else type(self)(values, self.name(key) + ".")

    def _read(
        self,
        key: str,
        default: Any,
        valid: Callable[[Any], bool],
        wanted: str,
        null: Any = _REFUSED,
        aliases: Iterable[str] = (),
    ) -> Any:
        present = [k for k in (key, *aliases) if k in self.values]
        if not present:
            if default is _REQUIRED:
                raise self.error(f"{self.name(key)} is missing")
            return default
        key, value = present[0], self.values[present[0]]
        for other in present[1:]:
            if self.values[other] != value:
                raise self.refuse(other, f"must equal {self.name(key)} {shown(value)}, its other name")
        if value is None and null is not _REFUSED:
            return null
        if not valid(value):
            raise self.refuse(key, f"must be {wanted}")
        return value
