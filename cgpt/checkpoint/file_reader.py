"""Reading pieces of a checkpoint's files into memory, past the page cache where the file system can."""

import errno
import os
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from cgpt.checkpoint.safetensors import Checkpoint
from cgpt.machine.disk import ALIGN, open_direct


class ReadBytes(Protocol):
    """How a store reads: FileReader, or what a test puts in its place."""

    def __call__(self, file: Path, offset: int, into: memoryview, needed: int) -> None:
        """Fills `into`, of which `needed` bytes count, from `offset` on; it and len(into) are multiples of ALIGN.
        Raises OSError, or EOFError where the file ends before."""


class FileReader:
    """Reads the open files of a checkpoint, past the page cache where the file system can."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._open = {opened.path: _direct(opened.descriptor) for opened in checkpoint.files}
        self._buffered = {opened.path: opened.descriptor for opened in checkpoint.files}
        for descriptor in (one for one in self._open.values() if one is not None):
            weakref.finalize(self, os.close, descriptor)

    @property
    def direct(self) -> bool:
        """Whether all reads go past the page cache."""
        return None not in self._open.values()

    def __call__(self, file: Path, offset: int, into: memoryview, needed: int) -> None:
        done = 0
        while done < needed:
            descriptor = self._open[file]
            try:
                count = os.preadv(
                    self._buffered[file] if descriptor is None else descriptor, [into[done:]], offset + done
                )
            except OSError as problem:
                if descriptor is None or problem.errno != errno.EINVAL:
                    raise
                self._open[file] = None  # the file system took the flag, and not the read
                continue
            done += count
            if done < needed and (not count or (descriptor is not None and done % ALIGN)):
                raise EOFError


def _direct(descriptor: int) -> int | None:
    """Another descriptor of the same open file, which reads past the page cache; None where the system has none."""
    with suppress(OSError):
        return open_direct(Path(f"/proc/self/fd/{descriptor}"))
    return None
