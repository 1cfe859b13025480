"""Steps of attention: grouped queries, windows, sinks."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from cgpt.checkpoint.config import FULL, SLIDING, GptOssConfig
from cgpt.checkpoint.sizes import GPT_OSS_SIZES
from cgpt.evolution.measure import Case
from cgpt.evolution.setting import GPT_OSS, KEPT, WINDOW, D, Setting
from cgpt.evolution.step import Fact
from cgpt.kernels import _kernels as k
from cgpt.models.accounting import cache_bytes, cache_read
from cgpt.models.kv_cache import KVCache

GEMMA = (WINDOW,) * 5 + (0,)  # five layers with a window for each that sees everything
# gpt-oss-20b's shape with one choice undone at a time, and Gemma's.
LAYERS = GPT_OSS.num_hidden_layers
GEMMA_TYPES = ((SLIDING,) * 5 + (FULL,)) * (LAYERS // 6)
ALL_FULL = replace(GPT_OSS, layer_types=(FULL,) * LAYERS)
VARIANTS: dict[str, GptOssConfig] = {
    "64 KV heads, no windows": replace(ALL_FULL, num_key_value_heads=GPT_OSS.num_attention_heads),
    "8 KV heads, no windows": ALL_FULL,
    "8 KV heads, every other layer a window (gpt-oss)": GPT_OSS,
    "8 KV heads, five windows for each full layer (Gemma's)": replace(ALL_FULL, layer_types=GEMMA_TYPES),
}

# ------------------------------------------------------------------------------------------- 5 grouped-query attention


def grouped(s: Setting) -> Iterator[Case]:
    H, G = s.heads, s.kv_heads
    for claim in ("faster", "free"):
        for context in s.contexts:
            T = 1 if claim == "faster" else min(s.prompt, context)
            old, new = (s.attention(f"{g} KV heads", context, T, g) for g in (H, G))
            yield Case("decode" if claim == "faster" else f"prompt of {T}", old, new, claim, context=context)
    old, new = (s.linear(f"{g} KV heads", "BF16", (H + 2 * g) * D, s.width, 1) for g in (H, G))
    yield Case("qkv product, one token", old, new, "faster")


def grouped_facts(s: Setting) -> list[Fact]:
    old, new = VARIANTS["64 KV heads, no windows"], VARIANTS["8 KV heads, no windows"]
    limit, per_head = GPT_OSS.max_position_embeddings, 2 * D * (GPT_OSS.hidden_size + 1) * LAYERS
    grown = cache_read(old, 1) / cache_read(new, 1)
    fewer, more = (config.num_key_value_heads * per_head for config in (new, old))
    return [
        Fact("cache of a token, gpt-oss-20b", "B", cache_read(new, 1), cache_read(old, 1)),
        Fact(f"cache at all {limit:,} positions", "B", cache_bytes(new, limit), cache_bytes(old, limit)),
        Fact("times that the cache is smaller (8 claimed)", "", grown, claimed=(8, 8)),
        Fact("parameters of keys' and values' projections", "parameters", fewer, more),
    ]


# -------------------------------------------------------------------------------------------------------- 6 windows


def windows(s: Setting) -> Iterator[Case]:
    alternating = (WINDOW, 0)
    for phase, name, pattern, most in (
        ("decode, alternating", "window, full", alternating, 1),
        ("decode, Gemma's 5:1", "5 windows, full", GEMMA, 1),
        ("prompt of {}, alternating", "window, full", alternating, s.prompt),
    ):
        for context in s.contexts:
            T = min(most, context)
            old = s.attention(f"{len(pattern)} full layers", context, T, s.kv_heads, (0,) * len(pattern))
            new = s.attention(name, context, T, s.kv_heads, pattern)
            claim = "faster" if context > WINDOW else "none"  # nothing is promised where all fits into the window
            yield Case(phase.format(T), old, new, claim, context=context)


def window_facts(s: Setting) -> list[Fact]:
    _, full, alternating, gemma = VARIANTS.values()
    facts = []
    for context in (4096, GPT_OSS.max_position_embeddings):
        old = cache_bytes(full, context)
        for name, config in (("every other layer", alternating), ("five of six", gemma)):
            facts.append(Fact(f"cache at {context:,}, window in {name}", "B", cache_bytes(config, context), old))
    return facts


# ---------------------------------------------------------------------------------------------------------- 8 sinks


def sinks(s: Setting) -> Iterator[Case]:
    for context in s.contexts:
        for T in dict.fromkeys((1, min(s.prompt, context))):
            old = s.attention("without sinks", context, T, s.kv_heads)
            new = s.attention("with sinks", context, T, s.kv_heads, sinks=True)
            yield Case("decode" if T == 1 else f"prompt of {T}", old, new, "free", context=context)


def sink_facts(s: Setting) -> list[Fact]:
    forced = "what a head must give to tokens (without sink, with one of 20)"
    numbers = {name: c.num_hidden_layers * c.num_attention_heads for name, c in GPT_OSS_SIZES.items()}
    return [
        *(Fact(f"parameters, {name}", "parameters", number, 0) for name, number in numbers.items()),
        Fact(forced, "share", attended(20.0), attended(None), claimed=(0, 1e-3)),
    ]


def attended(sink: float | None) -> float:
    """The weight that all tokens have together, by the kernel: what comes out where every value is 1."""
    T, qkv = 4, np.zeros((4, 3 * D), np.float32)
    qkv[:, 2 * D :] = 1
    out, (layer,) = k.Tensor(np.empty((T, D), np.float32)), KVCache([0], 1, D, T, dtype=KEPT).layers
    given = None if sink is None else k.Tensor(np.array([sink], np.float32))
    k.attention(k.Context(1, "exact"), out, k.Tensor(qkv), [(layer, 0, 0, T)], 1, scale=D**-0.5, sinks=given)
    return float(out.array[-1, 0])
