"""The options of commands that answer requests: of their bodies, and of the engine."""

import argparse
import os

from cgpt.api import Model
from cgpt.checkpoint.locate import model_name
from cgpt.errors import InputError
from cgpt.generation.engine import Engine
from cgpt.generation.prefix_store import DISK_BYTES
from cgpt.generation.scheduler import Scheduler


def add_request_options(parser: argparse.ArgumentParser, who: str) -> None:
    """The options that say what a body may hold. who: names the model."""
    add = parser.add_argument
    called = f"what {who} call the model; again for another name (default: the last part of its directory or id)"
    add("--name", action="append", metavar="NAME", help=called)
    strict = "refuse unknown fields, tools that are no functions and limits that are too high, not only leave them out"
    add("--strict", action="store_true", help=strict)


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """The options of the engine, as check_engine_options() and make_engine() read them."""
    add = parser.add_argument_group("engine").add_argument
    running = f"texts that run together (default and most: {Scheduler.MAX_RUNNING})"
    add("--max-running", type=int, metavar="N", default=Scheduler.MAX_RUNNING, help=running)
    add("--max-tokens", type=int, metavar="N", default=16384, help="of one text (default: 16384)")
    kept = "kept of finished texts, so that what begins like one is faster (default: 2, or a quarter of what is free)"
    add("--prefix-cache", type=float, metavar="GB", help=kept)
    folder = "keep them there too, for a later process and others beside it; it will hold what was asked and answered"
    add("--prefix-cache-dir", metavar="DIR", help=folder)
    kept = f"of all models, in that directory (default: {DISK_BYTES // 10**9})"
    add("--prefix-cache-disk", type=float, metavar="GB", help=kept)
    lookup = "draft up to K tokens at a time where texts repeat each other: the same texts, often sooner (default: off)"
    add("--prompt-lookup-num-tokens", type=int, metavar="K", help=lookup)


def check_engine_options(args: argparse.Namespace, **counts: int) -> None:
    """Raises InputError for a number out of range. counts: of other options, the least that they may be."""
    counts |= {"max_running": 1, "max_tokens": 1, "prefix_cache": 0, "prefix_cache_disk": 0}
    for name, low in (counts | {"prompt_lookup_num_tokens": 1}).items():
        value = getattr(args, name)
        if value is not None and not low <= value < 2**31:
            raise InputError(f"--{name.replace('_', '-')} must be {low} or more, not {value}")
    if args.prefix_cache_disk is not None and args.prefix_cache_dir is None:
        raise InputError("--prefix-cache-disk needs --prefix-cache-dir")


def make_engine(args: argparse.Namespace, model: Model, max_waiting: int) -> Engine:
    """The engine that the options ask for."""
    return Engine(
        model,
        max_running=args.max_running,
        max_waiting=max_waiting,
        prefix_cache_bytes=None if args.prefix_cache is None else int(args.prefix_cache * 1e9),
        prefix_cache_directory=args.prefix_cache_dir,
        prefix_cache_disk_bytes=DISK_BYTES if args.prefix_cache_disk is None else int(args.prefix_cache_disk * 1e9),
        prompt_lookup_num_tokens=args.prompt_lookup_num_tokens,
    )


def served_names(args: argparse.Namespace, model: Model) -> list[str]:
    """What requests may call the model, the name that answers have first."""
    return args.name or [os.path.basename(model_name(model.directory))]
