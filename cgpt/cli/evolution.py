"""The command `cgpt evolution`."""

import argparse
import json
from pathlib import Path
from typing import Any

from cgpt.cli.options import integers, say
from cgpt.errors import InputError
from cgpt.evolution import page, report, session
from cgpt.evolution.setting import Setting
from cgpt.evolution.steps import chosen
from cgpt.kernels import _kernels, isa
from cgpt.machine.threads import thread_count

QUICK: dict[str, Any] = {"width": 960, "contexts": [256, 2048], "prompt": 64, "seconds": 0.05}
FULL: dict[str, Any] = {"width": 2880, "contexts": [512, 2048, 8192], "prompt": 512, "seconds": 0.6}

SUMMARY = "run every step from GPT-2 to gpt-oss both ways, and say which claims hold on this CPU"
EXAMPLES = """\
  cgpt evolution --quick
  cgpt evolution --html evolution.html     (some two minutes; opens in any browser, offline)
  cgpt evolution --step 5,6 --contexts 512,8192,32768
  cgpt evolution --step 7 --level ref --json"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    add = parser.add_argument
    add("--step", type=integers, metavar="N", help="only these of the ten (default: all)")
    add("--quick", action="store_true", help="smaller shapes and shorter measurements: some ten seconds")
    add("--width", type=int, metavar="C", help="of the model, and of its experts (default: 2880; quick: 960)")
    add("--contexts", type=integers, metavar="N", help="positions attended (default: 512,2048,8192; quick: 256,2048)")
    add("--prompt", type=int, metavar="T", help="tokens read at once (default: 512; quick: 64)")
    add("--seconds", type=float, metavar="S", help="at least for each measurement (default: 0.6; quick: 0.05)")
    add("--threads", type=int, metavar="N", help="default: the physical cores this process may use")
    add("--level", metavar="NAME", help="instruction set: ref, avx2, avx512, amx (default: the best here)")
    add = parser.add_argument_group("what is shown").add_argument
    add("--json", action="store_true", help="print everything as one JSON object")
    add("--html", metavar="FILE", help="also write a report with plots, one file that needs nothing else")


def run(args: argparse.Namespace) -> None:
    """Prints what was found, and writes the report."""
    given = {name: getattr(args, name) for name in FULL}
    shapes = (QUICK if args.quick else FULL) | {name: value for name, value in given.items() if value is not None}
    shapes["contexts"] = tuple(sorted(shapes["contexts"]))
    setting = Setting(thread_count(args.threads), **shapes)
    steps = chosen(args.step)
    if args.html and not Path(args.html).resolve().parent.is_dir():
        raise InputError(f"--html {args.html}: there is no directory {Path(args.html).parent}")
    if args.level is not None:
        _kernels.use_level(args.level)
    try:
        result = session.run(setting, steps, say)
    finally:
        if args.level is not None:
            isa.use_best()
    print(json.dumps(result, indent=2) if args.json else report.render(result))
    if args.html:
        Path(args.html).write_text(page.render(result), encoding="utf-8")
        say(f"wrote {args.html}")
