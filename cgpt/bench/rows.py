"""From seconds to figures: one row for each case, beside the roofline of the same minute."""

import statistics
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from cgpt.api import Model
from cgpt.bench.noise import spread, warnings
from cgpt.bench.trace import Op, Trace
from cgpt.bench.workload import Measured
from cgpt.kernels import isa
from cgpt.machine import sysfs, topology
from cgpt.machine.disk import DiskRate
from cgpt.machine.roofline import Roofline
from cgpt.models.base import Transformer
from cgpt.models.description import describe
from cgpt.version import __version__


def model_facts(model: Model, name: str, dense: str | None, load_seconds: float) -> dict[str, Any]:
    """What the rows of a loaded model have in common. Named as llama-bench does where it has the same."""
    facts = describe(model.directory)
    kinds = sorted({matrix.dtype for _, matrix in model.transformer.matrices()})
    return {
        "cgpt_version": __version__,
        "cpu_info": topology.cpu_name(),
        "model_filename": name,
        "model_type": f"{facts['architecture']} {_count(facts['parameters']['total'])} {'+'.join(kinds)}",
        "model_size": facts["bytes"]["weights"],
        "model_n_params": facts["parameters"]["total"],
        "n_ubatch": model.transformer.PREFILL_CHUNK,
        "n_threads": model.threads,
        "level": isa.level(),
        "precision": model.precision,
        "dense": dense,
        "type_k": model.kv_cache_dtype,
        "type_v": model.kv_cache_dtype,
        "load_ns": round(load_seconds * 1e9),
    }


def row(
    measured: Measured,
    rooflines: tuple[Roofline, Roofline],
    shares: tuple[float | None, float | None],
    peak_memory: int | None,
    faults: int = 0,
) -> dict[str, Any]:
    """The figures of a case. avg_, stddev_ and samples_ are llama-bench's: nanoseconds of a repetition, tokens per
    second. rooflines: before and after; the better one counts. shares: what other processes, and the host, took.
    faults: pages that came from disk.

    bytes_per_token, flops_per_token: what must be read and calculated; bytes_per_s, flops_per_s: that over the median;
    bandwidth_share, peak_share: those of the roofline's. first_token_ns: a prompt and picking what follows;
    token_ns_p50, token_ns_p99: from one token of a sequence to its next. peak_memory: of loading or the case, whichever
    took more.
    """
    case, seconds = measured.case, measured.seconds
    median = statistics.median(seconds)
    rates = [case.tokens / s for s in seconds]
    read = max(roofline.read_bytes_per_s for roofline in rooflines)
    best = max(rooflines, key=lambda roofline: roofline.flops_per_s)
    steps = [s for steps in measured.repetitions for s in steps]
    p50, p99 = (round(1e9 * float(np.percentile(steps, q))) for q in (50, 99)) if case.n_gen else (None, None)
    return {
        **asdict(case),
        "test": str(case),
        "test_time": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "avg_ns": round(1e9 * statistics.mean(seconds)),
        "stddev_ns": round(1e9 * _stdev(seconds)),
        "avg_ts": statistics.mean(rates),
        "stddev_ts": _stdev(rates),
        "samples_ns": [round(1e9 * s) for s in seconds],
        "samples_ts": rates,
        "median_ns": round(1e9 * median),
        "median_ts": case.tokens / median,
        "spread": spread(seconds),
        "first_token_ns": round(1e9 * median) if case.n_prompt else None,
        "token_ns_p50": p50,
        "token_ns_p99": p99,
        "bytes_per_token": measured.bytes / case.tokens,
        "flops_per_token": measured.flops / case.tokens,
        "bytes_per_s": measured.bytes / median,
        "flops_per_s": measured.flops / median,
        "bandwidth_share": measured.bytes / median / read,
        "peak_share": measured.flops / median / best.flops_per_s,
        "roofline_bytes_per_s": read,
        "roofline_flops_per_s": best.flops_per_s,
        "roofline_dtype": best.dtype,
        "peak_memory_bytes": peak_memory,
        "others_share": shares[0],
        "stolen_share": shares[1],
        "warnings": warnings(seconds, *shares, *rooflines, faults),
    }


def streamed(measured: Measured, disks: tuple[DiskRate, DiskRate]) -> dict[str, float]:
    """What a row has besides where experts are streamed. disks: the disk's own rate at the same size of reads, before
    and after; the better one counts.

    expert_hit_rate: of the experts that tokens chose, those that were in memory; disk_bytes_per_token; disk_bytes_per_s
    over all the time; disk_share: of disk_rate_bytes_per_s. wait_ns: of a repetition, without anything to multiply;
    compute_ns: the rest of it.
    """
    stats, seconds, count = measured.experts, sum(measured.seconds), len(measured.experts)
    own = max(disk.bytes_per_second for disk in disks)
    read, hits = sum(one.bytes_read for one in stats), sum(one.hits for one in stats)
    waited = sum(one.wait_seconds for one in stats)
    return {
        "expert_hit_rate": hits / max(1, hits + sum(one.misses for one in stats)),
        "disk_bytes_per_token": read / count / measured.case.tokens,
        "disk_bytes_per_s": read / seconds,
        "disk_share": read / seconds / own,
        "disk_rate_bytes_per_s": own,
        "disk_request_bytes": disks[0].request_bytes,
        "wait_ns": round(1e9 * waited / count),
        "compute_ns": round(1e9 * (seconds - waited) / count),
    }


def gathered(measured: Measured, model: Transformer) -> dict[str, Any]:
    """What a row has besides where a model runs on several ranks: n_ranks; of a step gathers_per_step, gather_ns, of
    which waiting for slower ranks is part, and gather_bytes, of what was completed."""
    clocks, steps = measured.gathers, sum(map(len, measured.repetitions))
    return {
        "n_ranks": model.ranks.size if model.ranks else 1,
        "gathers_per_step": sum(clock.calls for clock in clocks) / steps,
        "gather_ns": round(1e9 * sum(clock.seconds for clock in clocks) / steps),
        "gather_bytes": sum(clock.bytes for clock in clocks) / steps,
        "step_ns": round(1e9 * sum(measured.seconds) / steps),
    }


def profile(trace: Trace, total_seconds: float, steps: int, figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Where the time of `steps` steps went, the longest first; what no kernel took is "outside the kernels".
    figures: the row of the case."""
    outside = Op(seconds=total_seconds - trace.total.seconds)
    ops = [
        {
            "op": name,
            "calls": op.calls / steps,
            "ns": 1e9 * op.seconds / steps,
            "share": op.seconds / total_seconds,
            "bytes_per_s": op.bytes / op.seconds,
            "flops_per_s": op.flops / op.seconds,
            "bandwidth_share": op.bytes / op.seconds / figures["roofline_bytes_per_s"],
            "peak_share": op.flops / op.seconds / figures["roofline_flops_per_s"],
        }
        for name, op in (trace.ops | {OUTSIDE: outside}).items()
    ]
    return sorted(ops, key=lambda op: -op["ns"])


OUTSIDE = "outside the kernels"


def peak_memory(root: Path = Path("/")) -> int | None:
    """The most bytes this process had in memory since reset_peak_memory(); None where the system does not tell."""
    return sysfs.numbers(root / "proc/self/status").get("VmHWM:")


def reset_peak_memory() -> None:
    """Forgets the peak so far, where the system lets it (proc_pid_clear_refs(5))."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _stdev(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _count(number: int) -> str:
    return f"{number / 1e9:.1f}B" if number >= 1e9 else f"{number / 1e6:.0f}M"
