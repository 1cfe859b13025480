"""Prompt and generation speed of whole checkpoints, from Python: load, prefill of 512 tokens, decode of 32, memory.

    python bench/models.py DIR [DIR ...] [--dense bf16] [--precision exact] [--threads 2] [--prompt 512] [--new 32]

Random ids, fresh for each of --repeat rounds; medians. Beside them the bandwidth of reading memory, same process.
"""

import argparse
import resource
import statistics
import time

import numpy as np
from kernels import read_bandwidth

import cgpt
from cgpt.info import describe


def measure(directory: str, a: argparse.Namespace) -> None:
    start = time.perf_counter()
    model = cgpt.load(directory, threads=a.threads, precision=a.precision, dense=a.dense)
    loaded = time.perf_counter() - start
    rng, prefill, decode = np.random.default_rng(), [], []
    for _ in range(a.repeat + 1):  # the first round is the warm-up
        ids = rng.integers(0, model.vocab_size, a.prompt)
        sequence = model.new_sequence(a.prompt + a.new)
        start = time.perf_counter()
        for i in range(0, a.prompt, model.PREFILL_CHUNK):
            logits = model.step([(sequence, ids[i : i + model.PREFILL_CHUNK])])
        prefill.append(a.prompt / (time.perf_counter() - start))
        for _ in range(a.new):
            begin = time.perf_counter()
            logits = model.step([(sequence, [int(logits[0].argmax())])])
            decode.append(time.perf_counter() - begin)
    decode = decode[a.new :]
    rate = 1 / statistics.median(decode)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    per_token = describe(directory)["bytes"]["per_token"]
    stored = sum(b for part, b in per_token.items() if part != "cache")
    if a.dense and model.head.dtype == "BF16" and describe(directory)["architecture"] == "GPT-2":
        stored /= 2  # published in f32
    print(f"{directory.rstrip('/').rsplit('/', 1)[-1]:14s} {cgpt.isa.level()} {a.precision} dense={a.dense} "
          f"threads={model.threads}: load {loaded:.2f} s, "
          f"prefill {a.prompt} {statistics.median(prefill[1:]):.1f} tok/s, "
          f"decode {rate:.2f} tok/s ({stored * rate / 1e9:.1f} GB/s), peak {peak:.2f} GB, "
          f"read {read_bandwidth(model.threads, 1 << 28):.1f} GB/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="+")
    parser.add_argument("--dense")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=3)
    a = parser.parse_args()
    for directory in a.directories:
        measure(directory, a)


if __name__ == "__main__":
    main()
