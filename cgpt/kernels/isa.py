"""Which instruction set the kernels use: the best this machine has, or what CGPT_ISA asks for, down only."""

import os

from cgpt.errors import KernelError
from cgpt.kernels import _kernels
from cgpt.kernels._kernels import FEATURES, kernels, level, levels

__all__ = ["available", "kernels", "level", "levels", "use_best"]


def available() -> list[str]:
    """The levels this machine offers, lowest first."""
    return [name for name, missing in levels().items() if missing is None]


def use_best() -> str:
    """Makes CGPT_ISA, or else the highest level here, the level in use. KernelError if CGPT_ISA names no level, or
    one that this machine lacks. CGPT_MASK, one of FEATURES, treats the CPU as one without that feature."""
    mask = os.environ.get("CGPT_MASK", "")
    if mask not in FEATURES:
        raise KernelError(f"CGPT_MASK={mask}: only {' and '.join(FEATURES[1:])} can be masked")
    _kernels.use_level("ref", mask=mask)
    name = os.environ.get("CGPT_ISA") or available()[-1]
    if name not in levels():
        raise KernelError(f"CGPT_ISA={name}: there is no such level; use one of {', '.join(available())}")
    _kernels.use_level(name, mask=mask)
    return name
