"""The command `cgpt compare`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from cgpt.checkpoint.locate import demo_models
from cgpt.checkpoint.sizes import SIZES
from cgpt.models.kv_cache import DEFAULT_KV_DTYPE, KV_DTYPES


def _compare(args: argparse.Namespace) -> None:
    from cgpt.analysis import compare

    facts = compare.compare(args.models, args.context, args.kv_cache_dtype)
    if args.json:
        print(json.dumps(facts, indent=2))
    else:
        print((compare.markdown if args.markdown else compare.render)(facts, why=args.why))


def add_compare(command: Callable[..., argparse.ArgumentParser], commands: Any) -> None:
    """Adds the command to `commands`; `command` as cgpt.cli._command."""
    parser = command(
        commands,
        "compare",
        _compare,
        "put models side by side: what each chose, step by step from GPT-2 to gpt-oss, and what it comes to",
        "  cgpt compare gpt2-xl gpt-oss-20b gpt-oss-120b\n"
        "  cgpt compare --why demo-gpt2 demo-gpt-oss\n"
        "  cgpt compare --markdown gpt2 ./my-model/config.json",
    )
    add = parser.add_argument
    known = ", ".join([*demo_models(), *SIZES])
    add("models", metavar="MODEL", nargs="+", help=f"a checkpoint directory, a config.json, or one of {known}")
    add("--context", type=int, metavar="N", help="decode at the end of N positions (default: all of the shortest)")
    default = DEFAULT_KV_DTYPE["auto"]
    add("--kv-cache-dtype", choices=KV_DTYPES, default=default, help=f"of keys and values (default: {default})")
    add("--why", action="store_true", help="say below the table, in a line each, why the parts changed")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the facts as one JSON object")
    form.add_argument("--markdown", action="store_true", help="print the table in Markdown")
