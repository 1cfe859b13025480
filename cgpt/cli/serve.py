"""The command `cgpt serve`."""

import argparse
import logging
import os

from cgpt.checkpoint.locate import model_name
from cgpt.cli.options import add_model_options, load_model, say
from cgpt.errors import CgptError, InputError
from cgpt.generation.engine import Engine
from cgpt.generation.prefix_store import DISK_BYTES
from cgpt.generation.scheduler import Scheduler

LOOPBACK = ("127.0.0.1", "localhost", "::1")

SUMMARY = "serve a model by HTTP, as clients of OpenAI's and Anthropic's APIs expect it"
EXAMPLES = """\
  cgpt serve
  cgpt serve --model ./gpt-oss-20b --dense int8 --port 8080
  CGPT_API_KEY=secret cgpt serve --host 0.0.0.0 --allow-host box.example"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    add = parser.add_argument
    called = "what clients call the model; again for another name (default: the last part of its directory or id)"
    add("--name", action="append", metavar="NAME", help=called)
    strict = "refuse unknown fields, tools that are no functions and limits that are too high, not only leave them out"
    add("--strict", action="store_true", help=strict)

    add = parser.add_argument_group("who may ask").add_argument
    add("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine only)")
    add("--port", type=int, metavar="N", default=8000, help="0 takes a free one (default: 8000)")
    add("--api-key", metavar="KEY", help="what clients must send (default: $CGPT_API_KEY, which ps does not show)")
    add("--allow-host", action="append", metavar="NAME", default=[], help="a name that clients may call the server by")
    add("--cors", action="append", metavar="ORIGIN", default=[], help="a site whose pages may ask (default: none)")

    add = parser.add_argument_group("limits").add_argument
    running = f"texts that run together (default and most: {Scheduler.MAX_RUNNING})"
    add("--max-running", type=int, metavar="N", default=Scheduler.MAX_RUNNING, help=running)
    add("--max-waiting", type=int, metavar="N", default=256, help="texts that wait for a place (default: 256)")
    add("--max-tokens", type=int, metavar="N", default=16384, help="of one text (default: 16384)")
    kept = "kept of finished texts, so that what begins like one is faster (default: 2, or a quarter of what is free)"
    add("--prefix-cache", type=float, metavar="GB", help=kept)
    folder = "keep them there too, for a later server and others beside it; it will hold what was asked and answered"
    add("--prefix-cache-dir", metavar="DIR", help=folder)
    kept = f"of all models, in that directory (default: {DISK_BYTES // 10**9})"
    add("--prefix-cache-disk", type=float, metavar="GB", help=kept)
    drain = "time that running requests get at shutdown (default: 30)"
    add("--drain", type=int, metavar="SECONDS", default=30, help=drain)
    add("--log-prompts", action="store_true", help="log what was asked too, not only that something was")
    add_model_options(parser)


def run(args: argparse.Namespace) -> None:
    """Serves until a signal ends it."""
    try:
        from cgpt.serve import server
        from cgpt.serve.app import make_app
        from cgpt.serve.limits import Limits
        from cgpt.serve.service import Service
    except ImportError as problem:
        raise CgptError(
            f"cgpt serve needs the package {problem.name}: pip install starlette uvicorn pydantic"
        ) from None

    counts = (("max_running", 1), ("max_waiting", 1), ("max_tokens", 1), ("drain", 0))
    for name, low in (*counts, ("prefix_cache", 0), ("prefix_cache_disk", 0)):
        value = getattr(args, name)
        if value is not None and not low <= value < 2**31:
            raise InputError(f"--{name.replace('_', '-')} must be {low} or more, not {value}")
    if not 0 <= args.port <= 65535:
        raise InputError(f"--port must be 0 to 65535, not {args.port}")
    if args.prefix_cache_disk is not None and args.prefix_cache_dir is None:
        raise InputError("--prefix-cache-disk needs --prefix-cache-dir")
    key = args.api_key or os.environ.get("CGPT_API_KEY") or None
    if args.host not in LOOPBACK and key is None:
        say("warning: anyone who reaches this address may use the model; set CGPT_API_KEY")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("cgpt.serve").setLevel(logging.INFO)
    listening = server.listen(args.host, args.port)  # before the model is loaded: it may fail
    model = load_model(args)
    kept = None if args.prefix_cache is None else int(args.prefix_cache * 1e9)
    engine = Engine(
        model,
        max_running=args.max_running,
        max_waiting=args.max_waiting,
        prefix_cache_bytes=kept,
        prefix_cache_directory=args.prefix_cache_dir,
        prefix_cache_disk_bytes=DISK_BYTES if args.prefix_cache_disk is None else int(args.prefix_cache_disk * 1e9),
    )
    names = args.name or [os.path.basename(model_name(model.directory))]
    service = Service(engine, names, Limits(max_tokens=args.max_tokens), args.log_prompts, args.strict)
    app = make_app(service, (args.host, *args.allow_host), tuple(args.cors), key)
    server.run(app, listening, args.drain)
