"""The tensors of a checkpoint in Hugging Face's layout. Engines may have a Python of their own, without cgpt."""

import json
from pathlib import Path

import numpy as np

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "U8": np.uint8}


class Reader:
    """The checkpoint's tensors as float32, with and without "transformer." before the name."""

    def __init__(self, checkpoint: Path) -> None:
        self.tensors: dict[str, np.ndarray] = {}
        for path in sorted(checkpoint.glob("*.safetensors")):
            with open(path, "rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
            header.pop("__metadata__", None)
            for name, tensor in header.items():
                start = 8 + size + tensor["data_offsets"][0]
                self.tensors[name] = np.memmap(path, DTYPES[tensor["dtype"]], "r", start, tuple(tensor["shape"]))
        self.prefix = "" if "wte.weight" in self.tensors else "transformer."

    def raw(self, name: str) -> np.ndarray:
        """As stored; bf16 as uint16."""
        return self.tensors[name]

    def has(self, name: str) -> bool:
        return name in self.tensors

    def __call__(self, name: str) -> np.ndarray:
        values = self.raw(name)
        if values.dtype == np.uint16:
            return (values.astype(np.uint32) << 16).view(np.float32)
        return np.asarray(values, np.float32)
