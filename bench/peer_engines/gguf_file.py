"""A GGUF file, with the gguf package, from a checkpoint in Hugging Face's layout, one tensor in memory at a time.

Matrices become f32, f16, bf16 or q8_0, vectors and the router stay f32, gpt-oss's experts stay MXFP4 to the bit.
Formats: GGUF's docs/gguf.md, block_mxfp4 and block_q8_0 of ggml-common.h; names: gguf.constants.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from peer_engines.base import Skip
from peer_engines.checkpoint import Reader

Tensor = tuple[str, tuple[int, ...], str, Callable[[], np.ndarray]]  # name, shape, type, values
FLOATS = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16)}  # written as such; others as bytes
BYTES = np.dtype(np.uint8)


def mxfp4_blocks(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """OpenAI's MXFP4, uint8 [.., K/32, 16] and [.., K/32], as GGUF's blocks: uint8 [.., K/32 * 17].

    A group of 32 has its scale first; byte j holds element j in the low nibble and element 16 + j in the high one,
    where OpenAI's byte j holds elements 2j and 2j + 1. Codes and scales mean the same in both.
    """
    codes = np.stack((blocks & 15, blocks >> 4), -1).reshape(*blocks.shape[:-1], 32)
    halves = codes[..., :16] | codes[..., 16:] << 4
    return np.concatenate((scales[..., None], halves), -1).reshape(*scales.shape[:-1], -1)


def write_gguf(checkpoint: Path, config: dict, out: Path, dense: str) -> None:
    import gguf

    kinds = {
        "f32": gguf.GGMLQuantizationType.F32,
        "f16": gguf.GGMLQuantizationType.F16,
        "bf16": gguf.GGMLQuantizationType.BF16,
        "q8_0": gguf.GGMLQuantizationType.Q8_0,
        "mxfp4": gguf.GGMLQuantizationType.MXFP4,
    }

    def stored(kind: str, shape) -> tuple[int, ...]:
        """The shape in bytes, or in values for f32 and f16."""
        return shape if kind in FLOATS else gguf.quant_shape_to_byte_shape(shape, kinds[kind])

    moe = config["model_type"] == "gpt_oss"
    tensors = list((gpt_oss_tensors if moe else gpt2_tensors)(checkpoint, config, dense))
    size = sum(int(np.prod(stored(kind, shape))) * FLOATS.get(kind, BYTES).itemsize for _, shape, kind, _ in tensors)
    if size > shutil.disk_usage(out.parent).free:
        raise Skip(f"{out} needs {size / 1e9:.1f} GB of disk")
    partial = out.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "gpt-oss" if moe else "gpt2")
    (gpt_oss_keys if moe else gpt2_keys)(writer, config)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")  # ids go in and out
    for name, shape, kind, _ in tensors:
        shape, dtype = stored(kind, shape), FLOATS.get(kind, BYTES)
        writer.add_tensor_info(name, shape, dtype, int(np.prod(shape)) * dtype.itemsize, raw_dtype=kinds[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, _, kind, make in tensors:
        values = make() if kind == "mxfp4" else gguf.quants.quantize(np.ascontiguousarray(make()), kinds[kind])
        writer.write_tensor_data(np.ascontiguousarray(values))
    writer.close()
    partial.rename(out)


def gpt2_keys(writer, config: dict) -> None:
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_block_count(config["n_layer"])
    writer.add_feed_forward_length(config.get("n_inner") or 4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])


def gpt2_tensors(checkpoint: Path, config: dict, dense: str) -> Iterator[Tensor]:
    read = Reader(checkpoint)

    def tensor(name: str, source: str, kind: str = "f32", transposed: bool = False) -> Tensor:
        source = read.prefix + source
        shape = read.raw(source).shape
        if transposed:  # GPT-2 stores [in, out]
            return name, shape[::-1], kind, lambda: read(source).T
        return name, shape, kind, lambda: read(source)

    yield tensor("token_embd.weight", "wte.weight", dense)
    yield tensor("position_embd.weight", "wpe.weight")
    yield tensor("output_norm.weight", "ln_f.weight")
    yield tensor("output_norm.bias", "ln_f.bias")
    if read.has("lm_head.weight"):
        yield "output.weight", read.raw("lm_head.weight").shape, dense, lambda: read("lm_head.weight")
    parts = {"attn_norm": "ln_1", "ffn_norm": "ln_2"}
    matrices = {"attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
    for layer in range(config["n_layer"]):
        for name, source in parts.items():
            yield tensor(f"blk.{layer}.{name}.weight", f"h.{layer}.{source}.weight")
            yield tensor(f"blk.{layer}.{name}.bias", f"h.{layer}.{source}.bias")
        for name, source in matrices.items():
            yield tensor(f"blk.{layer}.{name}.weight", f"h.{layer}.{source}.weight", dense, transposed=True)
            yield tensor(f"blk.{layer}.{name}.bias", f"h.{layer}.{source}.bias")


def gpt_oss_keys(writer, config: dict) -> None:
    from gguf import RopeScalingType

    rope = config.get("rope_parameters") or config["rope_scaling"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_expert_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_count(config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_sliding_window(config["sliding_window"])
    writer.add_rope_freq_base(float(config.get("rope_theta") or rope["rope_theta"]))
    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(float(rope["factor"]))
    writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    writer.add_rope_scaling_yarn_beta_fast(float(rope["beta_fast"]))
    writer.add_rope_scaling_yarn_beta_slow(float(rope["beta_slow"]))


def gpt_oss_tensors(checkpoint: Path, config: dict, dense: str) -> Iterator[Tensor]:
    read = Reader(checkpoint)

    def tensor(name: str, source: str, kind: str = "f32") -> Tensor:
        return name, read.raw(source).shape, kind, lambda: read(source)

    def experts(name: str, source: str, rows: slice) -> Tensor:
        E, N, groups, _ = read.raw(f"{source}_blocks").shape
        N = len(range(N)[rows])

        def make() -> np.ndarray:
            return mxfp4_blocks(read.raw(f"{source}_blocks")[:, rows], read.raw(f"{source}_scales")[:, rows])

        return name, (E, N, groups * 32), "mxfp4", make

    def expert_bias(name: str, source: str, rows: slice) -> Tensor:
        E, N = read.raw(source).shape
        return name, (E, len(range(N)[rows])), "f32", lambda: read(source)[:, rows]

    yield tensor("token_embd.weight", "model.embed_tokens.weight", dense)
    yield tensor("output_norm.weight", "model.norm.weight")
    yield tensor("output.weight", "lm_head.weight", dense)
    for layer in range(config["num_hidden_layers"]):
        to, of = f"blk.{layer}", f"model.layers.{layer}"
        yield tensor(f"{to}.attn_norm.weight", f"{of}.input_layernorm.weight")
        yield tensor(f"{to}.post_attention_norm.weight", f"{of}.post_attention_layernorm.weight")
        yield tensor(f"{to}.attn_sinks.weight", f"{of}.self_attn.sinks")
        for name, source in {"q": "q", "k": "k", "v": "v", "output": "o"}.items():
            yield tensor(f"{to}.attn_{name}.weight", f"{of}.self_attn.{source}_proj.weight", dense)
            yield tensor(f"{to}.attn_{name}.bias", f"{of}.self_attn.{source}_proj.bias")
        yield tensor(f"{to}.ffn_gate_inp.weight", f"{of}.mlp.router.weight")
        yield tensor(f"{to}.ffn_gate_inp.bias", f"{of}.mlp.router.bias")
        gate_up, down = f"{of}.mlp.experts.gate_up_proj", f"{of}.mlp.experts.down_proj"
        # OpenAI's rows alternate: gate, up, gate, up
        for name, source, rows in (
            ("ffn_gate_exps", gate_up, slice(0, None, 2)),
            ("ffn_up_exps", gate_up, slice(1, None, 2)),
            ("ffn_down_exps", down, slice(None)),
        ):
            yield experts(f"{to}.{name}.weight", source, rows)
            yield expert_bias(f"{to}.{name}.bias", f"{source}_bias", rows)
