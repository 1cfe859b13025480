"""The command `cgpt info`."""

import argparse
import json

from cgpt.analysis.info import render
from cgpt.cli.options import add_inspection_options
from cgpt.loading import DENSE
from cgpt.models.description import describe
from cgpt.models.streaming_speed import measure_rates

SUMMARY = "say what a model is, what it reads per token, and whether it fits here"
EXAMPLES = """\
  cgpt info demo-gpt-oss
  cgpt info ./gpt-oss-20b --context 8192
  cgpt info ./gpt-oss-120b --memory 18GB --dense int8   (how fast with its experts on the disk)"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    add_inspection_options(parser, "model", "tokens to have room for (default: all)", metavar="NAME_OR_DIR")
    add = parser.add_argument
    add("--dense", choices=DENSE, help="what the dense matrices are kept as in memory (default: as stored)")
    memory = (
        "say how gpt-oss runs within so much, as 18GB, with its experts on the disk, which is measured for a second"
    )
    add("--memory", metavar="SIZE", help=f"{memory} (default: where it does not fit)")
    add("--json", action="store_true", help="print the facts as one JSON object")


def run(args: argparse.Namespace) -> None:
    """Prints what the model's config and file headers say."""
    facts = describe(
        args.model,
        args.context,
        args.dense,
        args.kv_cache_dtype,
        memory=args.memory,
        measure=measure_rates,
    )
    print(json.dumps(facts, indent=2) if args.json else render(facts))
