"""Steps of the feed-forward: its activation, the mixture of experts, and how its weights are kept."""

from collections.abc import Iterator
from functools import partial

import numpy as np

from cgpt.bench.operands import copies, matrix, tensor
from cgpt.checkpoint.config import GptOssConfig
from cgpt.evolution.measure import Case, Way, way
from cgpt.evolution.setting import FEW, MANY, SWIGLU, TOP_K, Setting
from cgpt.evolution.step import Fact, rounded, tokens
from cgpt.kernels import _kernels as k
from cgpt.models.accounting import expert_bytes, look_up
from cgpt.models.description import describe

SATURATED = 30.0  # activations leave it as it is, so that they can run in place again and again
BATCH = 8

# ---------------------------------------------------------------------------------------------- 3 GELU to SwiGLU


def activations(s: Setting) -> Iterator[Case]:
    """The non-linearities by themselves, and whole feed-forwards of as many parameters."""
    gelu, silu = activation_way(s, "GELU (tanh)", "gelu_tanh", 4), activation_way(s, "Swish", "silu", 4)
    yield Case(f"4 x {4 * s.width:,} values, in the caches", gelu, silu, "faster")
    for T in dict.fromkeys((1, s.prompt)):
        yield Case(f"feed-forward, {tokens(T)}", gelu_mlp(s, T), swiglu_mlp(s, T), "free", 0.05)
    part = activation_way(s, "GELU", "gelu_tanh", s.prompt)
    yield Case(f"GELU's share, {tokens(s.prompt)}", part, gelu_mlp(s, s.prompt), "portion")


def activation_way(s: Setting, name: str, which: str, T: int) -> Way:
    """A non-linearity on [T, 4C] in the caches."""
    x = k.Tensor(np.full((T, 4 * s.width), SATURATED, np.float32))
    return way(name, [[partial(k.activation, s.ctx, x, which, T)]], 2 * x.array.nbytes, cached=True)


def gelu_mlp(s: Setting, T: int) -> Way:
    """[4C, C], GELU, [C, 4C] in bf16."""
    C, I = s.width, 4 * s.width
    x, hidden, out = tensor(T, C), tensor(T, I), tensor(T, C)
    pairs = copies(lambda: (matrix("BF16", I, C), matrix("BF16", C, I)), 4 * I * C)
    turns = [
        [
            partial(k.linear, s.ctx, hidden, x, fc, T),
            partial(k.activation, s.ctx, hidden, "gelu_tanh", T),
            partial(k.linear, s.ctx, out, hidden, proj, T, add=True),
        ]
        for fc, proj in pairs
    ]
    return way("GELU, 2 of 4C", turns, parameters=2 * I * C)


def swiglu_mlp(s: Setting, T: int) -> Way:
    """[2I, C], SwiGLU, [C, I] in bf16, I = 8/3 C in whole 16s: what the kernels run as one expert."""
    C, I = s.width, swiglu_width(s.width)
    x, out, index, one = tensor(T, C), tensor(T, C), np.zeros((T, 1), np.int32), k.Tensor(np.ones((T, 1), np.float32))
    pairs = copies(lambda: (matrix("BF16", 1, 2 * I, C), matrix("BF16", 1, C, I)), 6 * I * C)
    turns = [[partial(k.moe, s.ctx, out, x, index, one, *pair, *SWIGLU, T)] for pair in pairs]
    return way("SwiGLU, 3 of 8/3 C", turns, parameters=3 * I * C)


def swiglu_width(width: int) -> int:
    return round(8 * width / 3 / 16) * 16


def activation_facts(s: Setting) -> list[Fact]:
    alpha, limit = SWIGLU
    return [
        Fact("parameters of the feed-forward", "parameters", 3 * swiglu_width(s.width) * s.width, 8 * s.width**2,
             claimed=(0.95 * 8 * s.width**2, 1.05 * 8 * s.width**2)),
        Fact("largest value of SwiGLU for inputs up to 50 (without clamp, with)", "",
             largest_swiglu(limit), largest_swiglu(float("inf")), claimed=(0, limit * (limit + 1))),
    ]  # fmt: skip


def largest_swiglu(limit: float) -> float:
    """|swiglu| at most over gates and ups from -50 to 50, by the kernel: one expert whose matrices are identities."""
    values = np.linspace(-50, 50, 101, dtype=np.float32)
    x = np.stack(np.meshgrid(values, values), 2).reshape(len(values), -1)
    T, I = len(x), x.shape[1] // 2
    gate_up, down = (k.Matrix("F32", np.eye(n, dtype=np.float32)[None]) for n in (2 * I, I))
    out, one = k.Tensor(np.zeros((T, I), np.float32)), k.Tensor(np.ones((T, 1), np.float32))
    k.moe(k.Context(1, "exact"), out, k.Tensor(x), np.zeros((T, 1), np.int32), one, gate_up, down, SWIGLU[0], limit, T)
    return float(np.abs(out.array).max())


# --------------------------------------------------------------------------------------- 4 the mixture of experts


def experts(s: Setting) -> Iterator[Case]:
    """All in MXFP4, the router among what is timed; a dense layer has the very weights of the experts, in slices."""
    for T in dict.fromkeys((1, BATCH, max(1, s.prompt // 4))):
        dense = s.dense(f"dense, as {FEW} experts", FEW, T, all_slices=True)
        yield Case(f"equal total, {_batch(T)}", dense, moe(s, FEW, T), "faster")
    for T in dict.fromkeys((1, BATCH, s.prompt)):
        dense = s.dense(f"dense, as {TOP_K} experts", FEW, T, all_slices=False)
        yield Case(f"equal active, {_batch(T)}", dense, moe(s, FEW, T), "free", 0.10)
    if s.fits(MANY):
        for T in (1, BATCH):
            yield Case(f"{MANY} experts for {FEW}, {_batch(T)}", moe(s, FEW, T), moe(s, MANY, T), "free", 0.10)


def moe(s: Setting, number: int, T: int) -> Way:
    return way(f"{TOP_K} of {number} experts", s.routed(number, T), parameters=number * 3 * s.width**2)


def expert_facts(s: Setting) -> list[Fact]:
    facts = []
    for name, mlp, total, active in (("gpt-oss-20b", 19.12, 20.91, 3.61), ("gpt-oss-120b", 114.71, 116.83, 5.13)):
        found = describe(name)["parameters"]
        part = found["parts"]["mlp"] / found["total"]
        facts += [
            Fact(f"{name}: parameters", "parameters", found["total"], claimed=rounded(total, 2, 1e9)),
            Fact(f"{name}: in experts and routers", "parameters", found["parts"]["mlp"], claimed=rounded(mlp, 2, 1e9)),
            Fact(f"{name}: their share (more than 90 %)", "share", part, claimed=(0.9, 1)),
            Fact(f"{name}: active in a token", "parameters", found["active"], claimed=rounded(active, 2, 1e9)),
        ]
        model = look_up(name)
        if isinstance(model.config, GptOssConfig):
            stored, taken = expert_bytes(model.config, model.tensors)
            facts.append(
                Fact(f"{name}: experts of a token (all, those it takes)", "GiB", taken / 2**30, stored / 2**30)
            )
    return facts


# -------------------------------------------------------------------------------------------- 10 how weights are kept


def mxfp4(s: Setting) -> Iterator[Case]:
    """One expert's gate and up, kept in each way."""
    N, C = 2 * s.width, s.width
    for T in dict.fromkeys((1, BATCH, s.prompt)):
        for name, dtype in (("f32", "F32"), ("bf16", "BF16")):
            old, new = s.linear(name, dtype, N, C, T), s.linear("MXFP4", "MXFP4", N, C, T)
            yield Case(f"{_batch(T)} against {name}", old, new, "faster" if T == 1 else "free", 0.10)


def mxfp4_facts(s: Setting) -> list[Fact]:
    blocks, scales = s.experts(1)[0].arrays
    bits = 8 * (blocks.nbytes + scales.nbytes) / (blocks.size * 2)
    facts = [Fact("bits of a weight (bf16, MXFP4)", "", bits, 16.0, claimed=(4.25, 4.25))]
    for name, published in (("gpt-oss-20b", 12.8), ("gpt-oss-120b", 60.8)):
        found = describe(name)
        old, new = 2 * found["parameters"]["total"] / 2**30, found["bytes"]["disk"] / 2**30
        facts.append(Fact(f"checkpoint of {name} (bf16, MXFP4)", "GiB", new, old, claimed=rounded(published, 1)))
    return facts


def _batch(T: int) -> str:
    return f"batch of {T}" if T == BATCH else tokens(T)
