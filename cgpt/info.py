"""What a model is and what it takes: for `cgpt info`. Reads configs and file headers, never weights."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import cgpt
from cgpt import gpt2, gpt_oss
from cgpt._kernels import INT8_GROUP, KV_BLOCK, KV_PANEL
from cgpt.configs import SLIDING, GPT2Config, GptOssConfig, read_config
from cgpt.errors import ContextLengthError, InputError
from cgpt.kvcache import DEFAULT_KV_DTYPE, KV_DTYPES
from cgpt.memory import available_memory
from cgpt.sizes import SIZES
from cgpt.synth import SynthTensor, checkpoint_files, file_header
from cgpt.weights import Checkpoint, StoredTensor

RUNTIME = 300_000_000  # bytes beside weights and cache: the interpreter, libraries, activations of a chunk

# The part of a model a tensor belongs to, by its name in any layout; the first that matches.
_PARTS = {
    "norms": r"(norm|ln_\w+)\.(weight|scale|bias)$",
    "unembedding": r"^(lm_head|unembedding)\.",
    "embedding": r"(^|\.)(wte|wpe|embed_tokens|embedding)\.",
    "mlp": r"\.mlp\.",
    "attention": r"\.(self_)?attn\.",
}
_ORDER = ("embedding", "attention", "mlp", "norms", "unembedding")


def describe(
    name_or_dir: str | os.PathLike,
    context: int | None = None,
    dense: str | None = None,
    kv_cache_dtype: str = DEFAULT_KV_DTYPE["auto"],
    root: Path = Path("/"),
) -> dict[str, Any]:
    """Facts about a checkpoint directory, a model of the package, or a published size (no files needed).

    context: positions to have room for; default all the model has. dense: as load() is told, "bf16" or "int8"; bytes
    are those in memory then. kv_cache_dtype: what keys and values are kept as, "f32", "f16" or "bf16". root: the file
    system that holds proc and sys. The result, which json can write, holds
      name, source ("files" or "published size"), architecture;
      shape: layers, width, heads and so on;
      parameters: total, active (those a token is multiplied with), parts {name: number};
      bytes: disk (files), weights (in memory), per_token {part: what decoding a token reads, and "cache"};
      memory: bytes needed at `context`, as weights, cache (of kv_cache_dtype), runtime and total;
      here: available bytes (None: unknown), whether it fits, and max_context that does (0: none).

    Raises CheckpointError, ConfigError, InputError or ContextLengthError.
    """
    config, tensors, disk, source = _look_up(name_or_dir)
    limit = config.n_positions if isinstance(config, GPT2Config) else config.max_position_embeddings
    context = _checked_context(context, limit)
    weights = round(sum(_loaded(config, tensor, dense) for tensor in tensors))
    cache = cache_bytes(config, context, kv_cache_dtype)
    needed = weights + cache + RUNTIME
    available = available_memory(root)
    return {
        "name": Path(name_or_dir).name or str(name_or_dir),
        "source": source,
        "architecture": "GPT-2" if isinstance(config, GPT2Config) else "gpt-oss",
        "shape": _shape(config, limit),
        "parameters": _parameters(config, tensors),
        "bytes": {
            "disk": disk,
            "weights": weights,
            "per_token": _bytes_per_token(config, tensors, dense)
            | {"cache": cache_read(config, context, kv_cache_dtype)},
        },
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


def cache_bytes(config: GPT2Config | GptOssConfig, context: int, kv_cache_dtype: str = DEFAULT_KV_DTYPE["auto"]) -> int:
    """The bytes of keys and values of one sequence of `context` positions, in whole blocks."""
    windows, G, D = _attention_shape(config)
    blocks = sum(-(-min(window or context, context) // KV_BLOCK) for window in windows)
    return _kept_bytes(kv_cache_dtype) * blocks * KV_BLOCK * G * (D + -(-D // KV_PANEL) * KV_PANEL)


def cache_read(config: GPT2Config | GptOssConfig, context: int, kv_cache_dtype: str = DEFAULT_KV_DTYPE["auto"]) -> int:
    """The bytes of keys and values that decoding the token at the end of `context` positions reads."""
    windows, G, D = _attention_shape(config)
    return sum(2 * _kept_bytes(kv_cache_dtype) * G * D * min(window or context, context) for window in windows)


def _kept_bytes(kv_cache_dtype: str) -> int:
    if kv_cache_dtype not in KV_DTYPES:
        raise InputError(f"kv_cache_dtype is one of {', '.join(KV_DTYPES)}, not {kv_cache_dtype!r}")
    return 4 if kv_cache_dtype == "f32" else 2


def _look_up(
    name_or_dir: str | os.PathLike,
) -> tuple[GPT2Config | GptOssConfig, list[StoredTensor] | list[SynthTensor], int, str]:
    """The config, the tensors the model uses, the bytes of its files, and where this is known from."""
    if str(name_or_dir) in SIZES and not os.path.isdir(name_or_dir):
        config = SIZES[str(name_or_dir)]
        files = checkpoint_files(config)
        stored = {tensor.name: tensor for tensors in files.values() for tensor in tensors}
        disk = sum(len(file_header(tensors)) for tensors in files.values())
        disk += sum(tensor.nbytes for tensor in stored.values())
        return config, [stored[name] for name in _specs(config, stored)], disk, "published size"
    if not os.path.isdir(name_or_dir) and str(name_or_dir) not in cgpt.demo_models():
        known = ", ".join([*cgpt.demo_models(), *SIZES])
        raise InputError(f"{name_or_dir}: no such directory, and none of the known models {known}")
    directory = cgpt.locate(name_or_dir)
    config, checkpoint = read_config(directory), Checkpoint(directory)
    specs = _specs(config, checkpoint.tensors)
    checkpoint.check(specs, ignore=(*gpt2.MASK_BUFFERS, "lm_head.weight"))
    disk = sum(file.stat().st_size for file in {tensor.file for tensor in checkpoint.tensors.values()})
    return config, [checkpoint.tensors[name] for name in specs], disk, "files"


def _specs(config: GPT2Config | GptOssConfig, names: Iterable[str]) -> Mapping[str, Any]:
    if isinstance(config, GPT2Config):
        return gpt2.tensor_specs(config, gpt2.name_prefix(names))
    return gpt_oss.tensor_specs(config, gpt_oss.layout_of(names))


def _checked_context(context: int | None, limit: int) -> int:
    if context is None:
        return limit
    if isinstance(context, bool) or not isinstance(context, int) or context < 1:
        raise InputError(f"context must be a number of positions, at least 1, found {context!r}")
    if context > limit:
        raise ContextLengthError(f"context {context} is beyond the {limit} positions of this model")
    return context


def _attention_shape(config: GPT2Config | GptOssConfig) -> tuple[list[int], int, int]:
    """The window of each layer (0: none), the key/value heads G, and their size D."""
    if isinstance(config, GPT2Config):
        return [0] * config.n_layer, config.n_head, config.n_embd // config.n_head
    windows = [config.sliding_window if kind == SLIDING else 0 for kind in config.layer_types]
    return windows, config.num_key_value_heads, config.head_dim


def _shape(config: GPT2Config | GptOssConfig, limit: int) -> dict[str, int]:
    windows, G, D = _attention_shape(config)
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


@cache
def _part(name: str) -> str:
    return next(part for part, pattern in _PARTS.items() if re.search(pattern, name))


def _use(config: GPT2Config | GptOssConfig, tensor: Any) -> tuple[str, float]:
    """For what, and how much of it, a token uses a tensor: the chosen experts, a row of a table, else all."""
    part = _part(tensor.name)
    if re.search(r"\.mlp\.(experts\.|mlp[12]_)", tensor.name):
        return part, config.experts_per_token / config.num_experts
    if part != "embedding":
        return part, 1.0
    if config.tie_word_embeddings and not tensor.name.endswith("wpe.weight"):
        return "unembedding", 1.0
    return part, 1 / tensor.shape[0]


def _parameters(config: GPT2Config | GptOssConfig, tensors: Iterable[Any]) -> dict[str, Any]:
    parts: Counter[str] = Counter()
    active = 0.0
    for tensor in tensors:
        if tensor.name.endswith("scales"):
            continue  # one for 32 parameters: part of how those are stored
        number = prod(tensor.shape) * (2 if tensor.name.endswith("blocks") else 1)
        parts[_part(tensor.name)] += number
        active += number * _use(config, tensor)[1]
    return {"total": parts.total(), "active": round(active), "parts": _in_order(parts)}


def _bytes_per_token(
    config: GPT2Config | GptOssConfig, tensors: Iterable[Any], dense: str | None
) -> dict[str, int]:
    parts: Counter[str] = Counter()
    for tensor in tensors:
        part, share = _use(config, tensor)
        parts[part] += _loaded(config, tensor, dense) * share
    return _in_order(parts)


def _loaded(config: GPT2Config | GptOssConfig, tensor: Any, dense: str | None) -> float:
    """The bytes of a tensor in memory, once load() has heard of `dense`."""
    if not dense or len(tensor.shape) < 2 or tensor.dtype == "U8" or tensor.name.endswith("bias"):
        return tensor.nbytes
    if dense == "int8" and not _becomes_int8(config, tensor):
        return tensor.nbytes
    turned = isinstance(config, GPT2Config) and ".h." in f".{tensor.name}" or len(tensor.shape) == 3  # [.., K, N]
    return prod(tensor.shape) * dense_bits(dense, tensor.shape[-2 if turned else -1]) / 8


def _becomes_int8(config: GPT2Config | GptOssConfig, tensor: Any) -> bool:
    """The projections of attention, MLPs but for the routers, and the head."""
    part, _ = _use(config, tensor)
    return part in ("attention", "unembedding") or (
        part == "mlp" and (isinstance(config, GPT2Config) or len(tensor.shape) == 3)
    )


def dense_bits(dense: str, K: int) -> float:
    """The bits that a weight takes in a matrix of K inputs loaded as `dense`."""
    return {"bf16": 16, "int8": -(-K // INT8_GROUP) * (8 * INT8_GROUP + 16) / K}[dense]  # int8: a bf16 scale a group


def _in_order(parts: Mapping[str, float]) -> dict[str, int]:
    return {part: round(parts[part]) for part in _ORDER if part in parts}


def _longest(config: GPT2Config | GptOssConfig, limit: int, kv_cache_dtype: str, room: int) -> int:
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
    active = f"{_count(parameters['active'])} of them active per token"
    cache = f"{memory['kv_cache_dtype']} cache"
    published = "" if facts["source"] == "files" else " (as published)"
    lines = [
        ("architecture", _architecture(facts["architecture"], shape)),
        ("parameters", f"{_count(parameters['total'])}, {active}"),
        ("", _list(parameters["parts"], _count)),
        ("on disk", _size(facts["bytes"]["disk"]) + published),
        ("read per token", f"{_size(sum(read.values()))}: {_list(read, _size)}"),
        ("", f"and {_size(per_token['cache'])} of {cache} at the end of {memory['context']:,} positions"),
        ("memory", f"{_size(memory['total'])} at a context of {memory['context']:,}: {_list(parts, _size)}"),
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
    text = f"{_size(here['available'])} available: "
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


def _count(number: int) -> str:
    return _scaled(number, "")


def _size(number: int) -> str:
    return _scaled(number, "B")


def _scaled(number: int, unit: str) -> str:
    for power, prefix in ((9, "G" if unit else "B"), (6, "M"), (3, "k" if unit else "K")):
        if number >= 10**power:
            return f"{number / 10**power:.2f} {prefix}{unit}"
    return f"{number} {unit}".strip()
