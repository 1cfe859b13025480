"""The safetensors files of a checkpoint directory, validated, memory-mapped and checked, without a copy.

Format: https://huggingface.co/docs/safetensors (8 bytes of header length, a JSON header, the data). The
safetensors package validates each file first. Opening reads headers only: it takes no longer for 10 GB than
for 10 KB.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from cgpt.arguments import warn_caller
from cgpt.checkpoint.changes import SAMPLE, FileWatch, OpenFile
from cgpt.checkpoint.formats import explain
from cgpt.errors import CheckpointError, OutOfMemoryError
from cgpt.fields import parse_json_object, read_json_object, require_regular_file, shown

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

MADV_POPULATE_READ = 22  # of Linux's mman-common.h; Python's mmap does not name it
_NUMPY_TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",  # the bits: NumPy has no bfloat16
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_ENDS = r"(.*\.)?(wte|embed_tokens|lm_head)\.weight"  # of tied ones only one may be stored
_LISTED = 5  # problems or names in one message


@dataclass(frozen=True)
class TensorSpec:
    """What a model expects of a tensor: its shape, and the dtypes it may have (safetensors' names)."""

    shape: tuple[int, ...]
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class StoredTensor:
    """What a file's header says of a tensor. `dtype` is safetensors' name; `offset`, `nbytes` are bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int  # from the start of the file
    nbytes: int


class Checkpoint:
    """The tensors in a directory of safetensors files: `tensors` by name, `array(name)` for the values.

    Reads model.safetensors, or the shards of model.safetensors.index.json, or (OpenAI's layout) every
    *.safetensors file there is. Raises CheckpointError naming the file where one is missing, damaged, or
    holds a tensor that another one has too. watch() notices files that change while they are in use.
    A name that safetensors.torch.save_model() left out, for a tensor that has two, is read from the header's metadata.
    `metadata` is that of all files; `files` stay open.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self.tensors: dict[str, StoredTensor] = {}
        self.metadata: dict[str, str] = {}
        self._maps: dict[Path, mmap.mmap] = {}
        self.files: list[OpenFile] = []
        files, weight_map = find_files(self.directory)
        for file in files:
            self._maps[file], opened = _map_file(file)
            self.files.append(opened)
            tensors, metadata = _read_header(file, self._maps[file])
            self.metadata |= metadata
            for tensor in tensors:
                other = self.tensors.setdefault(tensor.name, tensor)
                if other is not tensor:
                    raise CheckpointError(f"{file}: tensor {tensor.name!r} is in {other.file.name} too")
        for alias, kept in self.metadata.items():
            if kept in self.tensors:
                self.tensors.setdefault(alias, replace(self.tensors[kept], name=alias))
        for name, file_name in weight_map.items():
            if name not in self.tensors and re.fullmatch(_ENDS, name):
                continue  # check() refuses it where the model needs it
            if name not in self.tensors or self.tensors[name].file.name != file_name:
                index = self.directory / INDEX_FILE
                raise CheckpointError(f"{index}: says {name!r} is in {file_name}, which does not hold it")

    def array(self, name: str, aligned: bool = True) -> np.ndarray:
        """The values of a tensor, read-only [*shape]; BF16 as the uint16 of its bits.

        A view of the mapped file. Only a tensor that does not start at a multiple of its item size is copied, and with
        aligned=False not even that.
        CheckpointError where there is no such tensor, or NumPy has no type for it.
        """
        if name not in self.tensors:
            raise CheckpointError(f"{self.directory}: no tensor {name!r}")
        tensor = self.tensors[name]
        if tensor.dtype not in _NUMPY_TYPES:
            raise CheckpointError(f"{tensor.file}: tensor {name!r} has the unsupported dtype {tensor.dtype}")
        dtype = np.dtype(_NUMPY_TYPES[tensor.dtype])
        data = np.frombuffer(self._maps[tensor.file], np.uint8)
        data = data[tensor.offset : tensor.offset + tensor.nbytes]
        if aligned and tensor.offset % dtype.itemsize:
            data = data.copy()
            data.flags.writeable = False
            self.release(name)
        return data.view(dtype).reshape(tensor.shape)

    def prefetch(self, name: str, rows: slice = slice(None)) -> None:
        """Maps the pages of a tensor's rows at once, where the system can (Linux 5.14): four times as fast as one by
        one."""
        tensor = self.tensors[name]
        begin, end, _ = rows.indices(tensor.shape[0])
        row = tensor.nbytes // tensor.shape[0]
        first = (tensor.offset + begin * row) // mmap.PAGESIZE * mmap.PAGESIZE
        with contextlib.suppress(OSError, ValueError):
            self._maps[tensor.file].madvise(MADV_POPULATE_READ, first, tensor.offset + end * row - first)

    def release(self, name: str) -> None:
        """Gives back the memory of a tensor's pages; they are read from the file again when next touched."""
        tensor = self.tensors[name]
        first = -(-tensor.offset // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (tensor.offset + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
        if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._maps[tensor.file].madvise(mmap.MADV_DONTNEED, first, length)

    def watch(self, made: Checkpoint | None = None) -> FileWatch:
        """Begins to watch the files, and those of what was made of them, once all is loaded; CheckpointError where one
        has changed since it was opened."""
        for file in self.files:
            stored = [tensor for tensor in self.tensors.values() if tensor.file == file.path]
            header = min((tensor.offset for tensor in stored), default=0)
            if problem := file.change():
                raise CheckpointError(problem)
            file.remember([(0, header), *((tensor.offset, min(tensor.nbytes, SAMPLE)) for tensor in stored)])
        if made is not None:
            made.watch()
        return FileWatch(self.files, made.files if made else ())

    def check(self, spec: Mapping[str, TensorSpec], ignore: Iterable[str] = ()) -> None:
        """Compares what is stored with what the model expects, reading no values.

        CheckpointError lists the tensors that are missing, or have another dtype or shape. A tensor that is
        not in `spec` is warned of, unless one of the regular expressions in `ignore` matches its whole name.
        """
        problems, transposed = [], []
        for name, want in spec.items():
            found = self.tensors.get(name)
            if found and found.shape != want.shape and found.shape == (*want.shape[:-2], *want.shape[:-3:-1]):
                transposed.append(name)
            if found is None or found.dtype not in want.dtypes or found.shape != tuple(want.shape):
                wanted = f"{'|'.join(want.dtypes)} {list(want.shape)}"
                stored = f"{found.dtype} {list(found.shape)} in {found.file.name}" if found else "none"
                problems.append(f"{name}: expected {wanted}, found {stored}")
        if problems:
            hint = ""
            if transposed:
                hint = (
                    f"{len(transposed)} matrices, as {transposed[0]}, are stored the other way round, as nn.Linear, "
                    "nanoGPT and MLX keep them; transpose all of their kind, the square ones too: "
                )
            raise CheckpointError(f"{self.directory}: {hint}tensors do not fit config.json: {_listed(problems)}")
        patterns = [re.compile(pattern) for pattern in ignore]
        ignored = {name for name in self.tensors for pattern in patterns if pattern.fullmatch(name)}
        surplus = [name for name in self.tensors if name not in spec and name not in ignored]
        if surplus:
            warn_caller(f"{self.directory}: unknown tensors, not used: {_listed(surplus)}")


def _listed(items: list[str]) -> str:
    more = f"; and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return "; ".join(items[:_LISTED]) + more


def find_files(directory: Path) -> tuple[list[Path], dict[str, str]]:
    """The safetensors files of a checkpoint, and the index's map from tensor to file name (or {})."""
    if not os.path.isdir(directory):
        a_file = os.path.exists(directory)
        problem = "is a file; give the directory it is in" if a_file else "no such directory"
        raise CheckpointError(f"{directory}: {problem}")
    single, index = directory / SINGLE_FILE, directory / INDEX_FILE
    if os.path.lexists(single):  # as in transformers, it comes before the index
        return [single], {}
    if os.path.lexists(index):
        weight_map = _read_index(index)
        return [directory / name for name in sorted(set(weight_map.values()))], weight_map
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        problem = explain(directory) or "no *.safetensors file, the only format cgpt reads"
        raise CheckpointError(f"{directory}: {problem}")
    return files, {}


def _read_index(path: Path) -> dict[str, str]:
    weight_map = read_json_object(path, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: weight_map must name each tensor's file, found {shown(weight_map)}")
    for name, file_name in weight_map.items():
        # A plain name: nothing outside the directory, nothing a message cannot show.
        if (
            not isinstance(file_name, str)
            or not file_name.endswith(".safetensors")
            or not file_name.isprintable()
            or re.search(r"[/\\:]", file_name)
        ):
            where = "in a *.safetensors file of this directory"
            raise CheckpointError(f"{path}: {shown(name)} must be {where}, found {shown(file_name)}")
    return weight_map


def _map_file(path: Path) -> tuple[mmap.mmap, OpenFile]:
    size = require_regular_file(path, CheckpointError)
    try:
        with open(path, "rb") as file:
            if file.read(20) == b"version https://git-":
                raise CheckpointError(f"{path}: a Git LFS pointer, not the file itself; run `git lfs pull`")
            with safe_open(path, framework="numpy"):
                pass
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return mapped, OpenFile(path, file.fileno(), mapped)
    except MemoryError as problem:
        raise OutOfMemoryError(f"{path}: no memory to map it: {problem}") from None
    except OSError as problem:
        raise CheckpointError(f"{path}: {problem.strerror or problem}") from None
    except SafetensorError as problem:
        raise CheckpointError(f"{path}: not a whole safetensors file ({size} bytes): {problem}") from None


def _read_header(path: Path, mapped: mmap.mmap) -> tuple[list[StoredTensor], dict[str, str]]:
    """The tensors of a file that safetensors accepted, checked again: a view must never leave the file. And the
    header's metadata."""
    length = int.from_bytes(mapped[:8], "little")
    data_start = 8 + length
    if data_start > len(mapped):
        raise CheckpointError(f"{path}: a header of {length} bytes in a file of {len(mapped)}")
    header = parse_json_object(mapped[8:data_start], path, CheckpointError)
    metadata = header.pop("__metadata__", None) or {}
    return [_stored_tensor(name, entry, path, data_start, len(mapped)) for name, entry in header.items()], metadata


def _stored_tensor(name: str, entry: Any, path: Path, data_start: int, file_size: int) -> StoredTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        valid = isinstance(dtype, str) and all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        valid = False
    if not valid:
        raise CheckpointError(f"{path}: tensor {name!r} has a malformed header entry {shown(entry)}")
    nbytes = end - begin
    if nbytes < 0 or data_start + end > file_size:
        raise CheckpointError(f"{path}: {name!r} lies at bytes {begin} to {end} of {file_size - data_start}")
    # An empty tensor may have any other dimensions; NumPy cannot have all of them.
    if len(shape) > 8 or prod(max(n, 1) for n in shape) >= 1 << 59:
        raise CheckpointError(f"{path}: tensor {name!r} has the absurd shape {shown(list(shape))}")
    if dtype in _NUMPY_TYPES and nbytes != prod(shape) * np.dtype(_NUMPY_TYPES[dtype]).itemsize:
        raise CheckpointError(f"{path}: {name!r}, {dtype} {list(shape)}, does not fill {nbytes} bytes")
    return StoredTensor(name, dtype, shape, path, data_start + begin, nbytes)
