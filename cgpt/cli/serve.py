"""The command `cgpt serve`."""

import argparse
import logging
import os

from cgpt.cli.engine_options import (
    add_engine_options,
    add_request_options,
    check_engine_options,
    make_engine,
    served_names,
)
from cgpt.cli.options import add_model_options, load_model, say
from cgpt.errors import CgptError, InputError

LOOPBACK = ("127.0.0.1", "localhost", "::1")

SUMMARY = "serve a model by HTTP, as clients of OpenAI's and Anthropic's APIs expect it"
EXAMPLES = """\
  cgpt serve
  cgpt serve --model ./gpt-oss-20b --dense int8 --port 8080
  CGPT_API_KEY=secret cgpt serve --host 0.0.0.0 --allow-host box.example"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    add = parser.add_argument
    add_request_options(parser, "clients")

    add = parser.add_argument_group("who may ask").add_argument
    add("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine only)")
    add("--port", type=int, metavar="N", default=8000, help="0 takes a free one (default: 8000)")
    add("--api-key", metavar="KEY", help="what clients must send (default: $CGPT_API_KEY, which ps does not show)")
    add("--allow-host", action="append", metavar="NAME", default=[], help="a name that clients may call the server by")
    add("--cors", action="append", metavar="ORIGIN", default=[], help="a site whose pages may ask (default: none)")

    add = parser.add_argument_group("limits").add_argument
    add("--max-waiting", type=int, metavar="N", default=256, help="texts that wait for a place (default: 256)")
    drain = "time that running requests get at shutdown (default: 30)"
    add("--drain", type=int, metavar="SECONDS", default=30, help=drain)
    add("--log-prompts", action="store_true", help="log what was asked too, not only that something was")
    add_engine_options(parser)
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
            f"cgpt serve needs the package {problem.name}: pip install starlette uvicorn pydantic markdown-it-py nh3"
        ) from None

    check_engine_options(args, max_waiting=1, drain=0)
    if not 0 <= args.port <= 65535:
        raise InputError(f"--port must be 0 to 65535, not {args.port}")
    key = args.api_key or os.environ.get("CGPT_API_KEY") or None
    if args.host not in LOOPBACK and key is None:
        say("warning: anyone who reaches this address may use the model; set CGPT_API_KEY")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("cgpt.serve").setLevel(logging.INFO)
    listening = server.listen(args.host, args.port)  # before the model is loaded: it may fail
    model = load_model(args)
    engine = make_engine(args, model, args.max_waiting)
    service = Service(
        engine, served_names(args, model), Limits(max_tokens=args.max_tokens), args.log_prompts, args.strict
    )
    app = make_app(service, (args.host, *args.allow_host), tuple(args.cors), key)
    server.run(app, listening, args.drain)
