"""gpt-oss: RoPE with YaRN, RMSNorm, grouped-query attention with sinks over alternating windows, MXFP4 experts.

OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card" (2025); gpt_oss/torch/model.py; transformers' modeling_gpt_oss.py.
Read it beside gpt2.py: the sections have the same order.
"""

import re
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from cgpt.checkpoint.config import SLIDING, GptOssConfig
from cgpt.checkpoint.expert_store import ExpertStore
from cgpt.checkpoint.loader import ALL, Loader
from cgpt.checkpoint.safetensors import Checkpoint, TensorSpec
from cgpt.kernels import _kernels as k
from cgpt.models.base import BatchSlice, Ids, Precision, Transformer, Workspace, attend, cut
from cgpt.models.partition import OUTPUTS, Ranks, split

STREAMED_PART = Transformer.PREFILL_CHUNK  # tokens that are multiplied together: the bits of chunks of so many
Choices = npt.NDArray[np.int32]

# --------------------------------------------------------------------------------------------- checkpoint names

# Three layouts of one model: "mxfp4" and "plain" are transformers', "original" is OpenAI's.
ORIGINAL_NAMES = {
    "embed": "embedding.weight",
    "norm": "norm.scale",
    "head": "unembedding.weight",
    "attn_norm": "block.{}.attn.norm.scale",
    "qkv": "block.{}.attn.qkv",
    "out": "block.{}.attn.out",
    "sinks": "block.{}.attn.sinks",
    "mlp_norm": "block.{}.mlp.norm.scale",
    "router": "block.{}.mlp.gate",
    "gate_up": "block.{}.mlp.mlp1_weight",
    "gate_up_bias": "block.{}.mlp.mlp1_bias",
    "down": "block.{}.mlp.mlp2_weight",
    "down_bias": "block.{}.mlp.mlp2_bias",
}
HF_NAMES = {
    "embed": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
    "attn_norm": "model.layers.{}.input_layernorm.weight",
    "q": "model.layers.{}.self_attn.q_proj",
    "k": "model.layers.{}.self_attn.k_proj",
    "v": "model.layers.{}.self_attn.v_proj",
    "out": "model.layers.{}.self_attn.o_proj",
    "sinks": "model.layers.{}.self_attn.sinks",
    "mlp_norm": "model.layers.{}.post_attention_layernorm.weight",
    "router": "model.layers.{}.mlp.router",
    "gate_up": "model.layers.{}.mlp.experts.gate_up_proj",
    "gate_up_bias": "model.layers.{}.mlp.experts.gate_up_proj_bias",
    "down": "model.layers.{}.mlp.experts.down_proj",
    "down_bias": "model.layers.{}.mlp.experts.down_proj_bias",
}


def layout_of(tensors: Collection[str]) -> str:
    """Which layout these tensor names follow."""
    if "embedding.weight" in tensors:
        return "original"
    return "mxfp4" if any(name.endswith("_proj_blocks") for name in tensors) else "plain"


def tensor_specs(config: GptOssConfig, layout: str) -> dict[str, TensorSpec]:
    """Name -> shape and dtypes of every tensor the model needs. Plain experts are [E, in, out], MXFP4 ones
    [E, out, in/32, 16]; gate and up rows alternate in all layouts."""
    names = ORIGINAL_NAMES if layout == "original" else HF_NAMES
    C, I, E, D = config.hidden_size, config.intermediate_size, config.num_experts, config.head_dim
    H, q, kv = config.num_attention_heads, config.num_attention_heads * D, config.num_key_value_heads * D
    specs = {names["embed"]: TensorSpec((config.vocab_size, C), k.FLOATS), names["norm"]: TensorSpec((C,), k.FLOATS)}
    if not config.tie_word_embeddings:
        specs[names["head"]] = TensorSpec((config.vocab_size, C), k.FLOATS)
    projections = {"qkv": (q + 2 * kv, C)} if layout == "original" else {"q": (q, C), "k": (kv, C), "v": (kv, C)}
    projections["out"] = (C, q)
    layer: dict[str, tuple[int, ...]] = {names["attn_norm"]: (C,), names["mlp_norm"]: (C,), names["sinks"]: (H,)}
    for part, shape in projections.items():
        layer[names[part] + ".weight"] = shape
        if config.attention_bias:
            layer[names[part] + ".bias"] = shape[:1]
    layer |= {names["router"] + ".weight": (E, C), names["router"] + ".bias": (E,)}
    for part, N, K in (("gate_up", 2 * I, C), ("down", C, I)):
        layer[names[part + "_bias"]] = (E, N)
        if layout == "plain":
            layer[names[part]] = (E, K, N)
        else:
            blocks, scales = mxfp4_names(names[part])
            layer |= {blocks: (E, N, K // 32, 16), scales: (E, N, K // 32)}
    for n in range(config.num_hidden_layers):
        for name, dims in layer.items():
            specs[name.format(n)] = TensorSpec(dims, ("U8",) if name.endswith(("blocks", "scales")) else k.FLOATS)
    return specs


def mxfp4_names(experts: str) -> tuple[str, str]:
    """The names of the blocks and scales of experts in MXFP4."""
    mark = "_" if experts.endswith("_proj") else "."
    return f"{experts}{mark}blocks", f"{experts}{mark}scales"


# -------------------------------------------------------------------------------------------------------- block


class Block:
    """x += attention(rmsnorm(x)); x += experts(rmsnorm(x)), the experts chosen token by token."""

    def __init__(
        self, config: GptOssConfig, layer: int, load: Loader, layout: str, rope: "RopeTables", ranks: Ranks | None
    ) -> None:
        self.config, self.layer, self.rope = config, layer, rope
        C, D, H, G = config.hidden_size, config.head_dim, config.num_attention_heads, config.num_key_value_heads
        self.kv_heads, self.columns = split(G, ranks), split(C, ranks, OUTPUTS)
        self.inner = split(config.intermediate_size, ranks, OUTPUTS)
        self.heads = self.kv_heads.times(H // G)
        self.attended, kept = self.heads.times(D), self.kv_heads.times(D)
        columns, pairs = self.columns.rows(), self.inner.times(2).rows()
        names = ORIGINAL_NAMES if layout == "original" else HF_NAMES

        def name(part: str) -> str:
            return names[part].format(layer)

        def projection(part: str, rows: slice = ALL) -> k.Matrix:
            return load.matrix(name(part) + ".weight", name(part) + ".bias" if config.attention_bias else None, rows)

        self.attn_norm = load.vector(name("attn_norm"))
        if layout != "original":
            parts = [("q", self.attended.rows()), ("k", kept.rows()), ("v", kept.rows())]
        elif ranks is None:
            parts = [("qkv", ALL)]
        else:
            parts = [("qkv", rows) for rows in (self.attended.rows(), kept.rows(H * D), kept.rows((H + G) * D))]
        self.qkv = [projection(*part) for part in parts]
        self.sinks = load.vector(name("sinks"), self.heads.rows())
        self.out = projection("out", columns)
        self.mlp_norm = load.vector(name("mlp_norm"))
        self.router = load.table(name("router") + ".weight", name("router") + ".bias")
        experts = [(name(part), name(part + "_bias")) for part in ("gate_up", "down")]
        if layout == "plain":
            wanted = zip(experts, (pairs, columns), strict=True)
            self.gate_up, self.down = (load.transposed(*part, [rows]) for part, rows in wanted)
        else:
            stored = [(*mxfp4_names(part), bias) for part, bias in experts]
            self.gate_up, self.down = load.mxfp4(stored, (pairs, columns))
        self.store = load.store
        self.window = config.sliding_window if config.layer_types[layer] == SLIDING else 0
        self.scale = config.head_dim**-0.5

    def __call__(self, ws: Workspace, x: k.Tensor, T: int, slices: list[BatchSlice]) -> None:
        c, part = self.config, T if self.store is None else STREAMED_PART
        normed, weight = ws.tensor("expert input", T, x.cols), ws.tensor("weight", T, c.experts_per_token)
        index = np.empty((T, c.experts_per_token), np.int32)
        for row in range(0, T, part):
            rows = slice(row, min(row + part, T))
            self.attention(ws, x.part(rows), rows.stop - row, cut(slices, rows))
            self.route(ws, normed.part(rows), index[rows], weight.part(rows), x.part(rows), rows.stop - row)
        arrivals = None if self.store is None else self.stream(self.store, index, hold=ws.ranks is not None)
        self.experts(ws, x, normed, index, weight, T, part=part, arrivals=arrivals)
        ws.gather(x, T, self.columns)

    def attention(self, ws: Workspace, x: k.Tensor, T: int, slices: list[BatchSlice]) -> None:
        """x += attention(rmsnorm(x))."""
        ctx, c = ws.ctx, self.config
        H, G, D = self.heads.count, self.kv_heads.count, c.head_dim
        normed = ws.tensor("normed", T, x.cols)
        qkv, attended = ws.tensor("qkv", T, (H + 2 * G) * D), ws.tensor("attended", T, c.num_attention_heads * D)
        k.rmsnorm(ctx, normed, x, self.attn_norm, c.rms_norm_eps, T)
        column = 0
        for projection in self.qkv:
            k.linear(ctx, qkv, normed, projection, T, column=column)
            column += projection.shape[0]
        for part in slices:
            k.rope(ctx, qkv, *self.rope(part.start + part.T), part.row, part.start, H + G, D, part.T)
        how: dict[str, Any] = {"scale": self.scale, "window": self.window, "sinks": self.sinks}
        attend(ws, attended, qkv, self.layer, slices, H, column=self.attended.start, **how)
        ws.gather(attended, T, self.attended)
        k.linear(ctx, x, attended, self.out, T, add=True, column=self.columns.start)
        ws.gather(x, T, self.columns)

    def route(self, ws: Workspace, normed: k.Tensor, index: Choices, weight: k.Tensor, x: k.Tensor, T: int) -> None:
        """The experts' input [T, C], and which of them each token takes, with what weight [T, top_k]."""
        logits = ws.tensor("router", T, self.config.num_experts)
        k.rmsnorm(ws.ctx, normed, x, self.mlp_norm, self.config.rms_norm_eps, T)
        k.linear(ws.exact, logits, normed, self.router, T)
        k.topk(ws.ctx, index, weight, logits, T)

    def experts(
        self, ws: Workspace, x: k.Tensor, normed: k.Tensor, index: Choices, weight: k.Tensor, T: int, **how: Any
    ) -> None:
        """x += experts(normed), in this rank's columns; `how` as in _kernels.moe."""
        if ws.ranks is not None:
            act, slots = ws.tensor("act", index.size, self.config.intermediate_size), index.size
            how |= {"act": act, "act_column": self.inner.start, "column": self.columns.start}
            how["gather"] = lambda: ws.gather(act, slots, self.inner)
        alpha, limit = self.config.swiglu_alpha, self.config.swiglu_limit
        k.moe(ws.ctx, x, normed, index, weight, self.gate_up, self.down, alpha, limit, T, **how)

    def stream(self, store: ExpertStore, index: Choices, hold: bool) -> Iterator[Choices]:
        """The chosen experts, as they come from the disk. Where this layer takes nearly all, the next one will, too."""
        chosen, E = np.unique(index), self.config.num_experts
        last = self.layer == self.config.num_hidden_layers - 1
        following = range(E) if len(chosen) > 0.9 * E and not last else ()
        return store.stream(self.layer, chosen, following, hold)


# -------------------------------------------------------------------------------------------------------- model


class RopeTables:
    """cos and sin [positions, D/2] with YaRN's frequencies and concentration; grown by doubling, as they are asked
    for. The angles are products of float32 numbers, as in both references."""

    def __init__(self, config: GptOssConfig) -> None:
        self.inv_freq = config.rope.inv_freq(config.head_dim)
        self.concentration = config.rope.concentration
        self.limit = config.max_position_embeddings
        self.tables = self.angles(min(self.limit, 4096))

    def angles(self, positions: int) -> tuple[k.Tensor, k.Tensor]:
        """The tables, made anew, of positions 0 .. positions - 1."""
        angles = np.arange(positions, dtype=np.float32)[:, None] * self.inv_freq
        angles = angles.astype(np.float64)
        cos, sin = ((f(angles) * self.concentration).astype(np.float32) for f in (np.cos, np.sin))
        return k.Tensor(cos), k.Tensor(sin)

    def __call__(self, positions: int) -> tuple[k.Tensor, k.Tensor]:
        """Tables of at least this many positions."""
        if positions > self.tables[0].rows:
            self.tables = self.angles(min(self.limit, max(positions, 2 * self.tables[0].rows)))
        return self.tables


class GptOss(Transformer):
    """A gpt-oss checkpoint, ready to run."""

    config: GptOssConfig

    def __init__(
        self,
        config: GptOssConfig,
        checkpoint: Checkpoint,
        load: Loader,
        threads: int,
        precision: Precision,
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__(config, threads, precision, ranks)
        layout = layout_of(checkpoint.tensors)
        names = ORIGINAL_NAMES if layout == "original" else HF_NAMES
        tied_head = (re.escape(names["head"]),) if config.tie_word_embeddings else ()
        checkpoint.check(tensor_specs(config, layout), ignore=tied_head)
        self.width, self.head_dim = config.hidden_size, config.head_dim
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.windows = [(config.sliding_window or 0) if kind == SLIDING else 0 for kind in config.layer_types]
        rope = RopeTables(config)
        self.embedding = load.embedding(names["embed"])
        self.blocks = [Block(config, n, load, layout, rope, ranks) for n in range(config.num_hidden_layers)]
        self.norm = load.vector(names["norm"])
        rows, tied = self.vocabulary.rows(), config.tie_word_embeddings
        self.head = load.head(self.embedding, names["embed"], names["head"], tied, rows)

    @property
    def context_length(self) -> int:
        return self.config.max_position_embeddings

    def embed(self, ws: Workspace, x: k.Tensor, ids: Ids, slices: list[BatchSlice]) -> None:
        k.embed(x, self.embedding, ids)

    def final_norm(self, ws: Workspace, out: k.Tensor, x: k.Tensor, T: int) -> None:
        k.rmsnorm(ws.ctx, out, x, self.norm, self.config.rms_norm_eps, T)
