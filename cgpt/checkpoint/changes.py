"""Notices that a checkpoint's files change on disk while weights are read from them."""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
import time
import weakref
import zlib
from collections.abc import Iterable
from pathlib import Path

from cgpt.arguments import warn_caller
from cgpt.errors import CheckpointError

SAMPLE = 4096  # bytes of each tensor's beginning that tell a file that was only touched
PLACES, PLACE = 1024, 64  # in the digest of a file, and bytes of each; gpt-oss-20b has two or more in each expert
REPLACE = "replace checkpoints by renaming new files into their place, and load the model again"


class OpenFile:
    """A mapped file that stays open, and its size and time of change when it was opened. A path that names another
    file later is no change: the mapped one stays as it was.

    stamp: bytes, and time of change in ns.
    """

    def __init__(self, path: Path, descriptor: int, mapped: mmap.mmap) -> None:
        self.path = path
        self._file = open(os.dup(descriptor), "rb", buffering=0)
        weakref.finalize(self, self._file.close)
        self._mapped = weakref.ref(mapped)  # dies with the last array that reads from it
        self.stamp = self._found()
        self._ranges: list[tuple[int, int]] = []
        self._samples = -1  # none: until then every change counts

    @property
    def descriptor(self) -> int:
        """The descriptor of the open file."""
        return self._file.fileno()

    def _found(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def _read_samples(self) -> int:
        crc = 0
        for offset, nbytes in self._ranges:
            self._file.seek(offset)
            crc = zlib.crc32(self._file.read(nbytes), crc)
        return crc

    def remember(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Keeps a checksum of these ranges (offset, bytes)."""
        self._ranges = sorted(ranges)
        self._samples = self._read_samples()

    def change(self) -> str:
        """What has changed, "" for nothing, or where nothing reads from the file any more. Warns where it was touched,
        which leaves the header and the beginning of every tensor as they were."""
        stamp = self._found()
        if stamp == self.stamp or self._mapped() is None:
            return ""
        if stamp[0] != self.stamp[0] or self._read_samples() != self._samples:
            return f"{self.path} changed on disk while the model was using it; {REPLACE}"
        self.stamp = stamp
        same = "its header and the beginning of each tensor are as they were"
        warn_caller(f"{self.path} was touched while the model was using it; {same}")
        return ""

    def digest(self) -> bytes:
        """A hash of its size, its header, the beginning of each tensor and PLACES small samples all over it."""
        size = self._found()[0]
        hashed = hashlib.blake2b(size.to_bytes(8, "little"), digest_size=16)
        for offset, nbytes in (*self._ranges, *((i * size // PLACES, PLACE) for i in range(PLACES))):
            self._file.seek(offset)
            hashed.update(self._file.read(nbytes))
        return hashed.digest()


_watches: weakref.WeakSet[FileWatch] = weakref.WeakSet()


def _renew_locks() -> None:
    """In a child of a fork: another thread of the parent may have been looking."""
    for watch in _watches:
        watch._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


class FileWatch:
    """The files of a loaded model, and `others` that were made of them, which are no part of the digest. A file from
    which nothing is read any more, as all was copied, may change."""

    SLOW, PAUSE = 1e-3, 0.1  # seconds: a check that takes longer, as on a network's disk, and from it to the next one

    def __init__(self, files: Iterable[OpenFile], others: Iterable[OpenFile] = ()) -> None:
        self._files, self._others = list(files), list(others)
        self._lock = threading.Lock()
        _watches.add(self)
        self._next = 0.0
        self._problem = ""

    def require_unchanged(self) -> None:
        """Raises CheckpointError, once a file has changed, always. A few microseconds for each file."""
        if time.perf_counter() < self._next:
            return
        with self._lock:
            began = time.perf_counter()  # now: others' checks take no longer for having been waited for
            if not self._problem:
                self._problem = "".join(file.change() for file in (*self._files, *self._others))
        if self._problem:
            raise CheckpointError(self._problem)
        ended = time.perf_counter()
        if ended - began > self.SLOW:
            self._next = ended + self.PAUSE

    def digest(self) -> bytes:
        """What tells these files from those of another checkpoint, one of the same shapes too, without reading them
        whole: a fine-tuned model differs nearly everywhere."""
        with self._lock:
            return b"".join(file.digest() for file in self._files)
