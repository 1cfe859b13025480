"""The command `cgpt doctor`."""

import argparse
import json

from cgpt.analysis import doctor
from cgpt.machine import roofline

SECONDS = 1.0  # of measuring

SUMMARY = "say what this machine offers, what stands in the way, and which models it will run how fast"
EXAMPLES = """\
  cgpt doctor
  cgpt doctor --threads 4
  cgpt doctor --json --no-measure"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    parser.add_argument("--threads", type=int, metavar="N", help="default: the physical cores this process may use")
    parser.add_argument("--no-measure", action="store_true", help="measure nothing, so expect nothing: takes no second")
    parser.add_argument("--json", action="store_true", help="print the facts as one JSON object")


def run(args: argparse.Namespace) -> None:
    """Prints what was found."""
    facts = doctor.examine(args.threads, None if args.no_measure else _measure)
    print(json.dumps(facts, indent=2) if args.json else doctor.render(facts))


def _measure(threads: int) -> roofline.Roofline:
    return roofline.measure(threads, seconds=SECONDS)
