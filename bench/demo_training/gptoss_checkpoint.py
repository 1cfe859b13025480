"""TinyGptOss to and from a checkpoint directory in the Hugging Face layout of gpt-oss-20b: MXFP4 experts, the
rest bf16."""

import json
import os

import mxfp4
import torch
from demo_harmony import SPECIALS
from demo_tokenizer import tokenizer_config
from gptoss_model import TinyGptOss
from safetensors.torch import load_file, save_file

CONFIG = dict(
    architectures=["GptOssForCausalLM"],
    attention_bias=True,
    attention_dropout=0.0,
    eos_token_id=None,
    experts_per_token=4,
    head_dim=32,
    hidden_act="silu",
    hidden_size=128,
    initial_context_length=4096,
    initializer_range=0.02,
    intermediate_size=64,
    layer_types=["sliding_attention", "full_attention"] * 3,
    max_position_embeddings=131072,
    model_type="gpt_oss",
    num_attention_heads=6,
    num_experts_per_tok=4,
    num_hidden_layers=6,
    num_key_value_heads=2,
    num_local_experts=8,
    output_router_logits=False,
    pad_token_id=None,
    quantization_config=dict(
        modules_to_not_convert=[
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
        quant_method="mxfp4",
    ),
    rms_norm_eps=1e-05,
    rope_scaling=dict(
        beta_fast=32.0,
        beta_slow=1.0,
        factor=32.0,
        original_max_position_embeddings=4096,
        rope_type="yarn",
        truncate=False,
    ),
    rope_theta=150000,
    router_aux_loss_coef=0.9,
    sliding_window=128,
    swiglu_limit=7.0,
    tie_word_embeddings=False,
    transformers_version="4.55.0.dev0",
    use_cache=True,
    vocab_size=None,
)

# The parameters whose tensor is the same in both, but for its name
OUTER = {"embedding": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"}
INNER = {
    "norm1": "input_layernorm.weight",
    "norm2": "post_attention_layernorm.weight",
    "sinks": "self_attn.sinks",
    "router": "mlp.router.weight",
    "router_bias": "mlp.router.bias",
    "down_bias": "mlp.experts.down_proj_bias",
}
for k in "qkvo":
    INNER |= {k: f"self_attn.{k}_proj.weight", f"{k}_bias": f"self_attn.{k}_proj.bias"}


def names(layers):
    """{parameter: tensor} of everything but the experts' gate, up and down."""
    inner = {f"layers.{n}.{k}": f"model.layers.{n}.{v}" for n in range(layers) for k, v in INNER.items()}
    return OUTER | inner


def interleave(gate, up):
    """gate, up [E, I, ...] -> [E, 2 I, ...]: rows gate 0, up 0, gate 1, up 1, .."""
    return torch.stack([gate, up], 2).flatten(1, 2)


def export_tensors(model):
    """{name: tensor} of model.safetensors"""
    params = dict(model.named_parameters())
    out = {v: params[k] for k, v in names(len(model.layers)).items()}
    for n, layer in enumerate(model.layers):
        p = f"model.layers.{n}.mlp.experts."
        out[p + "gate_up_proj_bias"] = interleave(layer.gate_bias, layer.up_bias)
        for name, w in (("gate_up_proj", interleave(layer.gate, layer.up)), ("down_proj", layer.down)):
            out[f"{p}{name}_blocks"], out[f"{p}{name}_scales"] = mxfp4.pack(w)
    return {k: v.contiguous() if v.dtype == torch.uint8 else v.detach().bfloat16().contiguous() for k, v in out.items()}


def export(model, tok, out):
    """Write the directory a published checkpoint of this kind is: config, weights, tokenizer."""
    os.makedirs(out, exist_ok=True)
    path = os.path.join(out, "model.safetensors")
    save_file(export_tensors(model), path, metadata={"format": "pt"})
    os.chmod(path, 0o644)
    ids = {n: tok.token_to_id(n) for n in SPECIALS if n}
    generation = dict(
        bos_token_id=ids["<|startoftext|>"],
        do_sample=True,
        eos_token_id=[ids["<|return|>"], ids["<|endoftext|>"], ids["<|call|>"]],
        pad_token_id=ids["<|endoftext|>"],
        transformers_version="4.55.0.dev0",
    )
    special = dict(bos_token="<|startoftext|>", eos_token="<|return|>", pad_token="<|endoftext|>")
    for name, data in (
        ("config.json", model.c),
        ("generation_config.json", generation),
        ("tokenizer_config.json", tokenizer_config(tok)),
        ("special_tokens_map.json", special),
    ):
        with open(os.path.join(out, name), "w") as f:
            json.dump(data, f, indent=2, ensure_ascii=False)
            f.write("\n")
    tok.save(os.path.join(out, "tokenizer.json"))


def load(path, compiled=False):
    """The model of a checkpoint directory with its experts dequantised, to train it on or to compare."""
    with open(os.path.join(path, "config.json")) as f:
        model = TinyGptOss(json.load(f), compiled)
    raw = load_file(os.path.join(path, "model.safetensors"))
    state = {k: raw[v].float() for k, v in names(len(model.layers)).items()}
    for n in range(len(model.layers)):
        p, q = f"model.layers.{n}.mlp.experts.", f"layers.{n}."
        both, down = (
            mxfp4.unpack(raw[f"{p}{name}_blocks"], raw[f"{p}{name}_scales"]) for name in ("gate_up_proj", "down_proj")
        )
        bias = raw[p + "gate_up_proj_bias"].float()
        state |= {
            q + "gate": both[:, 0::2],
            q + "up": both[:, 1::2],
            q + "down": down,
            q + "gate_bias": bias[:, 0::2],
            q + "up_bias": bias[:, 1::2],
        }
    model.load_state_dict(state)
    return model
