"""How does a model scale with threads, and does it stay upright with more threads than CPUs?

    python bench/threads.py MODEL [--threads 1 2 4 8] [--prompt 512] [--new 64] [--rounds 3] [--precision auto]
                            [--dense int8] [--log SPEED.jsonl]

One line for each number of threads, by default 1, 2, 4 .. to the CPUs of this process, and 64 beside them: tokens per
second of a prompt and of generating after it (medians; rounds go through all numbers of threads in turns, each with a
model loaded anew), their ratio to the fewest threads, and whether the logits of all steps of a fixed text are those of
the fewest threads to the bit. Ends with status 1 where they are not. bench/README.md has a table for other machines.
"""

import argparse
import os
import statistics
import sys
import time

import numpy as np
import speed_log

import cgpt
from cgpt.bench.checkpoints import checkpoint

OVERSUBSCRIBED = 64
PROBE, STEPS = 40, 8  # tokens whose logits are compared: a prompt, and single ones after it


def numbers_of_threads(cpus: int) -> list[int]:
    """1, 2, 4 .. as far as there are CPUs, all of them, and OVERSUBSCRIBED."""
    doubled = {1 << i for i in range(cpus.bit_length())}
    return sorted({n for n in doubled | {cpus} if n <= cpus} | {OVERSUBSCRIBED})


def probe(model: cgpt.Model) -> np.ndarray:
    """The logits of a fixed text, [1 + STEPS, V]."""
    transformer, rng = model.transformer, np.random.default_rng(0)
    ids, cache = rng.integers(0, transformer.vocab_size, PROBE + STEPS), transformer.new_cache(PROBE + STEPS)
    parts = [ids[:PROBE], *ids[PROBE:].reshape(-1, 1)]
    return np.concatenate([np.array(transformer.step([(cache, part)])) for part in parts])


def rates(model: cgpt.Model, prompt: int, new: int) -> tuple[float, float]:
    """Tokens per second of a prompt of fresh random ids, and of single ones after it."""
    transformer, rng = model.transformer, np.random.default_rng()
    cache, ids = transformer.new_cache(prompt + new), rng.integers(0, transformer.vocab_size, prompt + new)
    begun = time.perf_counter()
    for i in range(0, prompt, transformer.PREFILL_CHUNK):
        transformer.step([(cache, ids[i : min(prompt, i + transformer.PREFILL_CHUNK)])])
    read = time.perf_counter()
    for i in range(prompt, prompt + new):
        transformer.step([(cache, ids[i : i + 1])])
    return prompt / (read - begun), new / (time.perf_counter() - read)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint directory, a model of the package, or a published size")
    parser.add_argument("--keep", help="where the random weights of a published size stay")
    parser.add_argument("--threads", type=int, nargs="+")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--dense")
    parser.add_argument("--log", help="append the medians to this file, as in SPEED.jsonl")
    a = parser.parse_args()
    cpus = len(os.sched_getaffinity(0))
    numbers = sorted(a.threads or numbers_of_threads(cpus))
    found: dict[int, list[tuple[float, float]]] = {n: [] for n in numbers}
    logits: dict[int, np.ndarray] = {}
    with checkpoint(a.model, a.keep, lambda text: print(text, file=sys.stderr)) as directory:
        for _ in range(a.rounds):
            for n in numbers:
                model = cgpt.load(directory, n, a.precision, a.dense)
                logits.setdefault(n, probe(model))  # and warms up
                prompt = min(a.prompt, model.context_length - a.new)
                found[n].append(rates(model, prompt, a.new))
    name = os.path.basename(a.model.rstrip("/"))
    print(f"{speed_log.machine()}; {name}, dense {a.dense}, precision {a.precision}; tok/s\n")
    print(f"| threads | prompt of {prompt} | | decode @{prompt} | | logits |\n|---|---|---|---|---|---|")
    base, figures = None, {}
    for n in numbers:
        now = [statistics.median(one) for one in zip(*found[n], strict=True)]
        base = base or now
        cells = " | ".join(f"{rate:,.1f} | {rate / first:.2f} x" for rate, first in zip(now, base, strict=True))
        same = np.array_equal(logits[n], logits[numbers[0]])
        print(f"| {n}{' (oversubscribed)' * (n > cpus)} | {cells} | {'the same' if same else 'DIFFER'} |")
        for what, rate in zip((f"prompt {prompt}", f"decode @{prompt}"), now, strict=True):
            figures[f"{name}: dense {a.dense}, {a.precision}, {n} threads: {what}"] = rate, "tok/s"
    speed_log.append(a.log, figures)
    sys.exit(any(not np.array_equal(one, logits[numbers[0]]) for one in logits.values()))


if __name__ == "__main__":
    main()
