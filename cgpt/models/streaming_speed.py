"""What speed a disk lets expect of a model whose experts are streamed: from stated hit rates, not from a run."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgpt.checkpoint.expert_store import READERS
from cgpt.errors import CgptError
from cgpt.machine.disk import disk_rate
from cgpt.machine.roofline import read_bandwidth
from cgpt.machine.threads import default_threads

DISK_SECONDS, MEMORY_SECONDS = 0.7, 0.1  # of measuring
SSD = 1e9  # bytes a second of the disk that is assumed where there are no files to measure

# The share of the roofline that decoding reached where it was measured, whole models in memory (bench/SPEED.md): 51 to
# 87 % on AVX2 and AVX-512.
DECODE_REACHED = 0.65

# Real text chooses some experts far more often than others: with 30 % of them in memory 85 % of the choices hit
# (published measurements of gpt-oss on other engines). 1 - (1 - share) ** SKEW goes through that point.
SKEW = 5.3


@dataclass(frozen=True)
class Rates:
    """Bytes a second, from the disk and from memory. measured: whether the disk's is one, not assumed."""

    disk: float
    memory: float
    measured: bool = True


Measure = Callable[[Iterable[Path]], Rates | None]


def measure_rates(files: Iterable[Path]) -> Rates | None:
    """The rates of the disk of a checkpoint's files, taking about a second; where there are none, those of a disk of
    SSD bytes a second. None where they cannot be measured."""
    try:
        largest = max(files, key=lambda file: file.stat().st_size, default=None)
        disk = SSD if largest is None else disk_rate(largest, DISK_SECONDS, readers=READERS).bytes_per_second
        memory = DECODE_REACHED * read_bandwidth(default_threads(), MEMORY_SECONDS)
    except (CgptError, OSError):
        return None
    return Rates(disk, memory, largest is not None)


def hit_rates(share: float) -> dict[str, float]:
    """The share of choices that is expected to hit where `share` of the experts are in memory: "uniform", if all were
    equally likely, and as on real "text"."""
    return {"uniform": share, "text": 1 - (1 - share) ** SKEW}


def decode_speeds(missed: dict[str, float], experts: float, rest: float, rates: Rates) -> dict[str, float]:
    """Tokens a second for each entry of `missed`, the bytes a token takes from the disk. Meanwhile the experts that are
    in memory are multiplied; all other weights were before.

    experts, rest: the bytes of a token's experts, and those of all else that it reads.
    """
    return {name: 1 / (max(m / rates.disk, experts / rates.memory) + rest / rates.memory) for name, m in missed.items()}


def said(speeds: dict[str, Any]) -> str:
    """Speeds as text: "about 0.7 to 2.5 tok/s"."""
    low, high = (f"{float(f'{speeds[name]:.2g}'):,.{1 if speeds[name] < 9.95 else 0}f}" for name in ("uniform", "text"))
    return f"about {low} tok/s" if low == high else f"about {low} to {high} tok/s"
