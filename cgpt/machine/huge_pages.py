"""Memory for weights in huge pages (of 2 MB, where the system gives them): filled with fewer page faults, read with
fewer misses of the address translation."""

from __future__ import annotations

import mmap
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from math import prod
from pathlib import Path

import numpy as np

from cgpt.errors import InputError, OutOfMemoryError
from cgpt.machine import sysfs
from cgpt.machine.memory import available_memory

MADV_POPULATE_WRITE = 23  # of Linux's mman-common.h
CHUNK, HUGE, ALIGN = 64 << 20, 2 << 20, 64  # bytes: of address space at a time, of a page, of an array's start


class Arena:
    """Arrays one behind the other in anonymous memory for which huge pages are asked: a matrix by itself would seldom
    fill them. A chunk lives as long as any array in it."""

    def __init__(self) -> None:
        self._free = np.empty(0, np.uint8)

    def empty(self, shape: tuple[int, ...], dtype: np.typing.DTypeLike) -> np.ndarray:
        """An uninitialised array, 64-byte aligned. OutOfMemoryError where there is no memory for it."""
        dtype = np.dtype(dtype)
        size = prod(shape) * dtype.itemsize
        taken = -(-size // ALIGN) * ALIGN
        if taken > self._free.size:
            self._free = chunk(max(taken, CHUNK))
        mine, self._free = self._free[:size], self._free[taken:]
        return mine.view(dtype).reshape(shape)


def anonymous(size: int, what: str) -> mmap.mmap:
    """Address space of `size` bytes that becomes memory as it is touched, in huge pages where the system gives them.
    OutOfMemoryError, which names `what` it is for, where the system refuses."""
    try:
        memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, ValueError, OverflowError) as problem:
        raise OutOfMemoryError(f"no memory for {what} ({problem})") from None
    with suppress(OSError, AttributeError):  # a kernel, or a system, without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def populate(address: int, size: int) -> None:
    """Makes memory of address space (both multiples of a page) at once, which takes less time than page by page as it
    is touched, and keeps what it holds. Without effect where the system cannot, as Linux before 5.14."""
    import ctypes  # Python's own madvise() would hold its lock

    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), MADV_POPULATE_WRITE)


def give_back(memory: mmap.mmap, begin: int, size: int) -> None:
    """Gives the memory of `size` bytes of address space from `begin` on back; what they held is lost. On macOS, where
    MADV_DONTNEED keeps it, once the system wants it."""
    memory.madvise(mmap.MADV_FREE if sys.platform == "darwin" else mmap.MADV_DONTNEED, begin, size)


def chunk(size: int, what: str = "weights") -> np.ndarray:
    """uint8 [size], from the start of a huge page on; see anonymous()."""
    array = np.frombuffer(anonymous(size + HUGE, f"{size / 1e9:.1f} GB of {what}"), np.uint8)
    start = -array.ctypes.data % HUGE
    return array[start : start + size]


def transparent(root: Path = Path("/")) -> str | None:
    """When the system gives huge pages to whoever did not reserve them: "always", "madvise" (asked for), "never"; None:
    unknown. root: the root of the file system that holds sys."""
    found = re.search(r"\[(\w+)\]", sysfs.text(root / "sys/kernel/mm/transparent_hugepage/enabled"))
    return found[1] if found else None


def require(nbytes: int, available: Callable[[], int | None] = available_memory, root: Path = Path("/")) -> None:
    """InputError where weights cannot be copied into huge pages since there are none, OutOfMemoryError where `nbytes`
    are more than can be had."""
    if transparent(root) not in ("always", "madvise"):
        raise InputError(
            "huge_pages: this system has no transparent huge pages, or they are off; as root: echo madvise > "
            "/sys/kernel/mm/transparent_hugepage/enabled; or load without"
        )
    free = available()
    if free is not None and nbytes > free:
        raise OutOfMemoryError(
            f"huge_pages copies {nbytes / 1e9:.1f} GB of weights, and {free / 1e9:.1f} GB of memory can be had; "
            "without it they are read where they lie in the page cache"
        )
