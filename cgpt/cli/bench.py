"""The command line of cgpt bench."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from cgpt.cli.options import ProgressBar
from cgpt.errors import InputError


def add_bench(command: Callable[..., argparse.ArgumentParser], commands: Any) -> None:
    """Adds the command to `commands`; `command` as cgpt.cli._command."""
    parser = command(
        commands,
        "bench",
        _bench,
        "measure how fast a model runs here, beside what this machine could do",
        "  cgpt bench\n"
        "  cgpt bench --model ./gpt-oss-20b -d 0,4096 -b 1,8 -t 1,2 --profile\n"
        "  cgpt bench --model gpt-oss-20b --keep /data --jsonl     (random weights, no download)\n"
        "  cgpt bench --model gpt2 -p 128,512 -n 0 --plot gpt2.png",
    )
    add = parser.add_argument
    model = "a checkpoint directory, a model of the package, or a published size (default: demo-gpt2)"
    add("--model", metavar="NAME_OR_DIR_OR_SIZE", default="demo-gpt2", help=model)
    add(
        "--keep",
        metavar="DIR",
        help="where the random weights of a published size stay, or are found; else a "
        "temporary directory that is removed at the end",
    )
    add = parser.add_argument_group("what is measured (lists: 0,4096)").add_argument
    add("-p", "--n-prompt", type=_numbers, metavar="N", help="tokens of a prompt; 0: none (default: 512, if they fit)")
    add("-n", "--n-gen", type=_numbers, metavar="N", default=[64], help="tokens to generate; 0: none (default: 64)")
    add("-d", "--n-depth", type=_numbers, metavar="N", default=[0], help="positions already in the cache (default: 0)")
    add("-b", "--n-parallel", type=_numbers, metavar="N", default=[1], help="sequences generated at once (default: 1)")
    add("-t", "--threads", type=_numbers, metavar="N", default=[None], help="default: as for cgpt generate")
    add("-r", "--repetitions", type=int, metavar="N", default=5, help="of each test, after a warm-up (default: 5)")
    add("--precision", default="auto", metavar="NAME", help="as for cgpt generate (default: auto)")
    add("--dense", metavar="NAME", help="as for cgpt generate")
    add("--kv-cache-dtype", metavar="NAME", help="as for cgpt generate")
    add("--huge-pages", action="store_true", help="as for cgpt generate")
    add = parser.add_argument_group("what is shown").add_argument
    add("--profile", action="store_true", help="also where the time goes, kernel by kernel")
    add("--json", action="store_true", help="print one JSON array of all rows")
    add("--jsonl", action="store_true", help="print a JSON object for each row, as soon as it is measured")
    add("--plot", metavar="FILE.png", help="draw the roofline and the speed by depth (needs cgpt[plot])")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _bench(args: argparse.Namespace) -> None:
    from cgpt.bench import plot, report
    from cgpt.bench.checkpoints import checkpoint
    from cgpt.bench.session import bench

    if args.json and args.jsonl:
        raise InputError("--json or --jsonl, not both")
    if args.plot:
        plot.require_matplotlib()
    with ExitStack() as stack:
        progress = stack.enter_context(ProgressBar(f"writing {args.model}"))
        directory = stack.enter_context(checkpoint(args.model, args.keep, _say, progress))
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
            profile=args.profile,
            say=_say,
        ):
            rows.append(row)
            if args.jsonl:
                print(json.dumps(row), flush=True)
    if args.json:
        print(json.dumps(rows, indent=2))
    elif not args.jsonl:
        print(report.heading(rows[0]), report.table(rows), sep="\n\n")
        if args.profile:
            print(*(f"\n{report.profile_table(row)}" for row in rows), sep="\n")
    if args.plot:
        plot.plot(rows, args.plot)


def _say(text: str) -> None:
    print(f"cgpt: {text}", file=sys.stderr)
