"""The command `cgpt synth`."""

import argparse
import shlex

from cgpt.checkpoint.sizes import SIZES
from cgpt.cli.options import ProgressBar
from cgpt.models import synth

SUMMARY = "write a checkpoint of random weights, to measure a machine before a download"
EXAMPLES = """\
  cgpt synth gpt2 /tmp/gpt2
  cgpt synth gpt-oss-20b /tmp/gpt-oss-20b    (13.8 GB)
  cgpt synth gpt-oss-20b /tmp/gpt-oss-20b --awkward-rows 0.01    (weights with the exponents of trained ones)
  cgpt synth gpt-oss-120b /tmp/gpt-oss-120b --routing-skew 1    (65.3 GB)"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    parser.add_argument("size", metavar="SIZE", help=f"one of {', '.join(SIZES)}; or a config.json")
    parser.add_argument("directory", metavar="DIR", help="where to write; must be empty or not exist yet")
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="of the random weights (default: 0)")
    parser.add_argument(
        "--routing-skew",
        type=float,
        metavar="S",
        default=0.0,
        help="of gpt-oss's routers. 0 (default): every expert is chosen as often as the others. 1: as unevenly as in "
        "trained models, some by a bias of 0.75 N(0, 1) in their logits, and for some hundred tokens at a time by 0.4 "
        "N(0, 1) for the topic of the text; S scales both. A cache of 30 %% of 128 experts a layer then hits about "
        "85 %% in generated text, of 32 experts 70 %%",
    )
    parser.add_argument(
        "--awkward-rows",
        type=float,
        metavar="SHARE",
        help="gives dense matrices the exponents of trained ones, for --dense bf16-packed: a weight is "
        "std * 2^(0.3 s) * h(z), with s from N(0, 1) for each row, z for each weight, and Tukey's h with a kurtosis of "
        "5.5; a SHARE of the rows, 0 to 1, is awkward: magnitudes over 24 powers of two alike. Default: N(0, std)",
    )


def run(args: argparse.Namespace) -> None:
    """Writes the checkpoint."""
    with ProgressBar(f"writing {args.directory}") as progress:
        synth.write(
            args.size,
            args.directory,
            seed=args.seed,
            routing_skew=args.routing_skew,
            awkward_rows=args.awkward_rows,
            progress=progress,
        )
    print(f"wrote a random {args.size} to {args.directory}; try: cgpt info {shlex.quote(args.directory)}")
