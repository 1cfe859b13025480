"""The command `cgpt batch`."""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from cgpt.batch.output import SYNC_SECONDS, BatchOutput
from cgpt.batch.progress import BatchProgress, duration
from cgpt.batch.run import Batch, local_runner_type
from cgpt.batch.runner import MAX_WAITING
from cgpt.batch.source import ScannedSource, StreamedSource, open_source, read_lines
from cgpt.cli.engine_options import (
    add_engine_options,
    add_request_options,
    check_engine_options,
    make_engine,
    served_names,
)
from cgpt.cli.options import ProgressBar, add_model_options, load_model, say

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
    add_engine_options(parser)
    add_model_options(parser)


def run(args: argparse.Namespace) -> None:
    """Answers all requests that OUT does not answer yet."""
    check_engine_options(args)
    runner_type = local_runner_type("cgpt batch")
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
        model = load_model(args)
        engine = make_engine(args, model, MAX_WAITING)
        runner = closing.enter_context(
            runner_type(engine, served_names(args, model), max_tokens=args.max_tokens, strict=args.strict)
        )
        batch = closing.enter_context(Batch(source, runner, output))
        with _shown(batch.progress):
            for record in batch:
                if output is None:
                    print(json.dumps(record, separators=(",", ":")), flush=True)


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
