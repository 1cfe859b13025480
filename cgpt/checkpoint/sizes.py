"""The published sizes: their configs and the JSON files they come with, known without any download.

Sources: config.json and generation_config.json of openai-community/gpt2* and openai/gpt-oss-* on Hugging
Face, and original/config.json of the latter.
"""

from __future__ import annotations

from typing import Any

from cgpt.checkpoint.config import FULL, SLIDING, GPT2Config, GptOssConfig
from cgpt.errors import InputError


def _gpt2(n_layer: int, n_embd: int, n_head: int) -> GPT2Config:
    return GPT2Config(n_layer=n_layer, n_embd=n_embd, n_head=n_head, n_inner=4 * n_embd)


def _gpt_oss(layers: int, experts: int) -> GptOssConfig:
    return GptOssConfig(num_hidden_layers=layers, num_experts=experts, layer_types=(SLIDING, FULL) * (layers // 2))


GPT2_SIZES = {
    "gpt2": _gpt2(12, 768, 12),
    "gpt2-medium": _gpt2(24, 1024, 16),
    "gpt2-large": _gpt2(36, 1280, 20),
    "gpt2-xl": _gpt2(48, 1600, 25),
}
GPT_OSS_SIZES = {"gpt-oss-20b": _gpt_oss(24, 32), "gpt-oss-120b": _gpt_oss(36, 128)}
SIZES: dict[str, GPT2Config | GptOssConfig] = {**GPT2_SIZES, **GPT_OSS_SIZES}


def published_config(name: str, layout: str = "hf") -> dict[str, Any]:
    """What config.json holds for the size `name`, in transformers' dialect ("hf") or OpenAI's ("original").

    InputError for a name that is not in SIZES, or a layout it is not published in.
    """
    config = _size(name)
    if isinstance(config, GPT2Config) and layout == "hf":
        return _gpt2_json(config)
    if isinstance(config, GptOssConfig) and layout in ("hf", "original"):
        return _gpt_oss_json(config) if layout == "hf" else _original_json(config)
    raise InputError(f"layout must be {_layouts(config)} for {name}, found {layout!r}")


def published_generation_config(name: str) -> dict[str, Any]:
    """What generation_config.json holds for the size `name`. InputError for a name that is not in SIZES."""
    if isinstance(_size(name), GPT2Config):
        return {
            "bos_token_id": 50256,
            "eos_token_id": 50256,
            "transformers_version": "4.26.0.dev0",
            "_from_model_config": True,
        }
    return {
        "bos_token_id": 199998,
        "do_sample": True,
        "eos_token_id": [200002, 199999, 200012],
        "pad_token_id": 199999,
        "transformers_version": "4.55.0.dev0",
    }


def _size(name: str) -> GPT2Config | GptOssConfig:
    if name not in SIZES:
        raise InputError(f"no published size {name!r}; there are {', '.join(SIZES)}")
    return SIZES[name]


def _layouts(config: GPT2Config | GptOssConfig) -> str:
    return '"hf"' if isinstance(config, GPT2Config) else '"hf" or "original"'


def _gpt2_json(config: GPT2Config) -> dict[str, Any]:
    return {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "bos_token_id": 50256,
        "embd_pdrop": 0.1,
        "eos_token_id": 50256,
        "initializer_range": 0.02,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "model_type": "gpt2",
        "n_ctx": config.n_positions,
        "n_embd": config.n_embd,
        "n_head": config.n_head,
        "n_layer": config.n_layer,
        "n_positions": config.n_positions,
        "resid_pdrop": 0.1,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": config.vocab_size,
    }


def _gpt_oss_json(config: GptOssConfig) -> dict[str, Any]:
    return {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": config.attention_bias,
        "attention_dropout": 0.0,
        "eos_token_id": 200002,
        "experts_per_token": config.experts_per_token,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initial_context_length": config.rope.original_max_position_embeddings,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "layer_types": list(config.layer_types),
        "max_position_embeddings": config.max_position_embeddings,
        "model_type": "gpt_oss",
        "num_attention_heads": config.num_attention_heads,
        "num_experts_per_tok": config.experts_per_token,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "num_local_experts": config.num_experts,
        "output_router_logits": False,
        "pad_token_id": 199999,
        "quantization_config": {
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
            "quant_method": "mxfp4",
        },
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": {
            "beta_fast": config.rope.beta_fast,
            "beta_slow": config.rope.beta_slow,
            "factor": config.rope.factor,
            "original_max_position_embeddings": config.rope.original_max_position_embeddings,
            "rope_type": config.rope.type,
            "truncate": config.rope.truncate,
        },
        "rope_theta": int(config.rope.theta),
        "router_aux_loss_coef": 0.9,
        "sliding_window": config.sliding_window,
        "swiglu_limit": config.swiglu_limit,
        "tie_word_embeddings": config.tie_word_embeddings,
        "transformers_version": "4.55.0.dev0",
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }


def _original_json(config: GptOssConfig) -> dict[str, Any]:
    return {
        "num_hidden_layers": config.num_hidden_layers,
        "num_experts": config.num_experts,
        "experts_per_token": config.experts_per_token,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "swiglu_limit": config.swiglu_limit,
        "head_dim": config.head_dim,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "sliding_window": config.sliding_window,
        "initial_context_length": config.rope.original_max_position_embeddings,
        "rope_theta": int(config.rope.theta),
        "rope_scaling_factor": config.rope.factor,
        "rope_ntk_alpha": int(config.rope.beta_slow),
        "rope_ntk_beta": int(config.rope.beta_fast),
    }
