"""Rows as tables for a terminal."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

_COLUMNS = (-20, 8, 9, 8, 10, 10, 10, 9, 7, 9, 9, 9, -4)  # the first to the left, and the mark
_STREAMED = (-20, 8, 8, 9, 7, 9, 11, 11)
_GATHERED = (-20, 8, 8, 9, 11, 11)
Row = Mapping[str, Any]


def heading(row: Row) -> str:
    """What all rows of a model have in common."""
    dense = f", dense={row['dense']}" if row["dense"] else ""
    limit = row.get("memory_limit")
    streamed = f", experts streamed within {limit / 1e9:.2f} GB" if limit else ""
    return (
        f"{Path(row['model_filename']).name}: {row['model_type']}, {row['model_size'] / 1e9:.2f} GB stored; "
        f"{row['cpu_info']}, {row['level']}, precision {row['precision']}{dense}, {row['type_k']} cache{streamed}"
    )


def table(rows: Sequence[Row]) -> str:
    """A line for each row, then what disturbed them, the rooflines, and what loading took."""
    lines = [columns(["test", "threads", "tok/s", "spread", "first", "next p50", "p99", "MB/tok", "GB/s", "roofline",
                       "GFLOP/s", "of peak", ""], _COLUMNS)]  # fmt: skip
    notes = []
    for row in rows:
        mark = ""
        if row["warnings"]:
            notes.append(row["warnings"])
            mark = f" ({len(notes)})"
        lines.append(columns([
            row["test"], str(row["n_threads"]), _digits(row["median_ts"]), f"{row['spread']:.1%}",
            _ms(row["first_token_ns"]), _ms(row["token_ns_p50"]), _ms(row["token_ns_p99"]),
            _digits(row["bytes_per_token"] / 1e6), f"{row['bytes_per_s'] / 1e9:.1f}", f"{row['bandwidth_share']:.0%}",
            f"{row['flops_per_s'] / 1e9:.1f}", f"{row['peak_share']:.0%}", mark,
        ], _COLUMNS))  # fmt: skip
    lines += _gathered([row for row in rows if "n_ranks" in row])
    lines += _streamed([row for row in rows if "disk_share" in row])
    lines += [f"({number}) noisy: {'; '.join(found)}" for number, found in enumerate(notes, 1)]
    for threads in dict.fromkeys(row["n_threads"] for row in rows):
        lines.append(_machine([row for row in rows if row["n_threads"] == threads]))
    return "\n".join(lines)


def _gathered(rows: Sequence[Row]) -> list[str]:
    """A line for each row: what the ranks of a model exchanged in a step, and how long that took."""
    if not rows:
        return []
    lines = ["", columns(["gathers", "ranks", "a step", "KB", "time", "of a step"], _GATHERED)]
    for row in rows:
        lines.append(columns([
            row["test"], str(row["n_ranks"]), f"{row['gathers_per_step']:.0f}", _digits(row["gather_bytes"] / 1e3),
            _ms(row["gather_ns"]), f"{row['gather_ns'] / row['step_ns']:.1%}",
        ], _GATHERED))  # fmt: skip
    return [*lines, "the rooflines below are those of all ranks together", ""]


def _streamed(rows: Sequence[Row]) -> list[str]:
    """A line for each row: the experts that came from the disk, and how long was waited for them in a repetition."""
    if not rows:
        return []
    lines = [
        "",
        columns(["experts", "threads", "hits", "MB/tok", "GB/s", "of disk", "waiting", "computing"], _STREAMED),
    ]
    for row in rows:
        lines.append(columns([
            row["test"], str(row["n_threads"]), f"{row['expert_hit_rate']:.1%}",
            _digits(row["disk_bytes_per_token"] / 1e6), f"{row['disk_bytes_per_s'] / 1e9:.2f}",
            f"{row['disk_share']:.0%}", _ms(row["wait_ns"]), _ms(row["compute_ns"]),
        ], _STREAMED))  # fmt: skip
    own = span((row["disk_rate_bytes_per_s"] for row in rows), 2)
    requests = "requests of {:.1f} MB".format(rows[0]["disk_request_bytes"] / 1e6)
    return [*lines, f"the disk's own rate: {own} GB/s in {requests}", ""]


def profile_table(row: Row) -> str:
    """Where the time of a row's steps went."""
    unit = "a chunk" if row["n_prompt"] else "a step"
    head = f"  {'':24}{'calls':>6}{'ms':>10}{'time':>7}{'GB/s':>8}{'roofline':>9}{'GFLOP/s':>9}{'of peak':>9}"
    lines = [f"{row['test']}, {row['n_threads']} threads, {unit}:", head]
    for op in row["profile"]:
        line = f"  {op['op']:24}{op['calls']:6.0f}{op['ns'] / 1e6:10.3f}{op['share']:7.1%}"
        if op["bytes_per_s"]:
            line += f"{op['bytes_per_s'] / 1e9:8.1f}{op['bandwidth_share']:9.0%}"
        if op["flops_per_s"]:
            line += f"{op['flops_per_s'] / 1e9:9.1f}{op['peak_share']:9.0%}"
        lines.append(line)
    return "\n".join(lines)


def _machine(rows: Sequence[Row]) -> str:
    """The rooflines and the memory of the rows of one number of threads."""
    reads, peaks = span(r["roofline_bytes_per_s"] for r in rows), span(r["roofline_flops_per_s"] for r in rows)
    memory = [r["peak_memory_bytes"] for r in rows if r["peak_memory_bytes"] is not None]
    most = f", at most {max(memory) / 1e9:.2f} GB in memory" if memory else ""
    return (
        f"{rows[0]['n_threads']} threads: memory {reads} GB/s, {rows[0]['roofline_dtype']} products {peaks} GFLOP/s; "
        f"loaded in {rows[0]['load_ns'] / 1e9:.2f} s{most}"
    )


def span(values: Iterable[float], digits: int = 1) -> str:
    """The least and the most of some figures, in thousands of millions; one where they look the same."""
    values = [value / 1e9 for value in values]
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low} to {high}"


def columns(cells: Sequence[str], widths: Sequence[int]) -> str:
    """A line of cells, flush right; those of negative widths flush left."""
    padded = (cell.ljust(-w) if w < 0 else cell.rjust(w) for cell, w in zip(cells, widths, strict=True))
    return "".join(padded).rstrip()


def _digits(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def _ms(ns: float | None) -> str:
    return "" if ns is None else f"{_digits(ns / 1e6)} ms"
