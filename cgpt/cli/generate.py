"""The command `cgpt generate`."""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from typing import Any

from cgpt.cli.options import (
    add_model_options,
    add_sampling_options,
    expert_progress,
    load_model,
    read_stdin,
    sampling_options,
)
from cgpt.generation.request import Completion

SUMMARY = "continue a prompt, as a stream of text"
EXAMPLES = """\
  cgpt generate "ROMEO:"
  cgpt generate --temperature 0.8 --top-p 0.95 --seed 1 --max-new-tokens 100 "To be"
  cgpt generate --stop $'\\n\\n' --json - < prompt.txt
  cgpt generate --model ./gpt-oss-20b --threads 8 "Roses are red, violets"
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    add = parser.add_argument
    add("prompt", metavar="PROMPT", help="the text to continue; - reads it from stdin")
    add("--stop", action="append", metavar="TEXT", help="stop before this text (may be given several times)")
    lookup = "draft K tokens at a time where the text repeats itself: the same text, often sooner"
    add("--prompt-lookup-num-tokens", type=int, metavar="K", help=lookup)
    add("--special", action="store_true", help="names of special tokens in the prompt are these tokens")
    add("--skip-special-tokens", action="store_true", help="leave the names of special tokens out of the text")
    add("--json", action="store_true", help="print one JSON object: text, ids, finish_reason, timings")
    add_sampling_options(parser)
    add_model_options(parser)


def run(args: argparse.Namespace) -> None:
    """Prints the text as it comes, or a JSON object at its end."""
    prompt = read_stdin("the prompt") if args.prompt == "-" else args.prompt
    model = load_model(args)
    options = sampling_options(args, model)
    names = ("stop", "prompt_lookup_num_tokens", "special", "skip_special_tokens")
    options |= {name: getattr(args, name) for name in names}
    if args.json:
        with expert_progress(model):
            done = model.generate(prompt, **options)
        print(json.dumps(_report(done)))
        return
    deltas = model.stream(prompt, **options)
    try:
        with ExitStack() as reading:
            reading.enter_context(expert_progress(model))
            for delta in deltas:
                reading.close()
                print(delta, end="", flush=True)
    finally:
        print(flush=True)


def _report(done: Completion) -> dict[str, Any]:
    def timing(tokens: int, seconds: float) -> dict[str, Any]:
        rate = tokens / seconds if tokens and seconds else None
        return {"tokens": tokens, "seconds": seconds, "tokens_per_second": rate}

    return {
        "text": done.text,
        "ids": done.ids,
        "finish_reason": done.finish_reason,
        "timings": {
            "prefill": timing(len(done.prompt_ids), done.prefill_seconds),
            "decode": timing(len(done.ids) - 1, done.decode_seconds),  # prefill gave the first
        },
        "prompt_lookup": {"draft_tokens": done.num_draft_tokens, "accepted_tokens": done.num_accepted_tokens},
    }
