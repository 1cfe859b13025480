"""What cgpt.analysis.compare found, as a table for a terminal or in Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from cgpt.analysis.info import count, scaled, size
from cgpt.models.accounting import PARTS

WIDTH, LABELS, NARROWEST, WIDEST = 100, 21, 25, 40  # columns: of the table, what precedes its cells, and a cell
SAME, FOOTNOTE = "=", "= the same in all"

_ACTIVATIONS = {
    "gelu_tanh": "GELU (tanh)",
    "gelu_erf": "GELU (erf)",
    "quick_gelu": "QuickGELU",
    "relu": "ReLU",
    "silu": "SiLU",
    "tanh": "tanh",
}

# Of the steps from GPT-2 to gpt-oss; a row's label begins with the number of its step.
WHY = {
    1: "training that sees its data once does not overfit: dropout's masks only cost time and memory",
    2: "a table ends where training did; rotations depend on distance alone, and YaRN stretches them",
    3: "a second projection gates the first, number by number; the clamp bounds what comes out",
    4: "capacity grows with all experts, the work of a token only with the few its router chose",
    5: "query heads share keys and values: fewer weights, and a smaller cache to keep and to read",
    6: "a layer with a window keeps, reads and computes no more at 131,072 positions than at 128",
    7: "without a mean there is one reduction less, and without a bias nothing to add",
    8: "a learned number in the softmax's denominator lets a head attend to nothing",
    9: "Pre-LN keeps the residual path clean; a head of its own need not serve as embedding, too",
    10: "32 weights of 4 bits share a scale of 8: 4.25 bits each, for the experts, nearly all there is",
}


class Row(NamedTuple):
    """A line of the table: a cell for each model."""

    label: str
    cells: list[str]
    step: int | None = None

    @property
    def mark(self) -> str:
        return SAME if len(set(self.cells)) == 1 else ""


def groups(facts: Mapping[str, Any]) -> dict[str, list[Row]]:
    """{title: rows} of what compare() found."""
    models = facts["models"]

    def row(label: str, cell: Callable[[Mapping[str, Any]], str], step: int | None = None) -> Row:
        return Row(label, [cell(model) for model in models], step)

    found = {
        "choices, step by step": [
            row(label, lambda m, text=text: text(m["choices"]), step) for step, label, text in _CHOICES
        ],
        "shape": [
            row(key, lambda m, key=key: f"{m['shape'][key]:,}") for key in ("layers", "width", "vocabulary", "context")
        ],
        "parameters": [
            row("total", lambda m: f"{m['parameters']['total']:,}"),
            row("active a token", lambda m: _share(m["parameters"]["active"], m)),
            *(row(part, lambda m, part=part: _part(part, m)) for part in PARTS),
        ],
        "checkpoint": [
            row("on disk", lambda m: f"{size(m['bytes']['disk'])} ({m['bytes']['disk'] / 2**30:.3g} GiB)"),
            row("bits/parameter", lambda m: f"{8 * m['bytes']['weights'] / m['parameters']['total']:.2f}"),
        ],
        f"decoding a token at the end of {facts['context']:,} positions": [
            row("weights read", lambda m: size(_weights_read(m))),
            row("cache read", lambda m: size(m["bytes"]["per_token"]["cache"])),
            row("in products", lambda m: scaled(m["flops"]["products"], "FLOP")),
            row("in attention", lambda m: scaled(m["flops"]["attention"], "FLOP")),
        ],
        f"cache of keys and values, {facts['kv_cache_dtype']}, of the": [
            row("first position", lambda m: size(m["cache"]["first_position"])),
            row("last position", lambda m: size(m["cache"]["last_position"])),
            row("full context", lambda m: f"{size(m['cache']['full'])} for {m['shape']['context']:,}"),
        ],
    }
    if not all(m["longest"]["within"] for m in models):
        found[f"at {facts['longest']:,} positions"] = [
            row("has as many", lambda m: "yes" if m["longest"]["within"] else "no; if it had them:"),
            row("cache", lambda m: size(m["longest"]["cache"])),
            row("in attention", lambda m: scaled(m["longest"]["attention_flops"], "FLOP")),
            row("more parameters", _more_positions),
        ]
    return found


# ------------------------------------------------------------------------------------------------------- cells


def _dropout(choices: Mapping[str, Any]) -> str:
    rates = choices["dropout"]
    if not any(rates.values()):
        return "none"
    if len(set(rates.values())) == 1:
        return f"{next(iter(rates.values())):g} in training"
    return ", ".join(f"{part} {rate:g}" for part, rate in rates.items())


def _positions(choices: Mapping[str, Any]) -> str:
    positions = choices["positions"]
    if positions["kind"] == "learned":
        return f"learned, {positions['number']:,}"
    if positions["scaling"] == "yarn":
        return f"RoPE + YaRN {positions['original_context']:,} x {positions['factor']:g}"
    scaling = f" + {positions['scaling']} x {positions['factor']:g}" if positions["scaling"] else ""
    return f"RoPE, base {positions['theta']:,.0f}{scaling}"


def _activation(choices: Mapping[str, Any]) -> str:
    activation = choices["activation"]
    if activation["kind"] == "swiglu":
        return f"SwiGLU, clamp {activation['clamp']:g}"
    return _ACTIVATIONS[activation["kind"]]


def _feed_forward(choices: Mapping[str, Any]) -> str:
    part = choices["feed_forward"]
    if part["router"] is None:
        return f"one, {part['width']:,} wide"
    return f"{part['experts_per_token']} of {part['experts']} experts, {part['width']:,}"


def _router(choices: Mapping[str, Any]) -> str:
    part = choices["feed_forward"]
    return f"softmax over the {part['experts_per_token']}" if part["router"] else "none"


def _heads(choices: Mapping[str, Any]) -> str:
    attention = choices["attention"]
    text = f"{attention['heads']} of {attention['head_dim']}"
    return text if attention["kind"] == "multi-head" else f"{text} on {attention['kv_heads']} key/value"


def _windows(choices: Mapping[str, Any]) -> str:
    windows = choices["windows"]
    if not windows["layers"]:
        return "none: each sees all"
    some = f"{windows['layers']} of {windows['of_layers']} layers"
    return f"{windows['positions']:,} in {'every other layer' if windows['alternating'] else some}"


def _norm(choices: Mapping[str, Any]) -> str:
    return f"{choices['norm']['kind']}, eps {choices['norm']['eps']:g}"


def _sinks(choices: Mapping[str, Any]) -> str:
    return f"{choices['sinks']:,} learned" if choices["sinks"] else "none"


def _biases(choices: Mapping[str, Any]) -> str:
    return ", ".join(part for part, kept in choices["biases"].items() if kept) or "none"


def _formats(choices: Mapping[str, Any]) -> str:
    formats = choices["formats"]
    total = sum(formats.values())
    return ", ".join(formats) if len(formats) == 1 else ", ".join(f"{n} {v / total:.0%}" for n, v in formats.items())


_CHOICES: list[tuple[int, str, Callable[[Mapping[str, Any]], str]]] = [
    (1, "dropout", _dropout),
    (2, "positions", _positions),
    (3, "activation", _activation),
    (4, "feed-forward", _feed_forward),
    (4, "router", _router),
    (5, "attention", lambda choices: choices["attention"]["kind"]),
    (5, "heads", _heads),
    (6, "windows", _windows),
    (7, "norm", _norm),
    (8, "sinks", _sinks),
    (9, "norms stand", lambda choices: f"{choices['norm']['place']} each part (Pre-LN)"),
    (9, "biases", _biases),
    (9, "head", lambda choices: "tied to the embedding" if choices["tied_head"] else "its own"),
    (10, "weights", _formats),
]


def _share(number: int, model: Mapping[str, Any]) -> str:
    share = number / model["parameters"]["total"]
    return f"{count(number)} ({f'{share:.1%}' if share >= 0.001 else '<0.1%'})"


def _part(part: str, model: Mapping[str, Any]) -> str:
    number = model["parameters"]["parts"].get(part)
    return "the embedding's" if number is None else _share(number, model)  # only a head can be without its own


def _more_positions(model: Mapping[str, Any]) -> str:
    number = model["longest"]["position_parameters"]
    return f"{count(number)} for positions" if number else "none"


def _weights_read(model: Mapping[str, Any]) -> int:
    return sum(read for part, read in model["bytes"]["per_token"].items() if part != "cache")


# ------------------------------------------------------------------------------------------------------ tables


def render(facts: Mapping[str, Any], why: bool = False) -> str:
    """The table for a terminal, within WIDTH columns for three models; why: and a line on the reason for each step."""
    names = [model["name"] for model in facts["models"]]
    width = min(WIDEST, max(NARROWEST, (WIDTH - LABELS + 2) // len(names) - 2))
    lines = _lines("", "", names, width)
    for title, rows in groups(facts).items():
        lines.append(title)
        for row in rows:
            lines += _lines(row.mark, _label(row), row.cells, width)
    lines += ["", FOOTNOTE]
    if why:
        lines += ["", *(f"{step:2} {reason}" for step, reason in WHY.items())]
    return "\n".join(lines)


def markdown(facts: Mapping[str, Any], why: bool = False) -> str:
    """The same as a table in Markdown."""
    names = [model["name"].replace("|", "\\|") for model in facts["models"]]
    rows = [["", "", *names], ["---"] * (len(names) + 2)]
    for title, group in groups(facts).items():
        rows.append(["", f"**{title}**", *[""] * len(names)])
        rows += [[row.mark, _label(row).strip(), *row.cells] for row in group]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", FOOTNOTE]
    if why:
        lines += ["", *(f"{step}. {reason}" for step, reason in WHY.items())]
    return "\n".join(lines)


def _label(row: Row) -> str:
    return f"{row.step:2} {row.label}" if row.step else f"   {row.label}"


def _lines(mark: str, label: str, cells: Sequence[str], width: int) -> list[str]:
    """A row; a cell that is too wide takes several lines."""
    wrapped = [textwrap.wrap(cell, width) or [""] for cell in cells]
    height = max(map(len, wrapped))
    lines = []
    for n in range(height):
        text = f"{mark if not n else '':1} {label if not n else '':{LABELS - 2}}"
        text += "  ".join(f"{cell[n] if n < len(cell) else '':{width}}" for cell in wrapped)
        lines.append(text.rstrip())
    return lines
