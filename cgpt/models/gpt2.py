"""GPT-2: learned positions, LayerNorm, multi-head attention, one GELU feed-forward per block.

Radford et al., "Language Models are Unsupervised Multitask Learners" (2019); transformers' modeling_gpt2.py.
Read it beside gpt_oss.py: the sections have the same order.
"""

from collections.abc import Collection

from cgpt.checkpoint.config import GPT2Config
from cgpt.checkpoint.loader import Loader
from cgpt.checkpoint.safetensors import Checkpoint, TensorSpec
from cgpt.kernels import _kernels as k
from cgpt.models.base import BatchSlice, Ids, Precision, Transformer, Workspace, attend
from cgpt.models.partition import OUTPUTS, Ranks, split

# --------------------------------------------------------------------------------------------- checkpoint names

MASK_BUFFERS = (r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",)  # constants that old files carry along


def name_prefix(tensors: Collection[str]) -> str:
    """Checkpoints saved with the language-model head carry `transformer.` before every name but the head's."""
    return "transformer." if any(name.startswith("transformer.") for name in tensors) else ""


def tensor_specs(config: GPT2Config, prefix: str = "") -> dict[str, TensorSpec]:
    """Name -> shape and dtypes of every tensor the model needs. Conv1D weights are [in, out]."""
    C, inner = config.n_embd, config.n_inner
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (config.vocab_size, C), "wpe.weight": (config.n_positions, C)}
    for n in range(config.n_layer):
        for name, shape in {
            "ln_1": (C,),
            "attn.c_attn": (C, 3 * C),
            "attn.c_proj": (C, C),
            "ln_2": (C,),
            "mlp.c_fc": (C, inner),
            "mlp.c_proj": (inner, C),
        }.items():
            shapes |= {f"h.{n}.{name}.weight": shape, f"h.{n}.{name}.bias": shape[-1:]}
    shapes |= {"ln_f.weight": (C,), "ln_f.bias": (C,)}
    specs = {prefix + name: TensorSpec(shape, k.FLOATS) for name, shape in shapes.items()}
    if not config.tie_word_embeddings:
        specs["lm_head.weight"] = TensorSpec((config.vocab_size, C), k.FLOATS)
    return specs


# -------------------------------------------------------------------------------------------------------- block


class Block:
    """x += attention(layernorm(x)); x += feed_forward(layernorm(x))."""

    def __init__(self, config: GPT2Config, layer: int, load: Loader, prefix: str, ranks: Ranks | None) -> None:
        self.config, self.layer = config, layer
        C, H = config.n_embd, config.n_head
        self.heads, self.columns = split(H, ranks), split(C, ranks, OUTPUTS)
        self.inner = split(config.n_inner, ranks, OUTPUTS)
        self.attended = self.heads.times(C // H)
        thirds, columns, inner = [self.attended.rows(i * C) for i in range(3)], self.columns.rows(), self.inner.rows()
        name = f"{prefix}h.{layer}."
        self.ln_1 = load.vector(name + "ln_1.weight"), load.vector(name + "ln_1.bias")
        self.c_attn = load.transposed(name + "attn.c_attn.weight", name + "attn.c_attn.bias", thirds)
        self.c_proj = load.transposed(name + "attn.c_proj.weight", name + "attn.c_proj.bias", [columns])
        self.ln_2 = load.vector(name + "ln_2.weight"), load.vector(name + "ln_2.bias")
        self.c_fc = load.transposed(name + "mlp.c_fc.weight", name + "mlp.c_fc.bias", [inner])
        self.mlp_c_proj = load.transposed(name + "mlp.c_proj.weight", name + "mlp.c_proj.bias", [columns])
        self.scale = (C // H) ** -0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1

    def __call__(self, ws: Workspace, x: k.Tensor, T: int, slices: list[BatchSlice]) -> None:
        ctx, C, H, eps = ws.ctx, x.cols, self.heads.count, self.config.layer_norm_epsilon
        normed = ws.tensor("normed", T, C)
        qkv, attended = ws.tensor("qkv", T, 3 * self.attended.count), ws.tensor("attended", T, C)
        hidden = ws.tensor("hidden", T, self.config.n_inner)

        k.layernorm(ctx, normed, x, *self.ln_1, eps, T)
        k.linear(ctx, qkv, normed, self.c_attn, T)
        attend(ws, attended, qkv, self.layer, slices, H, scale=self.scale, column=self.attended.start)
        ws.gather(attended, T, self.attended)
        k.linear(ctx, x, attended, self.c_proj, T, add=True, column=self.columns.start)
        ws.gather(x, T, self.columns)

        k.layernorm(ctx, normed, x, *self.ln_2, eps, T)
        k.linear(ctx, hidden, normed, self.c_fc, T, column=self.inner.start)
        k.activation(ctx, hidden, self.config.activation, T, column=self.inner.start, columns=self.inner.count)
        ws.gather(hidden, T, self.inner)
        k.linear(ctx, x, hidden, self.mlp_c_proj, T, add=True, column=self.columns.start)
        ws.gather(x, T, self.columns)


# -------------------------------------------------------------------------------------------------------- model


class GPT2(Transformer):
    """A GPT-2 checkpoint, ready to run."""

    config: GPT2Config

    def __init__(
        self,
        config: GPT2Config,
        checkpoint: Checkpoint,
        load: Loader,
        threads: int,
        precision: Precision,
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__(config, threads, precision, ranks)
        prefix = name_prefix(checkpoint.tensors)
        tied_head = (r"lm_head\.weight",) if config.tie_word_embeddings else ()
        checkpoint.check(tensor_specs(config, prefix), ignore=MASK_BUFFERS + tied_head)
        self.width, self.head_dim = config.n_embd, config.n_embd // config.n_head
        self.heads = self.kv_heads = config.n_head
        self.windows = [0] * config.n_layer
        self.wte, self.wpe = load.embedding(prefix + "wte.weight"), load.embedding(prefix + "wpe.weight")
        self.blocks = [Block(config, n, load, prefix, ranks) for n in range(config.n_layer)]
        self.ln_f = load.vector(prefix + "ln_f.weight"), load.vector(prefix + "ln_f.bias")
        rows, tied = self.vocabulary.rows(), config.tie_word_embeddings
        self.head = load.head(self.wte, prefix + "wte.weight", "lm_head.weight", tied, rows)

    @property
    def context_length(self) -> int:
        return self.config.n_positions

    def embed(self, ws: Workspace, x: k.Tensor, ids: Ids, slices: list[BatchSlice]) -> None:
        for part in slices:
            k.embed(x, self.wte, ids[part.row : part.row + part.T], self.wpe, row=part.row, start=part.start)

    def final_norm(self, ws: Workspace, out: k.Tensor, x: k.Tensor, T: int) -> None:
        k.layernorm(ws.ctx, out, x, *self.ln_f, self.config.layer_norm_epsilon, T)
