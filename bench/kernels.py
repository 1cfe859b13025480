"""How fast each kernel is at the models' shapes: GB/s of weights and GFLOP/s, beside what the machine can do.

    python bench/kernels.py [--only linear_bf16] [--level avx512] [--threads 2] [--tokens 1 8 64 512] [--seconds 0.5]

Every figure is the median of repeated calls on weights that do not fit the caches (a ring of copies). "read" is the
bandwidth of NumPy summing a large array in as many threads, taken at the start and the end.
"""

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cgpt import _kernels as k

SHAPES = {  # name: (dtype, N, K, model)
    "qkv 20b": ("BF16", 5120, 2880),
    "out 20b": ("BF16", 2880, 4096),
    "head 20b": ("BF16", 201088, 2880),
    "expert 20b": ("MXFP4", 5760, 2880),
    "c_fc gpt2": ("BF16", 3072, 768),
    "c_fc gpt2 f32": ("F32", 3072, 768),
    "c_proj gpt2 f32": ("F32", 768, 3072),
    "c_fc xl": ("BF16", 6400, 1600),
}


def read_bandwidth(threads: int, size: int = 1 << 29) -> float:
    """GB/s of reading `size` bytes in each thread, best of five."""
    arrays = [np.ones(size // 8) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        best = 0.0
        for _ in range(5):
            start = time.perf_counter()
            list(pool.map(np.max, arrays))
            best = max(best, threads * size / (time.perf_counter() - start) / 1e9)
    return best


def make(dtype: str, N: int, K: int, rng) -> k.Matrix:
    if dtype == "MXFP4":
        blocks = rng.integers(0, 256, (N, K // 32, 16), np.uint8)
        return k.Matrix("MXFP4", blocks, rng.integers(118, 123, (N, K // 32), np.uint8))
    values = rng.standard_normal((N, K), np.float32)
    return k.Matrix(dtype, (values.view(np.uint32) >> 16).astype(np.uint16) if dtype == "BF16" else values)


def median_seconds(call, budget: float) -> float:
    times, end = [], time.perf_counter() + budget
    call()
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of a shape's name")
    parser.add_argument("--level", default=k.level())
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--seconds", type=float, default=0.5)
    a = parser.parse_args()
    import cgpt  # noqa: F401  chooses the level

    k.use_level(a.level)
    rng, ctx = np.random.default_rng(0), k.Context(a.threads, a.exact)
    print(f"level {a.level}, {a.threads} threads, read {read_bandwidth(a.threads):.1f} GB/s")
    for name, (dtype, N, K) in SHAPES.items():
        if a.only not in name:
            continue
        first = make(dtype, N, K, rng)
        size = sum(x.nbytes for x in first.arrays)
        ring = [first] + [make(dtype, N, K, rng) for _ in range(min(int(2e8 // size), 24))]
        for T in a.tokens:
            x, y = k.Tensor(rng.standard_normal((T, K), np.float32)), k.Tensor(np.zeros((T, N), np.float32))
            at = [0]

            def call(x=x, y=y, at=at, T=T, ring=ring):
                at[0] = (at[0] + 1) % len(ring)
                k.linear(ctx, y, x, ring[at[0]], T)

            s = median_seconds(call, a.seconds)
            print(f"{name:16s} {dtype:6s} {N:6d} x {K:5d}  T {T:4d}  {s * 1e3:9.3f} ms  {size / s / 1e9:6.1f} GB/s"
                  f"  {2 * T * N * K / s / 1e9:7.1f} GFLOP/s")
    print(f"read {read_bandwidth(a.threads):.1f} GB/s")


if __name__ == "__main__":
    main()
