"""A checkpoint directory, read with json and NumPy alone: config.json and all *.safetensors files."""

import json
from pathlib import Path

import numpy as np

STORED = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "U8": np.uint8}


class Checkpoint:
    """Tensors stay on disk, memory-mapped, until asked for: a full-width model needs no memory of its own."""

    def __init__(self, directory):
        directory = Path(directory)
        self.config = json.loads((directory / "config.json").read_text())
        self._tensors = {}
        for file in sorted(directory.glob("*.safetensors")):
            self._tensors.update(read_header(file))

    def __contains__(self, name):
        return name in self._tensors

    def shape(self, name):
        return self._tensors[name][0].shape

    def tensor(self, name, dtype=np.float64, index=...):
        """Tensor `name`, or its part `index`, as dtype. U8 (packed weights and their scales) stays uint8."""
        stored, kind = self._tensors[name]
        part = stored[index]
        if kind == "U8":
            return np.asarray(part)
        if kind == "BF16":  # the upper half of a float32
            part = (part.astype(np.uint32) << 16).view(np.float32)
        return np.asarray(part).astype(dtype)


def read_header(file, mode="r"):
    """-> {tensor: (memory-mapped array, stored dtype)}. A file is u64 header length, JSON header, data."""
    data = np.memmap(file, np.uint8, mode)
    length = int(data[:8].view(np.uint64)[0])
    header = json.loads(data[8 : 8 + length].tobytes())
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        start, stop = (8 + length + offset for offset in entry["data_offsets"])
        array = data[start:stop].view(STORED[entry["dtype"]]).reshape(entry["shape"])
        tensors[name] = array, entry["dtype"]
    return tensors
