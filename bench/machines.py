"""One model on several machines: what may be expected, and what comes of it.

    python bench/machines.py expect [gpt-oss-20b ..] [--dense int8] [--read 35] [--prompt 53] [--gbit 10]
    mpiexec -n 2 -hostfile HOSTS python bench/machines.py measure --model DIR [--dense int8] [-t N]
    mpiexec -n 2 python bench/machines.py measure --model DIR -t 1 --latency 0,20,50,100,200,500 --gbit 10
    python bench/machines.py pairs --model DIR --dense int8 --pairs 20

expect: a table of tokens per second, calculated, for 1, 2, 4 and 8 machines, each of which reads memory with --read
GB/s and prompts of 512 with --prompt tokens a second. A gather of n ranks takes latency * log2(n), and (n - 1) / n of
its bytes go over the wire. measure: the same of this model and these machines, what it should take by the formula and
what it took. --latency waits so many microseconds, and for the bytes at --gbit, in each gather beside what it takes
anyway, to see what a slower network would do. pairs: two ranks of one thread against one of two threads, turn by turn,
on this machine.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log2
from typing import Any

import numpy as np

import cgpt
from cgpt.bench.gathers import GatherClock, measure_roofline
from cgpt.bench.workload import Case, measure
from cgpt.distributed.mpi import MPICommunicator, world
from cgpt.distributed.session import Session
from cgpt.loading import follow
from cgpt.models.accounting import bytes_per_token, look_up, shape_of
from cgpt.models.base import Floats

PROMPT, GENERATED, REPETITIONS = 512, 64, 3
LATENCIES, MACHINES = (20, 50, 100, 200, 500), (1, 2, 4, 8)


class SlowNetwork(MPICommunicator):
    """Gathers that take `latency` seconds, and their bytes at `rate` a second, longer than they do."""

    latency, rate = 0.0, float("inf")

    def gather(self, y: Floats, bounds: Sequence[int]) -> None:
        began = time.perf_counter()
        super().gather(y, bounds)
        self._wait(began, y.nbytes)

    def collect(self, y: Floats, bounds: Sequence[int]) -> None:
        began = time.perf_counter()
        super().collect(y, bounds)
        self._wait(began, 4 * len(y) * bounds[-1])

    def _wait(self, began: float, nbytes: int) -> None:
        end = began + gather_seconds(self.size, 1, nbytes, self.latency, self.rate)
        while time.perf_counter() < end:
            pass


def gather_seconds(ranks: int, gathers: float, nbytes: float, latency: float, rate: float) -> float:
    """How long gathers of so many bytes in all take."""
    return gathers * latency * log2(ranks) + nbytes * (ranks - 1) / ranks / rate


def gathered(config: Any, tokens: int) -> tuple[int, int]:
    """The gathers of a step, and their bytes: of attention's output, the residual stream twice, what the MLP or the
    chosen experts have inside, and the logits of one token."""
    shape = shape_of(config)
    inner = shape["mlp_width"] * shape.get("experts_per_token", 1)
    layer = shape["heads"] * shape["head_dim"] + 2 * shape["width"] + inner
    return 4 * shape["layers"] + 1, 4 * (tokens * shape["layers"] * layer + shape["vocabulary"])


def expected(alone: float, config: Any, tokens: int, ranks: int, latency: float, rate: float) -> float:
    """The seconds of a step that one machine does in `alone`."""
    return alone / ranks + gather_seconds(ranks, *gathered(config, tokens), latency, rate)


def expect(args: argparse.Namespace) -> None:
    for name in args.models:
        found, rate = look_up(name), args.gbit / 8 * 1e9
        read = sum(bytes_per_token(found.config, found.tensors, args.dense).values())
        print(f"{name}, dense={args.dense}, {read / 1e9:.2f} GB a token, {args.gbit:g} Gbit/s: tok/s, calculated")
        cases = ("generating", 1, read / args.read / 1e9), (f"prompt of {PROMPT}", PROMPT, PROMPT / args.prompt)
        for what, tokens, alone in cases:
            print(f"  {what:16}" + "".join(f"{f'{n} machines':>20}" for n in MACHINES))
            for latency in LATENCIES:
                seconds = [expected(alone, found.config, tokens, n, latency * 1e-6, rate) for n in MACHINES]
                cells = (f"{tokens / s:11.1f} ({alone / s:.2f} x)" for s in seconds)
                print(f"  {latency:6} us       " + "".join(f"{cell:>20}" for cell in cells))


@dataclass
class Rate:
    """Of a step: seconds in all, of which outside gathers, and the bytes gathered; medians of the repetitions."""

    what: str
    tokens: int
    seconds: float
    kernels: float
    nbytes: float


def rates(model: cgpt.Model) -> Iterator[Rate]:
    """Of generating, and of a prompt."""
    rng = np.random.default_rng(0)
    for case in (Case(n_gen=GENERATED), Case(n_prompt=min(PROMPT, model.context_length // 2))):
        found = measure(model.transformer, case, REPETITIONS, rng)
        steps = len(found.repetitions[0])
        clocks = found.gathers or [GatherClock(model.transformer)] * REPETITIONS
        kernels = [total - clock.seconds for total, clock in zip(found.seconds, clocks, strict=True)]
        seconds = statistics.median(found.seconds) / steps
        yield Rate(
            str(case), case.tokens // steps, seconds, statistics.median(kernels) / steps, clocks[0].bytes / steps
        )


def run_measure(args: argparse.Namespace) -> None:
    comm = world()
    if comm is None:
        raise SystemExit("start it with mpiexec -n 2 or more")
    session = Session(SlowNetwork(comm))
    if session.rank:
        follow(session)
        return
    model = cgpt.load(args.model, args.threads, dense=args.dense, comm=session)
    size, rate = session.size, args.gbit / 8 * 1e9
    print(f"{args.model}, dense={args.dense}, {size} ranks of {model.threads} threads; tok/s")
    print(
        f"{'':18}{'latency':>10}{'calculated':>12}{'measured':>10}{'a step':>12}{'in gathers':>12}{'KB':>10}{'GB/s':>8}"
    )
    alone: dict[str, float] = {}
    for latency in args.latency:
        session.on_all(set_network, latency * 1e-6, rate if latency else float("inf"))
        roofline = measure_roofline(model.transformer, 0.6, "auto").read_bytes_per_s
        for one in rates(model):
            alone.setdefault(one.what, one.kernels * size)
            told = expected(alone[one.what], model.config, one.tokens, size, latency * 1e-6, rate)
            speeds = f"{one.tokens / told:>12.1f}{one.tokens / one.seconds:>10.1f}"
            times = f"{one.seconds * 1e3:>9.2f} ms{(one.seconds - one.kernels) * 1e3:>9.2f} ms"
            print(
                f"  {one.what:16}{latency:>7} us{speeds}{times}{one.nbytes / 1e3:>10.1f}{roofline / 1e9:>8.1f}",
                flush=True,
            )
    session.end()


def set_network(latency: float, rate: float) -> None:
    """Called on every rank."""
    SlowNetwork.latency, SlowNetwork.rate = latency, rate


def run_one(args: argparse.Namespace) -> None:
    """Prints the seconds of a generated token, and of a prompt; on rank 0."""
    model = cgpt.load(args.model, args.threads, dense=args.dense, comm=world())
    print(json.dumps({one.what: one.seconds for one in rates(model)}))


def run_pairs(args: argparse.Namespace) -> None:
    dense = ["--dense", args.dense] if args.dense else []
    one = [sys.executable, __file__, "one", "--model", args.model, *dense]
    turns = {"1 x 2 threads": [*one, "-t", "2"], "2 ranks x 1 thread": ["mpiexec", "-n", "2", *one, "-t", "1"]}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in turns}
    for i in range(args.pairs):
        for name in list(turns)[:: 1 if i % 2 else -1]:
            done = subprocess.run(turns[name], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, check=True)
            found[name].append(json.loads(done.stdout))
            print(i, name, {what: f"{seconds * 1e3:.2f} ms" for what, seconds in found[name][-1].items()}, flush=True)
    first, second = found.values()
    for what in first[0]:
        ratios = sorted(two[what] / one[what] for one, two in zip(first, second, strict=True))
        times = [statistics.median(turn[what] for turn in turns) * 1e3 for turns in found.values()]
        quarter, median = len(ratios) // 4, statistics.median(ratios)
        print(f"{what}: {times[0]:.2f} ms alone, {times[1]:.2f} on two ranks, which took {median:.3f} times as long")
        print(f"  (median of {len(ratios)} pairs; half of them {ratios[quarter]:.3f} to {ratios[-1 - quarter]:.3f})")


def integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, run in {"expect": expect, "measure": run_measure, "pairs": run_pairs, "one": run_one}.items():
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument("--dense", choices=("bf16", "int8"))
        command.add_argument("--gbit", type=float, default=10, help="of the network, a second")
        if name == "expect":
            command.add_argument("models", nargs="*", default=["gpt-oss-20b"])
            command.add_argument("--read", type=float, default=35, help="GB/s of one machine's memory")
            command.add_argument(
                "--prompt", type=float, default=53, help="tokens per second of a prompt on one machine"
            )
            continue
        command.add_argument("--model", required=True)
        command.add_argument("-t", "--threads", type=int)
        command.add_argument("--latency", type=integers, default=[0], help="microseconds, a list")
        command.add_argument("--pairs", type=int, default=20)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
