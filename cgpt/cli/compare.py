"""The command `cgpt compare`."""

from __future__ import annotations

import argparse
import json

from cgpt.analysis.compare import compare, markdown, render
from cgpt.checkpoint.locate import demo_models
from cgpt.checkpoint.sizes import SIZES
from cgpt.models.kv_cache import DEFAULT_KV_DTYPE, KV_DTYPES

SUMMARY = "put models side by side: what each chose, step by step from GPT-2 to gpt-oss, and what it comes to"
EXAMPLES = """\
  cgpt compare gpt2-xl gpt-oss-20b gpt-oss-120b
  cgpt compare --why demo-gpt2 demo-gpt-oss
  cgpt compare --markdown gpt2 ./my-model/config.json"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    add, known = parser.add_argument, ", ".join([*demo_models(), *SIZES])
    add("models", metavar="MODEL", nargs="+", help=f"a checkpoint directory, a config.json, or one of {known}")
    add("--context", type=int, metavar="N", help="decode at the end of N positions (default: all of the shortest)")
    kept = DEFAULT_KV_DTYPE["auto"]
    add("--kv-cache-dtype", choices=KV_DTYPES, default=kept, help=f"of keys and values (default: {kept})")
    add("--why", action="store_true", help="say below the table, in a line each, why the parts changed")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the facts as one JSON object")
    form.add_argument("--markdown", action="store_true", help="print the table in Markdown")


def run(args: argparse.Namespace) -> None:
    """Prints the table, or what it was made of."""
    facts = compare(args.models, args.context, args.kv_cache_dtype)
    if args.json:
        print(json.dumps(facts, indent=2))
    else:
        print((markdown if args.markdown else render)(facts, why=args.why))
