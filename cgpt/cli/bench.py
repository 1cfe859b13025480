"""The command `cgpt bench`."""

import argparse
import json
from typing import Any

from cgpt.bench import plot, report, share
from cgpt.bench.checkpoints import checkpoint
from cgpt.bench.session import bench
from cgpt.checkpoint.locate import demo_models
from cgpt.checkpoint.sizes import SIZES
from cgpt.cli.options import ProgressBar, add_model_options, integers, say
from cgpt.distributed.mpi import world
from cgpt.errors import InputError

SUMMARY = "measure how fast a model runs here, beside what this machine could do"
EXAMPLES = """\
  cgpt bench
  cgpt bench --model ./gpt-oss-20b -d 0,4096 -b 1,8 -t 1,2 --profile
  cgpt bench --model gpt-oss-20b --keep /data --jsonl     (random weights, no download)
  cgpt bench --model gpt2 -p 128,512 -n 0 --plot gpt2.png
  cgpt bench --share arm.json     (for machines that nobody has timed yet)"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    keep = "where the random weights of a published size stay, or are found (default: a temporary directory)"
    parser.add_argument("--keep", metavar="DIR", help=keep)
    add = parser.add_argument_group("what is measured (lists: 0,4096; --threads takes one too)").add_argument
    add("-p", "--n-prompt", type=integers, metavar="N", help="tokens of a prompt; 0: none (default: 512, if they fit)")
    add("-n", "--n-gen", type=integers, metavar="N", default=[64], help="tokens to generate; 0: none (default: 64)")
    add("-d", "--n-depth", type=integers, metavar="N", default=[0], help="positions already in the cache (default: 0)")
    add("-b", "--n-parallel", type=integers, metavar="N", default=[1], help="sequences generated at once (default: 1)")
    add("-r", "--repetitions", type=int, metavar="N", default=5, help="of each test, after a warm-up (default: 5)")
    add = parser.add_argument_group("what is shown").add_argument
    add("--profile", action="store_true", help="also where the time goes, kernel by kernel")
    add("--json", action="store_true", help="print one JSON array of all rows")
    add("--jsonl", action="store_true", help="print a JSON object for each row, as soon as it is measured")
    add("--share", metavar="FILE.json", help="run the demos; write what may be sent: machine, level, speeds, no paths")
    add("--plot", metavar="FILE.png", help="draw the roofline and the speed by depth (needs matplotlib)")
    add_model_options(parser, sizes=list(SIZES), threads=integers)
    parser.set_defaults(threads=[None])


def run(args: argparse.Namespace) -> None:
    """Prints a row for each case."""
    if args.json and args.jsonl:
        raise InputError("--json or --jsonl, not both")
    if args.plot:
        plot.require_matplotlib()
    rows: list[dict[str, Any]] = []
    for model in demo_models() if args.share else [args.model]:
        rows += _run_model(model, args)
    if args.json:
        print(json.dumps(rows, indent=2))
    if args.plot:
        plot.plot(rows, args.plot)
    if args.share:
        share.write(args.share, rows)


def _run_model(model: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    writing = ProgressBar(f"writing {model}")
    with writing, checkpoint(model, args.keep, say, writing, args.revision) as directory:
        rows = []
        for row in bench(
            directory,
            prompts=args.n_prompt,
            gens=args.n_gen,
            depths=args.n_depth,
            parallels=args.n_parallel,
            threads=args.threads,
            repetitions=args.repetitions,
            precision=args.precision,
            dense=args.dense,
            kv_cache_dtype=args.kv_cache_dtype,
            huge_pages=args.huge_pages,
            memory=args.memory,
            weights_cache=args.weights_cache,
            comm=world(),
            profile=args.profile,
            say=say,
        ):
            rows.append(row)
            if args.jsonl:
                print(json.dumps(row), flush=True)
    if not args.json and not args.jsonl:
        print(report.heading(rows[0]), report.table(rows), sep="\n\n")
        if args.profile:
            print(*(f"\n{report.profile_table(row)}" for row in rows), sep="\n")
    return rows
