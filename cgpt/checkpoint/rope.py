"""Rotary position embedding: the settings of a config and the frequencies they mean.

RoPE: Su et al., arXiv:2104.09864. YaRN: Peng et al., arXiv:2309.00071. The arithmetic follows transformers'
modeling_rope_utils.py; OpenAI's reference is the same formula with `truncate` false.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cgpt.errors import ConfigError
from cgpt.fields import Fields, shown

DEFAULT_THETA = 150000.0
SUPPORTED_TYPES = ("default", "linear", "dynamic", "yarn")

_GPT_OSS_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}

# Every key transformers defines for these objects. Those of refused types may stand beside the supported
# types, which do not read them; a key outside this list may be misspelt, and a misspelt `truncate` is costly.
# (transformers nests these objects by layer type for other models: gpt-oss has one RoPE for all layers.)
_KNOWN_KEYS = (
    "rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "original_max_position_embeddings",
    "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate",
    "short_factor", "long_factor", "low_freq_factor", "high_freq_factor", "mrope_section",
)  # fmt: skip


@dataclass(frozen=True)
class RopeConfig:
    """One of transformers' RoPE types with its settings; those a type does not use keep their defaults.

    "dynamic" changes frequencies only beyond max_position_embeddings, where cgpt stops: it equals "default".
    """

    type: str = "default"
    theta: float = DEFAULT_THETA
    factor: float = 1.0
    original_max_position_embeddings: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None  # None: derived from factor and the mscales
    mscale: float = 0.0  # 0: not used
    mscale_all_dim: float = 0.0

    @property
    def concentration(self) -> float:
        """What cos and sin are multiplied by, at every position; transformers calls it attention scaling."""
        if self.type != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._mscale(self.mscale) / self._mscale(self.mscale_all_dim)
        return self._mscale(1.0)

    def _mscale(self, weight: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * weight * math.log(self.factor) + 1.0

    def inv_freq(self, head_dim: int) -> np.ndarray:
        """float32 [head_dim / 2]: the angle per position, in radians, of each pair (d, d + head_dim / 2)."""
        # float32 where transformers has float32; only the power is rounded from float64, which comes closer
        # to torch's powf than NumPy's does.
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        pos_freqs: np.ndarray = np.power(self.theta, exponents.astype(np.float64)).astype(np.float32)
        one, factor = np.float32(1), np.float32(self.factor)
        if self.type in ("default", "dynamic"):
            return one / pos_freqs
        if self.type == "linear":
            return one / pos_freqs / factor
        low, high = self._ramp_range(head_dim)
        steps = np.arange(head_dim // 2, dtype=np.float32)
        interpolated = np.clip((steps - np.float32(low)) / np.float32(high - low), 0, 1)
        extrapolated = one - interpolated
        found: np.ndarray = one / (factor * pos_freqs) * (one - extrapolated) + one / pos_freqs * extrapolated
        return found

    def _ramp_range(self, head_dim: int) -> tuple[float, float]:
        """The pair indices between which YaRN goes from extrapolation to interpolation."""

        def pair_index(rotations: float) -> float:
            turns = self.original_max_position_embeddings / (rotations * 2 * math.pi)
            return head_dim * math.log(turns) / (2 * math.log(self.theta))

        low, high = pair_index(self.beta_fast), pair_index(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        # transformers clamps to head_dim - 1, not to head_dim / 2 - 1.
        low, high = max(low, 0), min(high, head_dim - 1)
        return low, high + 0.001 if low == high else high


def hf_rope(fields: Fields, max_position_embeddings: int) -> RopeConfig:
    """The RoPE of a config in transformers' dialect: `rope_parameters`, or `rope_scaling` with `rope_theta`.

    Without either it is YaRN with gpt-oss's own settings, as in transformers' GptOssConfig. ConfigError where
    the two differ.
    """
    _whole_head(fields)
    scaling, parameters = fields.section("rope_scaling"), fields.section("rope_parameters")
    if scaling is not None and not scaling.values:
        scaling = None  # transformers takes an empty rope_scaling for an absent one
    if scaling is None and parameters is None:
        scaling = Fields(_GPT_OSS_ROPE, "rope_parameters.")
    given = [section for section in (scaling, parameters) if section is not None]
    found = [_rope_section(section, fields, max_position_embeddings) for section in given]
    if found[0] != found[-1]:
        raise ConfigError(f"rope_scaling means {found[0]} but rope_parameters means {found[1]}")
    return found[0]


def original_rope(fields: Fields) -> RopeConfig:
    """The RoPE of a config in OpenAI's dialect: YaRN, never truncated; plain where the factor is <= 1."""
    theta = _theta(fields, DEFAULT_THETA)
    factor = _factor(fields, "rope_scaling_factor", default=32.0)
    initial_context = fields.integer("initial_context_length", 4096)
    alpha, beta = (_factor(fields, f"rope_ntk_{name}", default=n) for name, n in (("alpha", 1.0), ("beta", 32.0)))
    if factor <= 1:
        return RopeConfig(theta=theta)
    return RopeConfig("yarn", theta, factor, initial_context, beta_fast=beta, beta_slow=alpha, truncate=False)


def _theta(fields: Fields, default: float) -> float:
    theta: float = fields.number("rope_theta", default, low=1.001, high=1e30)  # its logarithm is a divisor
    return theta


def _factor(fields: Fields, key: str, **how: float) -> float:
    factor: float = fields.number(key, low=1e-6, high=1e6, **how)
    return factor


def _whole_head(fields: Fields) -> None:
    if fields.number("partial_rotary_factor", 1.0, null=1.0) != 1.0:
        raise fields.refuse("partial_rotary_factor", "must be 1, for gpt-oss rotates whole heads")


def _rope_section(section: Fields, top: Fields, max_position_embeddings: int) -> RopeConfig:
    section.refuse_unknown(_KNOWN_KEYS, "transformers' RoPE parameters")
    _whole_head(section)
    kind = section.text("rope_type", "default", aliases=("type",))
    if kind not in SUPPORTED_TYPES:
        name = section.name("rope_type")
        raise ConfigError(f"{name} must be one of {', '.join(SUPPORTED_TYPES)}, found {shown(kind)}")
    theta = _theta(section, _theta(top, DEFAULT_THETA))
    if theta != _theta(top, theta):
        raise section.refuse("rope_theta", f"must equal rope_theta {shown(top.values['rope_theta'])}")
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind in ("linear", "dynamic"):
        return RopeConfig(kind, theta, _factor(section, "factor"))
    return _yarn(section, top, theta, max_position_embeddings)


def _yarn(section: Fields, top: Fields, theta: float, max_position_embeddings: int) -> RopeConfig:
    key = "original_max_position_embeddings"
    original = section.integer(key, top.integer(key, max_position_embeddings, null=max_position_embeddings))
    if original != top.integer(key, original, null=original):
        raise section.refuse(key, f"must equal {key} {shown(top.values[key])}")
    # transformers takes 0 and null for the default where it says `or`.
    beta_fast = section.number("beta_fast", 32.0, high=1e6, null=32.0) or 32.0
    beta_slow = section.number("beta_slow", 1.0, high=1e6, null=1.0) or 1.0
    if min(beta_fast, beta_slow) < 1e-6:
        raise ConfigError(f"{section.name('beta_fast')} and beta_slow must be at least 1e-6")
    return RopeConfig(
        "yarn",
        theta,
        _factor(section, "factor", null=max_position_embeddings / original),
        original,
        beta_fast,
        beta_slow,
        section.boolean("truncate", True),
        section.number("attention_factor", None, low=1e-6, high=1e6, null=None),
        section.number("mscale", 0.0, high=1e6, null=0.0),
        section.number("mscale_all_dim", 0.0, high=1e6, null=0.0),
    )
