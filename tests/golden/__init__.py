"""Small checkpoints with the outputs that transformers computed for them; README.md tells their story."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Prompt:
    tokens: list[int]
    logits: np.ndarray  # float32 [T, V]
    hidden: np.ndarray  # float32 [T, C], the head's input
    logprobs: np.ndarray  # float32 [T-1], of tokens[t+1] given tokens[..t]
    greedy: list[int]  # what follows, 32 ids or none


@dataclass(frozen=True)
class Case:
    name: str  # "gpt2_plain_f32", "gptoss_basic/hf_mxfp4"
    directory: Path

    def prompts(self):
        in_layouts = "/" in self.name
        stored = np.load((self.directory.parent if in_layouts else self.directory) / "expected.npz")
        fields = "tokens", "logits", "hidden", "logprobs", "greedy"
        for i in range(int(stored["n_prompts"])):
            tokens, logits, hidden, logprobs, greedy = (stored[f"{field}{i}"] for field in fields)
            yield Prompt(tokens.tolist(), logits, hidden, logprobs, greedy.tolist())


def case(name):
    return Case(name, HERE / name)


CASES = [
    case(directory.relative_to(HERE).as_posix())
    for directory in sorted(file.parent for file in HERE.rglob("config.json"))
]


def deviation(actual, expected):
    """|actual - expected| in standard deviations of the expected values -> (maximum, root mean square)."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    difference = np.abs(actual - expected) / expected.std()
    return float(difference.max()), float(np.sqrt((difference**2).mean()))


def demo_golden(name):
    """One of the files that transformers' answers for the models in the package are recorded in."""
    return json.loads((HERE / "demo" / name).read_text(encoding="utf-8"))
