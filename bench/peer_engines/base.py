"""What peers.py asks of an engine. Token ids in, greedy, no end-of-text stop."""

import json
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np


class Skip(Exception):
    """Why an engine cannot do this work here, in one line."""


class Engine:
    """One engine at one precision. `packages` are those whose versions are printed. `settings` names, for each
    model_type of config.json, the precisions to run, and says of each what weights, products and the cache are in.
    "f32@avx2" is f32 with kernels for AVX2."""

    packages: tuple[str, ...] = ()
    settings: dict[str, dict[str, str]] = {}

    def __init__(
        self, checkpoint: Path, precision: str, threads: int, context: int, sequences: int = 1, library: str = ""
    ) -> None:
        self.checkpoint = checkpoint
        self.precision = precision.partition("@")[0]
        self.threads = threads
        self.context = context  # positions that a sequence needs; the worker lowers it for several sequences
        self.sequences = sequences  # the most that reset() is asked for
        self.library = library  # what --library names for this engine
        self.config = json.loads((checkpoint / "config.json").read_text())

    @classmethod
    def versions(cls, library: str = "") -> str:
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

    def reset(self, sequences: int) -> None:
        """Forgets everything: so many empty sequences."""
        raise NotImplementedError

    def step(self, ids: list[list[int]]) -> np.ndarray:
        """Appends as many ids to each sequence and gives the logits after the last of each, [sequences, V]."""
        raise NotImplementedError

    def logits(self, ids: list[int]) -> np.ndarray | None:
        """The logits after a prompt, float32 [V], up to a constant; None where the engine keeps them."""
        self.reset(1)
        return np.asarray(self.step([ids])[0], np.float32)

    def tokens(self, prompts: list[list[int]], n: int) -> Iterator[list[int]]:
        """n greedy tokens of each sequence, as soon as they are known: the first ends the prompts, the others are the
        decode. An iterator, because several engines cannot be stepped from outside but can be watched."""
        self.reset(len(prompts))
        ids = prompts
        for _ in range(n):
            chosen = self.step(ids).argmax(-1).tolist()
            yield chosen
            ids = [[one] for one in chosen]
