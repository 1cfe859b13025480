"""How fast is each kernel at the models' shapes, level by level, and how far below the roofline?

    python bench/kernels.py [--only "20b moe"] [--levels avx2 ref | all] [--threads 2] [--tokens 1 8 64 512]
                            [--kv-cache-dtype f16]

Medians of repeated calls on weights and caches that do not fit the processor's caches (a ring of copies). The roofline
is that of the level, measured before its kernels and after them.
"""

import argparse
import statistics
import time
from collections.abc import Iterator

import numpy as np
import speed_log

import cgpt
from cgpt.bench.costs import cost, matrix_bytes
from cgpt.bench.operands import RING, copies, matrix, tensor
from cgpt.kernels import _kernels as k
from cgpt.machine import roofline
from cgpt.models.kv_cache import DEFAULT_KV_DTYPE, KV_DTYPES, KVCache

LINEAR = {  # name: dtype, N, K
    "gpt2 c_attn f32": ("F32", 2304, 768),
    "gpt2 c_fc f32": ("F32", 3072, 768),
    "gpt2 c_proj f32": ("F32", 768, 3072),
    "gpt2 head f32": ("F32", 50257, 768),
    "gpt2 c_fc bf16": ("BF16", 3072, 768),
    "gpt2 c_fc bf16 packed": ("BF16_PACKED", 3072, 768),
    "gpt2 c_fc f16": ("F16", 3072, 768),
    "gpt2 c_fc int8": ("INT8", 3072, 768),
    "gpt2 head int8": ("INT8", 50257, 768),
    "gpt2-xl c_fc bf16": ("BF16", 6400, 1600),
    "20b q bf16": ("BF16", 4096, 2880),
    "20b out bf16": ("BF16", 2880, 4096),
    "20b head bf16": ("BF16", 201088, 2880),
    "20b q bf16 packed": ("BF16_PACKED", 4096, 2880),
    "20b out bf16 packed": ("BF16_PACKED", 2880, 4096),
    "20b head bf16 packed": ("BF16_PACKED", 201088, 2880),
    "20b q int8": ("INT8", 4096, 2880),
    "20b gate_up mxfp4": ("MXFP4", 5760, 2880),
}
ATTENTION = {  # name: H, G, D, window, positions before
    "gpt2 attention": (12, 12, 64, 0, 0),
    "gpt2 attention @ d960": (12, 12, 64, 0, 960),
    "20b attention": (64, 8, 64, 0, 0),
    "20b attention @ d4096": (64, 8, 64, 0, 4096),
    "20b attention @ d32768": (64, 8, 64, 0, 32768),
    "20b sliding @ d4096": (64, 8, 64, 128, 4096),
}
rng = np.random.default_rng(0)


def calls(T: int, only: str, kv_cache_dtype: str) -> Iterator[tuple[str, str, list]]:
    """(name, kernel, [(arguments, options), ..]) of each shape; the arguments are taken in turn."""
    for name, (dtype, N, K) in LINEAR.items():
        if only in name and not ("head" in name and T > 64):
            size = N * K * {"F32": 4, "MXFP4": 0.53, "INT8": 1, "BF16_PACKED": 1.5}.get(dtype, 2)
            x, y = tensor(T, K), tensor(T, N)
            yield name, "linear", [((y, x, w, T), {}) for w in copies(lambda d=(dtype, N, K): matrix(*d), int(size))]
    if only in "20b moe mxfp4":
        gate_up, down = matrix("MXFP4", 32, 5760, 2880), matrix("MXFP4", 32, 2880, 2880)
        x, out, weight = tensor(T, 2880), tensor(T, 2880), k.Tensor(np.full((T, 4), 0.25, np.float32))
        chosen = [np.array([rng.choice(32, 4, replace=False) for _ in range(T)], np.int32) for _ in range(16)]
        assert matrix_bytes(gate_up) > RING
        yield "20b moe mxfp4", "moe", [((out, x, i, weight, gate_up, down, 1.702, 7.0, T), {}) for i in chosen]
    kept = KV_DTYPES[kv_cache_dtype]
    for name, (H, G, D, window, start) in ATTENTION.items():
        if only in name and not (start == 960 and T > 64):
            qkv, out = tensor(T, (H + 2 * G) * D), tensor(T, H * D)
            size = 2 * k.kv_row_bytes(D, kept) * G * min(start + T, window or start + T)
            caches = copies(lambda a=(window, G, D, start): KVCache([a[0]], *a[1:3], a[3] + T, dtype=kept), size)
            options = {"scale": D**-0.5, "window": window}
            for array in (a for cache in caches for arrays in cache.arrays for a in arrays):
                array.view(np.uint8).fill(0x38)  # an ordinary number of any dtype; left alone, all pages are one
            yield name, "attention", [((out, qkv, [(c.layers[0], 0, start, T)], H), options) for c in caches]
    for name, C in {"gpt2 layernorm": 768, "20b rmsnorm": 2880}.items():
        if only in name:
            x, weights = tensor(T, C), [tensor(1, C)] * (2 if "layer" in name else 1)
            yield name, name.split()[1], [((x, x, *weights, 1e-5, T), {})]
    if only in "gpt2 activation":
        yield "gpt2 activation", "activation", [((tensor(T, 3072), "gelu_tanh", T), {})]
    if only in "20b rope":
        yield "20b rope", "rope", [((tensor(T, 5120), tensor(T, 32), tensor(T, 32), 0, 0, 72, 64, T), {})]


def median_seconds(kernel: str, ctx: k.Context, arguments: list, budget: float) -> float:
    function, times, end = getattr(k, kernel), [], time.perf_counter() + budget
    for args, options in arguments[:2]:
        function(ctx, *args, **options)
    while len(times) < 3 or time.perf_counter() < end:
        args, options = arguments[len(times) % len(arguments)]
        start = time.perf_counter()
        function(ctx, *args, **options)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of a shape's name")
    parser.add_argument("--levels", nargs="+", default=[cgpt.kernels.isa.level()], help="or all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--kv-cache-dtype", choices=KV_DTYPES, default=DEFAULT_KV_DTYPE["auto"])
    parser.add_argument("--precision", choices=k.PRECISIONS, default="auto")
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--log", help="append the times to this file, as in SPEED.jsonl")
    a = parser.parse_args()
    times: dict[str, tuple[float, str]] = {}
    ctx = k.Context(a.threads, a.precision)
    for level in cgpt.kernels.isa.available() if a.levels == ["all"] else a.levels:
        k.use_level(level)
        top = say_roofline(a.threads, a.precision)
        for T in a.tokens:
            for name, kernel, arguments in calls(T, a.only, a.kv_cache_dtype):
                s = median_seconds(kernel, ctx, arguments, a.seconds)
                read, flops = cost(kernel, (ctx, *arguments[0][0]), arguments[0][1])
                times[f"kernel {name}, {level}, {a.threads} threads, {a.precision}, T {T}"] = s * 1e3, "ms"
                line = f"{level:7s} {name:22s} T {T:4d} {s * 1e3:10.3f} ms"
                if read:
                    line += f" {read / s / 1e9:7.1f} GB/s {read / s / top.read_bytes_per_s:5.0%}"
                    line += f" {flops / s / 1e9:8.1f} GFLOP/s {flops / s / top.flops_per_s:5.0%}"
                print(line, flush=True)
        say_roofline(a.threads, a.precision)
    speed_log.append(a.log, times)


def say_roofline(threads: int, precision: str) -> roofline.Roofline:
    found = roofline.measure(threads, precision=precision)
    print(
        f"{found.level:7s} roofline of {threads} threads: {found.read_bytes_per_s / 1e9:.1f} GB/s, "
        f"{found.flops_per_s / 1e9:.1f} GFLOP/s {found.dtype}"
    )
    return found


if __name__ == "__main__":
    main()
