"""`cgpt batch`: that each line is answered once although it is killed, and what it costs beside the plain engine.

    python bench/batch.py MODEL [--lines 10000] [--kills 5] [--rate-lines 500] [--max-tokens 16] [--rounds 5]

The first part kills the command (SIGKILL) at random moments, starts it again until it is done, and looks for lines that
are missing, double, or have another text than generate() gives. The second one answers the same prompts in turns by
generate() of one list and by Model.batch(), with and without the prefix cache, and prints medians.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cgpt

NAMES = "ROMEO", "JULIET", "HAMLET", "KING LEAR", "First Citizen", "To be, or not to be: that is the question"


def prompt(i: int) -> str:
    return f"{NAMES[i % len(NAMES)]} {i}:\n"


def line(i: int, max_tokens: int) -> dict:
    body = {"prompt": prompt(i), "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    return {"custom_id": f"line {i}", "method": "POST", "url": "/v1/completions", "body": body}


def count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def killed(a: argparse.Namespace, folder: Path) -> list[dict]:
    """The records of a batch that was killed so often, each at a random one of its lines."""
    given, out, choose = folder / "in.jsonl", folder / "out.jsonl", random.Random(a.seed)
    with open(given, "w") as file:
        file.writelines(json.dumps(line(i, a.max_tokens)) + "\n" for i in range(a.lines))
    command = [sys.executable, "-m", "cgpt", "batch", str(given), str(out), "--model", a.model, "--precision", "exact"]
    command += ["--threads", str(a.threads)] if a.threads else []
    ends = sorted(choose.sample(range(1, a.lines), a.kills))
    for end in ends:
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while count(out) < end and process.poll() is None:
            time.sleep(choose.random() * 0.05)
        process.kill()
        process.wait()
        text = out.read_bytes()
        state = "whole" if text[-1:] == b"\n" else "torn"
        print(f"killed with {count(out):,} lines in the output, the last one {state}")
    subprocess.run(command, check=True)
    return [json.loads(one) for one in out.read_text().splitlines()]


def check(a: argparse.Namespace, model: cgpt.Model, records: list[dict]) -> None:
    texts = {one["custom_id"]: one["response"]["body"]["choices"][0]["text"] for one in records}
    assert len(records) == len(texts) == a.lines, f"{len(records)} records, {len(texts)} different ones"
    assert texts.keys() == {f"line {i}" for i in range(a.lines)}
    some = range(0, a.lines, max(1, a.lines // 500))
    alone = model.generate([prompt(i) for i in some], max_new_tokens=a.max_tokens, temperature=0, ignore_eos=True)
    assert [texts[f"line {i}"] for i in some] == [one.text for one in alone]
    print(f"{len(records):,} lines, each answered once; {len(some)} texts compared with generate()'s: the same\n")


def rates(a: argparse.Namespace, model: cgpt.Model) -> None:
    """Prints how fast each way is."""
    begin = a.lines  # prompts that nothing has seen

    def batch(first: int, cached: int | None) -> int:
        lines = (line(first + i, a.max_tokens) for i in range(a.rate_lines))
        return sum(1 for _ in model.batch(lines, prefix_cache_bytes=cached))

    def plain(first: int) -> int:
        prompts = [prompt(first + i) for i in range(a.rate_lines)]
        return len(model.generate(prompts, max_new_tokens=a.max_tokens, temperature=0, ignore_eos=True))

    ways: dict[str, Callable[[int], int]] = {
        "generate() of one list": plain,
        "batch()": lambda first: batch(first, None),
        "batch(), no prefix cache": lambda first: batch(first, 0),
    }
    walls: dict[str, list[float]] = {name: [] for name in ways}
    cores: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(a.rounds + 1):  # the first warms up
        for name, work in [*ways.items()][:: 1 if turn % 2 else -1]:
            wall, core = time.perf_counter(), time.process_time()
            work(begin)
            begin += a.rate_lines
            if turn:
                walls[name].append(time.perf_counter() - wall)
                cores[name].append(time.process_time() - core)
    print(f"{a.rate_lines} lines of {a.max_tokens} new tokens, medians of {a.rounds} turns")
    for name in ways:
        wall, core = statistics.median(walls[name]), statistics.median(cores[name])
        tokens = a.rate_lines * a.max_tokens / wall
        spread = (max(walls[name]) - min(walls[name])) / wall
        each = f"{1e3 * wall / a.rate_lines:7.2f} ms a line, {1e3 * core / a.rate_lines:7.2f} ms of CPU"
        print(f"{name:30} {a.rate_lines / wall:8.1f} lines/s {tokens:9,.0f} tok/s {each}, spread {spread:.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--lines", type=int, default=10_000, help="0: the rates alone")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--rate-lines", type=int, default=500)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    if a.lines:
        with tempfile.TemporaryDirectory() as folder:
            records = killed(a, Path(folder))
            check(a, cgpt.load(a.model, a.threads, "exact"), records)
    rates(a, cgpt.load(a.model, a.threads))


if __name__ == "__main__":
    main()
