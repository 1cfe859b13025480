"""The command line: a module for each command, with its SUMMARY, EXAMPLES, add_options() and run()."""

import argparse
import io
import os
import sys
import warnings
from contextlib import suppress
from types import ModuleType
from typing import Any

from cgpt.cli import (
    batch,
    bench,
    chat,
    compare,
    doctor,
    evolution,
    generate,
    info,
    kernels,
    pull,
    quality,
    serve,
    synth,
)
from cgpt.cli.options import say
from cgpt.distributed import mpi
from cgpt.errors import CgptError
from cgpt.kernels import _kernels
from cgpt.loading import follow
from cgpt.version import __version__

COMMANDS = (generate, chat, serve, batch, pull, info, compare, synth, bench, doctor, quality, evolution, kernels)
INTERRUPTED, PIPE_CLOSED, FAILED = 130, 141, 2  # as shells report SIGINT and SIGPIPE, and as argparse fails


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit status. argparse exits by itself for --help and wrong usage."""
    _replace_closed_streams()
    _kernels.name_bus_errors()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # where it knows few characters, the others become "?"
    try:
        return _run(argv)
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # Python would complain once more when it flushes at exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(argv: list[str] | None) -> int:
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning  # type: ignore[assignment]  # which takes more than it needs
        rank, _ = mpi.launched()
        if rank:
            warnings.simplefilter("ignore")  # rank 0 says the same
        try:
            try:
                comm = mpi.world()
                session = None
                if comm:
                    from cgpt.distributed.session import session_of  # only several processes need it

                    session = session_of(comm)
                if session and session.rank:
                    follow(session)  # rank 0 has the front
                else:
                    args = _parser().parse_args(argv)
                    args.run(args)
            finally:
                sys.stdout.flush()
        except KeyboardInterrupt:
            return INTERRUPTED
        except BrokenPipeError:  # whoever read has gone
            return PIPE_CLOSED
        except (CgptError, OSError, MemoryError) as problem:
            with suppress(OSError):  # stderr is full or closed: the status says it
                if not rank:
                    say(f"error: {str(problem) or 'out of memory'}")
            return FAILED
    return 0


def _replace_closed_streams() -> None:
    """Opens what takes the place of streams that were closed (`cgpt ... >&-`), before a file gets their descriptors:
    stdin is empty, stderr swallows what is said, and writing to stdout is the error it would be (EBADF)."""
    for name, mode, flags in (("stdin", "r", os.O_RDONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.open(os.devnull, flags), mode, encoding="utf-8", closefd=False))


def _show_warning(message: Warning | str, *_: Any) -> None:
    say(f"warning: {message}")


def _add_command(commands: Any, command: ModuleType) -> None:
    """Adds the parser of a module's command; commands: what add_subparsers() gave."""
    summary: str = command.SUMMARY
    parser = commands.add_parser(
        command.__name__.rpartition(".")[2],
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"examples:\n{command.EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=command.run)
    command.add_options(parser)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cgpt",
        description="GPT-2 and gpt-oss on the CPU, from the checkpoints as published.",
        epilog='Begin with:  cgpt generate "ROMEO:"\nEach command explains itself:  cgpt generate --help',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cgpt {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        _add_command(commands, command)
    return parser
