"""The requests of a batch: lines of a file, or what comes one by one; and which of them an output answers already."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cgpt.batch.output import Answered
from cgpt.batch.request import ID_PREFIX, MAX_LINE, BatchRequest, LineError, content_hash, custom_id_hash, parse_line
from cgpt.errors import InputError
from cgpt.fields import shown

SPOOL = "cgpt-batch-"  # what names of temporary files begin with
NAMED = 3  # duplicates that an error names


def read_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers from 1, but those that are blank. Of a line of more than MAX_LINE bytes
    the first MAX_LINE + 1."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE + 1)
        if line.strip():
            yield number, line


def encode_lines(requests: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, bytes]]:
    """Requests as the lines that they are in a file. InputError names one that is no JSON object."""
    for number, request in enumerate(requests, 1):
        try:
            if not isinstance(request, Mapping):
                raise TypeError(f"it is a {type(request).__name__}")
            line = json.dumps(dict(request)).encode("ascii")
        except (TypeError, ValueError, RecursionError) as problem:
            raise InputError(f"request {number} is no dict that JSON can hold: {problem}") from None
        yield number, line + b"\n"


class StreamedSource:
    """Requests that are read as they are needed, once. One with the custom_id of an earlier one is refused."""

    total, num_answered = None, 0

    def __init__(self, lines: Iterable[tuple[int, bytes]]) -> None:
        self._lines = lines

    def close(self) -> None:
        """Does nothing; who gave the lines closes them."""

    def requests(self, fingerprint: bytes) -> Iterator[BatchRequest]:
        """The requests. fingerprint: of what answers, see Runner."""
        seen: set[bytes] = set()
        for number, line in self._lines:
            made = parse_line(line, number, fingerprint)
            key = custom_id_hash(made.custom_id, number)
            if key in seen:
                why = f"custom_id {shown(made.custom_id)} is that of an earlier line"
                made.refuse(LineError(why, "duplicate_custom_id", "custom_id"))
            seen.add(key)
            yield made


class ScannedSource:
    """The requests of a file, which was read once before: each has a custom_id of its own, and memory holds 33 bytes
    of each. InputError where two have the same, where there is none, or where the file changes."""

    def __init__(self, file: BinaryIO, name: str, progress: Callable[[int, int], None] | None = None) -> None:
        """name: what errors call the file. progress: is called with the bytes that were read, and those in all."""
        self._file, self._name = file, name
        keys, contents, size = bytearray(), array("Q"), os.fstat(file.fileno()).st_size
        for number, line in self._lines():
            if progress is not None:
                progress(file.tell(), size)
            keys += custom_id_hash(parse_line(line, number).custom_id, number)
            contents.append(_as_integer(content_hash(line)))
        if not contents:
            raise InputError(f"{name} holds no request")
        self._keys = np.frombuffer(keys, "S16")
        self._contents = np.frombuffer(contents, np.uint64)
        self._order = np.argsort(self._keys)
        self._answered = np.zeros(len(contents), bool)
        self.total = len(contents)
        self._require_unique()

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        self._file.seek(0)
        return read_lines(self._file)

    def _require_unique(self) -> None:
        ordered = self._keys[self._order]
        again = np.flatnonzero(ordered[1:] == ordered[:-1])
        if not len(again):
            return
        shared = {ordered[i] for i in again[:NAMED]}
        found: dict[str | None, list[int]] = {}
        for (number, line), key in zip(self._lines(), self._keys, strict=True):
            if key in shared:
                found.setdefault(parse_line(line, number).custom_id, []).append(number)
        named = "; ".join(f"{shown(name)} on lines {', '.join(map(str, at[:5]))}" for name, at in found.items())
        raise InputError(f"{self._name}: {len(again)} lines have the custom_id of an earlier one: {named}; nothing ran")

    @property
    def num_answered(self) -> int:
        """How many lines an output has answered."""
        return int(self._answered.sum())

    def skip(self, answers: Iterable[Answered], fingerprint: bytes, output: str) -> None:
        """Leaves out what an output answers already. InputError where it is of other requests, or was answered by
        something else, told by the `fingerprint`. output: its name."""
        for answer in answers:
            at = f"{output}: line {answer.number} answers"
            who = f"custom_id {shown(answer.custom_id)}" if answer.custom_id else f"line {answer.line}"
            key = np.bytes_(custom_id_hash(answer.custom_id, answer.line).rstrip(b"\0"))  # as NumPy gives what it holds
            place = int(np.searchsorted(self._keys, key, sorter=self._order))
            index = int(self._order[place]) if place < len(self._order) else -1
            hint = "give another name for the output"
            if index < 0 or self._keys[index] != key:
                raise InputError(f"{at} {who}, which {self._name} does not hold: it is of another input; {hint}")
            digits = answer.id.removeprefix(ID_PREFIX)
            if digits[16:] != fingerprint.hex():
                raise InputError(f"{at} {who} by another model, or with other options; {hint}")
            if digits[:16] != int(self._contents[index]).to_bytes(8, "big").hex():
                raise InputError(f"{at} another request of {who} than {self._name} holds; {hint}")
            if self._answered[index]:
                raise InputError(f"{at} {who} once more: it was changed by something else; {hint}")
            self._answered[index] = True

    def requests(self, fingerprint: bytes) -> Iterator[BatchRequest]:
        """Those that are not answered yet. fingerprint: of what answers, see Runner."""
        index = -1
        for index, (number, line) in enumerate(self._lines()):
            if index >= self.total or _as_integer(content_hash(line)) != self._contents[index]:
                raise InputError(f"{self._name} changed while it was read, at line {number}; start again")
            if not self._answered[index]:
                yield parse_line(line, number, fingerprint)
        if index + 1 < self.total:
            raise InputError(f"{self._name} changed while it was read: it has lost lines; start again")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _as_integer(digest: bytes) -> int:
    return int.from_bytes(digest, "big")


def open_source(path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None) -> ScannedSource:
    """The requests of a file, or of a pipe to its end; "-" is stdin. InputError where it cannot be read. progress: see
    ScannedSource."""
    name = "stdin" if path == "-" else str(Path(path))
    try:
        with ExitStack() as closing:
            file: BinaryIO = closing.enter_context(sys.stdin.buffer if path == "-" else open(path, "rb"))
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                with file as pipe:
                    file = closing.enter_context(tempfile.TemporaryFile(prefix=SPOOL))
                    shutil.copyfileobj(pipe, file)
            source = ScannedSource(file, name, progress)
            closing.pop_all()
        return source
    except (OSError, ValueError) as problem:
        if isinstance(problem, InputError):
            raise
        raise InputError(f"{name} cannot be read: {getattr(problem, 'strerror', None) or problem}") from None


def spool_requests(requests: Iterable[Mapping[str, Any]]) -> ScannedSource:
    """Requests that can be read only once, in a temporary file. InputError names one that is no JSON object."""
    with ExitStack() as closing:
        file = closing.enter_context(tempfile.TemporaryFile(prefix=SPOOL))
        file.writelines(line for _, line in encode_lines(requests))
        source = ScannedSource(file, "requests")
        closing.pop_all()
    return source
