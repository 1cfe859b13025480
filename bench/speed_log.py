"""Figures as JSON lines, as in SPEED.jsonl: date, machine, what, command, value, unit, tree. See regressions.py."""

import json
import os
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

from cgpt.kernels import isa
from cgpt.machine import topology


def machine() -> str:
    """The kind of machine: how many CPUs that may be used, of which name, at which level of the kernels."""
    return f"{len(os.sched_getaffinity(0))} x {topology.cpu_name()}, {isa.level()}"


def command() -> str:
    """The command line, paths by their last name alone."""
    return " ".join(["python", *(os.path.basename(word.rstrip("/")) if "/" in word else word for word in sys.argv)])


def tree() -> str:
    """The commit that is checked out, "+" where files differ from it; "" outside a repository."""
    describe = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(describe, capture_output=True, text=True).stdout.strip()


def append(file: str | None, figures: dict[str, tuple[float, str]]) -> None:
    """Appends a line for each {what: (value, unit)}; nothing without a file."""
    if not file:
        return
    common = {"date": datetime.now(timezone.utc).strftime("%Y-%m-%d"), "machine": machine()}
    with open(file, "a") as out:
        for what, (value, unit) in figures.items():
            line = common | {"what": what, "command": command(), "value": float(f"{value:.4g}"), "unit": unit}
            out.write(json.dumps(line | {"tree": tree()}) + "\n")
