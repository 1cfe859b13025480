"""What a model is and what it takes: for `cgpt info`. Reads configs and file headers, never weights."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cgpt.checkpoint.config import GPT2Config
from cgpt.errors import ContextLengthError, InputError
from cgpt.machine.memory import available_memory
from cgpt.models.accounting import (
    Config,
    architecture,
    attention_shape,
    bytes_per_token,
    cache_bytes,
    cache_read,
    context_limit,
    flops,
    loaded_bytes,
    look_up,
    parameters,
)
from cgpt.models.kv_cache import DEFAULT_KV_DTYPE

RUNTIME = 300_000_000  # bytes beside weights and cache: the interpreter, libraries, activations of a chunk


def describe(
    name_or_dir: str | os.PathLike,
    context: int | None = None,
    dense: str | None = None,
    kv_cache_dtype: str = DEFAULT_KV_DTYPE["auto"],
    root: Path = Path("/"),
) -> dict[str, Any]:
    """Facts about a checkpoint directory, a model of the package, a published size (no files needed) or a config.json.

    context: positions to have room for; default all the model has. dense: as load() is told, "bf16" or "int8"; bytes
    are those in memory then. kv_cache_dtype: what keys and values are kept as, "f32", "f16" or "bf16". root: the file
    system that holds proc and sys. The result, which json can write, holds
      name, source ("files", "published size" or "config.json"), architecture;
      shape: layers, width, heads and so on;
      parameters: total, active (those a token is multiplied with), parts {name: number};
      bytes: disk (files), weights (in memory), per_token {part: what decoding a token reads, and "cache"};
      flops: of decoding the token at the end of `context`, {"products", "attention"};
      memory: bytes needed at `context`, as weights, cache (of kv_cache_dtype), runtime and total;
      here: available bytes (None: unknown), whether it fits, and max_context that does (0: none).

    Raises CheckpointError, ConfigError, InputError or ContextLengthError.
    """
    found = look_up(name_or_dir)
    config, tensors, limit = found.config, found.tensors, context_limit(found.config)
    context = _checked_context(context, limit)
    weights = round(sum(loaded_bytes(config, tensor, dense) for tensor in tensors))
    cache = cache_bytes(config, context, kv_cache_dtype)
    needed = weights + cache + RUNTIME
    available = available_memory(root)
    return {
        "name": Path(name_or_dir).name or str(name_or_dir),
        "source": found.source,
        "architecture": architecture(config),
        "shape": _shape(config, limit),
        "parameters": parameters(config, tensors),
        "bytes": {
            "disk": found.disk,
            "weights": weights,
            "per_token": bytes_per_token(config, tensors, dense)
            | {"cache": cache_read(config, context, kv_cache_dtype)},
        },
        "flops": flops(config, tensors, context),
        "memory": {
            "context": context,
            "kv_cache_dtype": kv_cache_dtype,
            "weights": weights,
            "cache": cache,
            "runtime": RUNTIME,
            "total": needed,
        },
        "here": {
            "available": available,
            "fits": None if available is None else needed <= available,
            "max_context": None if available is None else _longest(config, limit, kv_cache_dtype, available - weights),
        },
    }


def _checked_context(context: int | None, limit: int) -> int:
    if context is None:
        return limit
    if isinstance(context, bool) or not isinstance(context, int) or context < 1:
        raise InputError(f"context must be a number of positions, at least 1, found {context!r}")
    if context > limit:
        raise ContextLengthError(f"context {context} is beyond the {limit} positions of this model")
    return context


def _shape(config: Config, limit: int) -> dict[str, int]:
    windows, G, D = attention_shape(config)
    if isinstance(config, GPT2Config):
        shape = {"width": config.n_embd, "mlp_width": config.n_inner, "heads": config.n_head}
    else:
        shape = {
            "width": config.hidden_size,
            "mlp_width": config.intermediate_size,
            "heads": config.num_attention_heads,
            "experts": config.num_experts,
            "experts_per_token": config.experts_per_token,
            "window": config.sliding_window or 0,
        }
    sliding = sum(1 for window in windows if window)
    return {
        "layers": len(windows),
        "sliding_layers": sliding,
        **shape,
        "kv_heads": G,
        "head_dim": D,
        "vocabulary": config.vocab_size,
        "context": limit,
    }


def _longest(config: Config, limit: int, kv_cache_dtype: str, room: int) -> int:
    """The longest context whose cache fits into `room` bytes, beside the runtime; 0 where none does."""
    contexts = range(1, limit + 1)
    return bisect_right(contexts, room - RUNTIME, key=lambda context: cache_bytes(config, context, kv_cache_dtype))


# ------------------------------------------------------------------------------------------------------- text


def render(facts: Mapping[str, Any]) -> str:
    """What describe() found, as text for a terminal."""
    shape, parameters, memory, here = (facts[key] for key in ("shape", "parameters", "memory", "here"))
    per_token = facts["bytes"]["per_token"]
    read = {part: n for part, n in per_token.items() if part != "cache"}
    parts = {part: memory[part] for part in ("weights", "cache", "runtime")}
    active = f"{count(parameters['active'])} of them active per token"
    cache = f"{memory['kv_cache_dtype']} cache"
    published = "" if facts["source"] == "files" else " (as published)"
    lines = [
        ("architecture", _architecture(facts["architecture"], shape)),
        ("parameters", f"{count(parameters['total'])}, {active}"),
        ("", _list(parameters["parts"], count)),
        ("on disk", size(facts["bytes"]["disk"]) + published),
        ("read per token", f"{size(sum(read.values()))}: {_list(read, size)}"),
        ("", f"and {size(per_token['cache'])} of {cache} at the end of {memory['context']:,} positions"),
        ("memory", f"{size(memory['total'])} at a context of {memory['context']:,}: {_list(parts, size)}"),
        ("here", _verdict(here, shape["context"])),
    ]
    return "\n".join([facts["name"], *(f"  {label:<16}{text}" for label, text in lines)])


def _architecture(name: str, shape: Mapping[str, int]) -> str:
    text = f"{name}, {shape['layers']} layers, width {shape['width']:,}, {shape['heads']} heads"
    if shape["kv_heads"] != shape["heads"]:
        text += f" on {shape['kv_heads']} key/value heads"
    text += f" of {shape['head_dim']}"
    if "experts" in shape:
        text += f", {shape['experts_per_token']} of {shape['experts']} experts"
    text += f" of {shape['mlp_width']:,}" if "experts" in shape else f", MLP of {shape['mlp_width']:,}"
    text += f", vocabulary {shape['vocabulary']:,}, context {shape['context']:,}"
    if shape["sliding_layers"]:
        text += f" ({shape['sliding_layers']} layers see {shape['window']:,})"
    return text


def _verdict(here: Mapping[str, Any], limit: int) -> str:
    if here["available"] is None:
        return "how much memory is available cannot be told on this system"
    text = f"{size(here['available'])} available: "
    if here["fits"]:
        text += "fits"
    elif here["max_context"]:
        text += "does not fit"
    else:
        return text + "does not fit at any context"
    return text + f"; longest context that fits: {here['max_context']:,} of {limit:,}"


def _list(numbers: Mapping[str, int], show: Callable[[int], str]) -> str:
    """All but the negligible."""
    least = sum(numbers.values()) / 1000
    return ", ".join(f"{name} {show(number)}" for name, number in numbers.items() if number >= least)


def count(number: int) -> str:
    """Such as "20.91 B"."""
    return scaled(number, "")


def size(number: int) -> str:
    """Bytes, such as "13.76 GB"."""
    return scaled(number, "B")


def scaled(number: int, unit: str) -> str:
    """A number of a unit, in thousands, millions or billions of it: "3.11 GFLOP"."""
    for power, prefix in ((9, "G" if unit else "B"), (6, "M"), (3, "k" if unit else "K")):
        if number >= 10**power:
            return f"{number / 10**power:.2f} {prefix}{unit}"
    return f"{number} {unit}".strip()
