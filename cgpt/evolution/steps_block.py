"""Steps of what surrounds attention and feed-forward: dropout, positions, norms, biases and the head."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from cgpt.bench.operands import copies, matrix, tensor
from cgpt.checkpoint.config import GPT2Config
from cgpt.checkpoint.sizes import GPT2_SIZES
from cgpt.evolution.measure import Case, Way, way
from cgpt.evolution.setting import EPS, GPT_OSS, D, Setting
from cgpt.evolution.step import Fact, tokens
from cgpt.evolution.steps_mlp import gelu_mlp
from cgpt.kernels import _kernels as k
from cgpt.models.description import describe
from cgpt.models.gpt_oss import RopeTables

GPT2_XL = GPT2_SIZES["gpt2-xl"]
KEEP = 0.9  # GPT-2's dropout leaves nine of ten
Rows = list[tuple[k.Tensor, k.Tensor]]  # (out, x)
ROWS = 16  # of activations, which the caches hold

# ------------------------------------------------------------------------------------------------------- 1 dropout


def dropout(s: Setting) -> Iterator[Case]:
    """The residual of one branch, as training adds it: with a fresh mask, and without. There is no kernel for what
    inference never does: NumPy."""
    T, C = s.prompt, s.width
    x, y, noise = (np.ones((T, C), np.float32) for _ in range(3))
    mask, out, rng = np.empty((T, C), bool), np.empty((T, C), np.float32), np.random.default_rng(0)

    def with_masks() -> None:
        rng.random(out=noise, dtype=np.float32)
        np.less(noise, np.float32(KEEP), out=mask)
        np.multiply(y, mask, out=out)
        np.multiply(out, np.float32(1 / KEEP), out=out)
        np.add(x, out, out=out)

    moved = 3 * x.nbytes  # x and y read, the sum written
    drawn = 2 * noise.nbytes + 2 * mask.nbytes + 4 * out.nbytes  # written and read again
    masked = Way("with dropout", [with_masks], moved + drawn, 5 * T * C)
    plain = Way("without", [lambda: np.add(x, y, out=out)], moved, T * C)
    yield Case(f"training, residual of {T} tokens", masked, plain, "faster")
    yield Case("dropout's share of a feed-forward", replace(masked, name="dropout"), gelu_mlp(s, T), "portion")


def dropout_facts(s: Setting) -> list[Fact]:
    return [Fact("masks of one sequence of 1,024 in training GPT-2 XL", "B", 0, dropout_masks(1024, GPT2_XL))]


def dropout_masks(T: int, c: GPT2Config) -> int:
    """The values that dropout draws for a sequence of T tokens in a GPT-2: after the embedding, after both branches of
    each block, and on the attention's weights."""
    return T * c.n_embd + c.n_layer * (2 * T * c.n_embd + c.n_head * T * T)


# ----------------------------------------------------------------------------------------------------- 2 positions


def positions(s: Setting) -> Iterator[Case]:
    """What each way adds to a step of as many layers as gpt-oss-20b has, and what share RoPE is of a block."""
    layers, C, rotated = GPT_OSS.num_hidden_layers, s.width, s.heads + s.kv_heads
    table, wpe = matrix("BF16", 8192, C), matrix("BF16", GPT2_XL.n_positions, C)
    for T in dict.fromkeys((1, s.prompt)):
        x, qkv, cos_sin = tensor(T, C), tensor(T, s.qkv_width), s.rope_tables(T)
        ids = np.random.default_rng(0).integers(0, 8192, T)
        rope, embed = partial(k.rope, s.ctx, qkv, *cos_sin, 0, 0, rotated, D, T), partial(k.embed, x, table, ids)
        if T <= GPT2_XL.n_positions:
            old = way("wpe added once", [[partial(embed, wpe)]], 0, T * C, cached=True)
            new = way("q, k rotated", [[embed] + [rope] * layers], 0, layers * rope_flops(T, rotated), cached=True)
            yield Case(f"{tokens(T)}, all {layers} layers", old, new, "none")
        part = way("RoPE", [[rope]], 8 * T * rotated * D, rope_flops(T, rotated), cached=True)
        yield Case(f"share of a block, {tokens(T)}", part, s.block(T), "share", 0.02)


def rope_flops(T: int, heads: int) -> int:
    """Four products and two sums for each pair."""
    return 6 * T * heads * D // 2


def positions_facts(s: Setting) -> list[Fact]:
    limit, C = GPT_OSS.max_position_embeddings, GPT_OSS.hidden_size
    change = "largest change of q k, 100 tokens apart, by where both stand (of |q||k|)"
    return [
        Fact("positions that there are", "", limit, GPT2_XL.n_positions),
        Fact(f"parameters of positions, were there {limit:,} at width {C:,}", "parameters", 0, limit * C),
        Fact(change, "", relative_change(100), claimed=(0, 0.01)),
    ]


def relative_change(distance: int) -> float:
    """How much the score of a query and a key `distance` positions before it depends on where both stand: the largest
    difference from its value at the first position, over positions up to the last of gpt-oss, in units of |q||k|.
    By the kernel, with YaRN's frequencies. 0 would be RoPE without rounding."""
    last = GPT_OSS.max_position_embeddings - 1
    cos, sin = RopeTables(GPT_OSS)(last + 1)
    q, key = np.random.default_rng(0).standard_normal((2, D), np.float32)
    ctx, scores = k.Context(1, "exact"), []
    for at in np.linspace(0, last - distance, 200).astype(int):
        pair = np.stack([key, q])
        for row, position in ((0, at), (1, at + distance)):
            k.rope(ctx, k.Tensor(pair), cos, sin, row, int(position), 1, D, 1)
        scores.append(float(pair[1].astype(np.float64) @ pair[0]))
    size = float(np.linalg.norm(q) * np.linalg.norm(key)) * GPT_OSS.rope.concentration**2
    return max(abs(score - scores[0]) for score in scores) / size


# --------------------------------------------------------------------------------------------------------- 7 norms


def norms(s: Setting) -> Iterator[Case]:
    C = s.width
    weight, bias = tensor(1, C), tensor(1, C)
    for T, phase in ((1, "one token"), (ROWS, f"{ROWS} rows from the caches")):
        x, out = tensor(T, C), tensor(T, C)
        yield norm_case(s, phase, [(out, x)], weight, bias, T, cached=True)
    T = s.prompt
    rows = copies(lambda: (tensor(T, C), tensor(T, C)), 8 * T * C)
    yield norm_case(s, f"{T} rows from memory", rows, weight, bias, T, cached=False)
    for T in dict.fromkeys((1, s.prompt)):
        x, out = tensor(T, C), tensor(T, C)
        norm = partial(k.rmsnorm, s.ctx, out, x, weight, EPS, T)
        part = way("two RMSNorms", [[norm, norm]], 2 * 8 * T * C, 2 * 4 * T * C, cached=True)
        yield Case(f"share of a block, {tokens(T)}", part, s.block(T), "share", 0.02)


def norm_case(s: Setting, phase: str, rows: Rows, weight: k.Tensor, bias: k.Tensor, T: int, cached: bool) -> Case:
    """Rows are read and written once. LayerNorm: a sum (1 operation a value), a sum of squared differences (3), and to
    subtract, scale, weight and shift (4); RMSNorm: a sum of squares (2), scale and weight (2)."""
    moved, C = 8 * T * weight.cols, weight.cols
    layer = [[partial(k.layernorm, s.ctx, out, x, weight, bias, EPS, T)] for out, x in rows]
    rms = [[partial(k.rmsnorm, s.ctx, out, x, weight, EPS, T)] for out, x in rows]
    old = way("LayerNorm", layer, moved, 8 * T * C, parameters=2 * C, cached=cached)
    return Case(phase, old, way("RMSNorm", rms, moved, 4 * T * C, parameters=C, cached=cached), "faster")


def norms_facts(s: Setting) -> list[Fact]:
    models = (describe(name)["parameters"] for name in ("gpt-oss-20b", "gpt2-xl"))
    shares = (found["parts"]["norms"] / found["total"] for found in models)
    return [
        Fact("reductions over a row", "", 1, 2, claimed=(1, 1)),
        Fact("parameters of a norm (each at this width)", "parameters", s.width, 2 * s.width),
        Fact("share of the parameters in norms (GPT-2 XL, gpt-oss-20b)", "share", *shares),
    ]


# --------------------------------------------------------------------------------------- 9 pre-norm, biases, head


def biases(s: Setting) -> Iterator[Case]:
    for T in dict.fromkeys((1, s.prompt)):
        without = s.linear("without", "BF16", s.qkv_width, s.width, T)
        biased = s.linear("with biases", "BF16", s.qkv_width, s.width, T, bias=True)
        yield Case(f"qkv product, {tokens(T)}", without, biased, "free", 0.03)


def biases_facts(s: Setting) -> list[Fact]:
    parts, c = describe("gpt-oss-20b")["parameters"], GPT_OSS
    rows = (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim + c.hidden_size
    rows += c.num_experts * (2 * c.intermediate_size + c.hidden_size) + c.num_experts
    head = parts["parts"]["unembedding"]
    xl, own = describe("gpt2-xl")["parameters"]["total"], GPT2_XL.vocab_size * GPT2_XL.n_embd
    return [
        Fact("share of gpt-oss-20b's parameters in biases", "share", c.num_hidden_layers * rows / parts["total"]),
        Fact("bytes of a head of its own, gpt-oss-20b (tied, untied)", "B", 2 * head, 0),
        Fact("share of all parameters in it, gpt-oss-20b", "share", head / parts["total"]),
        Fact("the same in GPT-2 XL, were it untied", "share", own / (xl + own)),
        Fact("bytes of the head that a token reads (tied, untied), gpt-oss-20b", "B", 2 * head, 2 * head),
    ]
