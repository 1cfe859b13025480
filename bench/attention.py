"""How fast attention is at the models' shapes: GB/s of cache read and GFLOP/s, beside what the machine can read.

    python bench/attention.py [--only decode] [--level avx512] [--threads 2] [--dtype BF16] [--seconds 0.5]

Every figure is the median of calls on caches that do not fit the processor's (a ring of copies). Decode reads the
keys and values its window sees once; prefill's FLOPs are those of the visible (query, key) pairs: 4 D each.
"""

import argparse

import numpy as np
from kernels import median_seconds

from cgpt import _kernels as k
from cgpt import roof

CASES = {  # name: (H, G, D, window, T, start)
    "decode gpt2 at 1,000": (12, 12, 64, 0, 1, 1000),
    "decode 20b at 4,096": (64, 8, 64, 0, 1, 4096),
    "decode 20b at 32,768": (64, 8, 64, 0, 1, 32768),
    "decode 20b window 128": (64, 8, 64, 128, 1, 4096),
    "prefill gpt2 512": (12, 12, 64, 0, 512, 0),
    "prefill 20b 512": (64, 8, 64, 0, 512, 0),
    "prefill 20b 512 at 4,096": (64, 8, 64, 0, 512, 4096),
    "prefill 20b 512 at 32,256": (64, 8, 64, 0, 512, 32256),
    "prefill 20b window 128": (64, 8, 64, 128, 512, 4096),
}
RING = 150_000_000  # bytes of caches in turn


def make(G: int, D: int, positions: int, dtype: str, rng) -> tuple[k.LayerCache, int]:
    """A cache of random keys and values, and its bytes."""
    shapes = k.kv_shapes(-(-positions // k.KV_BLOCK), G, D)
    parts = [rng.standard_normal(shape, np.float32) for shape in shapes]
    if dtype == "BF16":
        parts = [(part.view(np.uint32) >> 16).astype(np.uint16) for part in parts]
    elif dtype == "F16":
        parts = [part.astype(np.float16) for part in parts]
    return k.LayerCache(*parts, dtype), sum(part.nbytes for part in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--level", default=None)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtype", choices=("F32", "F16", "BF16"), default="F32", help="of the cache")
    parser.add_argument("--seconds", type=float, default=0.5)
    a = parser.parse_args()
    import cgpt  # noqa: F401  chooses the level

    k.use_level(a.level or k.level())
    rng = np.random.default_rng(0)

    def show_bandwidth() -> None:
        read = ", ".join(f"{n} threads {roof.read_bandwidth(n, 0.5) / 1e9:.1f} GB/s" for n in a.threads)
        print(f"read {read}", flush=True)

    print(f"level {k.level()}, cache {a.dtype}")
    show_bandwidth()
    for name, (H, G, D, window, T, start) in CASES.items():
        if a.only not in name:
            continue
        seen = min(window or start + T, start + T)
        first, size = make(G, D, seen, a.dtype, rng)
        ring = [first] + [make(G, D, seen, a.dtype, rng)[0] for _ in range(RING // size)]
        qkv = k.Tensor(rng.standard_normal((T, (H + 2 * G) * D), np.float32))
        out = k.Tensor(np.zeros((T, H * D), np.float32))
        calls = [((out, qkv, cache, 0, start, T, H), {"scale": D**-0.5, "window": window}) for cache in ring]
        pairs = sum(min(window or p + 1, p + 1) for p in range(start, start + T))
        for threads in a.threads:
            s = median_seconds("attention", k.Context(threads, True), calls, a.seconds)
            read = size / -(-seen // k.KV_BLOCK) * seen / k.KV_BLOCK
            print(f"{name:26s} {threads} threads  {s * 1e3:9.3f} ms  {read / s / 1e9:6.1f} GB/s"
                  f"  {4 * D * H * pairs / s / 1e9:7.1f} GFLOP/s", flush=True)
    show_bandwidth()


if __name__ == "__main__":
    main()
