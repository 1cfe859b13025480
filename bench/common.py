"""What the scripts about whole models share: their arguments, and printing what cgpt.bench measured."""

import argparse
import os
import sys

import speed_log

from cgpt.bench import report
from cgpt.bench.checkpoints import checkpoint
from cgpt.bench.session import bench


def arguments(description: str, **model) -> argparse.ArgumentParser:
    """A parser; `model`: how the argument of that name differs."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint directory, a model of the package, or a published size", **model)
    parser.add_argument("--keep", help="where the random weights of a published size stay")
    parser.add_argument("--threads", type=int, nargs="+", default=[None])
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--dense")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--log", help="append the medians to this file, as in SPEED.jsonl")
    return parser


def say(text: str) -> None:
    print(text, file=sys.stderr)


def run(a: argparse.Namespace, **what) -> list[dict]:
    """Measures, and prints the table."""
    settings = dict(threads=a.threads, precision=a.precision, dense=a.dense, repetitions=a.repetitions, say=say)
    with checkpoint(a.model, a.keep, say) as directory:
        rows = list(bench(directory, **settings, **what))
    print(report.heading(rows[0]), report.table(rows), sep="\n\n")
    name = f"{os.path.basename(a.model.rstrip('/'))}: dense {a.dense}, {a.precision}"
    found = {f"{name}, {row['n_threads']} threads: {row['test']}": (row["median_ts"], "tok/s") for row in rows}
    found[f"{name}: memory read"] = max(row["roofline_bytes_per_s"] for row in rows) / 1e9, "GB/s"
    speed_log.append(a.log, found)
    return rows
