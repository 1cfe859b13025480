"""Models side by side, what each chose and what it comes to: for `cgpt compare`. Reads no weights."""

import os
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from cgpt.analysis.info import count, scaled, size
from cgpt.checkpoint.config import FULL, SLIDING, GPT2Config, GptOssConfig
from cgpt.errors import InputError
from cgpt.fields import Fields
from cgpt.models import accounting
from cgpt.models.kv_cache import DEFAULT_KV_DTYPE

Choice = Mapping[str, Any]
WIDTH, LABELS, NARROWEST, WIDEST = 100, 21, 25, 40  # columns: of the table, what precedes its cells, and a cell
SHAPE = ("layers", "width", "vocabulary", "context")
SAME, FOOTNOTE = "=", "= the same in all"

_ACTIVATIONS = dict(
    gelu_tanh="GELU (tanh)", gelu_erf="GELU (erf)", quick_gelu="QuickGELU", relu="ReLU", silu="SiLU", tanh="tanh"
)

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


def compare(
    names: Sequence[str | os.PathLike[str]], context: int | None = None, kv_cache_dtype: str = DEFAULT_KV_DTYPE["auto"]
) -> dict[str, Any]:
    """Facts about two models or more, each a checkpoint directory, a model of the package, a published size or a
    config.json.

    context: the positions at whose end a token is decoded; default all that the model with the fewest has.
    kv_cache_dtype: what keys and values are kept as, "f32", "f16", "bf16" or "int8". The result, which json can write,
    holds context and kv_cache_dtype; longest, all the positions that the model with the most has; and models, each with
      name, source ("files", "published size" or "config.json"), architecture;
      choices: what the architecture is made of, see _choices();
      shape: layers, width, vocabulary, context;
      parameters: total, active (those a token is multiplied with, and its rows of tables), parts {name: number};
      bytes: disk (files), weights, per_token {part: what decoding a token at `context` reads, and "cache"};
      flops: of decoding that token, {"products", "attention"};
      cache: bytes that the first position and the last of its context add, and of the whole context;
      longest: within, whether the model has that many positions; and as if it had: cache, attention_flops of decoding
      the last token, position_parameters that learned positions would take more.

    Raises CheckpointError, ConfigError, InputError or ContextLengthError.
    """
    if len(names) < 2:
        raise InputError(f"a comparison takes two models or more, found {len(names)}")
    inventories = [accounting.look_up(name) for name in names]
    limits = [accounting.shape_of(inventory.config)["context"] for inventory in inventories]
    shortest = min(range(len(names)), key=limits.__getitem__)
    context = accounting.checked_context(context, limits[shortest], str(names[shortest]))
    found = zip(map(_name, names), inventories, strict=True)
    models = [_facts(name, inventory, context, max(limits), kv_cache_dtype) for name, inventory in found]
    return {"context": context, "longest": max(limits), "kv_cache_dtype": kv_cache_dtype, "models": models}


def _name(name: str | os.PathLike[str]) -> str:
    """The last part of the path of a directory or a file; a config.json has its directory's name."""
    path = Path(os.path.abspath(name))
    return path.parent.name if path.name == "config.json" else path.name


def _facts(name: str, found: accounting.Inventory, context: int, longest: int, kv_cache_dtype: str) -> dict[str, Any]:
    config, shape = found.config, accounting.shape_of(found.config)
    learned, limit = isinstance(config, GPT2Config), shape["context"]

    def cache_read(position: int) -> int:
        return accounting.cache_read(config, position, kv_cache_dtype)

    return {
        "name": name,
        "source": found.source,
        "architecture": accounting.architecture(config),
        "choices": _choices(found),
        "shape": {key: shape[key] for key in SHAPE},
        **accounting.totals(found, context, None, kv_cache_dtype),
        "cache": {
            "first_position": cache_read(1),
            "last_position": cache_read(limit) - cache_read(limit - 1),
            "full": accounting.cache_bytes(config, limit, kv_cache_dtype),
        },
        "longest": {
            "within": limit == longest,
            "cache": accounting.cache_bytes(config, longest, kv_cache_dtype),
            "attention_flops": accounting.flops(config, found.tensors, longest)["attention"],
            "position_parameters": (longest - limit) * shape["width"] if learned else 0,
        },
    }


# ----------------------------------------------------------------------------------------------------- choices


def _choices(found: accounting.Inventory) -> dict[str, Any]:
    """What differs between GPT-2 and gpt-oss, in the order of the steps from one to the other."""
    config, shape = found.config, accounting.shape_of(found.config)
    if isinstance(config, GPT2Config):
        choices, norm, eps = _gpt2(found, config), "LayerNorm", config.layer_norm_epsilon
    else:
        choices, norm, eps = _gpt_oss(found, config), "RMSNorm", config.rms_norm_eps
    kind = "multi-head" if shape["kv_heads"] == shape["heads"] else "grouped-query"
    return {
        **choices,
        "attention": {"kind": kind} | {key: shape[key] for key in ("heads", "kv_heads", "head_dim")},
        "windows": _windows(config, shape),
        "norm": {"kind": norm, "eps": eps, "place": "before"},
        "sinks": sum(tensor.shape[0] for tensor in found.tensors if tensor.name.endswith("sinks")),
        "biases": _biases(found),
        "tied_head": config.tie_word_embeddings,
        "formats": _formats(found),
    }


def _gpt2(found: accounting.Inventory, config: GPT2Config) -> dict[str, Any]:
    settings = Fields(dict(found.settings))
    keys = {"embedding": "embd_pdrop", "attention": "attn_pdrop", "residual": "resid_pdrop"}
    return {
        "dropout": {part: settings.number(key, 0.1, null=0.0) for part, key in keys.items()},
        "positions": {"kind": "learned", "number": config.n_positions},
        "activation": {"kind": config.activation},
        "feed_forward": {"width": config.n_inner, "experts": 1, "experts_per_token": 1, "router": None},
    }


def _gpt_oss(found: accounting.Inventory, config: GptOssConfig) -> dict[str, Any]:
    rope = config.rope
    dropout = Fields(dict(found.settings)).number("attention_dropout", 0.0, null=0.0)
    positions: dict[str, Any] = {"kind": "rope", "theta": rope.theta, "scaling": None}
    if rope.type != "default":
        positions |= {"scaling": rope.type, "factor": rope.factor}
    if rope.type == "yarn":
        original = rope.original_max_position_embeddings
        positions |= {"original_context": original, "concentration": rope.concentration}
    experts = {"experts": config.num_experts, "experts_per_token": config.experts_per_token}
    return {
        "dropout": {"attention": dropout},
        "positions": positions,
        "activation": {"kind": "swiglu", "alpha": config.swiglu_alpha, "clamp": config.swiglu_limit},
        "feed_forward": {"width": config.intermediate_size, **experts, "router": "softmax over the chosen"},
    }


def _windows(config: GPT2Config | GptOssConfig, shape: Mapping[str, int]) -> dict[str, Any]:
    """positions: what a sliding layer sees, its own included; None where all layers see all."""
    sliding, types = shape["sliding_layers"], getattr(config, "layer_types", ())
    alternating = sliding > 0 and all(kind == (SLIDING, FULL)[n % 2] for n, kind in enumerate(types))
    positions = shape["window"] if sliding else None
    return {"positions": positions, "layers": sliding, "of_layers": shape["layers"], "alternating": alternating}


def _biases(found: accounting.Inventory) -> dict[str, bool]:
    """Which parts add biases, by the tensors there are."""
    with_bias = {accounting.part_of(tensor.name) for tensor in found.tensors if tensor.name.endswith("bias")}
    return {part: part in with_bias for part in ("attention", "mlp", "norms", "unembedding")}


def _formats(found: accounting.Inventory) -> dict[str, int]:
    """Parameters by how they are stored: F32, F16, BF16 or MXFP4, the most first."""
    formats: Counter[str] = Counter()
    for tensor in found.tensors:
        formats["MXFP4" if tensor.name.endswith("blocks") else tensor.dtype] += accounting.parameters_of(tensor)
    return {name: number for name, number in formats.most_common() if number}


# ------------------------------------------------------------------------------------------------------- table


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

    def row(label: str, cell: Callable[[Mapping[str, Any]], str]) -> Row:
        return Row(label, [cell(model) for model in models])

    found = {
        "choices, step by step": [
            Row(label, [cell(m["choices"][key]) for m in models], step) for step, label, key, cell in _CHOICES
        ],
        "shape": [Row(key, [f"{m['shape'][key]:,}" for m in models]) for key in SHAPE],
        "parameters": [
            row("total", lambda m: f"{m['parameters']['total']:,}"),
            row("active a token", lambda m: _share(m["parameters"]["active"], m)),
            *(Row(part, [_part(part, m) for m in models]) for part in accounting.PARTS),
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


def _dropout_cell(rates: Mapping[str, float]) -> str:
    if not any(rates.values()):
        return "none"
    if len(set(rates.values())) == 1:
        return f"{next(iter(rates.values())):g} in training"
    return ", ".join(f"{part} {rate:g}" for part, rate in rates.items())


def _positions_cell(positions: Choice) -> str:
    if positions["kind"] == "learned":
        return f"learned, {positions['number']:,}"
    if positions["scaling"] == "yarn":
        return f"RoPE + YaRN {positions['original_context']:,} x {positions['factor']:g}"
    scaling = f" + {positions['scaling']} x {positions['factor']:g}" if positions["scaling"] else ""
    return f"RoPE, base {positions['theta']:,.0f}{scaling}"


def _activation_cell(activation: Choice) -> str:
    if activation["kind"] == "swiglu":
        return f"SwiGLU, clamp {activation['clamp']:g}"
    return _ACTIVATIONS[activation["kind"]]


def _feed_forward_cell(part: Choice) -> str:
    if part["router"] is None:
        return f"one, {part['width']:,} wide"
    return f"{part['experts_per_token']} of {part['experts']} experts, {part['width']:,}"


def _router_cell(part: Choice) -> str:
    return f"softmax over the {part['experts_per_token']}" if part["router"] else "none"


def _heads_cell(attention: Choice) -> str:
    text = f"{attention['heads']} of {attention['head_dim']}"
    return text if attention["kind"] == "multi-head" else f"{text} on {attention['kv_heads']} key/value"


def _windows_cell(windows: Choice) -> str:
    if not windows["layers"]:
        return "none: each sees all"
    some = f"{windows['layers']} of {windows['of_layers']} layers"
    return f"{windows['positions']:,} in {'every other layer' if windows['alternating'] else some}"


def _biases_cell(biases: Mapping[str, bool]) -> str:
    return ", ".join(part for part, kept in biases.items() if kept) or "none"


def _formats_cell(formats: Mapping[str, int]) -> str:
    total = sum(formats.values())
    return ", ".join(formats) if len(formats) == 1 else ", ".join(f"{n} {v / total:.0%}" for n, v in formats.items())


# The step, the row's label, the choice that it shows, and how.
_CHOICES: list[tuple[int, str, str, Callable[[Any], str]]] = [
    (1, "dropout", "dropout", _dropout_cell),
    (2, "positions", "positions", _positions_cell),
    (3, "activation", "activation", _activation_cell),
    (4, "feed-forward", "feed_forward", _feed_forward_cell),
    (4, "router", "feed_forward", _router_cell),
    (5, "attention", "attention", lambda attention: attention["kind"]),
    (5, "heads", "attention", _heads_cell),
    (6, "windows", "windows", _windows_cell),
    (7, "norm", "norm", lambda norm: f"{norm['kind']}, eps {norm['eps']:g}"),
    (8, "sinks", "sinks", lambda number: f"{number:,} learned" if number else "none"),
    (9, "norms stand", "norm", lambda norm: f"{norm['place']} each part (Pre-LN)"),
    (9, "biases", "biases", _biases_cell),
    (9, "head", "tied_head", lambda tied: "tied to the embedding" if tied else "its own"),
    (10, "weights", "formats", _formats_cell),
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


# -------------------------------------------------------------------------------------------------------- text


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
    """The table of render() in Markdown."""
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
    lines = []
    for parts in zip_longest([f"{mark:1} {label}"], *wrapped, fillvalue=""):
        lines.append(f"{parts[0]:{LABELS}}" + "  ".join(f"{part:{width}}" for part in parts[1:]))
    return [line.rstrip() for line in lines]
