"""What a model comes to, from its config and the headers of its files: parameters, bytes, FLOPs, the cache."""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from cgpt.arguments import require_integer
from cgpt.checkpoint.config import SLIDING, GPT2Config, GptOssConfig, read_config, read_generation_config
from cgpt.checkpoint.locate import SYNTH, find, not_found
from cgpt.checkpoint.names import open_checkpoint
from cgpt.checkpoint.safetensors import StoredTensor
from cgpt.checkpoint.sizes import SIZES, published_config, published_generation_config
from cgpt.errors import ConfigError, ContextLengthError, InputError
from cgpt.fields import read_json_object
from cgpt.kernels._kernels import INT8_GROUP, KV_BLOCK, NUMPY_DTYPES, kv_row_bytes, kv_shapes, packed_row_bytes
from cgpt.models import gpt2, gpt_oss
from cgpt.models.kv_cache import DEFAULT_KV_DTYPE, KV_DTYPES, layer_dtype
from cgpt.models.synth import SynthTensor, checkpoint_files, file_header

# The part of a model a tensor belongs to, by its name in any layout; the first that matches.
_PATTERNS = {
    "norms": r"(norm|ln_\w+)\.(weight|scale|bias)$",
    "unembedding": r"^(lm_head|unembedding)\.",
    "embedding": r"(^|\.)(wte|wpe|embed_tokens|embedding)\.",
    "mlp": r"\.mlp\.",
    "attention": r"\.(self_)?attn\.",
}
PARTS = ("embedding", "attention", "mlp", "norms", "unembedding")

RUNTIME = 300_000_000  # bytes beside weights and cache: the interpreter, libraries, activations of a chunk

Config = GPT2Config | GptOssConfig
AnyTensor = StoredTensor | SynthTensor


@dataclass(frozen=True)
class Inventory:
    """A model as its files describe it: nothing of the weights is read."""

    config: Config
    settings: Mapping[str, Any]  # what config.json holds
    generation: Mapping[str, Any]  # what generation_config.json holds
    tensors: Sequence[AnyTensor]  # those the model uses
    disk: int  # bytes of the files that hold them
    source: str  # "files", "published size" or "config.json"


def look_up(name: str | os.PathLike[str]) -> Inventory:
    """The inventory of a checkpoint as locate() finds it, a published size, or a config.json alone, whose tensors are
    then in the published layout and dtypes. Raises CheckpointError, ConfigError or InputError."""
    size, is_json = os.fspath(name).removeprefix(SYNTH), os.path.isfile(name) and os.fspath(name).endswith(".json")
    if is_json or size in SIZES and not os.path.isdir(name):
        if is_json:
            beside = read_generation_config(Path(name).parent)
            return _unwritten(read_config(name), read_json_object(Path(name), ConfigError), beside, "config.json")
        return _unwritten(SIZES[size], published_config(size), published_generation_config(size), "published size")
    directory = find(os.fspath(name))
    if directory is not None:
        config = read_config(directory)
        checkpoint = open_checkpoint(directory, config)
        specs = tensor_specs(config, checkpoint.tensors)
        checkpoint.check(specs, ignore=(*gpt2.MASK_BUFFERS, "lm_head.weight"))
        disk = sum(file.stat().st_size for file in {tensor.file for tensor in checkpoint.tensors.values()})
        settings = read_json_object(directory / "config.json", ConfigError)
        generation = read_generation_config(directory)
        return Inventory(config, settings, generation, [checkpoint.tensors[n] for n in specs], disk, "files")
    raise InputError(not_found(os.fspath(name)))


def _unwritten(config: Config, settings: Mapping[str, Any], generation: Mapping[str, Any], source: str) -> Inventory:
    """The inventory of the files that synth would write."""
    files = checkpoint_files(config, settings.get("quantization_config") is not None)
    stored = {tensor.name: tensor for tensors in files.values() for tensor in tensors}
    disk = sum(len(file_header(tensors)) for tensors in files.values())
    disk += sum(tensor.nbytes for tensor in stored.values())
    return Inventory(
        config, settings, generation, [stored[name] for name in tensor_specs(config, stored)], disk, source
    )


def tensor_specs(config: Config, names: Collection[str]) -> Mapping[str, Any]:
    """Those of the tensors that a model uses, by name, in the layout of `names`."""
    if isinstance(config, GPT2Config):
        return gpt2.tensor_specs(config, gpt2.name_prefix(names))
    return gpt_oss.tensor_specs(config, gpt_oss.layout_of(names))


def architecture(config: Config) -> str:
    """Its name, "GPT-2" or "gpt-oss"."""
    return "GPT-2" if isinstance(config, GPT2Config) else "gpt-oss"


# ------------------------------------------------------------------------------------------------------- cache


def cache_bytes(config: Config, context: int, kv_cache_dtype: str = DEFAULT_KV_DTYPE["auto"]) -> int:
    """The bytes of keys and values of one sequence of `context` positions, in whole blocks."""
    shape = shape_of(config)
    size = 0
    for seen, kept in zip(_seen(shape, context), _kept(shape, kv_cache_dtype), strict=True):
        keys, values = kv_shapes(-(-seen // KV_BLOCK), shape["kv_heads"], shape["head_dim"], kept)
        size += (prod(keys) + prod(values)) * np.dtype(NUMPY_DTYPES[kept]).itemsize
    return size


def cache_read(config: Config, context: int, kv_cache_dtype: str = DEFAULT_KV_DTYPE["auto"]) -> int:
    """The bytes of keys and values that decoding the token at the end of `context` positions reads."""
    shape = shape_of(config)
    layers = zip(_seen(shape, context), _kept(shape, kv_cache_dtype), strict=True)
    return 2 * shape["kv_heads"] * sum(seen * kv_row_bytes(shape["head_dim"], kept) for seen, kept in layers)


def _seen(shape: Mapping[str, int], context: int) -> list[int]:
    """The positions that the token at the end of `context` sees in each layer, those with a window first."""
    sliding = shape["sliding_layers"]
    return [min(shape.get("window", 0), context)] * sliding + [context] * (shape["layers"] - sliding)


def _kept(shape: Mapping[str, int], kv_cache_dtype: str) -> list[str]:
    """What each layer keeps, in the order of _seen()."""
    if kv_cache_dtype not in KV_DTYPES:
        raise InputError(f"kv_cache_dtype is one of {', '.join(KV_DTYPES)}, not {kv_cache_dtype!r}")
    sliding, dtype = shape["sliding_layers"], KV_DTYPES[kv_cache_dtype]
    return [layer_dtype(dtype, 1)] * sliding + [dtype] * (shape["layers"] - sliding)


# -------------------------------------------------------------------------------------------- tensor by tensor


@cache
def part_of(name: str) -> str:
    """The part of the model, one of PARTS, that a tensor belongs to; "" where it is no tensor of a model."""
    return next((part for part, pattern in _PATTERNS.items() if re.search(pattern, name)), "")


def is_expert(name: str) -> bool:
    """Whether a tensor of gpt-oss belongs to its experts, whatever the layout."""
    return re.search(r"\.mlp\.(experts\.|mlp[12]_)", name) is not None


def is_streamed(tensor: AnyTensor) -> bool:
    """Whether a tensor may stay on the disk: experts in MXFP4."""
    return is_expert(tensor.name) and tensor.dtype == "U8"


def expert_bytes(config: GptOssConfig, tensors: Iterable[AnyTensor]) -> tuple[int, int]:
    """The bytes of the experts that may stay on the disk: of all, and of those that a token takes."""
    stored = sum(tensor.nbytes for tensor in tensors if is_streamed(tensor))
    return stored, stored * config.experts_per_token // config.num_experts


def _use(config: Config, tensor: AnyTensor) -> tuple[str, float]:
    """(part, share): what a token uses a tensor for, and how much of it: chosen experts, a row of a table, or all."""
    part = part_of(tensor.name)
    if isinstance(config, GptOssConfig) and is_expert(tensor.name):
        return part, config.experts_per_token / config.num_experts
    if part != "embedding":
        return part, 1.0
    if config.tie_word_embeddings and not tensor.name.endswith("wpe.weight"):
        return "unembedding", 1.0
    return part, 1 / tensor.shape[0]


def parameters(config: Config, tensors: Iterable[AnyTensor]) -> dict[str, Any]:
    """{"total", "active" (those a token is multiplied with, and its rows of the tables), "parts": {part: number}}."""
    parts: Counter[str] = Counter()
    active = 0.0
    for tensor in tensors:
        parts[part_of(tensor.name)] += parameters_of(tensor)
        active += parameters_of(tensor) * _use(config, tensor)[1]
    return {"total": parts.total(), "active": round(active), "parts": _in_order(parts)}


def parameters_of(tensor: AnyTensor) -> int:
    """The parameters a tensor holds."""
    if tensor.name.endswith("scales"):
        return 0  # one for 32 parameters: part of how those are stored
    return prod(tensor.shape) * (2 if tensor.name.endswith("blocks") else 1)


def flops(config: Config, tensors: Iterable[AnyTensor], context: int) -> dict[str, int]:
    """The operations of decoding the token at the end of `context` positions, counted as cgpt.bench.costs does: two for
    each weight of a matrix the token meets ("products"), four for each number of a key it sees ("attention")."""
    uses = [(tensor, *_use(config, tensor)) for tensor in tensors if _is_matrix(tensor)]
    products = sum(2 * parameters_of(tensor) * share for tensor, part, share in uses if part != "embedding")
    shape = shape_of(config)
    attention = 4 * shape["heads"] * shape["head_dim"] * sum(_seen(shape, context))
    return {"products": round(products), "attention": attention}


def _is_matrix(tensor: AnyTensor) -> bool:
    """Biases of experts have two dimensions, too."""
    return len(tensor.shape) > 1 and not tensor.name.endswith("bias")


def bytes_per_token(config: Config, tensors: Iterable[AnyTensor], dense: str | None = None) -> dict[str, int]:
    """{part: the bytes of weights that decoding a token reads}."""
    parts: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    for tensor in tensors:
        part, share = _use(config, tensor)
        parts[part] += loaded_bytes(config, tensor, dense) * share
    return _in_order({part: read for part, read in parts.items() if read})


def loaded_bytes(config: Config, tensor: AnyTensor, dense: str | None) -> float:
    """The bytes of a tensor in memory, once load() has heard of `dense`."""
    kept_as = _kept_as(config, tensor, dense)
    if not kept_as or not _is_matrix(tensor) or tensor.dtype == "U8":
        return tensor.nbytes
    transposed = isinstance(config, GPT2Config) and ".h." in f".{tensor.name}" or len(tensor.shape) == 3  # [.., K, N]
    return prod(tensor.shape) * dense_bits(kept_as, tensor.shape[-2 if transposed else -1]) / 8


def _kept_as(config: Config, tensor: AnyTensor, dense: str | None) -> str | None:
    """What load() makes of a matrix; None: it stays as it is stored."""
    part, _ = _use(config, tensor)
    read_whole = part in ("attention", "unembedding") or (
        part == "mlp" and (isinstance(config, GPT2Config) or len(tensor.shape) == 3)
    )  # the projections of attention, MLPs but for the routers, and the head
    if read_whole or dense == "bf16":
        return dense
    if dense == "bf16-packed" and tensor.dtype != "BF16":
        return dense if part == "embedding" else "bf16"
    return None


def dense_bits(dense: str, K: int) -> float:
    """The bits that a weight takes in a matrix of K inputs loaded as `dense`; in a few packed rows it takes 16."""
    if dense in ("int8", "int4"):
        return -(-K // INT8_GROUP) * (int(dense[3]) * INT8_GROUP + 16) / K  # a bf16 scale a group
    return 8 * packed_row_bytes(K) / K if dense == "bf16-packed" else 16


def _in_order(parts: Mapping[str, float]) -> dict[str, int]:
    return {part: round(parts[part]) for part in PARTS if part in parts}


# ------------------------------------------------------------------------------------------------------ totals


def totals(found: Inventory, context: int, dense: str | None, kv_cache_dtype: str) -> dict[str, Any]:
    """{"parameters", "bytes", "flops"} of a model, as describe() has them."""
    config, tensors = found.config, found.tensors
    per_token = bytes_per_token(config, tensors, dense) | {"cache": cache_read(config, context, kv_cache_dtype)}
    weights = round(sum(loaded_bytes(config, tensor, dense) for tensor in tensors))
    return {
        "parameters": parameters(config, tensors),
        "bytes": {"disk": found.disk, "weights": weights, "per_token": per_token},
        "flops": flops(config, tensors, context),
    }


def checked_context(context: int | None, limit: int, name: str) -> int:
    """`context`, or all `limit` positions of the model `name` for None. InputError or ContextLengthError beyond."""
    if context is None:
        return limit
    if require_integer("context", context, low=1) > limit:
        raise ContextLengthError(f"context {context} is beyond the {limit} positions of {name}")
    return context


def shape_of(config: Config) -> dict[str, int]:
    """layers, sliding_layers, width, mlp_width, heads, kv_heads, head_dim, vocabulary, context; of gpt-oss also
    experts, experts_per_token and window."""
    if isinstance(config, GPT2Config):
        return {
            "layers": config.n_layer,
            "sliding_layers": 0,
            "width": config.n_embd,
            "mlp_width": config.n_inner,
            "heads": config.n_head,
            "kv_heads": config.n_head,
            "head_dim": config.n_embd // config.n_head,
            "vocabulary": config.vocab_size,
            "context": config.n_positions,
        }
    return {
        "layers": config.num_hidden_layers,
        "sliding_layers": config.layer_types.count(SLIDING) if config.sliding_window else 0,
        "width": config.hidden_size,
        "mlp_width": config.intermediate_size,
        "heads": config.num_attention_heads,
        "experts": config.num_experts,
        "experts_per_token": config.experts_per_token,
        "window": config.sliding_window or 0,
        "kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "vocabulary": config.vocab_size,
        "context": config.max_position_embeddings,
    }
