"""The command `cgpt kernels`."""

import argparse

from cgpt.kernels import isa

SUMMARY = "say which instruction set is in use, and which variant of each kernel"
EXAMPLES = """\
  cgpt kernels
  CGPT_ISA=avx2 cgpt kernels"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""


def run(args: argparse.Namespace) -> None:
    """Prints the levels, and the variant of each kernel."""
    print(f"level   {isa.level()}")
    for name, missing in isa.levels().items():
        print(f"        {name:8}{'available' if missing is None else 'needs ' + missing}")
    slots = isa.kernels()
    width = max(map(len, slots)) + 2
    print(f"\n{'kernel':{width}}variant")
    for slot, variant in slots.items():
        print(f"{slot:{width}}{variant}")
