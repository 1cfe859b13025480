"""Rotary position embeddings as gpt-oss uses them: plain, linear, and YaRN (https://arxiv.org/abs/2309.00071)."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rope:
    """Settings; the defaults are those of a gpt-oss config that says nothing about RoPE."""

    theta: float = 150000.0
    kind: str = "yarn"  # "default" (plain), "linear" or "yarn"
    factor: float = 32.0
    original_context: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = False
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None


def from_hf(config):
    """Reads `rope_parameters` (transformers 5) or `rope_scaling` + `rope_theta`. Defaults: transformers'."""
    rope = config.get("rope_scaling") or config.get("rope_parameters")
    theta = config.get("rope_theta", 150000.0)
    if not rope:
        return Rope(theta)
    context = rope.get("original_max_position_embeddings", config.get("max_position_embeddings", 131072))
    context = config.get("original_max_position_embeddings", context)
    factor = rope.get("factor")
    return Rope(
        theta=rope.get("rope_theta", theta),
        kind=rope.get("rope_type", rope.get("type", "default")),
        factor=config.get("max_position_embeddings", 131072) / context if factor is None else factor,
        original_context=context,
        beta_fast=rope.get("beta_fast") or 32.0,
        beta_slow=rope.get("beta_slow") or 1.0,
        truncate=rope.get("truncate", True),  # an absent key truncates; OpenAI's own code never does
        attention_factor=rope.get("attention_factor"),
        mscale=rope.get("mscale"),
        mscale_all_dim=rope.get("mscale_all_dim"),
    )


def from_original(config):
    """Reads OpenAI's config.json: its ntk_beta is YaRN's beta_fast, its ntk_alpha is beta_slow."""
    factor = config.get("rope_scaling_factor", 32.0)
    return Rope(
        theta=config.get("rope_theta", 150000.0),
        kind="yarn" if factor > 1 else "default",
        factor=factor,
        original_context=config.get("initial_context_length", 4096),
        beta_fast=config.get("rope_ntk_beta", 32.0),
        beta_slow=config.get("rope_ntk_alpha", 1.0),
    )


def inverse_frequencies(rope, head_dim):
    """-> float64 [head_dim/2], radians per position."""
    frequencies = rope.theta ** (-np.arange(0, head_dim, 2) / head_dim)
    if rope.kind == "default":
        return frequencies
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind != "yarn":
        raise ValueError(f"the reference does not know rope type {rope.kind!r}")
    low, high = (dimension_of(turns, rope, head_dim) for turns in (rope.beta_fast, rope.beta_slow))
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    high += 0.001 if low == high else 0
    # Fast dimensions keep their frequency, slow ones are slowed down by `factor`; a linear ramp joins them.
    slow = np.clip((np.arange(head_dim // 2) - low) / (high - low), 0, 1)
    return frequencies * (1 - slow) + frequencies / rope.factor * slow


def dimension_of(turns, rope, head_dim):
    """The (fractional) dimension that makes `turns` full turns within the original context."""
    return head_dim * math.log(rope.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))


def concentration(rope):
    """The factor on cos and sin, hence on both q and k: YaRN's attention temperature, at every position."""
    if rope.kind != "yarn":
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return temperature(rope.factor, rope.mscale) / temperature(rope.factor, rope.mscale_all_dim)
    return temperature(rope.factor, 1.0)


def temperature(factor, mscale):
    return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0


def tables(rope, head_dim, positions, angle_dtype=np.float32):
    """cos and sin, float64 [T, head_dim/2], concentration included.

    angle_dtype: both published implementations round inverse frequency and angle to float32, which moves an
    angle by 2.5e-3 at position 131,071. np.float64 gives the exact angles.
    """
    frequencies = inverse_frequencies(rope, head_dim).astype(angle_dtype)
    angles = np.outer(np.asarray(positions, angle_dtype), frequencies).astype(np.float64)
    return np.cos(angles) * concentration(rope), np.sin(angles) * concentration(rope)


def rotate(x, cos, sin):
    """x [T, H, D], cos and sin [T, D/2]: turns each pair (x[d], x[d + D/2])."""
    first, second = np.split(x, 2, -1)
    cos, sin = cos[:, None].astype(x.dtype), sin[:, None].astype(x.dtype)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
