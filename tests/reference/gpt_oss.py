"""gpt-oss (OpenAI 2025): RoPE with YaRN, RMSNorm before each part, grouped-query attention with sinks that
slides in every other layer, a mixture of clamped SwiGLU experts, and a head of its own."""

from dataclasses import dataclass

import numpy as np

from . import rope
from .attention import attention, softmax
from .checkpoint import Checkpoint
from .mxfp4 import dequantise

# ---- Config: the keys of config.json that change the forward pass, with transformers' or OpenAI's defaults


@dataclass(frozen=True)
class Config:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_experts: int
    experts_per_token: int
    windows: tuple[int | None, ...]  # of each layer; None: it sees everything before it
    rms_norm_eps: float
    swiglu_limit: float
    swiglu_alpha: float
    attention_bias: bool
    tie_word_embeddings: bool
    rope: rope.Rope


def read_config(raw):
    return config_hf(raw) if "model_type" in raw or "architectures" in raw else config_original(raw)


def config_hf(raw):
    layers = raw.get("num_hidden_layers", 36)
    heads, hidden = raw.get("num_attention_heads", 64), raw.get("hidden_size", 2880)
    kv_heads, head_dim = raw.get("num_key_value_heads", 8), raw.get("head_dim", 64)
    kinds = raw.get("layer_types") or [["sliding_attention", "full_attention"][i % 2] for i in range(layers)]
    window = raw.get("sliding_window", 128)
    return Config(
        vocab_size=raw.get("vocab_size", 201088),
        hidden_size=hidden,
        intermediate_size=raw.get("intermediate_size", 2880),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads if kv_heads is None else kv_heads,
        head_dim=hidden // heads if head_dim is None else head_dim,
        num_experts=raw.get("num_local_experts", raw.get("num_experts", 128)),
        experts_per_token=raw.get("num_experts_per_tok", 4),
        windows=tuple(window if kind == "sliding_attention" else None for kind in kinds),
        rms_norm_eps=raw.get("rms_norm_eps", 1e-5),
        swiglu_limit=raw.get("swiglu_limit", 7.0),
        swiglu_alpha=raw.get("swiglu_alpha", 1.702),
        attention_bias=raw.get("attention_bias", True),
        tie_word_embeddings=raw.get("tie_word_embeddings", False),
        rope=rope.from_hf(raw),
    )


def config_original(raw):
    layers, window = raw.get("num_hidden_layers", 36), raw.get("sliding_window", 128)
    return Config(
        vocab_size=raw.get("vocab_size", 201088),
        hidden_size=raw.get("hidden_size", 2880),
        intermediate_size=raw.get("intermediate_size", 2880),
        num_hidden_layers=layers,
        num_attention_heads=raw.get("num_attention_heads", 64),
        num_key_value_heads=raw.get("num_key_value_heads", 8),
        head_dim=raw.get("head_dim", 64),
        num_experts=raw.get("num_experts", 128),
        experts_per_token=raw.get("experts_per_token", 4),
        windows=tuple(None if layer % 2 else window or None for layer in range(layers)),
        rms_norm_eps=1e-5,
        swiglu_limit=raw.get("swiglu_limit", 7.0),
        swiglu_alpha=1.702,
        attention_bias=True,
        tie_word_embeddings=False,
        rope=rope.from_original(raw),
    )


# ---- Checkpoint: Hugging Face's or OpenAI's names; experts MXFP4 [E, out, in/32, 16] or plain [E, in, out]

HF = {
    "embedding": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
    "attn_norm": "model.layers.{}.input_layernorm.weight",
    "q": "model.layers.{}.self_attn.q_proj",
    "k": "model.layers.{}.self_attn.k_proj",
    "v": "model.layers.{}.self_attn.v_proj",
    "sinks": "model.layers.{}.self_attn.sinks",
    "out": "model.layers.{}.self_attn.o_proj",
    "mlp_norm": "model.layers.{}.post_attention_layernorm.weight",
    "router": "model.layers.{}.mlp.router",
    "gate_up": "model.layers.{}.mlp.experts.gate_up_proj",
    "down": "model.layers.{}.mlp.experts.down_proj",
    "blocks": "_blocks",
    "scales": "_scales",
}

ORIGINAL = {
    "embedding": "embedding.weight",
    "norm": "norm.scale",
    "head": "unembedding.weight",
    "attn_norm": "block.{}.attn.norm.scale",
    "qkv": "block.{}.attn.qkv",
    "sinks": "block.{}.attn.sinks",
    "out": "block.{}.attn.out",
    "mlp_norm": "block.{}.mlp.norm.scale",
    "router": "block.{}.mlp.gate",
    "gate_up": "block.{}.mlp.mlp1",
    "down": "block.{}.mlp.mlp2",
    "blocks": "_weight.blocks",
    "scales": "_weight.scales",
}


class Weights:
    def __init__(self, checkpoint, dtype):
        self.checkpoint, self.dtype = checkpoint, dtype
        self.names = ORIGINAL if ORIGINAL["norm"] in checkpoint else HF

    def tensor(self, part, layer=None, index=...):
        return self.checkpoint.tensor(self.names[part].format(layer), self.dtype, index)

    def linear(self, part, layer, with_bias=True):
        """-> weight [out, in] and bias [out], or a bias of 0."""
        name = self.names[part].format(layer)
        weight = self.checkpoint.tensor(f"{name}.weight", self.dtype)
        return weight, self.checkpoint.tensor(f"{name}.bias", self.dtype) if with_bias else self.dtype(0)

    def expert(self, part, layer, expert):
        """-> weight [out, in] and bias [out] of one expert; part: "gate_up" or "down"."""
        name = self.names[part].format(layer)
        bias = self.checkpoint.tensor(f"{name}_bias", self.dtype, expert)
        if name in self.checkpoint:
            return self.checkpoint.tensor(name, self.dtype, expert).T, bias
        blocks, scales = (
            self.checkpoint.tensor(name + self.names[suffix], index=expert) for suffix in ("blocks", "scales")
        )
        return dequantise(blocks, scales, self.dtype), bias

    def head(self, config):
        """The name of the part that is the head."""
        part = "head" if self.names["head"] in self.checkpoint else "embedding"
        if part == "embedding" and not config.tie_word_embeddings:
            raise ValueError(f"tie_word_embeddings is false, but there is no {self.names['head']}")
        return part


# ---- Functions


def linear(x, weight, bias):
    """x [T, K], weight [N, K], bias [N] -> [T, N]."""
    return x @ weight.T + bias


def rms_norm(x, weight, epsilon):
    """Over the last axis."""
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * weight


def sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))  # 1 / (1 + exp(-x)), without overflow, precise in both tails


def swiglu(gate_up, alpha, limit):
    """[T, 2 I], gates in the even columns, ups in the odd -> [T, I]. Gates are clamped from above only."""
    gate, up = gate_up[:, ::2], gate_up[:, 1::2]
    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    return gate * sigmoid(alpha * gate) * (up + 1)


def route(router_logits, k):
    """[T, E] -> experts [T, k], best first, and their weights [T, k]: softmax over the chosen k."""
    experts = np.argsort(-router_logits, -1, kind="stable")[:, :k]
    return experts, softmax(np.take_along_axis(router_logits, experts, -1))


# ---- Model


class Model:
    def __init__(self, directory, dtype=np.float64):
        checkpoint = Checkpoint(directory)
        self.config = read_config(checkpoint.config)
        self.weights = Weights(checkpoint, dtype)
        self.angle_dtype = np.float32

    def qkv(self, layer):
        """-> weight [q rows + k rows + v rows, C] and bias."""
        with_bias = self.config.attention_bias
        if "qkv" in self.weights.names:
            return self.weights.linear("qkv", layer)
        weights, biases = zip(*(self.weights.linear(part, layer, with_bias) for part in "qkv"), strict=True)
        return np.concatenate(weights), np.concatenate(biases) if with_bias else biases[0]

    def attention(self, layer, x, rows):
        """x [T, C], already normalised -> [len(rows), C]."""
        config = self.config
        T, H, G, D = len(x), config.num_attention_heads, config.num_key_value_heads, config.head_dim
        q, k, v = np.split(linear(x, *self.qkv(layer)), [H * D, (H + G) * D], -1)
        cos, sin = rope.tables(config.rope, D, np.arange(T), self.angle_dtype)
        q = rope.rotate(q[rows].reshape(-1, H, D), cos[rows], sin[rows])
        k = rope.rotate(k.reshape(T, G, D), cos, sin)
        v = v.reshape(T, G, D)
        sinks = self.weights.tensor("sinks", layer)
        heads = attention(q, k, v, D**-0.5, rows, config.windows[layer], sinks)
        out = self.weights.linear("out", layer, config.attention_bias)
        return linear(heads.reshape(len(rows), -1), *out)

    def moe(self, layer, x, trace=None):
        """x [T, C], already normalised -> [T, C]: the weighted sum of each token's experts."""
        config = self.config
        router_logits = linear(x, *self.weights.linear("router", layer))
        experts, weights = route(router_logits, config.experts_per_token)
        if trace is not None:
            for name, value in [("router_logits", router_logits), ("experts", experts), ("weights", weights)]:
                trace.setdefault(name, []).append(value)
        out = np.zeros_like(x)
        for expert in np.unique(experts):
            tokens, slots = np.nonzero(experts == expert)
            out[tokens] += weights[tokens, slots, None] * self.expert(layer, expert, x[tokens])
        return out

    def expert(self, layer, expert, x):
        gate_up = linear(x, *self.weights.expert("gate_up", layer, expert))
        inner = swiglu(gate_up, self.config.swiglu_alpha, self.config.swiglu_limit)
        return linear(inner, *self.weights.expert("down", layer, expert))

    def norm(self, part, x, layer=None):
        return rms_norm(x, self.weights.tensor(part, layer), self.config.rms_norm_eps)

    def block(self, layer, x, rows, trace=None):
        """x [T, C] -> the positions `rows` of the residual stream after this layer, [len(rows), C]."""
        x = x[rows] + self.attention(layer, self.norm("attn_norm", x, layer), rows)
        return x + self.moe(layer, self.norm("mlp_norm", x, layer), trace)

    def hidden(self, ids, trace=None, positions=None):
        """ids [T] -> [T, C], the head's input; with `positions`, only those (the last layer skips the rest).

        A dict `trace` receives `residual` [layers + 1, T, C], `router_logits` [layers, T, E], `experts` and
        `weights` [layers, T, k]; with `positions` they are lists, the last entry of each cut to those.
        """
        everything = np.arange(len(ids))
        x = self.weights.tensor("embedding", index=np.asarray(ids))
        trace = {} if trace is None else trace
        trace["residual"] = [x]
        for layer in range(self.config.num_hidden_layers):
            last = layer == self.config.num_hidden_layers - 1
            rows = everything if positions is None or not last else np.asarray(positions)
            x = self.block(layer, x, rows, trace)
            trace["residual"].append(x)
        if positions is None:
            trace.update({name: np.stack(values) for name, values in trace.items()})
        return self.norm("norm", x)

    def logits(self, ids, trace=None, positions=None):
        """ids [T] -> [T, V], or only the rows of `positions`."""
        return self.unembed(self.hidden(ids, trace, positions))

    def unembed(self, x):
        """hidden [T, C] -> logits [T, V]."""
        head, step = self.weights.head(self.config), 16384  # in chunks: all rows at once may take 4.6 GB
        chunks = [slice(start, start + step) for start in range(0, self.config.vocab_size, step)]
        return np.concatenate([x @ self.weights.tensor(head, index=chunk).T for chunk in chunks], -1)
