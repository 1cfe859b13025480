"""What a checkpoint's config.json says about the model, in every dialect it is published in.

GPT-2 and gpt-oss as transformers writes them, and gpt-oss as OpenAI does (no model_type). An absent key takes
the default of transformers' GPT2Config and GptOssConfig, or of OpenAI's ModelConfig. A key that would change
the forward pass in a way cgpt does not compute is refused with ConfigError; keys without influence on it are
ignored.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cgpt.checkpoint.rope import RopeConfig, hf_rope, original_rope
from cgpt.errors import ConfigError
from cgpt.fields import Fields, read_json_object, shown
from cgpt.kernels._kernels import MAX_EXPERTS, MAX_HEAD_DIM, MAX_TOP_K

# Sizes beyond these are absurd; within them the bytes of any tensor and of any cache fit in an int64.
MAX_WIDTH = 1 << 20
MAX_VOCABULARY = 1 << 24
MAX_POSITIONS = 1 << 24  # the angles' positions are exact in float32 up to here
MAX_LAYERS = 4096

SLIDING, FULL = "sliding_attention", "full_attention"

# transformers' names (ACT2FN) to the kernels'. The spellings of one kernel differ in rounding only.
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu": "gelu_erf",
    "gelu_python": "gelu_erf",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}

_UNQUANTISED = 'take the model as it was published and load it with dense="int8"'
_GPT_OSS_EOS = (200002, 199999, 200012)  # the published generation_config.json: return, endoftext, call

_ORIGINAL_KEYS = (
    "num_hidden_layers", "num_experts", "experts_per_token", "vocab_size", "hidden_size", "intermediate_size",
    "swiglu_limit", "head_dim", "num_attention_heads", "num_key_value_heads", "sliding_window",
    "initial_context_length", "rope_theta", "rope_scaling_factor", "rope_ntk_alpha", "rope_ntk_beta",
)  # fmt: skip


@dataclass(frozen=True)
class GPT2Config:
    """A GPT-2 model; names as in transformers' GPT2Config. ConfigError where sizes do not fit."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int = 3072
    activation: str = "gelu_tanh"  # a value of ACTIVATIONS
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True  # scores times head_dim ** -0.5
    scale_attn_by_inverse_layer_idx: bool = False  # and divided by layer + 1
    tie_word_embeddings: bool = True
    eos_token_ids: tuple[int, ...] = (50256,)
    bos_token_id: int | None = field(default=None, compare=False)  # what is computed depends on neither
    pad_token_id: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        _divides("n_head", self.n_head, "n_embd", self.n_embd)
        if self.n_embd // self.n_head > MAX_HEAD_DIM:
            raise ConfigError(f"n_head {self.n_head} makes heads of more than {MAX_HEAD_DIM} of n_embd {self.n_embd}")


@dataclass(frozen=True)
class GptOssConfig:
    """A gpt-oss model; names as in transformers' GptOssConfig. ConfigError where sizes do not fit."""

    vocab_size: int = 201088
    hidden_size: int = 2880
    intermediate_size: int = 2880
    num_hidden_layers: int = 36
    num_attention_heads: int = 64
    num_key_value_heads: int = 8
    head_dim: int = 64
    num_experts: int = 128
    experts_per_token: int = 4
    layer_types: tuple[str, ...] = (SLIDING, FULL) * 18  # one per layer
    sliding_window: int | None = 128  # positions a sliding layer sees, its own included
    rms_norm_eps: float = 1e-5
    swiglu_limit: float = 7.0
    swiglu_alpha: float = 1.702
    attention_bias: bool = True
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 131072
    rope: RopeConfig = RopeConfig("yarn", factor=32.0, truncate=False)
    eos_token_ids: tuple[int, ...] = _GPT_OSS_EOS
    bos_token_id: int | None = field(default=None, compare=False)  # what is computed depends on neither
    pad_token_id: int | None = field(default=None, compare=False)
    layout: str = "hf"  # the dialect of config.json: "hf" or "original"

    def __post_init__(self) -> None:
        heads, layers = self.num_attention_heads, self.num_hidden_layers
        _divides("num_key_value_heads", self.num_key_value_heads, "num_attention_heads", heads)
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even for RoPE, found {self.head_dim}")
        if self.head_dim > MAX_HEAD_DIM:
            raise ConfigError(f"head_dim must be at most {MAX_HEAD_DIM}, found {self.head_dim}")
        if heads * self.head_dim > MAX_WIDTH:
            raise ConfigError(f"num_attention_heads * head_dim must be at most {MAX_WIDTH}")
        if self.experts_per_token > self.num_experts:
            raise ConfigError(f"{self.experts_per_token} experts per token of {self.num_experts} experts")
        if len(self.layer_types) != layers:
            raise ConfigError(f"layer_types has {len(self.layer_types)} entries for {layers} layers")
        if self.sliding_window is None and SLIDING in self.layer_types:
            raise ConfigError("sliding_window is null but there are sliding layers")


def read_config(directory_or_file: str | os.PathLike[str]) -> GPT2Config | GptOssConfig:
    """The config of a checkpoint's directory, or of its config.json: and the eos ids of generation_config.json there.

    Raises ConfigError naming the file and the key: not a model cgpt runs, a value of the wrong type or out of
    range, keys that contradict each other, a setting that is not supported.
    """
    path = directory = Path(directory_or_file)
    if not os.path.isfile(path):
        path = directory / "config.json"
    if os.path.isdir(directory) and not os.path.lexists(path):
        hint = "; its folder original/ has one" if os.path.exists(directory / "original/config.json") else ""
        hint = "; copy that of the model beside its weights" if any(directory.glob("*.safetensors")) else hint
        raise ConfigError(f"{directory}: no config.json, so this is not a checkpoint directory{hint}")
    fields = Fields(read_json_object(path, ConfigError))
    generation = Fields(read_generation_config(path.parent), "generation_config.json: ")
    try:
        return _DIALECTS[_dialect(fields)](fields, generation)
    except ConfigError as problem:
        raise ConfigError(f"{path}: {problem}") from None


def read_generation_config(directory: Path) -> dict[str, Any]:
    """What the generation_config.json of a checkpoint's directory says; {} where there is none."""
    path = directory / "generation_config.json"
    return read_json_object(path, ConfigError) if os.path.lexists(path) else {}


def _dialect(fields: Fields) -> str:
    kind: str | None = fields.text("model_type", None, null=None)
    if kind in ("gpt2", "gpt_oss"):
        return kind
    if kind is not None:
        raise fields.refuse("model_type", 'must be "gpt2" or "gpt_oss"')
    # The first GPT-2 configs and OpenAI's gpt-oss configs have no model_type.
    if "n_embd" in fields and "n_head" in fields:
        return "gpt2"
    if "num_local_experts" in fields or "num_experts_per_tok" in fields:
        return "gpt_oss"
    if "num_experts" in fields or "experts_per_token" in fields:
        return "original"
    raise ConfigError("model_type is missing, and these are not the keys of GPT-2 or of OpenAI's gpt-oss")


def _gpt2(fields: Fields, generation: Fields) -> GPT2Config:
    _refuse_common(fields)
    if fields.boolean("add_cross_attention", False):
        raise fields.refuse("add_cross_attention", "must be false, for there is no encoder to attend to")
    _refuse_quantised(fields)
    fields.boolean("reorder_and_upcast_attn", False)  # the same result in f32
    activation = fields.text("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        raise fields.refuse("activation_function", f"must be one of {', '.join(ACTIVATIONS)}")
    n_positions = fields.integer("n_positions", 1024, high=MAX_POSITIONS, aliases=["max_position_embeddings"])
    n_embd = fields.integer("n_embd", 768, high=MAX_WIDTH, aliases=["hidden_size"])
    vocab_size = fields.integer("vocab_size", 50257, high=MAX_VOCABULARY)
    return GPT2Config(
        vocab_size=vocab_size,
        n_positions=n_positions,
        n_embd=n_embd,
        n_layer=fields.integer("n_layer", 12, high=MAX_LAYERS, aliases=["num_hidden_layers"]),
        n_head=fields.integer("n_head", 12, high=MAX_WIDTH, aliases=["num_attention_heads"]),
        n_inner=fields.integer("n_inner", 4 * n_embd, high=4 * MAX_WIDTH, null=4 * n_embd),
        activation=ACTIVATIONS[activation],
        layer_norm_epsilon=_epsilon(fields, "layer_norm_epsilon"),
        scale_attn_weights=fields.boolean("scale_attn_weights", True),
        scale_attn_by_inverse_layer_idx=fields.boolean("scale_attn_by_inverse_layer_idx", False),
        tie_word_embeddings=fields.boolean("tie_word_embeddings", True),
        eos_token_ids=_eos_token_ids(fields, generation, (50256,), vocab_size),
        **_begin_and_pad(fields, generation, vocab_size),
    )


def _gpt_oss(fields: Fields, generation: Fields) -> GptOssConfig:
    _refuse_common(fields)
    if fields.text("hidden_act", "silu") not in ("silu", "swish"):
        raise fields.refuse("hidden_act", 'must be "silu", for the experts of gpt-oss are a clamped SwiGLU')
    experts_per_token = fields.integer("num_experts_per_tok", 4, high=MAX_TOP_K)
    if fields.values.get("experts_per_token", experts_per_token) != experts_per_token:
        raise fields.refuse("experts_per_token", f"must equal num_experts_per_tok {experts_per_token}")
    shape = _gpt_oss_shape(fields, num_experts="num_local_experts", aliases=["num_experts"])
    if _refuse_quantised(fields, "mxfp4"):
        _check_mxfp4(shape)
    max_positions = fields.integer("max_position_embeddings", 131072, high=MAX_POSITIONS)
    return GptOssConfig(
        **shape,
        experts_per_token=experts_per_token,
        layer_types=_layer_types(fields, shape["num_hidden_layers"]),
        sliding_window=fields.integer("sliding_window", 128, high=MAX_POSITIONS, null=None),
        rms_norm_eps=_epsilon(fields, "rms_norm_eps"),
        swiglu_alpha=fields.number("swiglu_alpha", 1.702, low=-1e6, high=1e6),
        attention_bias=fields.boolean("attention_bias", True),
        tie_word_embeddings=fields.boolean("tie_word_embeddings", False),
        max_position_embeddings=max_positions,
        rope=hf_rope(fields, max_positions),
        eos_token_ids=_eos_token_ids(fields, generation, (), shape["vocab_size"]),
        **_begin_and_pad(fields, generation, shape["vocab_size"]),
    )


def _original_gpt_oss(fields: Fields, generation: Fields) -> GptOssConfig:
    """Defaults and keys: ModelConfig in gpt_oss/torch/model.py, which rejects any other key too."""
    fields.refuse_unknown(_ORIGINAL_KEYS, "OpenAI's gpt-oss config (and there is no model_type)")
    shape = _gpt_oss_shape(fields, num_experts="num_experts")
    _check_mxfp4(shape)
    rope = original_rope(fields)
    initial_context = fields.integer("initial_context_length", 4096, high=MAX_POSITIONS)
    max_positions = int(initial_context * rope.factor)
    if max_positions > MAX_POSITIONS:
        raise ConfigError(f"initial_context_length times rope_scaling_factor must be at most {MAX_POSITIONS}")
    return GptOssConfig(
        **shape,
        experts_per_token=fields.integer("experts_per_token", 4, high=MAX_TOP_K),
        layer_types=_alternating(shape["num_hidden_layers"]),
        sliding_window=fields.integer("sliding_window", 128, high=MAX_POSITIONS),
        max_position_embeddings=max_positions,
        rope=rope,
        eos_token_ids=_eos_token_ids(fields, generation, _GPT_OSS_EOS, shape["vocab_size"]),
        **_begin_and_pad(fields, generation, shape["vocab_size"], 199998, 199999),
        layout="original",
    )


def _gpt_oss_shape(fields: Fields, num_experts: str, aliases: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of GptOssConfig that both dialects write alike, except for one name."""
    hidden_size = fields.integer("hidden_size", 2880, high=MAX_WIDTH)
    heads = fields.integer("num_attention_heads", 64, high=MAX_WIDTH)
    return dict(
        vocab_size=fields.integer("vocab_size", 201088, high=MAX_VOCABULARY),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size", 2880, high=MAX_WIDTH),
        num_hidden_layers=fields.integer("num_hidden_layers", 36, high=MAX_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=fields.integer("num_key_value_heads", 8, high=MAX_WIDTH, null=heads),
        head_dim=fields.integer("head_dim", 64, high=MAX_WIDTH, null=max(hidden_size // heads, 1)),
        num_experts=fields.integer(num_experts, 128, high=MAX_EXPERTS, aliases=aliases),
        swiglu_limit=fields.number("swiglu_limit", 7.0, low=1e-6, high=1e30),
    )


_DIALECTS: dict[str, Callable[[Fields, Fields], GPT2Config | GptOssConfig]] = {
    "gpt2": _gpt2,
    "gpt_oss": _gpt_oss,
    "original": _original_gpt_oss,
}


def _refuse_common(fields: Fields) -> None:
    """The keys of any transformers config that change the forward pass and that cgpt does not compute."""
    if not fields.boolean("is_causal", True):
        raise fields.refuse("is_causal", "must be true, for attention looks back only")
    per_layer = fields.section("per_layer_config")
    if per_layer is not None and per_layer.values:
        raise fields.refuse("per_layer_config", "must be absent, for all layers have one config")


def _refuse_quantised(fields: Fields, *readable: str) -> bool:
    """Whether the weights are quantised by a method that is `readable`; ConfigError where by another."""
    if fields.values.get("quantization_config") is None and isinstance(fields.values.get("quantization"), dict):
        raise fields.refuse("quantization", f"is MLX's, which cgpt does not read: {_UNQUANTISED}")
    settings = fields.section("quantization_config")
    if settings is None:
        return False
    early = "bitsandbytes" if {"load_in_8bit", "load_in_4bit"} & settings.values.keys() else None
    method = settings.text("quant_method", *filter(None, [early]))
    if method not in readable:
        name = settings.name("quant_method")
        raise ConfigError(f"{name} is {method!r}, which cgpt does not read for this model: {_UNQUANTISED}")
    return True


def _layer_types(fields: Fields, layers: int) -> tuple[str, ...]:
    types = fields.array("layer_types", None, null=None)
    if types is None:
        return _alternating(layers)
    types = [FULL if kind == "attention" else kind for kind in types]  # a name transformers still reads
    for layer, kind in enumerate(types):
        if kind not in (SLIDING, FULL):
            raise ConfigError(f"layer_types[{layer}] must be {SLIDING!r} or {FULL!r}, found {shown(kind)}")
    return tuple(types)


def _alternating(layers: int) -> tuple[str, ...]:
    return tuple((SLIDING, FULL)[layer % 2] for layer in range(layers))


def _epsilon(fields: Fields, key: str) -> float:
    epsilon: float = fields.number(key, 1e-5, low=1e-30, high=1.0)  # smaller ones vanish in float32
    return epsilon


def _eos_token_ids(fields: Fields, generation: Fields, default: tuple[int, ...], vocab_size: int) -> tuple[int, ...]:
    """generation_config.json's, else config.json's, else the default; ids beyond the vocabulary left out."""
    source = fields if generation.values.get("eos_token_id") is None else generation
    value = source.values.get("eos_token_id", list(default))
    ids = [] if value is None else value if isinstance(value, list) else [value]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or token < 0:
            raise source.refuse("eos_token_id", "must be one token id or a list of them")
    return tuple(dict.fromkeys(token for token in ids if token < vocab_size))


def _begin_and_pad(
    fields: Fields, generation: Fields, vocab_size: int, begin: int | None = None, pad: int | None = None
) -> dict[str, Any]:
    """The fields of the other special ids, the first good one of generation_config.json's, config.json's and the
    default."""

    def first(key: str, default: int | None) -> int | None:
        found = (generation.values.get(key), fields.values.get(key), default)
        return next((one for one in found if type(one) is int and 0 <= one < vocab_size), None)

    return {"bos_token_id": first("bos_token_id", begin), "pad_token_id": first("pad_token_id", pad)}


def _divides(divisor_name: str, divisor: int, name: str, value: int) -> None:
    if value % divisor:
        raise ConfigError(f"{divisor_name} {divisor} does not divide {name} {value}")


def _check_mxfp4(shape: dict[str, Any]) -> None:
    """The inputs of MXFP4 experts come in groups of 32."""
    for key in ("hidden_size", "intermediate_size"):
        if shape[key] % 32:
            raise ConfigError(f"{key} must be a multiple of 32 for MXFP4 experts, found {shape[key]}")
