"""The command `cgpt compare`."""

import argparse
import json

from cgpt.analysis.compare import compare, markdown, render
from cgpt.cli.options import add_inspection_options

SUMMARY = "put models side by side: what each chose, step by step from GPT-2 to gpt-oss, and what it comes to"
EXAMPLES = """\
  cgpt compare gpt2-xl gpt-oss-20b gpt-oss-120b
  cgpt compare --why demo-gpt2 demo-gpt-oss
  cgpt compare --markdown gpt2 ./my-model/config.json"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    context = "decode at the end of N positions (default: all of the shortest)"
    add_inspection_options(parser, "models", context, metavar="MODEL", nargs="+")
    parser.add_argument("--why", action="store_true", help="say below the table, in a line each, why the parts changed")
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
