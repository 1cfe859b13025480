"""The command `cgpt info`."""

import argparse
import json

from cgpt.analysis.info import render
from cgpt.cli.options import add_inspection_options
from cgpt.models.accounting import describe

SUMMARY = "say what a model is, what it reads per token, and whether it fits here"
EXAMPLES = """\
  cgpt info demo-gpt-oss
  cgpt info ./gpt-oss-20b --context 8192"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    add_inspection_options(parser, "model", "tokens to have room for (default: all)", metavar="NAME_OR_DIR")
    parser.add_argument("--json", action="store_true", help="print the facts as one JSON object")


def run(args: argparse.Namespace) -> None:
    """Prints what the model's config and file headers say."""
    facts = describe(args.model, args.context, kv_cache_dtype=args.kv_cache_dtype)
    print(json.dumps(facts, indent=2) if args.json else render(facts))
