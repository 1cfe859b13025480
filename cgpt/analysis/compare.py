"""Models side by side, what each chose and what it comes to: for `cgpt compare`. Reads no weights."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cgpt.checkpoint.config import FULL, SLIDING, GPT2Config
from cgpt.errors import ContextLengthError, InputError
from cgpt.fields import Fields
from cgpt.models.accounting import (
    Inventory,
    architecture,
    attention_shape,
    bytes_per_token,
    cache_bytes,
    cache_read,
    context_limit,
    flops,
    look_up,
    parameters,
    parameters_of,
    part_of,
)
from cgpt.models.kv_cache import DEFAULT_KV_DTYPE


def compare(
    names: Sequence[str | os.PathLike],
    context: int | None = None,
    kv_cache_dtype: str = DEFAULT_KV_DTYPE["auto"],
) -> dict[str, Any]:
    """Facts about two models or more, each a checkpoint directory, a model of the package, a published size or a
    config.json.

    context: the positions at whose end a token is decoded; default all that the model with the fewest has.
    kv_cache_dtype: what keys and values are kept as, "f32", "f16" or "bf16". The result, which json can write, holds
    context and kv_cache_dtype; longest, all the positions that the model with the most has; and models, each with
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
    inventories = [look_up(name) for name in names]
    limits = [context_limit(found.config) for found in inventories]
    context = _checked_context(context, names, limits)
    models = [
        _facts(_name(name), found, context, max(limits), kv_cache_dtype)
        for name, found in zip(names, inventories, strict=True)
    ]
    return {"context": context, "longest": max(limits), "kv_cache_dtype": kv_cache_dtype, "models": models}


def _checked_context(context: int | None, names: Sequence[str | os.PathLike], limits: Sequence[int]) -> int:
    shortest = min(limits)
    if context is None:
        return shortest
    if isinstance(context, bool) or not isinstance(context, int) or context < 1:
        raise InputError(f"context must be a number of positions, at least 1, found {context!r}")
    if context > shortest:
        name = names[limits.index(shortest)]
        raise ContextLengthError(f"context {context} is beyond the {shortest} positions of {name}")
    return context


def _name(name: str | os.PathLike) -> str:
    """Of a directory or a file, without the path; a config.json is called as its directory."""
    path = Path(os.path.abspath(name))
    return path.parent.name if path.name == "config.json" else path.name


def _facts(name: str, found: Inventory, context: int, longest: int, kv_cache_dtype: str) -> dict[str, Any]:
    config, tensors, limit = found.config, found.tensors, context_limit(found.config)
    learned = isinstance(config, GPT2Config)
    before_last = cache_read(config, limit - 1, kv_cache_dtype)
    return {
        "name": name,
        "source": found.source,
        "architecture": architecture(config),
        "choices": _choices(found),
        "shape": {
            "layers": config.n_layer if learned else config.num_hidden_layers,
            "width": config.n_embd if learned else config.hidden_size,
            "vocabulary": config.vocab_size,
            "context": limit,
        },
        "parameters": parameters(config, tensors),
        "bytes": {
            "disk": found.disk,
            "weights": sum(tensor.nbytes for tensor in tensors),
            "per_token": bytes_per_token(config, tensors) | {"cache": cache_read(config, context, kv_cache_dtype)},
        },
        "flops": flops(config, tensors, context),
        "cache": {
            "first_position": cache_read(config, 1, kv_cache_dtype),
            "last_position": cache_read(config, limit, kv_cache_dtype) - before_last,
            "full": cache_bytes(config, limit, kv_cache_dtype),
        },
        "longest": {
            "within": limit == longest,
            "cache": cache_bytes(config, longest, kv_cache_dtype),
            "attention_flops": flops(config, tensors, longest)["attention"],
            "position_parameters": (longest - limit) * config.n_embd if learned else 0,
        },
    }


# ----------------------------------------------------------------------------------------------------- choices


def _choices(found: Inventory) -> dict[str, Any]:
    """What differs between GPT-2 and gpt-oss, in the order of the steps from one to the other."""
    learned = isinstance(found.config, GPT2Config)
    return {
        **(_gpt2(found) if learned else _gpt_oss(found)),
        "sinks": sum(tensor.shape[0] for tensor in found.tensors if tensor.name.endswith("sinks")),
        "biases": _biases(found),
        "tied_head": found.config.tie_word_embeddings,
        "formats": _formats(found),
    }


def _gpt2(found: Inventory) -> dict[str, Any]:
    config, settings = found.config, Fields(dict(found.settings))
    keys = {"embedding": "embd_pdrop", "attention": "attn_pdrop", "residual": "resid_pdrop"}
    return {
        "dropout": {part: settings.number(key, 0.1, null=0.0) for part, key in keys.items()},
        "positions": {"kind": "learned", "number": config.n_positions},
        "activation": {"kind": config.activation},
        "feed_forward": {"width": config.n_inner, "experts": 1, "experts_per_token": 1, "router": None},
        "attention": _attention(found, config.n_head),
        "windows": _windows(found),
        "norm": {"kind": "LayerNorm", "eps": config.layer_norm_epsilon, "place": "before"},
    }


def _gpt_oss(found: Inventory) -> dict[str, Any]:
    config, rope = found.config, found.config.rope
    dropout = Fields(dict(found.settings)).number("attention_dropout", 0.0, null=0.0)
    positions: dict[str, Any] = {"kind": "rope", "theta": rope.theta, "scaling": None}
    if rope.type != "default":
        positions |= {"scaling": rope.type, "factor": rope.factor}
    if rope.type == "yarn":
        original = rope.original_max_position_embeddings
        positions |= {"original_context": original, "concentration": rope.concentration}
    return {
        "dropout": {"attention": dropout},
        "positions": positions,
        "activation": {"kind": "swiglu", "alpha": config.swiglu_alpha, "clamp": config.swiglu_limit},
        "feed_forward": {
            "width": config.intermediate_size,
            "experts": config.num_experts,
            "experts_per_token": config.experts_per_token,
            "router": "softmax over the chosen",
        },
        "attention": _attention(found, config.num_attention_heads),
        "windows": _windows(found),
        "norm": {"kind": "RMSNorm", "eps": config.rms_norm_eps, "place": "before"},
    }


def _attention(found: Inventory, heads: int) -> dict[str, Any]:
    _, kv_heads, head_dim = attention_shape(found.config)
    kind = "multi-head" if kv_heads == heads else "grouped-query"
    return {"kind": kind, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}


def _windows(found: Inventory) -> dict[str, Any]:
    """positions: what a sliding layer sees, its own included; None where all layers see all."""
    windows, _, _ = attention_shape(found.config)
    sliding = sum(1 for window in windows if window)
    types = getattr(found.config, "layer_types", ())
    alternating = sliding > 0 and all(kind == (SLIDING, FULL)[n % 2] for n, kind in enumerate(types))
    return {"positions": max(windows) or None, "layers": sliding, "of_layers": len(windows), "alternating": alternating}


def _biases(found: Inventory) -> dict[str, bool]:
    """Which parts add biases, by the tensors there are."""
    with_bias = {part_of(tensor.name) for tensor in found.tensors if tensor.name.endswith("bias")}
    return {part: part in with_bias for part in ("attention", "mlp", "norms", "unembedding")}


def _formats(found: Inventory) -> dict[str, int]:
    """Parameters by how they are stored: F32, F16, BF16 or MXFP4, the most first."""
    formats: Counter[str] = Counter()
    for tensor in found.tensors:
        formats["MXFP4" if tensor.name.endswith("blocks") else tensor.dtype] += parameters_of(tensor)
    return {name: number for name, number in formats.most_common() if number}
