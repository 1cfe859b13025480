"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm before each part, full attention, a GELU MLP,
and a head that is usually the token embedding."""

import math
from dataclasses import dataclass, fields

import numpy as np

from .attention import attention
from .checkpoint import Checkpoint

# ---- Config: the keys of config.json that change the forward pass, with transformers' defaults


@dataclass(frozen=True)
class Config:
    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None  # None: 4 * n_embd
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True


ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


def read_config(raw):
    known = {field.name for field in fields(Config)}
    renamed = {ALIASES.get(key, key): value for key, value in raw.items()}
    return Config(**{key: value for key, value in renamed.items() if key in known})


# ---- Checkpoint: names with or without "transformer."; Conv1D weights are [in, out], here [out, in]


class Weights:
    def __init__(self, checkpoint, dtype):
        self.checkpoint, self.dtype = checkpoint, dtype
        self.prefix = "transformer." if "transformer.ln_f.weight" in checkpoint else ""

    def tensor(self, name):
        return self.checkpoint.tensor(self.prefix + name, self.dtype)

    def norm(self, name):
        return self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias")

    def conv1d(self, name):
        return self.tensor(f"{name}.weight").T, self.tensor(f"{name}.bias")

    def embedding(self):
        return self.tensor("wte.weight")

    def head(self, config):
        if "lm_head.weight" in self.checkpoint:  # its own, or a copy of wte
            return self.checkpoint.tensor("lm_head.weight", self.dtype)
        if not config.tie_word_embeddings:
            raise ValueError("tie_word_embeddings is false, but there is no lm_head.weight")
        return self.tensor("wte.weight")


# ---- Functions


def linear(x, weight, bias):
    """x [T, K], weight [N, K], bias [N] -> [T, N]."""
    return x @ weight.T + bias


def layer_norm(x, weight, bias, epsilon):
    """Over the last axis, with the biased variance."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * weight + bias


def sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))  # 1 / (1 + exp(-x)), without overflow, precise in both tails


def gelu(x):
    """0.5 x (1 + erf(x / sqrt 2)), written so that nothing cancels where x is negative."""
    return 0.5 * x * np.vectorize(math.erfc, otypes=[x.dtype])(-x / math.sqrt(2))


def gelu_tanh(x):
    """0.5 x (1 + tanh u), which is x sigmoid(2 u), with u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    return x * sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


def gelu_fast(x):
    return x * sigmoid(2 * 0.7978845608 * x * (1 + 0.044715 * x * x))  # gelu_tanh, with fewer digits


def quick_gelu(x):
    return x * sigmoid(1.702 * x)


def silu(x):
    return x * sigmoid(x)


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_python": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu_python_tanh": gelu_tanh,
    "gelu_accurate": gelu_tanh,
    "gelu_fast": gelu_fast,
    "quick_gelu": quick_gelu,
    "silu": silu,
    "swish": silu,
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
}

# ---- Model


class Model:
    def __init__(self, directory, dtype=np.float64):
        checkpoint = Checkpoint(directory)
        self.config = read_config(checkpoint.config)
        self.weights = Weights(checkpoint, dtype)

    def attention(self, layer, x):
        """x [T, C], already normalised -> [T, C]."""
        config, weights = self.config, self.weights
        T, head_dim = len(x), config.n_embd // config.n_head
        qkv = linear(x, *weights.conv1d(f"h.{layer}.attn.c_attn"))  # [T, 3 C]: q, then k, then v
        q, k, v = qkv.reshape(T, 3, config.n_head, head_dim).swapaxes(0, 1)
        heads = attention(q, k, v, self.attention_scale(layer))
        return linear(heads.reshape(T, -1), *weights.conv1d(f"h.{layer}.attn.c_proj"))

    def attention_scale(self, layer):
        config = self.config
        scale = (config.n_embd // config.n_head) ** -0.5 if config.scale_attn_weights else 1.0
        return scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale

    def mlp(self, layer, x):
        """x [T, C], already normalised -> [T, C]."""
        activation = ACTIVATIONS[self.config.activation_function]
        inner = activation(linear(x, *self.weights.conv1d(f"h.{layer}.mlp.c_fc")))
        return linear(inner, *self.weights.conv1d(f"h.{layer}.mlp.c_proj"))

    def norm(self, name, x):
        return layer_norm(x, *self.weights.norm(name), self.config.layer_norm_epsilon)

    def hidden(self, ids, trace=None):
        """ids [T] -> [T, C], the head's input. A dict `trace` receives `residual` [n_layer + 1, T, C]."""
        ids = np.asarray(ids)
        x = self.weights.embedding()[ids] + self.weights.tensor("wpe.weight")[: len(ids)]
        residual = [x]
        for layer in range(self.config.n_layer):
            x = x + self.attention(layer, self.norm(f"h.{layer}.ln_1", x))
            x = x + self.mlp(layer, self.norm(f"h.{layer}.ln_2", x))
            residual.append(x)
        if trace is not None:
            trace["residual"] = np.stack(residual)
        return self.norm("ln_f", x)

    def logits(self, ids, trace=None):
        """ids [T] -> [T, V]."""
        return self.unembed(self.hidden(ids, trace))

    def unembed(self, x):
        """hidden [T, C] -> logits [T, V]."""
        return x @ self.weights.head(self.config).T
