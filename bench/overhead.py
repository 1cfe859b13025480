"""What share of a generation step is not kernels? Python and allocation, and starting and joining threads.

    python bench/overhead.py [MODEL] [--threads 1 2] [--new 50] [--dense bf16]

Steps with and without watching the kernels take turns, so that both meet the same machine. "outside" is what a step
takes beyond its kernels; "fork and join" what a parallel region costs more than the same work in one thread, times the
calls that may use one.
"""

import statistics
import time

import numpy as np
from common import arguments, say

import cgpt
from cgpt.bench.checkpoints import checkpoint
from cgpt.bench.trace import Trace
from cgpt.kernels import _kernels as k

FORKING = ("linear", "moe", "attention", "activation")  # what is parallel for one token of GPT-2's width
ROUNDS = 1000  # of multiply-adds: enough to be worth a fork


def fork_join_seconds(threads: int) -> float:
    """A share for each thread at once, less one share by itself."""

    def median(threads: int) -> float:
        ctx, out, times = k.Context(threads, "exact"), k.Tensor(np.empty(threads, np.float32)), []
        for _ in range(500):
            start = time.perf_counter()
            k.peak(ctx, out, ROUNDS)
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    return median(threads) - median(1)


def measure(model, new: int) -> None:
    rng = np.random.default_rng()
    sequence = model.transformer.new_cache(2 * new + 1)
    alone, watched, kernels, forks = [], [], [], 0

    def step() -> float:
        start = time.perf_counter()
        model.transformer.step([(sequence, [int(rng.integers(0, model.vocab_size))])])
        return time.perf_counter() - start

    step()
    for _ in range(new):
        alone.append(step())
        with Trace(model) as trace:
            watched.append(step())
        kernels.append(trace.total.seconds)
        forks = sum(op.calls for name, op in trace.ops.items() if name.split()[0] in FORKING)
    total, inside = statistics.median(alone), statistics.median(kernels)
    joins = forks * fork_join_seconds(model.threads)
    print(
        f"{model.threads} threads: a step {total * 1e3:.3f} ms ({statistics.median(watched) * 1e3:.3f} watched), "
        f"kernels {inside * 1e3:.3f} ms; outside {1 - inside / total:.1%}, fork and join of {forks} calls "
        f"{joins * 1e3:.3f} ms {joins / total:.1%}"
    )


def main() -> None:
    parser = arguments(__doc__, nargs="?", default="gpt2")
    parser.set_defaults(threads=[1, None])
    parser.add_argument("--new", type=int, default=50)
    a = parser.parse_args()
    with checkpoint(a.model, a.keep, say) as directory:
        for threads in a.threads:
            measure(cgpt.load(directory, threads, a.precision, a.dense), a.new)


if __name__ == "__main__":
    main()
