"""The command `cgpt info`."""

from __future__ import annotations

import argparse
import json

from cgpt.analysis.info import render
from cgpt.checkpoint.locate import demo_models
from cgpt.checkpoint.sizes import SIZES
from cgpt.models.accounting import describe
from cgpt.models.kv_cache import DEFAULT_KV_DTYPE, KV_DTYPES

SUMMARY = "say what a model is, what it reads per token, and whether it fits here"
EXAMPLES = """\
  cgpt info demo-gpt-oss
  cgpt info ./gpt-oss-20b --context 8192"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    add, known = parser.add_argument, ", ".join([*demo_models(), *SIZES])
    add("model", metavar="NAME_OR_DIR", help=f"a checkpoint directory, a config.json, or one of {known}")
    add("--context", type=int, metavar="N", help="tokens to have room for (default: all)")
    kept = DEFAULT_KV_DTYPE["auto"]
    add("--kv-cache-dtype", choices=KV_DTYPES, default=kept, help=f"of keys and values (default: {kept})")
    add("--json", action="store_true", help="print the facts as one JSON object")


def run(args: argparse.Namespace) -> None:
    """Prints what the model's config and file headers say."""
    facts = describe(args.model, args.context, kv_cache_dtype=args.kv_cache_dtype)
    print(json.dumps(facts, indent=2) if args.json else render(facts))
