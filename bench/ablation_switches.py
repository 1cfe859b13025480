"""The parts that ablation.py disturbs: for each demo model {what is done: how}.

how(model, patch) alters a freshly loaded model; patch(object, name, value) sets an attribute of something else, which
is put back after the measurement.
"""

from dataclasses import replace
from functools import partial

import numpy as np

from cgpt.checkpoint.rope import RopeConfig
from cgpt.kernels import _kernels as k
from cgpt.models import gpt2
from cgpt.models.gpt_oss import RopeTables

# ------------------------------------------------------------------------------------------------------- weights

MXFP4_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
POWERS_OF_TWO = np.array([0, 0.5, 1, 2, 4], np.float32)  # those without the bit of mantissa


def values(matrix: k.Matrix) -> np.ndarray:
    """The float32 weights of F32, BF16 or MXFP4."""
    if matrix.dtype == "MXFP4":
        return k.mxfp4_dequantize(*matrix.arrays[:2])
    data = matrix.arrays[0]
    return (data.astype(np.uint32) << 16).view(np.float32) if matrix.dtype == "BF16" else data.astype(np.float32)


def bias_of(matrix: k.Matrix) -> np.ndarray | None:
    """float32 [.., N]."""
    return matrix.arrays[-1] if len(matrix.arrays) > 1 + (matrix.dtype == "MXFP4") else None


def to_mxfp4(w: np.ndarray, allowed: np.ndarray = MXFP4_VALUES) -> np.ndarray:
    """The nearest values of MXFP4, groups of 32 along the last axis; scales are chosen as in demo_training/mxfp4.py:
    the largest of a group comes to lie in (3.5, 7]."""
    groups = w.reshape(*w.shape[:-1], -1, 32)
    top = np.abs(groups).max(-1, keepdims=True)
    scale = np.exp2(np.ceil(np.log2(np.maximum(top, 1e-30) / 7)))
    nearest = np.searchsorted((allowed[1:] + allowed[:-1]) / 2, np.abs(groups) / scale)
    return (np.copysign(allowed[nearest], groups) * scale).reshape(w.shape).astype(np.float32)


def to_int8(w: np.ndarray) -> np.ndarray:
    """What dense="int8" makes of it: groups of 64 along the last axis."""
    q, scales = k.quantize_int8(np.ascontiguousarray(w.reshape(-1, w.shape[-1])), "F32", 1)
    scales = (scales.astype(np.uint32) << 16).view(np.float32)
    whole = q.reshape(len(q), -1, k.INT8_GROUP) * scales[:, :, None]
    return whole.reshape(len(q), -1)[:, : w.shape[-1]].reshape(w.shape).astype(np.float32)


def rounded(parts: tuple[str, ...], rounding):
    """The matrices that a block calls so, rounded afterwards, kept as f32."""

    def again(matrix: k.Matrix) -> k.Matrix:
        return k.Matrix("F32", np.ascontiguousarray(rounding(values(matrix))), bias=bias_of(matrix))

    def change(model, patch) -> None:
        for block in model.blocks:
            for part in parts:
                old = getattr(block, part)
                setattr(block, part, [again(m) for m in old] if isinstance(old, list) else again(old))

    return change


def without_biases(*parts: str):
    def change(model, patch) -> None:
        for block in model.blocks:
            for part in parts:
                old = getattr(block, part)
                for matrix in old if isinstance(old, list) else [old]:
                    bias_of(matrix)[:] = 0

    return change


# ------------------------------------------------------------------------------------------ both: settings, caches


def setting(**changes):
    """Other values of the config's fields."""

    def change(model, patch) -> None:
        model.config = replace(model.config, **changes)
        for block in model.blocks:
            block.config = model.config

    return change


def cache(dtype: str):
    def change(model, patch) -> None:
        model.kv_cache_dtype = dtype

    return change


# ------------------------------------------------------------------------------------------------------- gpt-oss


def windows(sliding: int, full: int = 0):
    """What the layers that slide, and those that do not, see; 0 is all."""

    def change(model, patch) -> None:
        model.windows = [sliding if window else full for window in model.windows]
        for block, window in zip(model.blocks, model.windows, strict=True):
            block.window = window

    return change


def no_sinks(model, patch) -> None:
    for block in model.blocks:
        block.sinks = None


def rope(frequencies: str = "yarn", temperature: bool = True):
    """frequencies: "yarn" as it is, "plain" RoPE's, "linear" interpolation by YaRN's factor, or "none": all zero.
    temperature: whether cos and sin keep YaRN's factor."""

    def change(model, patch) -> None:
        config, D = model.config.rope, model.head_dim
        tables = RopeTables(model.config)
        tables.inv_freq = {
            "yarn": tables.inv_freq,
            "plain": RopeConfig(theta=config.theta).inv_freq(D),
            "linear": RopeConfig("linear", config.theta, config.factor).inv_freq(D),
            "none": np.zeros(D // 2, np.float32),
        }[frequencies]
        if not temperature:
            tables.concentration = 1.0
        tables.tables = tables.angles(tables.tables[0].rows)
        for block in model.blocks:
            block.rope = tables

    return change


def later(by: int):
    """Every token at a position `by` higher."""

    def change(model, patch) -> None:
        tables = RopeTables(model.config)
        tables.tables = tuple(k.Tensor(table.array[by:].copy()) for table in tables.angles(tables.tables[0].rows + by))
        for block in model.blocks:
            block.rope = tables

    return change


# --------------------------------------------------------------------------------------------------------- GPT-2


def attending(layers: tuple[int, ...], *, window: int = 0, sink: float | None = None):
    """Attention of these layers with a window, or with a sink of that logit in every head."""

    def change(model, patch) -> None:
        original, sinks = gpt2.attend, None if sink is None else k.Tensor(np.full(model.heads, sink, np.float32))

        def attend(ws, out, qkv, layer, spans, H, **how) -> None:
            if layer in layers:
                how |= dict(window=window, sinks=sinks)
            original(ws, out, qkv, layer, spans, H, **how)

        patch(gpt2, "attend", attend)

    return change


def positions(order):
    """order(vectors [n, C]) gives the vectors of the positions."""

    def change(model, patch) -> None:
        model.wpe = k.Matrix("F32", np.ascontiguousarray(order(values(model.wpe)), np.float32))

    return change


def shuffled(vectors: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).permutation(vectors)


def mean_kept(model, patch) -> None:
    """RMSNorm with LayerNorm's weights and biases: the mean is not taken away."""

    def norm(ctx, out, x, weight, bias, eps, T) -> None:
        k.rmsnorm(ctx, out, x, weight, eps, T)
        out.array[:T] += bias.array

    patch(k, "layernorm", norm)


EVEN, ODD = (0, 2), (1, 3)
ATTENTION, FEED_FORWARD = ("c_attn", "c_proj"), ("c_fc", "mlp_c_proj")
EXPERTS = "gate_up", "down"

SWITCHES = {
    "demo-gpt2": {
        "window 128 in layers 0 and 2": attending(EVEN, window=128),
        "window 128 in layers 1 and 3": attending(ODD, window=128),
        "window 128 in all layers": attending(EVEN + ODD, window=128),
        "window 32 in layers 0 and 2": attending(EVEN, window=32),
        "window 32 in all layers": attending(EVEN + ODD, window=32),
        "window 8 in layers 0 and 2": attending(EVEN, window=8),
        "window 8 in all layers": attending(EVEN + ODD, window=8),
        "a sink of logit 0 added": attending(EVEN + ODD, sink=0.0),
        "positions 1 later (the last is the first's)": positions(partial(np.roll, shift=-1, axis=0)),
        "positions 64 later (the last 64 are the first's)": positions(partial(np.roll, shift=-64, axis=0)),
        "positions all the same, their mean": positions(lambda v: np.broadcast_to(v.mean(0), v.shape)),
        "positions shuffled": positions(shuffled),
        "LayerNorm without taking the mean away": mean_kept,
        "GELU exact instead of by tanh": setting(activation="gelu_erf"),
        "GELU as x sigmoid(1.702 x)": setting(activation="quick_gelu"),
        "SiLU instead of GELU": setting(activation="silu"),
        "ReLU instead of GELU": setting(activation="relu"),
        "attention's biases dropped": without_biases(*ATTENTION),
        "feed-forward's biases dropped": without_biases(*FEED_FORWARD),
        "blocks in int8, groups of 64": rounded(ATTENTION + FEED_FORWARD, to_int8),
        "feed-forward in MXFP4": rounded(FEED_FORWARD, to_mxfp4),
        "attention and feed-forward in MXFP4": rounded(ATTENTION + FEED_FORWARD, to_mxfp4),
        "cache f16": cache("f16"),
        "cache bf16": cache("bf16"),
    },
    "demo-gpt-oss": {
        "windows of 128 widened: all layers full": windows(0),
        "windows of 128 narrowed to 64": windows(64),
        "windows of 128 narrowed to 32": windows(32),
        "windows of 128 narrowed to 8": windows(8),
        "full layers narrowed to 128 too": windows(128, 128),
        "full layers narrowed to 32": windows(128, 32),
        "sinks dropped": no_sinks,
        "YaRN off: plain RoPE": rope("plain", temperature=False),
        "YaRN's frequencies off, its temperature kept": rope("plain"),
        "YaRN's temperature off, its frequencies kept": rope(temperature=False),
        "all positions interpolated by 32": rope("linear"),
        "no rotation": rope("none"),
        "positions 64 later": later(64),
        "positions 10,000 later": later(10_000),
        "8 experts of 8 instead of 4": setting(experts_per_token=8),
        "3 experts": setting(experts_per_token=3),
        "2 experts": setting(experts_per_token=2),
        "1 expert": setting(experts_per_token=1),
        "experts in bf16 instead of MXFP4 (same values)": rounded(EXPERTS, lambda w: w),
        "experts in int8, groups of 64": rounded(EXPERTS, to_int8),
        "experts without MXFP4's bit of mantissa": rounded(EXPERTS, partial(to_mxfp4, allowed=POWERS_OF_TWO)),
        "attention in int8, groups of 64": rounded(("qkv", "out"), to_int8),
        "attention in MXFP4": rounded(("qkv", "out"), to_mxfp4),
        "clamp off": setting(swiglu_limit=float("inf")),
        "clamp at 3.5 instead of 7": setting(swiglu_limit=3.5),
        "clamp at 1": setting(swiglu_limit=1.0),
        "attention's biases dropped": without_biases("qkv", "out"),
        "cache f16": cache("f16"),
        "cache bf16": cache("bf16"),
    },
}
