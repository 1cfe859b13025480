"""Rows as a picture: how far below the roofline each case is, and how depth slows it down."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cgpt.analysis.info import plural
from cgpt.errors import InputError

Row = Mapping[str, Any]


def require_matplotlib() -> None:
    """InputError where there is none: asked before anything is measured."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise InputError("a plot needs matplotlib: pip install matplotlib") from None


def plot(rows: Sequence[Row], path: str | Path) -> None:
    """Writes the roofline and the tokens per second by depth of `rows` to `path`, in the format of its suffix (PNG,
    SVG, PDF). Williams et al., "Roofline", CACM 52(4), 2009. InputError where it cannot be written."""
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _roofline(left, rows)
    _depths(right, rows)
    first = rows[0]
    dense = f", dense={first['dense']}" if first["dense"] else ""
    figure.suptitle(f"{first['model_type']} on {first['cpu_info']}, {first['level']}, {first['precision']}{dense}")
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as problem:
        raise InputError(f"{path}: {problem}") from None


def _roofline(axes: Any, rows: Sequence[Row]) -> None:
    """Operations per second over operations per byte, under the least of what memory and cores allow: a colour for each
    number of threads, a marker for each test."""
    intensity = [row["flops_per_token"] / row["bytes_per_token"] for row in rows]
    low, high = min(intensity) / 3, max(intensity) * 3
    tests = list(dict.fromkeys(row["test"] for row in rows))
    for n, threads in enumerate(dict.fromkeys(row["n_threads"] for row in rows)):
        mine = [row for row in rows if row["n_threads"] == threads]
        read = statistics.median(row["roofline_bytes_per_s"] for row in mine)
        peak = statistics.median(row["roofline_flops_per_s"] for row in mine)
        xs = sorted({low, min(max(peak / read, low), high), high})
        reached = f"{read / 1e9:.1f} GB/s, {peak / 1e9:.0f} GFLOP/s {mine[0]['roofline_dtype']}"
        label = f"{plural(threads, 'thread')}: {reached}"
        axes.plot(xs, [min(peak, read * x) / 1e9 for x in xs], color=f"C{n}", label=label)
        for row in mine:
            share = max(row["bandwidth_share"], row["peak_share"])
            x, y = row["flops_per_token"] / row["bytes_per_token"], row["flops_per_s"] / 1e9
            marker = "osD^vP*Xpdh<>"[tests.index(row["test"]) % 13]
            axes.plot(x, y, marker, color=f"C{n}", label=f"{row['test']}: {share:.0%} of the roofline")
    axes.set(xscale="log", yscale="log", xlabel="operations per byte read", ylabel="GFLOP/s", title="Roofline")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlim(low, high)
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=7, loc="lower right")


def _depths(axes: Any, rows: Sequence[Row]) -> None:
    """Tokens per second, a line for each kind of case and number of threads; bars reach from slowest to fastest."""
    lines: dict[str, list[Row]] = {}
    for row in rows:
        kind = row["test"].partition(" @")[0]
        lines.setdefault(f"{kind}, {plural(row['n_threads'], 'thread')}", []).append(row)
    for label, mine in lines.items():
        mine = sorted(mine, key=lambda row: row["n_depth"])
        middle = [row["median_ts"] for row in mine]
        low = [row["median_ts"] - min(row["samples_ts"]) for row in mine]
        high = [max(row["samples_ts"]) - row["median_ts"] for row in mine]
        axes.errorbar([row["n_depth"] for row in mine], middle, (low, high), marker="o", capsize=3, label=label)
    axes.set(yscale="log", xlabel="positions before", ylabel="tokens/s", title="Speed by depth")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend(fontsize=8)
