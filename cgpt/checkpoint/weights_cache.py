"""Keeps the converted matrices of a checkpoint in a file, which is mapped the next time instead of made again."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from cgpt.arguments import require_directory, warn_caller
from cgpt.checkpoint.safetensors import SINGLE_FILE, Checkpoint
from cgpt.errors import CheckpointError
from cgpt.version import __version__

LAYOUT = 1  # one more where what a conversion gives changes within a version
ALIGN = 64  # bytes: of the kernels' rows


class WeightsCache:
    """A folder of `directory` for each checkpoint, `dense` and part of the matrices that a process has, with one
    safetensors file. A checkpoint is told by FileWatch.digest() and by when its files were changed, as a digest of all
    of it would take longer than the conversion. Written whole or not at all; what is not wanted may be deleted.

    kept: the file's tensors, None where there is none yet. partition: (rank, ranks).
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        checkpoint: Checkpoint,
        dense: str | None,
        partition: tuple[int, int] = (0, 1),
    ) -> None:
        stamps = [file.stamp for file in checkpoint.files]
        what = repr((__version__, LAYOUT, dense, partition, stamps)).encode()
        key = hashlib.blake2b(what + checkpoint.watch().digest(), digest_size=16).hexdigest()
        self._directory = require_directory("a weights cache", directory) / key
        self._made: dict[str, np.ndarray] = {}
        self.kept: Checkpoint | None = None
        if os.path.lexists(self._directory / SINGLE_FILE):
            try:
                self.kept = Checkpoint(self._directory)
            except CheckpointError as problem:
                warn_caller(f"the weights cache is made again: {problem}")

    def arrays(self, name: str, make: Callable[[], Sequence[np.ndarray]]) -> Sequence[np.ndarray]:
        """What make() gives for the tensor `name`, from the file where it is there."""
        if self.kept is None:
            made = make()
            self._made |= {f"{name}:{i}": array for i, array in enumerate(made)}
            return made
        names = [one for i in range(2) if (one := f"{name}:{i}") in self.kept.tensors]
        if not names:  # the file is of a load that copied, which leaves an embedding where it is
            return make()
        for one in names:
            self.kept.prefetch(one)
        return [self.kept.array(one) for one in names]

    def save(self) -> None:
        """Writes what was made. Where that fails, as on a full disk, the model runs all the same: a warning says so."""
        if not self._made:
            return
        temporary = self._directory / f"{secrets.token_hex(8)}.part"  # containers have the same process ids
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with open(temporary, "xb") as file:
                # Without gaps, as the format wants it: those that would leave others unaligned come last.
                tensors = sorted(self._made.items(), key=lambda item: (item[1].nbytes % ALIGN > 0, -item[1].itemsize))
                file.write(_header(tensors))
                for _, array in tensors:
                    file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._directory / SINGLE_FILE)
        except OSError as problem:
            warn_caller(f"{self._directory}: the converted weights were not kept: {problem.strerror or problem}")
        finally:
            with suppress(OSError):  # it has its name by now
                temporary.unlink()
        self._made.clear()


def _header(tensors: Sequence[tuple[str, np.ndarray]]) -> bytes:
    entries, end = {}, 0
    for name, array in tensors:
        begin, end = end, end + array.nbytes
        dtype = f"{array.dtype.kind}{8 * array.itemsize}".upper()  # bf16 as the bits: U16
        entries[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": (begin, end)}
    header = json.dumps(entries).encode()
    header += b" " * (-(len(header) + 8) % ALIGN)
    return len(header).to_bytes(8, "little") + header
