"""How fast a file's disk answers reads at random places, past the page cache."""

import errno
import mmap
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cgpt.arguments import require_integer, require_number
from cgpt.errors import InputError
from cgpt.fields import require_regular_file
from cgpt.machine import huge_pages

MIB = 1 << 20
ALIGN = 4096  # bytes: what O_DIRECT may want of addresses, offsets and lengths
REQUEST, MAX_REQUEST = 4 * MIB, 64 * MIB
MAX_READERS = 64
F_NOCACHE = 48  # of macOS; Python's fcntl has the name since 3.12 only


@dataclass(frozen=True)
class DiskRate:
    """direct: whether the page cache was out of the way; if not, some of the bytes may have come from memory."""

    bytes_per_second: float
    request_bytes: int
    readers: int
    direct: bool


def disk_rate(
    path: str | os.PathLike[str], seconds: float = 1.0, *, request_bytes: int = REQUEST, readers: int = 2
) -> DiskRate:
    """The rate at which requests of `request_bytes` by `readers` threads, at random places of a file, are answered.

    By O_DIRECT, on macOS by F_NOCACHE. Where the file system refuses it (tmpfs), through the page cache, which is told
    before each request to drop those pages. A request is a multiple of 4 KiB and at most the file, rounded up: the
    rate of a small file is that of small requests. Takes `seconds`, and until the last request is answered.

    InputError where `path` is no file with something in it that can be read, or a number makes no sense.
    """
    from concurrent.futures import ThreadPoolExecutor  # which brings logging along; most programs measure no disk

    require_number("seconds", seconds, " above 0", lambda value: value > 0)
    require_integer("request_bytes", request_bytes, low=1, high=MAX_REQUEST)
    require_integer("readers", readers, low=1, high=MAX_READERS)
    path = Path(path)
    size = require_regular_file(path, InputError)
    if not size:
        raise InputError(f"{path}: is empty; a disk's rate is measured by reading a file")
    request = -(-min(request_bytes, size) // ALIGN) * ALIGN
    try:
        with _opened(path) as (file, direct), ThreadPoolExecutor(readers) as pool:
            begin = time.perf_counter()
            until = begin + seconds
            reads = [pool.submit(_read, file, size, request, direct, until) for _ in range(readers)]
            done = sum(read.result() for read in reads)
            return DiskRate(done / (time.perf_counter() - begin), request, readers, direct)
    except OSError as problem:
        raise InputError(f"{path}: {problem.strerror or problem}") from None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, bool]]:
    """A descriptor of the file, and whether its reads go past the page cache."""
    file, direct = open_direct(path), True
    if file is None:
        file, direct = os.open(path, os.O_RDONLY), False
    try:
        if sys.platform == "darwin":
            import fcntl

            with suppress(OSError):
                fcntl.fcntl(file, F_NOCACHE, 1)
                direct = True
        yield file, direct
    finally:
        os.close(file)


def open_direct(path: Path) -> int | None:
    """A descriptor that O_DIRECT reads work with; None where the system or the file system has none."""
    if not hasattr(os, "O_DIRECT"):
        return None
    try:
        file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError as problem:
        if problem.errno == errno.EINVAL:  # tmpfs before Linux 6.6, and others
            return None
        raise
    try:
        with mmap.mmap(-1, ALIGN) as memory:
            os.preadv(file, [memory], 0)
        return file
    except OSError as problem:  # opened, but not read
        os.close(file)
        if problem.errno == errno.EINVAL:
            return None
        raise


def _read(file: int, size: int, request: int, direct: bool, until: float) -> int:
    """Reads at random places `until` a time, once at least; gives the number of bytes."""
    done = 0
    memory = huge_pages.chunk(
        request, "a disk's bytes"
    ).data  # into small pages a fast disk reads at a third of its rate
    while True:
        offset = random.randrange(max(0, size - request) // ALIGN + 1) * ALIGN
        if not direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file, offset, request, os.POSIX_FADV_DONTNEED)
        got = os.preadv(file, [memory], offset)
        if not got:
            raise OSError("it became shorter while it was read")
        done += got
        if time.perf_counter() >= until:
            return done
