"""The command `cgpt batch`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from cgpt.batch.output import SYNC_SECONDS, BatchOutput
from cgpt.batch.progress import BatchProgress, duration
from cgpt.batch.run import Batch, local_runner_type
from cgpt.batch.runner import MAX_WAITING, Runner
from cgpt.batch.source import ScannedSource, StreamedSource, open_source, read_lines
from cgpt.cli.engine_options import (
    add_engine_options,
    add_request_options,
    check_engine_options,
    make_engine,
    served_names,
)
from cgpt.cli.options import ProgressBar, add_model_options, load_model, say
from cgpt.distributed import mpi
from cgpt.errors import CgptError, InputError

if TYPE_CHECKING:
    from cgpt.batch.local import LocalRunner

SUMMARY = "answer a file of requests in OpenAI's batch format, each once; go on where it stopped"
EXAMPLES = """\
  cgpt batch requests.jsonl answers.jsonl --model ./gpt-oss-20b --dense int8
  cgpt batch - - < requests.jsonl"""
DRAW_SECONDS, TELL_SECONDS = 0.5, 60.0  # between drawings on a terminal; between lines elsewhere


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    add = parser.add_argument
    add("input", metavar="IN", help="a line for each request: custom_id, method, url, body; - is stdin")
    written = f"answers, as they finish, on the disk within {SYNC_SECONDS:g} s; those in it are kept; - is stdout"
    add("output", metavar="OUT", help=written)
    add_request_options(parser, "bodies")
    add = parser.add_argument_group("cluster").add_argument
    where = "on a Ray cluster, all of whose nodes have the model (default address: $RAY_ADDRESS, or this machine)"
    add("--ray", nargs="?", const="", metavar="ADDRESS", help=where)
    add("--ray-cpus", type=float, metavar="N", default=1, help="CPUs of Ray's for each copy of the model (default: 1)")
    add("--ray-actors", type=int, metavar="N", help="copies of the model (default: as the cluster has CPUs for)")
    add_engine_options(parser)
    add_model_options(parser)


def run(args: argparse.Namespace) -> None:
    """Answers all requests that OUT does not answer yet."""
    check_engine_options(args)
    if not args.ray_cpus > 0 or (args.ray_actors is not None and args.ray_actors < 1):
        raise InputError("--ray-cpus must be above 0, and --ray-actors 1 or more")
    if args.ray is not None and mpi.launched()[1] > 1:
        raise InputError(
            "--ray gives each actor a model of its own, and an MPI launcher started processes for one model; leave out "
            "--ray, or start one process"
        )
    local_runner_type("cgpt batch")  # before anything is read: it may be missing
    to_stdout = args.output == "-"
    with ExitStack() as closing:
        source: ScannedSource | StreamedSource
        if args.input == "-" and to_stdout:
            source = StreamedSource(read_lines(sys.stdin.buffer))
        else:
            with ProgressBar(f"reading {args.input}") as reading:
                source = open_source(args.input, reading)
        closing.callback(source.close)
        output = None if to_stdout else closing.enter_context(BatchOutput(args.output))
        runner = _ray_runner(args) if args.ray is not None else _local_runner(args)
        closing.callback(runner.close)
        batch = closing.enter_context(Batch(source, runner, output))
        with _shown(batch.progress):
            for record in batch:
                if output is None:
                    print(json.dumps(record, separators=(",", ":")), flush=True)


def _local_runner(args: argparse.Namespace) -> LocalRunner:
    model = load_model(args, alone=args.ray is not None)  # a node's Ray may have been started by srun
    engine, names = make_engine(args, model, MAX_WAITING), served_names(args, model)
    return local_runner_type("cgpt batch")(engine, names, max_tokens=args.max_tokens, strict=args.strict)


def _ray_runner(args: argparse.Namespace) -> Runner:
    try:
        from cgpt.cluster.ray import runner
    except ImportError as problem:
        package = (problem.name or "").partition(".")[0]
        raise CgptError(f"cgpt batch --ray needs the package {package}: pip install 'cgpt[ray]'") from None
    if os.path.isdir(args.model):
        args.model = os.path.abspath(args.model)
    runner.connect(args.ray or None)
    return runner.RayRunner(partial(_local_runner, args), cpus=args.ray_cpus, actors=args.ray_actors)


@contextmanager
def _shown(progress: BatchProgress) -> Iterator[None]:
    """Shows how far a batch is, on a terminal always, elsewhere now and then, and at the end."""
    is_terminal, done = sys.stderr.isatty(), threading.Event()

    def show() -> None:
        while not done.wait(DRAW_SECONDS if is_terminal else TELL_SECONDS):
            if is_terminal:
                sys.stderr.write(f"\r{progress}\x1b[K")
                sys.stderr.flush()
            else:
                say(progress)

    if progress.num_answered:
        say(f"{progress.num_answered:,} lines were answered before; going on")
    thread = threading.Thread(target=show, name="cgpt-progress", daemon=True)
    thread.start()
    ended = "stopped"
    try:
        yield
        ended = "done"
    finally:
        done.set()
        thread.join()
        if is_terminal:
            sys.stderr.write("\r\x1b[K")
        say(f"{ended} after {duration(progress.seconds)}: {progress}")
        if progress.first_failure:
            say(f"the first that failed: {progress.first_failure}")
