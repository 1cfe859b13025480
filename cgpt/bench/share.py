"""What somebody with another machine can send: its kind, what it could do, how fast the demos ran. No name, no path."""

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cgpt.errors import InputError
from cgpt.kernels import isa
from cgpt.machine import roofline, topology

KEYS = (
    "cgpt_version model_type n_threads level precision dense type_k test median_ts spread bandwidth_share peak_share "
    "roofline_bytes_per_s roofline_flops_per_s roofline_dtype others_share stolen_share warnings"
).split()
PEAKS = {"f32": "peak", "bf16": "peak_tile", "int8": "peak_a8"}


def write(path: str, rows: Sequence[dict[str, Any]], seconds: float = 0.5) -> None:
    """Writes one JSON object to `path`. rows: of cgpt.bench.rows. seconds: of measuring each peak, with as many threads
    as the rows used. InputError where the file cannot be written."""
    threads, kernels = max(row["n_threads"] for row in rows), isa.kernels()
    facts = {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu": topology.cpu_name(),
        "cpus": os.cpu_count(),
        "level": isa.level(),
        "kernels": kernels,
        "flops_per_s": {
            dtype: roofline.peak(threads, dtype, seconds) for dtype, slot in PEAKS.items() if kernels[slot] != "-"
        },
        "rows": [{key: row[key] for key in KEYS} for row in rows],
    }
    try:
        Path(path).write_text(json.dumps(facts, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None
