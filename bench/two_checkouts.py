"""Whether a change made a model faster or slower: two checkouts take turns, A B B A, on fresh random ids.

    python bench/two_checkouts.py A B --model DIR [--dense int8] [--pairs 24] [--prompt 512] [--decode 48]
    python bench/two_checkouts.py A A --model DIR --dense none bf16-packed

A, B: roots of checkouts with their kernels built in place; versions from 0.1.0 on. Two of --dense are those of A and of
B. Prints medians in tokens per second, and the geometric mean of the times' ratio B / A with its 95 % interval
(Student's t, from the pairs). Nothing else should run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time

WHAT = "decode", "prompt"


def work(path: str, precision: str, dense: str | None) -> None:
    """One side: loads the model and times what stdin asks for, in seconds of a step or of a prompt."""
    import numpy as np

    import cgpt  # that of PYTHONPATH

    model = cgpt.load(path, precision=precision, dense=dense)
    transformer = getattr(model, "transformer", model)  # 0.1.0 had one object for both
    new_cache = getattr(transformer, "new_cache", None) or transformer.new_sequence
    rng = np.random.default_rng()
    print(cgpt.__file__, flush=True)
    for line in sys.stdin:
        what, n = line.split()
        count = int(n)
        cache = new_cache(count + 8)
        ids = rng.integers(0, transformer.vocab_size, count)
        parts = [ids]
        if what == "decode":
            transformer.step([(cache, rng.integers(0, transformer.vocab_size, 4))])
            parts = list(ids.reshape(-1, 1))
        begun = time.perf_counter()
        for part in parts:
            transformer.step([(cache, part)])
        print((time.perf_counter() - begun) / len(parts), flush=True)


def start(root: str, arguments: list[str]) -> subprocess.Popen[str]:
    """A process of its own for a checkout, once it has loaded the model."""
    command = [sys.executable, os.path.abspath(__file__), "--work", json.dumps(arguments)]
    environment = os.environ | {"PYTHONPATH": os.path.abspath(root)}
    side = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd="/")
    assert side.stdout
    print(side.stdout.readline().strip())
    return side


def ask(side: subprocess.Popen[str], what: str, n: int) -> float:
    assert side.stdin and side.stdout
    print(what, n, file=side.stdin, flush=True)
    return float(side.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="*", metavar="ROOT")
    parser.add_argument("--model", help="a checkpoint directory, or the name of a model in the package")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--dense", nargs="+", default=["none"], help="none: as stored")
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prompt")
    parser.add_argument("--decode", type=int, default=48, help="single tokens in a row")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.work:
        return work(*json.loads(a.work))
    dense = [None if one == "none" else one for one in a.dense]
    sides = [start(root, [a.model, a.precision, kept]) for root, kept in zip(a.roots, dense * 2, strict=False)]
    for what, n in zip(WHAT, (a.decode, a.prompt), strict=True):
        for side in sides:
            ask(side, what, n)
        times = []
        for i in range(a.pairs):
            pair = {k: ask(sides[k], what, n) for k in ((0, 1) if i % 2 == 0 else (1, 0))}
            times.append((pair[0], pair[1]))
        ratios = [math.log(second / first) for first, second in times]
        mean, error = statistics.mean(ratios), 2.07 * statistics.stdev(ratios) / math.sqrt(len(ratios))
        tokens = 1 if what == "decode" else n
        rates = [f"{tokens / statistics.median(side):,.1f}" for side in zip(*times, strict=True)]
        low, high = math.exp(mean - error), math.exp(mean + error)
        print(f"{what} {n}: {' and '.join(rates)} tok/s; time B/A {math.exp(mean):.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
