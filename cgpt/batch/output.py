"""The output of a batch: each answer is written once, whatever ends the process that writes.

The file is its own journal. An answer is a whole line, written at once at the end; a torn last line, which a process
that died or a full disk left behind, is cut off before more is written. Every SYNC_SECONDS what was written is put on
the disk (fsync), so that no more is lost where the power fails; those lines are answered again.
"""

from __future__ import annotations

import json
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgpt.batch.request import HASH_BYTES, ID_PREFIX, BatchRecord
from cgpt.errors import InputError, OutputError

SYNC_SECONDS = 1.0
START = b'{"id":"' + ID_PREFIX.encode()  # of a line
_ID = re.compile(ID_PREFIX + f"[0-9a-f]{{{4 * HASH_BYTES}}}")


@dataclass(frozen=True)
class Answered:
    """A line of an output. number: of this line. line: of the input's line, where it has no custom_id."""

    number: int
    id: str
    custom_id: str | None
    line: int


class BatchOutput:
    """A file that answers are added to, by one process at a time. InputError where another one has it, OutputError
    where the system refuses."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = str(Path(path))
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0), 0o666)
        except (OSError, ValueError) as problem:
            raise OutputError(f"{self.name} cannot be written: {_why(problem)}") from None
        try:
            self._lock()
            self._size: int | None = None  # of what was read and written, whole lines; None until it was read
            self._synced_at, self._unsynced = time.monotonic(), True  # that the file is there
        except BaseException:
            os.close(self._file)
            raise

    def _lock(self) -> None:
        import fcntl  # no Windows has it

        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            raise InputError(
                f"{self.name} is no regular file; - writes to stdout, without going on where a batch stopped"
            )
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{self.name}: another process writes a batch to it; wait for its end") from None
        except OSError as problem:
            raise OutputError(f"{self.name} cannot be locked: {_why(problem)}") from None

    def answered(self) -> Iterator[Answered]:
        """What the lines in the file answer; at the end a torn one is cut off. InputError where one is no answer of a
        batch: the file is left as it is then."""
        size, is_open = 0, False  # open: the last line has no newline, as where another program wrote the file anew
        with open(self._file, "rb", closefd=False) as file:
            file.seek(0)
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n") and _is_torn(line):
                    break
                try:
                    yield _read(number, json.loads(line))
                except (ValueError, RecursionError, TypeError, KeyError):
                    why = "is no answer of a batch; give another name for the output"
                    raise InputError(f"{self.name}: line {number} {why}") from None
                size, is_open = size + len(line), not line.endswith(b"\n")
        os.ftruncate(self._file, size)
        self._size = size
        if is_open:
            self._append(b"\n")

    def write(self, record: BatchRecord) -> None:
        """Adds an answer, after answered() has read all that is there. OutputError where there is no room: nothing of
        it is left then."""
        self._append((json.dumps(record, separators=(",", ":")) + "\n").encode("ascii"))

    def _append(self, data: bytes) -> None:
        assert self._size is not None
        left = memoryview(data)
        size = self._size + len(left)
        try:
            while left:
                left = left[os.write(self._file, left) :]
            self._size, self._unsynced = size, True
            self.sync_if_due()
        except OSError as problem:
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise self._failure(problem) from None

    def sync_if_due(self) -> None:
        """Puts what was written on the disk, where that was last done SYNC_SECONDS ago."""
        if time.monotonic() - self._synced_at >= SYNC_SECONDS:
            self._sync()

    def _sync(self) -> None:
        if self._unsynced:
            os.fsync(self._file)
            self._unsynced = False
        self._synced_at = time.monotonic()

    def close(self) -> None:
        """Puts everything on the disk."""
        if self._file < 0:
            return
        try:
            self._sync()
        except OSError as problem:
            raise self._failure(problem) from None
        finally:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> BatchOutput:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _failure(self, problem: OSError) -> OutputError:
        again = "the batch goes on where it stopped when it is started again"
        return OutputError(f"{self.name} cannot be written: {_why(problem)}; {again}")


def _read(number: int, record: dict[str, Any]) -> Answered:
    """ValueError, TypeError or KeyError where it is no answer."""
    custom_id, error = record["custom_id"], record["error"]
    if not _ID.fullmatch(record["id"]) or not isinstance(custom_id, str | None):
        raise ValueError
    line = 0 if custom_id is not None else error["line"]
    if not isinstance(line, int):
        raise ValueError
    return Answered(number, record["id"], custom_id, line)


def _why(problem: Exception) -> str:
    return getattr(problem, "strerror", None) or str(problem)


def _is_torn(line: bytes) -> bool:
    """Whether a last line is the beginning of an answer, or room for it that was never written."""
    return START.startswith(line[: len(START)]) or not line.strip(b"\0")
