"""The command `cgpt doctor`."""

import argparse
import json
from pathlib import Path

from cgpt.analysis import doctor
from cgpt.checkpoint.locate import cache_directory, locate
from cgpt.checkpoint.safetensors import find_files
from cgpt.machine import roofline
from cgpt.machine.disk import DiskRate, disk_rate

SECONDS = 1.0  # of measuring the CPUs and their memory, and again of the disk

SUMMARY = "say what this machine offers, what stands in the way, and which models it will run how fast"
EXAMPLES = """\
  cgpt doctor
  cgpt doctor ./gpt-oss-20b                  (the rate of its disk, too)
  cgpt doctor --threads 4
  cgpt doctor --json --no-measure"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    text = "a checkpoint, whose disk is measured (default: one in the Hugging Face cache, if any)"
    parser.add_argument("model", nargs="?", metavar="NAME_OR_DIR", help=text)
    parser.add_argument("--threads", type=int, metavar="N", help="default: the physical cores this process may use")
    parser.add_argument(
        "--no-measure", action="store_true", help="measure nothing, so expect nothing: takes no seconds"
    )
    parser.add_argument("--json", action="store_true", help="print the facts as one JSON object")


def run(args: argparse.Namespace) -> None:
    """Prints what was found."""
    files = _weight_files(args.model)
    if args.no_measure:
        facts = doctor.examine(args.threads)
    else:
        facts = doctor.examine(args.threads, _measure, disk=_measure_disk(files))
    print(json.dumps(facts, indent=2) if args.json else doctor.render(facts))


def _weight_files(model: str | None) -> list[Path]:
    """The files of a checkpoint, or of all in the hub's cache."""
    if model is None:
        return [path for path in cache_directory().glob("models--*/snapshots/*/*.safetensors") if path.is_file()]
    return find_files(locate(model))[0]


def _measure_disk(files: list[Path]) -> tuple[Path, DiskRate] | None:
    """The largest of the files, and the rate of its disk."""
    if not files:
        return None
    largest = max(files, key=lambda path: path.stat().st_size)
    return largest, disk_rate(largest, SECONDS)


def _measure(threads: int) -> roofline.Roofline:
    return roofline.measure(threads, seconds=SECONDS)
