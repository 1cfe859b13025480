"""Prefixes on the disk: what a PrefixCache keeps outlives the process, and other processes find it.

A file holds a segment of a text, from one position where a sequence can resume to the next: the ids, their keys and
values in the layers without a window, and what the windows held at its end (kv_cache.Snapshot). Each names the segment
before it by a hash of all ids so far. So texts share their common beginning, a conversation that goes on writes only
what is new, and the names alone, listed once, tell how much of a prompt is there:

    DIRECTORY/KEY/PARENT-OWN-END.kv

KEY is a hash of all that decides over the bits, see make_key(). The container is one of its own, because each head's
blocks are read straight to where they belong, and checked: safetensors and .npy have no checksum, and want each array
in one piece. The checksum is zlib's crc32, the fastest of the standard library: 2.9 GB/s, adler32 1.6, blake2b 0.5. It
finds damage, not forgery: folders are 0700 and files 0600, and a folder that others may write to is not used.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
import sys
import threading
import time
import zlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cgpt.arguments import require_directory, warn_caller
from cgpt.errors import InputError
from cgpt.kernels import _kernels
from cgpt.models.base import Ids, Transformer
from cgpt.models.kv_cache import Array, KVCache, Snapshot
from cgpt.version import __version__

DISK_BYTES = 20_000_000_000
FORMAT = b"cgptkv1\n"  # a change of it, or of what follows, changes every KEY
# The crc32 of what follows it, the ids included; KEY, PARENT, OWN, start, end; the crc32 of the keys and values of full
# layers, and of the rings. Then the ids, int64, then what the last two are of. All in the machine's order of bytes.
HEADER = struct.Struct("=8sI16s16s16sqqII")
CHECKED = 12  # bytes before what its own checksum is of
MAX_FILES = 16_384  # they are listed before each write
STALE = 3600.0  # seconds; a file that is still being written by then never will be
MAX_NAMED = 5  # files in warnings
_KEY, _NAME = re.compile("[0-9a-f]{32}"), re.compile(r"([0-9a-f]{32})-([0-9a-f]{32})-(\d{1,9})\.kv")
_TEMPORARY = re.compile(r"[0-9a-f]{32}\.tmp")
_OPEN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _OPEN  # a pipe of this name would block
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN


@dataclass(frozen=True)
class Segment:
    """The ids from `start` up to `end` of the texts that begin so. parent, own: hashes of the ids before each."""

    parent: bytes
    own: bytes
    start: int
    end: int

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.parent.hex()}-{self.own.hex()}-{self.end}.kv"


@dataclass(frozen=True)
class _File:
    path: str
    nbytes: int
    used_at: int  # st_mtime_ns
    end: int


class _Unusable(Exception):
    """A file that cannot be read, or is damaged: it does not hold what its name says."""

    def __init__(self, segment: Segment, why: str, damaged: bool = True) -> None:
        super().__init__(why)
        self.segment, self.damaged = segment, damaged


class PrefixStore:
    """The segments of one model in a directory that other models and processes may share.

    load is for one thread at a time; put hands over to a thread of its own, which lives while there is
    something to write. What cannot be read is a miss, what cannot be written is not kept; a warning says so, once.

    num_hits: sequences that resumed from here. nbytes: of all in the directory, as far as is known
    """

    def __init__(self, transformer: Transformer, directory: str | os.PathLike[str], max_bytes: int) -> None:
        self.directory = require_directory("a prefix cache", directory)
        self.max_bytes = max_bytes
        self.num_hits = self.nbytes = 0
        self._key = make_key(transformer)
        self._folder = self.directory / self._key.hex()
        self._lock = threading.Lock()  # guards what follows
        self._children: dict[bytes, dict[bytes, int]] = {}  # of each segment: hash and end
        self._queue: deque[tuple[Ids, KVCache, list[Snapshot], int]] = deque()
        self._writer: threading.Thread | None = None
        self._named: set[str] = set()  # what was warned of
        self._reads, self._writes = self._prepare()
        if self._reads:
            self._list()

    # ------------------------------------------------------------------------------------------------ reading

    def load(self, ids: Ids, beyond: int, new_cache: Callable[[], KVCache]) -> tuple[KVCache, Snapshot] | None:
        """A sequence with as many of these ids as are here, and where it is; None where there are no more than
        `beyond`. new_cache: makes the empty one; what a file that turned out to be damaged leaves in it is not used."""
        while (path := self._find(ids)) and path[-1].end > beyond:
            cache = new_cache()
            try:
                snapshot = self._read(path, ids, cache)
            except _Unusable as problem:
                self._drop(problem)
                continue
            cache.restore(snapshot)
            self._touch(path)
            self.num_hits += 1
            return cache, snapshot
        return None

    def _find(self, ids: Ids) -> list[Segment]:
        """The segments, in order, that together hold as many of the first of these ids as any do."""
        best: list[Segment] = []
        paths: list[list[Segment]] = [[]]
        while paths:
            path = paths.pop()
            parent, start = (path[-1].own, path[-1].end) if path else (self._key, 0)
            if path and (not best or start > best[-1].end):
                best = path
            with self._lock:
                children = dict(self._children.get(parent, {}))
            hashed, at = hashlib.blake2b(parent, digest_size=16), start
            for end in sorted({end for end in children.values() if start < end <= len(ids)}):
                hashed.update(ids[at:end].tobytes())
                at, own = end, hashed.copy().digest()
                if children.get(own) == end:
                    paths.append([*path, Segment(parent, own, start, end)])
        return best

    def _read(self, path: list[Segment], ids: Ids, cache: KVCache) -> Snapshot:
        """Fills the full layers of an empty sequence with these segments; returns what windows held at their end."""
        snapshot = cache.empty_snapshot(path[-1].end)
        for segment in path:
            try:
                descriptor = os.open(self._folder / segment.name, _READ)
                with open(descriptor, "rb") as file:
                    status = os.fstat(descriptor)
                    if not (stat.S_ISREG(status.st_mode) and _is_mine(status)):
                        raise _Unusable(segment, "it is no regular file of this user")
                    layers, rings = self._read_head(file, segment, ids[segment.start : segment.end].tobytes())
                    good = _read_into(file, cache.full_layers(segment.start, segment.end)) == layers
                    if good and segment is path[-1]:
                        good = _read_into(file, snapshot.arrays()) == rings
            except OSError as problem:
                gone = isinstance(problem, FileNotFoundError)  # another process needed the room
                raise _Unusable(segment, "" if gone else problem.strerror or str(problem), False) from None
            if not good:
                raise _Unusable(segment, "its checksum is another")
        return snapshot

    def _read_head(self, file: BinaryIO, segment: Segment, ids: bytes) -> tuple[int, int]:
        """The checksums of layers and rings that stand before them; _Unusable where the head is another."""
        head = file.read(HEADER.size + len(ids))
        layers, rings = HEADER.unpack(head[: HEADER.size])[-2:] if len(head) >= HEADER.size else (0, 0)
        if head != self._head(segment, ids, layers, rings):
            raise _Unusable(segment, "its beginning is damaged")
        return layers, rings

    def _head(self, segment: Segment, ids: bytes, layers: int, rings: int) -> bytes:
        fields = self._key, segment.parent, segment.own, segment.start, segment.end, layers, rings
        checked = HEADER.pack(FORMAT, 0, *fields)[CHECKED:] + ids
        return HEADER.pack(FORMAT, zlib.crc32(checked), *fields)[:CHECKED] + checked

    def _drop(self, problem: _Unusable) -> None:
        """Forgets a segment, says why, and removes a file that is damaged."""
        with self._lock:
            self._children.get(problem.segment.parent, {}).pop(problem.segment.own, None)
        path = self._folder / problem.segment.name
        if str(problem):
            self._warn(str(path), f"{path}: {problem}; the prefix cache does without it")
        if problem.damaged:
            with suppress(OSError):
                path.unlink()

    def _touch(self, path: list[Segment]) -> None:
        """Says that these were used now. A segment is never used later than the one before it."""
        now = time.time_ns()
        for segment in path:
            with suppress(OSError):
                os.utime(self._folder / segment.name, ns=(now, now))

    # ------------------------------------------------------------------------------------------------ writing

    def put(self, ids: Ids, cache: KVCache, snapshots: list[Snapshot], max_waiting: int) -> None:
        """Keeps a sequence that nobody extends any more, and these positions of it, once the writer has come to it.
        Where it is slow, no more than max_waiting bytes wait, or one sequence, and others are not kept."""
        size = cache.nbytes + sum(snapshot.nbytes for snapshot in snapshots)
        with self._lock:
            if not self._writes or (self._queue and sum(job[-1] for job in self._queue) + size > max_waiting):
                return
            self._queue.append((ids, cache, snapshots, size))
            if self._writer is None or not self._writer.is_alive():  # a fork has no threads but one
                self._writer = threading.Thread(target=self._write_queue, name="cgpt-prefix-store")
                try:
                    self._writer.start()
                except RuntimeError:  # there are no threads to be had, or the interpreter is at its end
                    self._writer = None
                    self._queue.clear()

    def flush(self, timeout: float | None = None) -> None:
        """Waits until what was put is written, at most `timeout` seconds."""
        if (writer := self._writer) is not None:
            writer.join(timeout)

    def _write_queue(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._writer = None
                    return
                ids, cache, snapshots, _ = self._queue[0]
            try:
                self._write(ids, cache, snapshots)
            except Exception as problem:  # whatever it is, nothing of the kind may come again
                self._writes = False
                self._warn_of_directory(problem, "written")
            with self._lock:
                self._queue.popleft()
                if not self._writes:
                    self._queue.clear()

    def _write(self, ids: Ids, cache: KVCache, snapshots: list[Snapshot]) -> None:
        path, files = self._find(ids), []
        if not path or path[-1].end < snapshots[-1].position:
            self._make_folder()  # somebody may have emptied the directory
            files, path = self._list(), self._find(ids)
        for snapshot in snapshots:
            parent, start = (path[-1].own, path[-1].end) if path else (self._key, 0)
            if snapshot.position <= start:
                continue
            own = hashlib.blake2b(parent + ids[start : snapshot.position].tobytes(), digest_size=16).digest()
            segment = Segment(parent, own, start, snapshot.position)
            layers = list(cache.full_layers(start, segment.end))
            size = HEADER.size + 8 * (segment.end - start) + sum(a.nbytes for a in layers) + snapshot.nbytes
            if not self._make_room(files, size, {str(self._folder / one.name) for one in path}):
                break
            self._write_segment(segment, ids[start : segment.end].tobytes(), layers, snapshot)
            with self._lock:
                self._children.setdefault(parent, {})[own] = segment.end
            self.nbytes += size
            files.insert(0, _File(str(self._folder / segment.name), size, time.time_ns(), segment.end))
            path.append(segment)
        self._touch(path)

    def _write_segment(self, segment: Segment, ids: bytes, layers: list[Array], snapshot: Snapshot) -> None:
        temporary = self._folder / f"{os.urandom(16).hex()}.tmp"
        try:
            with open(os.open(temporary, _WRITE, 0o600), "wb") as file:
                file.write(bytes(HEADER.size + len(ids)))  # no head: until all is written it is no segment
                checksums = [_write_from(file, arrays) for arrays in (layers, snapshot.arrays())]
                file.seek(0)
                file.write(self._head(segment, ids, *checksums))
            os.replace(temporary, self._folder / segment.name)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise

    def _make_room(self, files: list[_File], size: int, kept: set[str]) -> bool:
        """Removes the least recently used of these files, whose last comes first, until there is room for `size` more
        bytes; but for `kept`. False where there cannot be."""
        if size + sum(file.nbytes for file in files if file.path in kept) > self.max_bytes:
            return False
        for i in range(len(files) - 1, -1, -1):
            if self.nbytes + size <= self.max_bytes and len(files) < MAX_FILES:
                break
            if files[i].path not in kept:
                file = files.pop(i)
                with suppress(FileNotFoundError):
                    os.unlink(file.path)
                self.nbytes -= file.nbytes
                folder, name = os.path.split(file.path)
                if folder == str(self._folder):
                    parent, own = (bytes.fromhex(part) for part in name.split("-")[:2])
                    with self._lock:
                        self._children.get(parent, {}).pop(own, None)
        return True

    # ---------------------------------------------------------------------------------------------- the directory

    def _prepare(self) -> tuple[bool, bool]:
        """Makes the folder; says whether it can be read, and written to."""
        try:
            self._make_folder()
        except OSError as problem:
            self._warn_of_directory(problem, "used")
            return False, False
        return True, True

    def _make_folder(self) -> None:
        """Makes the folder; PermissionError where others could put something in its place."""
        self.directory.mkdir(0o700, parents=True, exist_ok=True)
        self._folder.mkdir(0o700, exist_ok=True)
        above, own = self.directory.stat(), self._folder.lstat()
        if not (stat.S_ISDIR(own.st_mode) and _is_mine(own) and _is_mine(above, also=(0,), sticky=True)):
            raise PermissionError(f"{self._folder}: belongs to others or others may write to it or its directory")

    def _list(self) -> list[_File]:
        """Lists the directory, the least recently used last, and takes what is there of this model; names, once, what
        is none of ours."""
        files: list[_File] = []
        foreign: list[str] = []
        children: dict[bytes, dict[bytes, int]] = defaultdict(dict)
        for folder in _scan(self.directory):
            if not (_KEY.fullmatch(folder.name) and folder.is_dir(follow_symlinks=False)):
                foreign.append(folder.name)
                continue
            for entry in _scan(folder.path):
                match = _NAME.fullmatch(entry.name)
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError:  # it has gone
                    continue
                temporary = _TEMPORARY.fullmatch(entry.name)
                if not (match or temporary) or not stat.S_ISREG(status.st_mode):
                    foreign.append(f"{folder.name}/{entry.name}")
                elif temporary and time.time() - status.st_mtime > STALE:
                    with suppress(OSError):
                        os.unlink(entry.path)
                elif match:
                    files.append(_File(entry.path, status.st_size, status.st_mtime_ns, int(match[3])))
                    if folder.name == self._folder.name:
                        children[bytes.fromhex(match[1])][bytes.fromhex(match[2])] = int(match[3])
        if foreign:
            names = ", ".join(sorted(foreign)[:MAX_NAMED]) + (", .." if len(foreign) > MAX_NAMED else "")
            self._warn("foreign", f"{self.directory}: not of a prefix cache, and left alone: {names}")
        with self._lock:
            self._children = dict(children)
        self.nbytes = sum(file.nbytes for file in files)
        return sorted(files, key=lambda file: (-file.used_at, file.end))

    def _warn_of_directory(self, problem: Exception, what: str) -> None:
        why = getattr(problem, "strerror", None) or problem
        self._warn(
            "directory", f"{self.directory}: cannot be {what} ({why}); the prefix cache goes on without the disk"
        )

    def _warn(self, about: str, text: str) -> None:
        if about not in self._named and (len(self._named) < MAX_NAMED or about == "directory"):
            self._named.add(about)
            warn_caller(text)


def make_key(transformer: Transformer) -> bytes:
    """A hash of what decides over the bits of keys and values, and over how files hold them: the checkpoint's headers,
    sizes and samples, the config, precision, dtypes, the kernels in use, how they were compiled, and the versions.
    InputError for a model that load() did not make."""
    transformer.require_open()
    if transformer.files is None:
        raise InputError("a prefix cache on the disk needs a model that load() made, to tell it from others")
    what = (FORMAT, __version__, sys.byteorder, transformer.config, transformer.precision, transformer.kv_cache_dtype)
    weights = [(name, matrix.dtype, matrix.shape) for name, matrix in transformer.matrices()]
    text = repr((what, weights, sorted(_kernels.kernels().items())))
    hashed = hashlib.blake2b(text.encode(), digest_size=16)
    hashed.update(transformer.files.digest())
    hashed.update(Path(_kernels.__file__).read_bytes())
    return hashed.digest()


def _scan(directory: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """What is in a directory; nothing where it cannot be read."""
    with suppress(OSError), os.scandir(directory) as entries:
        return list(entries)
    return []


def _is_mine(status: os.stat_result, also: tuple[int, ...] = (), sticky: bool = False) -> bool:
    """Whether it belongs to this user, or to one of `also`, and nobody else may write to it; sticky: or others may only
    add to it."""
    if not hasattr(os, "geteuid"):
        return True
    closed = not status.st_mode & 0o022 or (sticky and status.st_mode & stat.S_ISVTX)
    return status.st_uid in (os.geteuid(), *also) and bool(closed)


def _read_into(file: BinaryIO, arrays: Iterable[Array]) -> int | None:
    """Fills contiguous arrays; the checksum of what they hold then, None where the file ends before."""
    crc = 0
    for array in arrays:
        view = array.reshape(-1).view(np.uint8).data
        if file.readinto(view) != len(view):  # type: ignore[attr-defined]
            return None
        crc = zlib.crc32(view, crc)
    return crc


def _write_from(file: BinaryIO, arrays: Iterable[Array]) -> int:
    """Writes what arrays hold; its checksum."""
    crc = 0
    for array in arrays:
        view = array.reshape(-1).view(np.uint8).data
        file.write(view)
        crc = zlib.crc32(view, crc)
    return crc
