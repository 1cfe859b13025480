"""Damaged checkpoints by the thousand: each must load, or be refused with a CgptError, and nothing else.

test_fuzz_loader.py runs the first ones, `python bench/fuzz.py checkpoints` as many as there is time for.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import numpy as np

import cgpt
from cgpt.checkpoint.config import GptOssConfig, read_config
from cgpt.checkpoint.safetensors import Checkpoint
from cgpt.errors import CgptError

Files = dict[str, bytes]  # a checkpoint directory: names and contents

# ---------------------------------------------------------------------------------------- whole checkpoints


def gpt2_tensors(prefix: str = "") -> dict[str, tuple[str, list[int]]]:
    tensors = {"wte.weight": ("F32", [17, 8]), "wpe.weight": ("F16", [12, 8])}
    for layer in range(2):
        shapes = {
            "ln_1": (None, 8),
            "attn.c_attn": (8, 24),
            "attn.c_proj": (8, 8),
            "ln_2": (None, 8),
            "mlp.c_fc": (8, 32),
            "mlp.c_proj": (32, 8),
        }
        for name, (inputs, outputs) in shapes.items():
            tensors[f"h.{layer}.{name}.weight"] = ("F32", [inputs, outputs] if inputs else [outputs])
            tensors[f"h.{layer}.{name}.bias"] = ("F32", [outputs])
    tensors |= {
        "h.0.attn.bias": ("F32", [1, 1, 12, 12]),
        "ln_f.weight": ("F32", [8]),
        "ln_f.bias": ("F32", [8]),
    }
    return {prefix + name: tensor for name, tensor in tensors.items()}


def gpt_oss_tensors(mxfp4: bool) -> dict[str, tuple[str, list[int]]]:
    """2 layers 32 wide and 32 inside, 2 heads of 4 (1 for keys and values), 3 experts, vocabulary 19."""
    shapes = {"model.embed_tokens.weight": [19, 32], "model.norm.weight": [32], "lm_head.weight": [19, 32]}
    packed = {}
    for layer in range(2):
        block = f"model.layers.{layer}."
        shapes |= {block + "input_layernorm.weight": [32], block + "post_attention_layernorm.weight": [32]}
        shapes[block + "self_attn.sinks"] = [2]
        for name, outputs, inputs in (("q", 8, 32), ("k", 4, 32), ("v", 4, 32), ("o", 32, 8)):
            shapes[f"{block}self_attn.{name}_proj.weight"] = [outputs, inputs]
            shapes[f"{block}self_attn.{name}_proj.bias"] = [outputs]
        shapes |= {block + "mlp.router.weight": [3, 32], block + "mlp.router.bias": [3]}
        for name, outputs in (("gate_up", 64), ("down", 32)):
            experts = f"{block}mlp.experts.{name}_proj"
            shapes[experts + "_bias"] = [3, outputs]
            if mxfp4:
                packed[experts + "_blocks"] = ("U8", [3, outputs, 1, 16])
                packed[experts + "_scales"] = ("U8", [3, outputs, 1])
            else:
                shapes[experts] = [3, 32, outputs]
    return packed | {name: ("BF16", shape) for name, shape in shapes.items()}


def original_tensors() -> dict[str, tuple[str, list[int]]]:
    """The same in OpenAI's layout."""
    shapes = {"embedding.weight": [19, 32], "norm.scale": [32], "unembedding.weight": [19, 32]}
    packed = {}
    for layer in range(2):
        attn, mlp = f"block.{layer}.attn.", f"block.{layer}.mlp."
        shapes |= {
            attn + "norm.scale": [32],
            attn + "qkv.weight": [16, 32],
            attn + "qkv.bias": [16],
            attn + "sinks": [2],
            attn + "out.weight": [32, 8],
            attn + "out.bias": [32],
            mlp + "norm.scale": [32],
            mlp + "gate.weight": [3, 32],
            mlp + "gate.bias": [3],
            mlp + "mlp1_bias": [3, 64],
            mlp + "mlp2_bias": [3, 32],
        }
        for name, outputs in (("mlp1", 64), ("mlp2", 32)):
            packed[f"{mlp}{name}_weight.blocks"] = ("U8", [3, outputs, 1, 16])
            packed[f"{mlp}{name}_weight.scales"] = ("U8", [3, outputs, 1])
    return packed | {name: ("BF16", shape) for name, shape in shapes.items()}


def values(dtype: str, shape: list[int], rng: np.random.Generator) -> bytes:
    if dtype == "U8":  # nibbles, or scales near 1
        return rng.integers(118, 126, shape, np.uint8).tobytes()
    floats = rng.normal(0, 0.1, shape).astype(np.float32)
    if dtype == "BF16":
        return (floats.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return floats.astype({"F32": np.float32, "F16": np.float16}[dtype]).tobytes()


def safetensors(tensors: dict[str, tuple[str, list[int]]]) -> bytes:
    """A file with these tensors and random values, larger items first, as safetensors itself writes them."""
    rng = np.random.default_rng(0)
    header, data = {}, b""
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: item[1][0], reverse=True):
        stored = values(dtype, shape, rng)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(stored)]}
        data += stored
    return with_header(json.dumps(header).encode(), data)


def with_header(header: bytes, data: bytes) -> bytes:
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data


GPT2 = dict(model_type="gpt2", vocab_size=17, n_positions=12, n_embd=8, n_layer=2, n_head=2, n_inner=None,
            activation_function="gelu_new", layer_norm_epsilon=1e-5, eos_token_id=16)  # fmt: skip
SIZES = dict(
    vocab_size=19,
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    sliding_window=4,
    swiglu_limit=7.0,
)
YARN = dict(
    rope_type="yarn", factor=4.0, beta_fast=8.0, beta_slow=1.0, truncate=False, original_max_position_embeddings=64
)
GPT_OSS = dict(
    SIZES,
    model_type="gpt_oss",
    num_local_experts=3,
    num_experts_per_tok=2,
    experts_per_token=2,
    layer_types=["sliding_attention", "full_attention"],
    max_position_embeddings=256,
    rope_theta=1000,
    rope_scaling=YARN,
    eos_token_id=18,
)
MXFP4 = dict(GPT_OSS, quantization_config={"quant_method": "mxfp4"})
PLAIN = {key: value for key, value in GPT_OSS.items() if key not in ("rope_theta", "rope_scaling")}
PLAIN["rope_parameters"] = dict(YARN, rope_theta=1000)
ORIGINAL = dict(
    SIZES,
    num_experts=3,
    experts_per_token=2,
    initial_context_length=64,
    rope_theta=1000,
    rope_scaling_factor=4.0,
    rope_ntk_alpha=1,
    rope_ntk_beta=8,
)


def one_file(config: dict, tensors: dict) -> Files:
    return {
        "config.json": json.dumps(config).encode(),
        "generation_config.json": json.dumps({"eos_token_id": [1, 2]}).encode(),
        "model.safetensors": safetensors(tensors),
    }


def two_shards(config: dict, tensors: dict, index: bool) -> Files:
    files = {"config.json": json.dumps(config).encode()}
    weight_map = {}
    for number in (1, 2):
        name = f"model-0000{number}-of-00002.safetensors"
        part = dict(list(tensors.items())[number - 1 :: 2])
        files[name] = safetensors(part)
        weight_map |= dict.fromkeys(part, name)
    if index:
        files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    return files


BASES: dict[str, Files] = {
    "gpt2": one_file(GPT2, gpt2_tensors()),
    "gpt2_shards": two_shards(GPT2, gpt2_tensors("transformer."), index=True),
    "gpt_oss_mxfp4": one_file(MXFP4, gpt_oss_tensors(mxfp4=True)),
    "gpt_oss_plain_shards": two_shards(PLAIN, gpt_oss_tensors(mxfp4=False), index=True),
    "gpt_oss_original": two_shards(ORIGINAL, original_tensors(), index=False),
}

# -------------------------------------------------------------------------------------------------- damage

NASTY = [
    0, 1, 2, 3, 4, 5, 8, 16, 31, 32, 64, 255, -1, -8, 2**24, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63,
    2**64, 10**30, 10**4000, 0.5, 1.0, 1.5, -0.0, 1e-5, 1e-320, 1e308, float("inf"), float("nan"), True,
    False, None, "", "x", "\0", "..", "../model.safetensors", "model.safetensors", "F32", "F16", "BF16",
    "F64", "U8", "F8_E4M3", "gpt2", "gpt_oss", "yarn", "linear", "dynamic", "default", "llama3",
    "full_attention", "gelu", "sliding_attention", "quick_gelu", "mxfp4", [], {}, [[]], [0], [1, 2, 3],
    ["full_attention"], {"a": 1}, "\ud800", "é" * 300,
]  # fmt: skip
KEYS = [
    "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "n_ctx",
    "tie_word_embeddings", "scale_attn_weights", "scale_attn_by_inverse_layer_idx",
    "reorder_and_upcast_attn", "add_cross_attention", "num_experts", "attention_bias", "hidden_act",
    "rms_norm_eps", "is_causal", "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor",
    "per_layer_config", "swiglu_alpha", "mscale", "mscale_all_dim", "attention_factor", "type",
    "original_max_position_embeddings", "__metadata__", "dtype", "shape", "data_offsets", "weight_map",
    "architectures",
]  # fmt: skip


def nasty(rng: random.Random) -> object:
    return deepcopy(rng.choice(NASTY))


def nodes(tree: object) -> list[tuple[dict | list, str | int]]:
    """Every (container, key) of a JSON tree."""
    found = []
    if isinstance(tree, (dict, list)):
        for key, child in tree.items() if isinstance(tree, dict) else enumerate(tree):
            found += [(tree, key), *nodes(child)]
    return found


def damaged_tree(rng: random.Random, tree: object) -> object:
    places = nodes(tree)
    if not places or rng.random() < 0.01:
        return nasty(rng)
    container, key = rng.choice(places)
    old = deepcopy(container[key])
    action = rng.randrange(7)
    if action == 0:
        del container[key]
    elif action == 1 and isinstance(container, dict):
        container[rng.choice(KEYS)] = rng.choice([old, nasty(rng)])
    elif action == 2 and isinstance(container, list):
        container.insert(key, rng.choice([old, nasty(rng)]))
    elif action == 3 and isinstance(old, (int, float)) and abs(old) < 2**99:
        container[key] = rng.choice([old + 1, old - 1, old * 2, -old, old // 2, str(old), [old], old * 2**40])
    elif action == 4:
        other_container, other_key = rng.choice(places)
        container[key] = deepcopy(other_container[other_key])
        if rng.random() < 0.5:
            other_container[other_key] = old
    else:
        container[key] = nasty(rng)
    return tree


def damaged_bytes(rng: random.Random, data: bytes, focus: int) -> bytes:
    """`data` with a few bytes changed, cut, repeated or added, mostly within the first `focus` bytes."""
    result = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        place = rng.randrange(max(1, min(len(result), focus if rng.random() < 0.8 else len(result))))
        action = rng.randrange(6)
        if action == 0:
            del result[place:]
        elif action == 1:
            del result[place : place + rng.choice([1, 2, 8, 64])]
        elif action == 2:
            result[place:place] = rng.randbytes(rng.choice([1, 4, 8, 64]))
        elif action == 3:
            result += rng.randbytes(rng.choice([1, 8]))
        elif place < len(result):
            result[place] = rng.choice([result[place] ^ 1 << rng.randrange(8), rng.choice(b'09-"[]{},:.\0\xff')])
    return bytes(result)


def damaged_json(rng: random.Random, data: bytes) -> bytes:
    try:
        tree = json.loads(data)
    except ValueError:  # damaged before, or not JSON at all
        tree = None
    if tree is None or rng.random() < 0.15:
        return damaged_bytes(rng, data, len(data))
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        tree = damaged_tree(rng, tree)
        if not isinstance(tree, (dict, list)):
            break
    return json.dumps(tree, allow_nan=True, ensure_ascii=rng.random() < 0.9).encode("utf-8", "surrogatepass")


def damaged_safetensors(rng: random.Random, data: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.4:
        return damaged_bytes(rng, data, 8 + length)
    return with_header(damaged_json(rng, data[8 : 8 + length].strip()), data[8 + length :])


def damaged_directory(rng: random.Random, files: Files) -> None:
    """A file goes missing, or takes another's place or name."""
    name, other = rng.choice(list(files)), rng.choice(list(files))
    action = rng.randrange(4)
    if action == 0:
        del files[name]
    elif action == 1:
        files[name], files[other] = files[other], files[name]
    elif action == 2:
        files[other] = files[name]
    else:
        names = [
            "model.safetensors",
            "extra.safetensors",
            "config.json",
            "model.safetensors.index.json",
            "x.bin",
        ]
        files[rng.choice(names)] = files.pop(name)


def damaged(rng: random.Random, files: Files) -> Files:
    files = dict(files)
    for _ in range(rng.choice([1, 1, 1, 2])):
        if not files or rng.random() < 0.05:
            damaged_directory(rng, files or {"config.json": b"{}"})
            continue
        name = rng.choice(["config.json"] * ("config.json" in files) + list(files))
        files[name] = (damaged_json if name.endswith(".json") else damaged_safetensors)(rng, files[name])
    return files


# ------------------------------------------------------------------------------------------------- driving


def drive(directory: Path) -> None:
    """Opens the checkpoint, looks at every byte of every tensor, and lets the model run."""
    config = read_config(directory)
    if isinstance(config, GptOssConfig):
        assert config.rope.inv_freq(config.head_dim).shape == (config.head_dim // 2,)
    checkpoint = Checkpoint(directory)
    for name, tensor in checkpoint.tensors.items():
        assert 0 <= tensor.offset <= tensor.offset + tensor.nbytes <= tensor.file.stat().st_size
        array = checkpoint.array(name)
        assert array.shape == tensor.shape and len(array.tobytes()) == tensor.nbytes
    logits = cgpt.load(directory, threads=1).logits([1, 2, 0])
    assert logits.shape == (3, config.vocab_size) and np.isfinite(logits).all()


def write(folder: Path, files: Files) -> None:
    """Writes a new folder with these files."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def run_case(seed: int, base: str, folder: Path) -> str:
    """Writes the checkpoint of one case into `folder`, drives it, and says what came of it."""
    write(folder, damaged(random.Random(seed), BASES[base]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            drive(folder)
    except CgptError as refusal:
        return type(refusal).__name__
    except KeyboardInterrupt:
        raise
    except BaseException as problem:  # a panic of Rust code is no Exception
        raise AssertionError(f"run_case({seed}, {base!r}) fails") from problem
    finally:
        shutil.rmtree(folder)
    return "loaded"


@contextmanager
def scratch() -> Iterator[Path]:
    """The name of a folder, in memory where there is such a place."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder) / "case"


@contextmanager
def cases() -> Iterator[Callable[[int], list[str]]]:
    """What bench/fuzz.py runs: a function of the seed; consecutive seeds damage different checkpoints."""
    names = list(BASES)
    with scratch() as folder:
        yield lambda seed: [run_case(seed // len(names), names[seed % len(names)], folder)]
