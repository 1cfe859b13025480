"""What peers.py asks of an engine. Token ids in, greedy, batch 1, no end-of-text stop."""

import json
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np


class Skip(Exception):
    """Why an engine cannot do this work here, in one line."""


class Engine:
    """One engine at one precision. `packages` are those whose versions are printed; `settings` names, for each
    model_type of config.json, the precisions to run: "bf16", or "f32@avx2" for one with CGPT_ISA=avx2."""

    packages: tuple[str, ...] = ()
    settings: dict[str, tuple[str, ...]] = {}

    def __init__(self, checkpoint: Path, precision: str, threads: int, context: int) -> None:
        self.checkpoint = checkpoint
        self.precision = precision.partition("@")[0]
        self.threads = threads
        self.context = context  # positions that a turn needs
        self.config = json.loads((checkpoint / "config.json").read_text())

    @classmethod
    def versions(cls) -> str:
        """Names and versions of what is installed. Skip where something is not."""
        try:
            return ", ".join(f"{name} {version(name)}" for name in cls.packages)
        except PackageNotFoundError as problem:
            raise Skip(f"not installed: {problem.name}") from None

    def prepare(self, work: Path) -> Path:
        """What `load` opens: the checkpoint, or what it was converted to, in `work`, kept for the next time."""
        return self.checkpoint

    def load(self, path: Path) -> None:
        raise NotImplementedError

    def reset(self) -> None:
        """Forgets the sequence."""
        raise NotImplementedError

    def step(self, ids: list[int]) -> np.ndarray:
        """Appends ids to the sequence and gives the logits after the last, [V]."""
        raise NotImplementedError

    def logits(self, ids: list[int]) -> np.ndarray | None:
        """The logits after a prompt, float32 [V], or None where the engine keeps them."""
        self.reset()
        return np.asarray(self.step(ids), np.float32)

    def tokens(self, ids: list[int], n: int) -> Iterator[int]:
        """n greedy tokens, each as soon as it is known: the first ends the prefill, the others are the decode.
        An iterator, because several engines cannot be stepped from outside but can be watched."""
        self.reset()
        for _ in range(n):
            ids = [int(self.step(ids).argmax())]
            yield ids[0]
