"""Checkpoints of random weights in the published layouts, to measure a machine before downloading 13.8 GB.

Files, names, dtypes and shapes are those of the published checkpoints; which tensors a model needs comes from
the table that its loader checks. The values keep activations and logits in the range of a trained model's.
There are no tokenizer files: the vocabularies of the published sizes ship with cgpt.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from math import hypot, log2, prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import SFC64, BitGenerator, SeedSequence  # now: no signal may come during a lazy import

from cgpt.arguments import require_integer, require_number
from cgpt.checkpoint.config import GPT2Config, GptOssConfig, read_config
from cgpt.checkpoint.hub import require_space
from cgpt.checkpoint.locate import SYNTH
from cgpt.checkpoint.safetensors import INDEX_FILE, SINGLE_FILE, TensorSpec
from cgpt.checkpoint.sizes import SIZES, published_config, published_generation_config
from cgpt.errors import ConfigError, InputError
from cgpt.fields import read_json_object
from cgpt.models import gpt2, gpt_oss
from cgpt.models.routing_skew import RoutingSkew
from cgpt.models.weight_tails import WeightTails

# Bytes of weights a published file holds at most. In OpenAI's layout the 20b is one file, the 120b seven.
HF_SHARD, ORIGINAL_SHARD, ORIGINAL_SINGLE = 4_800_000_000, 10_500_000_000, 14_000_000_000
MAX_SKEW = 10
CHUNK = 1 << 22  # bytes made and written at a time, so that memory stays small and the caches are used

_NUMPY_TYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "BF16": np.dtype("<u2"), "U8": np.dtype("u1")}

# gpt-oss-20b was cut into files in the order of the names its tensors have in OpenAI's layout. gpt-oss-120b
# was cut in another order, into as many files of other sizes.
_HF_LAYER_ORDER = (
    "input_layernorm.weight",
    "self_attn.o_proj.bias", "self_attn.o_proj.weight",
    "self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias",
    "self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight",
    "self_attn.sinks",
    "mlp.router.bias", "mlp.router.weight",
    "mlp.experts.gate_up_proj_bias", "mlp.experts.gate_up_proj",
    "mlp.experts.gate_up_proj_blocks", "mlp.experts.gate_up_proj_scales",
    "mlp.experts.down_proj_bias", "mlp.experts.down_proj",
    "mlp.experts.down_proj_blocks", "mlp.experts.down_proj_scales",
    "post_attention_layernorm.weight",
)  # fmt: skip
_HF_LAST = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")


@dataclass(frozen=True)
class SynthTensor:
    """A tensor to be written; `dtype` is safetensors' name."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * _NUMPY_TYPES[self.dtype].itemsize


def write(
    size_or_config: str | os.PathLike[str] | Mapping[str, Any],
    directory: str | os.PathLike[str],
    *,
    seed: int = 0,
    layout: str | None = None,
    routing_skew: float = 0.0,
    awkward_rows: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes a checkpoint of random weights into `directory`, which must be empty or not exist yet.

    size_or_config: a name in cgpt.checkpoint.sizes.SIZES, or a config.json: its path, or its keys and values. "synth:"
        may stand before a name or path.
    seed: the same one gives the same files (with the same NumPy).
    layout: "hf" (default) or "original" (OpenAI's) for a published size; a config.json implies its own.
    routing_skew: 0 (default) lets gpt-oss choose its experts evenly; 1 as unevenly as trained models do, so that a
        cache of 30 % of 128 a layer hits about 85 % in generated text; see cgpt.models.routing_skew.
    awkward_rows: None (default) draws all weights of a matrix alike; a share of the rows, 0 to 1, gives dense matrices
        the tails of trained ones, and that share of their rows too many exponents to be packed; see
        cgpt.models.weight_tails.
    progress(done, total) is told the bytes written.

    InputError: no such size or layout, a skew of a model without experts, `directory` is in use or cannot be written,
        the disk is too full.
    ConfigError: a config that cgpt cannot run. After a failure or Ctrl-C nothing of the checkpoint is left.
    """
    require_integer("seed", seed, low=0)
    require_number("routing_skew", routing_skew, f" from 0 to {MAX_SKEW}", lambda value: 0 <= value <= MAX_SKEW)
    if awkward_rows is not None:
        require_number("awkward_rows", awkward_rows, " from 0 to 1", lambda value: 0 <= value <= 1)
    json_files = _json_files(size_or_config, layout)
    directory = Path(directory)
    with _all_or_nothing(directory) as new_file:
        for name, values in json_files.items():
            new_file(name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        config = read_config(directory)
        skew = _routing_skew(config, routing_skew, seed)
        tails = None if awkward_rows is None else WeightTails(awkward_rows, seed, _standard_quantiles())
        mxfp4 = json_files["config.json"].get("quantization_config") is not None
        files = checkpoint_files(config, mxfp4)
        if len(files) > 1 and isinstance(config, GptOssConfig) and config.layout == "hf":
            new_file(INDEX_FILE).write_text(checkpoint_index(files), encoding="utf-8")
        headers = {name: file_header(tensors) for name, tensors in files.items()}
        total = sum(map(len, headers.values())) + sum(t.nbytes for tensors in files.values() for t in tensors)
        require_space(directory, total)
        done = 0
        for name, tensors in files.items():
            with open(new_file(name), "wb") as file:
                for data in _file_data(headers[name], tensors, seed, skew, tails):
                    done += file.write(data)
                    if progress:
                        progress(done, total)


# --------------------------------------------------------------------------------------------- files, headers


def checkpoint_files(config: GPT2Config | GptOssConfig, mxfp4: bool = True) -> dict[str, list[SynthTensor]]:
    """File name -> the tensors it holds, in their order there. mxfp4: whether "hf" experts are quantised."""
    if isinstance(config, GPT2Config):
        return {SINGLE_FILE: _in_file_order(_gpt2_tensors(config))}
    if config.layout == "original":
        tensors = sorted(_of_specs(gpt_oss.tensor_specs(config, "original"), "BF16"), key=lambda t: t.name)
        single = sum(t.nbytes for t in tensors) <= ORIGINAL_SINGLE
        shards = _shards(tensors, ORIGINAL_SINGLE if single else ORIGINAL_SHARD)
        names = [f"model--{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    else:
        tensors = _of_specs(gpt_oss.tensor_specs(config, "mxfp4" if mxfp4 else "plain"), "BF16")
        shards = _shards(sorted(tensors, key=_hf_order), HF_SHARD)
        names = [f"model-{n:05}-of-{len(shards) - 1:05}.safetensors" for n in range(len(shards))]
    if len(shards) == 1:
        names = [SINGLE_FILE]
    return {name: _in_file_order(shard) for name, shard in zip(names, shards, strict=True)}


def checkpoint_index(files: Mapping[str, Iterable[SynthTensor]]) -> str:
    """The text of model.safetensors.index.json for these files."""
    place = {tensor: name for name, tensors in files.items() for tensor in tensors}
    weight_map = {tensor.name: place[tensor] for tensor in sorted(place, key=_hf_order)}
    return json.dumps({"metadata": {"total_size": sum(t.nbytes for t in place)}, "weight_map": weight_map})


def file_header(tensors: Iterable[SynthTensor]) -> bytes:
    """What stands before the data in a safetensors file of these tensors, in this order.

    As published: the files of gpt-oss are padded so that the data is aligned, those of GPT-2 are not.
    """
    entries: dict[str, Any] = {}
    padding = 8
    offset = 0
    for tensor in tensors:
        if tensor.dtype == "F32":
            entries.setdefault("__metadata__", {"format": "pt"})
            padding = 1
        end = offset + tensor.nbytes
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (offset, end)}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % padding)
    return len(text).to_bytes(8, "little") + text


def _gpt2_tensors(config: GPT2Config) -> list[SynthTensor]:
    prefix = "" if config.tie_word_embeddings else "transformer."  # it comes with a head of its own
    tensors = _of_specs(gpt2.tensor_specs(config, prefix), "F32")
    mask_shape = (1, 1, config.n_positions, config.n_positions)
    return tensors + [SynthTensor(f"{prefix}h.{n}.attn.bias", "F32", mask_shape) for n in range(config.n_layer)]


def _of_specs(specs: Mapping[str, TensorSpec], dtype: str) -> list[SynthTensor]:
    """The tensors a loader wants, in `dtype` where it takes that, else in the first it takes."""
    return [
        SynthTensor(name, dtype if dtype in spec.dtypes else spec.dtypes[0], spec.shape) for name, spec in specs.items()
    ]


def _hf_order(tensor: SynthTensor) -> tuple[int, str, int]:
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", tensor.name)
    if layer:
        return 0, layer[1], _HF_LAYER_ORDER.index(layer[2])  # the layer as text: 0, 1, 10, 11, ..., 2, ...
    return 1, "", _HF_LAST.index(tensor.name)


def _in_file_order(tensors: Iterable[SynthTensor]) -> list[SynthTensor]:
    """The tensors as the safetensors package sorts them: by size of the dtype, largest first, then by name."""
    return sorted(tensors, key=lambda t: (-_NUMPY_TYPES[t.dtype].itemsize, t.name))


def _shards(tensors: Iterable[SynthTensor], limit: int) -> list[list[SynthTensor]]:
    """Cut, in order, where the next tensor would take a file beyond `limit` bytes."""
    shards: list[list[SynthTensor]] = []
    size = 0
    for tensor in tensors:
        if not shards or size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


# ----------------------------------------------------------------------------------------------------- values


def _routing_skew(config: GPT2Config | GptOssConfig, skew: float, seed: int) -> RoutingSkew | None:
    if not skew:
        return None
    if isinstance(config, GPT2Config):
        raise InputError("routing_skew is for gpt-oss; a GPT-2 has no experts to choose")
    return RoutingSkew(config, skew, seed)


def _file_data(
    header: bytes, tensors: Iterable[SynthTensor], seed: int, skew: RoutingSkew | None, tails: WeightTails | None
) -> Iterator[Any]:
    yield header
    for tensor in tensors:
        mask = re.fullmatch(gpt2.MASK_BUFFERS[0], tensor.name)
        count, step = prod(tensor.shape), CHUNK // _NUMPY_TYPES[tensor.dtype].itemsize
        # A stream for each tensor: its values do not depend on the files and tensors before it.
        stream = SFC64(SeedSequence([seed, *tensor.name.encode()]))
        for begin in range(0, count, step):
            n = min(step, count - begin)
            yield (_mask(tensor, begin, n) if mask else _random(tensor, stream, begin, n, skew, tails)).data


def _mask(tensor: SynthTensor, begin: int, count: int) -> np.ndarray:
    """`count` elements from `begin` on of the causal mask [1, 1, n, n]: 1 where a query may look."""
    query, key = np.divmod(np.arange(begin, begin + count), tensor.shape[-1])
    return (key <= query).astype("<f4")


def _random(
    tensor: SynthTensor,
    stream: BitGenerator,
    begin: int,
    count: int,
    skew: RoutingSkew | None,
    tails: WeightTails | None,
) -> np.ndarray:
    """The next `count` values of a tensor, those from `begin` on. Random bits look values up: several times
    faster than sampling."""
    if tensor.dtype == "U8":
        data = stream.random_raw(-(-count // 8)).view(np.uint8)[:count]
        if tensor.name.endswith("blocks"):
            return data
        return (data & 3) + np.uint8(_lowest_scale(tensor.name, tensor.shape[-1] * 32))
    bits: np.ndarray = stream.random_raw(-(-count // 4)).view(np.uint16)[:count]
    mean, std = _distribution(tensor.name, tensor.shape)
    topics = skew.topics(tensor.name, begin, count) if skew else None
    if tails and len(tensor.shape) == 2 and tensor.name.endswith("weight"):
        floats = tails.values(tensor.name, tensor.shape, _is_conv1d(tensor.name), std, begin, bits)
        values = floats if tensor.dtype == "F32" else _bf16(floats)
    else:
        values = _normal_quantiles(mean, hypot(std, skew.popularity(tensor.name)) if skew else std, tensor.dtype)[bits]
    return values if topics is None else _bf16((values.astype("<u4") << 16).view("<f4") + topics)


def _distribution(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation of a tensor that is not MXFP4.

    Sums over K inputs of unit variance get a standard deviation of about 1, logits of about 3.
    """
    if re.search(r"(norm|ln_.)\.(weight|scale)$", name):
        return 1.0, 0.1
    if name.endswith("bias"):
        return 0.0, 0.1
    if re.search(r"(sinks|embed_tokens\.weight|(^|\.)embedding\.weight)$", name):
        return 0.0, 1.0
    if re.search(r"(lm_head|unembedding|wte|wpe)\.weight$", name):
        return 0.0, 3 / sqrt(shape[-1])
    return 0.0, _gain(name) / sqrt(shape[-2] if _is_conv1d(name) else shape[-1])


def _is_conv1d(name: str) -> bool:
    """Whether a matrix is stored as [.., in, out]."""
    return name.endswith(("c_attn.weight", "c_fc.weight", "c_proj.weight", "_proj"))


def _gain(name: str) -> float:
    """Larger where gates and ups are computed, so that some of them reach their limit."""
    return 2.0 if "gate_up" in name or "mlp1" in name else 1.0


def _lowest_scale(name: str, K: int) -> int:
    """The least of four MXFP4 scales in a row that give weights a deviation of about gain / sqrt(K)."""
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    rms = sqrt((values**2).mean() * (4.0 ** np.arange(4)).mean())
    return 127 + round(log2(_gain(name) / sqrt(K) / rms))


@cache
def _normal_quantiles(mean: float, std: float, dtype: str) -> np.ndarray:
    """65,536 values of dtype F32 or BF16 (as uint16) which, drawn alike, are normally distributed."""
    values = (mean + std * _standard_quantiles()).astype("<f4")
    return values if dtype == "F32" else _bf16(values)


def _bf16(values: np.ndarray) -> np.ndarray:
    """float32 values rounded to BF16, as uint16; ties to even."""
    bits: np.ndarray = values.view("<u4")
    nearest: np.ndarray = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return nearest.astype("<u2")


@cache
def _standard_quantiles() -> np.ndarray:
    from statistics import NormalDist  # which takes a tenth of the time that importing cgpt may take

    inverse = NormalDist().inv_cdf
    return np.array([inverse((n + 0.5) / 65536) for n in range(65536)])


# ---------------------------------------------------------------------------------------------- input, output


def _json_files(
    size_or_config: str | os.PathLike[str] | Mapping[str, Any], layout: str | None
) -> dict[str, dict[str, Any]]:
    """The JSON files to write: config.json, and the generation_config.json of a published size in "hf"."""
    if isinstance(size_or_config, str):
        size_or_config = size_or_config.removeprefix(SYNTH)
    if isinstance(size_or_config, str) and size_or_config in SIZES:
        files = {"config.json": published_config(size_or_config, layout or "hf")}
        if layout != "original":
            files["generation_config.json"] = published_generation_config(size_or_config)
        return files
    if layout is not None:
        raise InputError("layout is for the published sizes; a config.json is already in a layout's dialect")
    if isinstance(size_or_config, Mapping):
        return {"config.json": dict(size_or_config)}
    path = Path(size_or_config)
    if not path.exists():
        raise InputError(f"{path}: neither a file nor one of the sizes {', '.join(SIZES)}")
    return {"config.json": read_json_object(path, ConfigError)}


@contextmanager
def _all_or_nothing(directory: Path) -> Iterator[Callable[[str], Path]]:
    """Gives the paths under which to write new files of `directory`, which is made if need be.

    Weights get their final names when all is done; before that no checkpoint can be seen. If anything fails,
    all is removed. InputError where `directory` is not empty, or the system refuses a file.
    """
    made = not os.path.lexists(directory)
    paths: list[Path] = []
    partial: dict[Path, Path] = {}

    def new_file(name: str) -> Path:
        path = directory / name
        paths.append(path)
        if not name.endswith(".safetensors"):
            return path
        partial[path] = directory / f"{name}.partial"
        return partial[path]

    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise InputError(f"{directory}: is not empty; name a new directory")
        yield new_file
        for path, written in partial.items():
            written.rename(path)
    except BaseException as problem:
        for path in [*paths, *partial.values()]:
            path.unlink(missing_ok=True)
        if made:
            with suppress(OSError):
                directory.rmdir()
        if isinstance(problem, OSError):
            raise InputError(f"{directory}: {problem.strerror or problem}") from None
        raise
