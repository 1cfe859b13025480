"""What this machine could do: how fast its memory can be read, and how fast its cores multiply at the level in use."""

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cgpt.arguments import require_integer
from cgpt.errors import OutOfMemoryError
from cgpt.kernels import _kernels as k
from cgpt.machine import sysfs
from cgpt.machine.memory import available_memory

MIB = 1 << 20
BLOCK = 4 * MIB  # bytes a thread reads at a time
MIN_BUFFER, MAX_BUFFER = 64 * MIB, 1024 * MIB  # of the memory that is read
SLICE = 0.01  # seconds of multiplying a thread is given at a time


@dataclass(frozen=True)
class Roofline:
    """The most that was reached. dtype: of the factors of flops_per_s, "f32", "bf16" (sums of both are f32)
    or "int8"."""

    read_bytes_per_s: float
    flops_per_s: float
    level: str
    dtype: str
    threads: int


def measure(threads: int, seconds: float = 1.0, precision: str = "auto") -> Roofline:
    """The roofline of `threads` threads at the level in use, taking about `seconds` and some for filling memory.

    Memory: four times the last-level caches, 256 MiB to 1 GiB, less where that is more than a quarter of what is free.
    Multiplication: what the level is best at, bf16 where it has such products (avx512 with AVX512_BF16, amx), else f32;
    with precision "int8" that of bytes where its kernels run.
    The best of many short runs: others' load can only take away. InputError for a number of threads below 1.
    """
    require_integer("threads", threads, low=1)
    kernels = k.kernels()
    dtype = "bf16" if kernels["peak_tile"] != "-" else "f32"
    if precision == "int8" and kernels["linear_int8_a8"] == kernels["peak_a8"] != "-":  # on amx they are those of bf16
        dtype = "int8"
    return Roofline(read_bandwidth(threads, seconds / 2), peak(threads, dtype, seconds / 2), k.level(), dtype, threads)


def read_bandwidth(threads: int, seconds: float) -> float:
    """Bytes per second that `threads` threads read from memory. OutOfMemoryError where there is none to read."""
    size = buffer_bytes(_last_level_caches(), available_memory())
    try:
        data = np.empty((size // BLOCK, BLOCK // 4), np.float32)
    except MemoryError:
        raise OutOfMemoryError(f"no {size >> 20} MiB of memory to measure its bandwidth with") from None
    with ThreadPoolExecutor(threads) as pool:  # pages are written, else all are the same one, and near who reads them
        list(pool.map(lambda part: part.fill(1), np.array_split(data, threads)))
    ctx, tensor, out = k.Context(threads, "exact"), k.Tensor(data), np.empty(len(data), np.int32)
    return data.nbytes / _fastest(lambda: k.read(ctx, out, tensor), seconds)


def peak(threads: int, dtype: str, seconds: float) -> float:
    """Floating-point operations per second that `threads` threads do on registers, with factors of `dtype`."""
    ctx, rounds = k.Context(threads, "exact"), 1000
    one = k.Tensor(np.empty(1, np.float32))
    rounds = max(1, int(rounds * SLICE / _fastest(lambda: k.peak(ctx, one, rounds, dtype=dtype), 0)))
    out = k.Tensor(np.empty(4 * threads, np.float32))  # several a thread, so that a slow one holds nobody up
    flops = k.peak(ctx, out, 1, dtype=dtype) * rounds
    return flops / _fastest(lambda: k.peak(ctx, out, rounds, dtype=dtype), seconds)


def buffer_bytes(caches: int, available: int | None) -> int:
    """The bytes to read, in whole blocks. caches: bytes of all last-level caches; available: of free memory."""
    size = min(max(4 * caches, 4 * MIN_BUFFER), MAX_BUFFER)
    if available is not None:
        size = min(size, max(available // 4, MIN_BUFFER))
    return size // BLOCK * BLOCK


def _last_level_caches(root: Path = Path("/")) -> int:
    """The bytes of the caches nearest to memory, 0 where the system does not tell."""
    found: dict[tuple[int, str], int] = {}
    for index in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cache/index[0-9]*"):
        level, cpus = sysfs.number(index / "level"), sysfs.text(index / "shared_cpu_list")
        size = re.fullmatch(r"(\d+)([KMG]?)", sysfs.text(index / "size"))
        if level is not None and cpus and size:
            found[level, cpus] = int(size[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[size[2]]
    last = max((level for level, _ in found), default=0)
    return sum(size for (level, _), size in found.items() if level == last)


def _fastest(call: Callable[[], object], seconds: float) -> float:
    """The shortest of at least three calls, and of as many as fit into `seconds`."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
