"""The command line: cgpt generate, chat, serve, info, compare, synth, bench, doctor, quality, evolution, kernels."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import warnings
from typing import Any

from cgpt.api import DENSE, load
from cgpt.checkpoint.locate import demo_models
from cgpt.checkpoint.sizes import SIZES
from cgpt.cli import bench, chat, compare, doctor, evolution, quality, serve
from cgpt.cli.options import DEFAULT_MODEL, ProgressBar, add_kv_cache_dtype
from cgpt.errors import CgptError, InputError
from cgpt.generation.request import Completion
from cgpt.kernels import isa
from cgpt.kernels._kernels import PRECISIONS
from cgpt.kernels.isa import kernels
from cgpt.models.kv_cache import DEFAULT_KV_DTYPE
from cgpt.version import __version__

INTERRUPTED, PIPE_CLOSED, FAILED = 130, 141, 2  # as shells report SIGINT and SIGPIPE, and as argparse fails


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit status. argparse exits by itself for --help and wrong usage."""
    args = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # where it knows few characters, the others become "?"
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            args.run(args)
            sys.stdout.flush()
        except KeyboardInterrupt:
            return INTERRUPTED
        except BrokenPipeError:
            # Whoever read has gone. Python would complain once more when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return PIPE_CLOSED
        except (CgptError, OSError, MemoryError) as problem:
            print(f"cgpt: error: {str(problem) or 'out of memory'}", file=sys.stderr)
            return FAILED
    return 0


# --------------------------------------------------------------------------------------------------- commands


def _generate(args: argparse.Namespace) -> None:
    prompt = _read_stdin() if args.prompt == "-" else args.prompt
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop")
    options = {name: getattr(args, name) for name in (*names, "prompt_lookup_num_tokens")}
    with ProgressBar(f"loading {args.model}") as progress:
        model = load(
            args.model,
            args.threads,
            args.precision,
            args.dense,
            kv_cache_dtype=args.kv_cache_dtype,
            huge_pages=args.huge_pages,
            progress=progress,
        )
    if args.json:
        print(json.dumps(_report(model.generate(prompt, **options))))
        return
    pieces = model.stream(prompt, **options)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
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


def _info(args: argparse.Namespace) -> None:
    from cgpt.analysis import info

    facts = info.describe(args.model, args.context, kv_cache_dtype=args.kv_cache_dtype or DEFAULT_KV_DTYPE["auto"])
    print(json.dumps(facts, indent=2) if args.json else info.render(facts))


def _synth(args: argparse.Namespace) -> None:
    from cgpt.models import synth

    with ProgressBar(f"writing {args.directory}") as progress:
        synth.write(args.size, args.directory, seed=args.seed, progress=progress)
    print(f"wrote a random {args.size} to {args.directory}; try: cgpt info {args.directory}")


def _kernels(args: argparse.Namespace) -> None:
    print(f"level   {isa.level()}")
    for name, missing in isa.levels().items():
        print(f"        {name:8}{'available' if missing is None else 'needs ' + missing}")
    slots = kernels()
    width = max(map(len, slots)) + 2
    print(f"\n{'kernel':{width}}variant")
    for slot, variant in slots.items():
        print(f"{slot:{width}}{variant}")


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as problem:
        raise InputError(f"the prompt on stdin is not UTF-8: {problem}") from None


def _show_warning(message: Warning | str, *_: Any) -> None:
    print(f"cgpt: warning: {message}", file=sys.stderr)


# -------------------------------------------------------------------------------------------------- arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cgpt",
        description="GPT-2 and gpt-oss on the CPU, from the checkpoints as published.",
        epilog='Begin with:  cgpt generate "ROMEO:"\nEach command explains itself:  cgpt generate --help',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cgpt {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (
        _add_generate,
        chat.add_chat,
        serve.add_serve,
        _add_info,
        compare.add_compare,
        _add_synth,
        bench.add_bench,
        doctor.add_doctor,
        quality.add_quality,
        evolution.add_evolution,
        _add_kernels,
    ):
        add(_command, commands)
    return parser


def _command(commands: Any, name: str, run: Any, summary: str, examples: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _add_generate(command: Any, commands: Any) -> None:
    models = ", ".join(demo_models())
    parser = command(
        commands,
        "generate",
        _generate,
        "continue a prompt, as a stream of text",
        '  cgpt generate "ROMEO:"\n'
        '  cgpt generate --temperature 0.8 --top-p 0.95 --seed 1 --max-new-tokens 100 "To be"\n'
        "  cgpt generate --stop $'\\n\\n' --json - < prompt.txt\n"
        '  cgpt generate --model ./gpt-oss-20b --threads 8 "Roses are red, violets"',
    )
    parser.add_argument("prompt", metavar="PROMPT", help="the text to continue; - reads it from stdin")
    parser.add_argument(
        "--model",
        metavar="NAME_OR_DIR",
        default=DEFAULT_MODEL,
        help=f"a checkpoint directory, or one of {models} (default: {DEFAULT_MODEL})",
    )
    add = parser.add_argument
    add("--max-new-tokens", type=int, metavar="N", default=256, help="stop after N tokens (default: 256)")
    add("--stop", action="append", metavar="TEXT", help="stop before this text (may be given several times)")
    add("--json", action="store_true", help="print one JSON object: text, ids, finish_reason, timings")

    add = parser.add_argument_group("sampling").add_argument
    add("--temperature", type=float, metavar="T", default=0.0, help="0, the default, takes the likeliest")
    add("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens")
    add("--top-p", type=float, metavar="P", help="draw from the likeliest that have probability P together")
    add("--min-p", type=float, metavar="P", help="draw from those at least P times as likely as the first")
    add("--repetition-penalty", type=float, metavar="R", help="above 1 makes tokens seen before less likely")
    add("--seed", type=int, metavar="N", help="the same seed draws the same text again")

    add = parser.add_argument_group("running").add_argument
    add("--threads", type=int, metavar="N", help="default: the physical cores this process may use")
    exact = "exact: float32 activations everywhere; auto (default): bf16 in prompts where that is faster; int8: 8 bits"
    add("--precision", choices=PRECISIONS, default="auto", help=exact)
    lookup = "guess K tokens at a time where the text repeats itself: the same text, often sooner"
    add("--prompt-lookup-num-tokens", type=int, metavar="K", help=lookup)
    dense = "round dense matrices to bf16, or quantise them to 8 bits: fewer bytes to read per token"
    add("--dense", choices=DENSE, help=dense)
    add_kv_cache_dtype(add, "f16, or f32 with --precision exact")
    huge = "copy mapped weights into huge pages: faster to read, slower to load, and takes the checkpoint's size"
    add("--huge-pages", action="store_true", help=huge)


def _add_info(command: Any, commands: Any) -> None:
    parser = command(
        commands,
        "info",
        _info,
        "say what a model is, what it reads per token, and whether it fits here",
        "  cgpt info demo-gpt-oss\n  cgpt info ./gpt-oss-20b --context 8192",
    )
    parser.add_argument(
        "model",
        metavar="NAME_OR_DIR",
        help=f"a checkpoint directory, a config.json, or one of {', '.join([*demo_models(), *SIZES])}",
    )
    parser.add_argument("--context", type=int, metavar="N", help="tokens to have room for (default: all)")
    add_kv_cache_dtype(parser.add_argument, DEFAULT_KV_DTYPE["auto"])
    parser.add_argument("--json", action="store_true", help="print the facts as one JSON object")


def _add_synth(command: Any, commands: Any) -> None:
    parser = command(
        commands,
        "synth",
        _synth,
        "write a checkpoint of random weights, to measure a machine before a download",
        "  cgpt synth gpt2 /tmp/gpt2\n  cgpt synth gpt-oss-20b /tmp/gpt-oss-20b    (13.8 GB)",
    )
    parser.add_argument("size", metavar="SIZE", help=f"one of {', '.join(SIZES)}; or a config.json")
    parser.add_argument("directory", metavar="DIR", help="where to write; must be empty or not exist yet")
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="of the random weights (default: 0)")


def _add_kernels(command: Any, commands: Any) -> None:
    command(
        commands,
        "kernels",
        _kernels,
        "say which instruction set is in use, and which variant of each kernel",
        "  cgpt kernels\n  CGPT_ISA=avx2 cgpt kernels",
    )
