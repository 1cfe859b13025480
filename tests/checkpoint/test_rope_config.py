"""RoPE: the settings of both config dialects, the frequencies against transformers' and OpenAI's values."""

import math

import numpy as np
import pytest

from cgpt.checkpoint.rope import RopeConfig, hf_rope, original_rope
from cgpt.fields import Fields

# gpt-oss's 32 frequencies, from OpenAI's gpt_oss/torch/model.py
GPT_OSS_INV_FREQ = [
    1, 0.689044306, 0.474782055, 0.327145872, 0.225418, 0.155322989, 0.107024421, 0.0737445682, 0.0508132748,
    0.0317056962, 0.0193350011, 0.0115920493, 0.00679495949, 0.00386035932, 0.00209379238, 0.0010526021,
    0.000456483919, 0.000129318701, 3.83088124e-5, 2.6396469e-5, 1.81883367e-5, 1.25325698e-5, 8.63549588e-6,
    5.95023926e-6, 4.09997848e-6, 2.82506683e-6, 1.94659621e-6, 1.34129104e-6, 9.2420895e-7, 6.36820915e-7,
    4.38797825e-7, 3.02351143e-7,
]  # fmt: skip
GPT_OSS = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}

# From transformers 5.23's GptOssRotaryEmbedding: head_dim 8, max_position_embeddings 256, theta 1000.
PLAIN = [1, 0.177827939, 0.0316227786, 0.00562341325]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 8.0}
UNTRUNCATED = {**YARN, "truncate": False}
NULLS = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 4096,
    "truncate": False,
    "attention_factor": None,
    "mscale": None,
    "mscale_all_dim": None,
    "partial_rotary_factor": None,
}
TRANSFORMERS = {
    "default": ({"rope_type": "default"}, PLAIN, 1.0),
    "empty": ({}, PLAIN, 1.0),
    "linear": (
        {"rope_type": "linear", "factor": 3.0},
        [0.333333343, 0.059275981, 0.0105409259, 0.00187447108],
        1.0,
    ),
    "dynamic": ({"rope_type": "dynamic", "factor": 3.0}, PLAIN, 1.0),
    "yarn": (YARN, [1, 0.111142464, 0.00790569466, 0.00140585331], 1.138629436111989),
    "untruncated": (UNTRUNCATED, [1, 0.0825591981, 0.00790569466, 0.00140585331], 1.138629436111989),
    "mscale": (
        {**UNTRUNCATED, "mscale": 0.7, "mscale_all_dim": 0.9},
        [1, 0.0825591981, 0.00790569466, 0.00140585331],
        0.9753496504321066,
    ),
    "attention_factor": (
        {**UNTRUNCATED, "beta_fast": 32, "attention_factor": 1.25},
        [1, 0.0785936043, 0.00790569466, 0.00140585331],
        1.25,
    ),
    "factor_is_null": (
        {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 32, "truncate": False},
        [1, 0.0222284924, 0.00395284733, 0.000702926656],
        1.2079441541679836,
    ),
    "fast_is_null_slow_is_zero": (
        {**NULLS, "beta_fast": None, "beta_slow": 0},
        [1, 0.177827939, 0.0286136102, 0.00298673473],
        1.138629436111989,
    ),
    "fast_is_zero_slow_is_null": (
        {**NULLS, "beta_fast": 0, "beta_slow": None},
        [1, 0.177827939, 0.0286136102, 0.00298673473],
        1.138629436111989,
    ),
    "original_is_absent": (
        {"rope_type": "yarn", "factor": 8.0},
        [1, 0.125961453, 0.0131761581, 0.000702926656],
        1.2079441541679836,
    ),
}


def assert_same_frequencies(found, expected):
    """Within two float32 roundings of `expected`, which is printed with nine digits."""
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.array(expected), rtol=2.5e-7, atol=0)


@pytest.mark.parametrize(
    "rope",
    [
        hf_rope(Fields({"rope_scaling": GPT_OSS, "rope_theta": 150000}), 131072),
        hf_rope(Fields({"rope_parameters": {**GPT_OSS, "rope_theta": 150000.0}}), 131072),
        hf_rope(Fields({}), 131072),
        original_rope(Fields({"rope_scaling_factor": 32.0, "rope_ntk_alpha": 1, "rope_ntk_beta": 32})),
    ],
    ids=["rope_scaling", "rope_parameters", "defaults", "original"],
)
def test_gpt_oss_frequencies(rope):
    assert_same_frequencies(rope.inv_freq(64), GPT_OSS_INV_FREQ)
    assert math.isclose(rope.concentration, 1.3465735902799727, rel_tol=1e-15)


def test_absent_truncate_means_truncation():
    """transformers' default; for gpt-oss the frequencies then differ by up to 76 %."""
    absent = {key: value for key, value in GPT_OSS.items() if key != "truncate"}
    ratio = hf_rope(Fields({"rope_scaling": absent}), 131072).inv_freq(64) / np.array(GPT_OSS_INV_FREQ)
    assert 0.7 < np.abs(ratio - 1).max() < 0.8


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_types_of_transformers(name):
    settings, frequencies, concentration = TRANSFORMERS[name]
    dialects = [{"rope_parameters": {**settings, "rope_theta": 1000}}]
    if settings:  # an empty rope_scaling is no rope_scaling
        dialects.append({"rope_theta": 1000, "rope_scaling": settings})
    for fields in dialects:
        rope = hf_rope(Fields(fields), 256)
        assert_same_frequencies(rope.inv_freq(8), frequencies)
        assert math.isclose(rope.concentration, concentration, rel_tol=1e-15)


def test_empty_rope_scaling_is_absent():
    assert hf_rope(Fields({"rope_scaling": {}}), 256) == hf_rope(Fields({}), 256)


def test_legacy_name_of_the_type():
    assert hf_rope(Fields({"rope_scaling": {"type": "linear", "factor": 2}}), 256).type == "linear"


def test_original_maximum_beside_the_section():
    yarn = {"rope_type": "yarn", "factor": 4.0}
    for key, original in (("original_max_position_embeddings", 64), ("no_such_key", 256)):
        rope = hf_rope(Fields({"rope_scaling": yarn, key: 64}), 256)
        assert rope.original_max_position_embeddings == original
    for section in (yarn, {**yarn, "original_max_position_embeddings": 256}):
        rope = hf_rope(Fields({"rope_scaling": section, "original_max_position_embeddings": None}), 256)
        assert rope.original_max_position_embeddings == 256


def test_original_factor():
    assert original_rope(Fields({"rope_scaling_factor": 1.0})) == RopeConfig("default")
    assert original_rope(Fields({"rope_scaling_factor": 1.5})).type == "yarn"


def test_ramp_is_clamped_as_in_transformers():
    """Rotations beyond the head clamp the ramp to pairs 0 .. head_dim - 1, though there are half as many."""
    rope = RopeConfig("yarn", 10.0, 4.0, 512, truncate=False)  # the ramp would go from 1.62 to 7.65
    assert_same_frequencies(rope.inv_freq(8), [1, 0.562341332, 0.299630105, 0.143686906])


def test_empty_ramp_is_a_step():
    rope = RopeConfig("yarn", 1000.0, 4.0, 64, beta_fast=3.2, beta_slow=3.2, truncate=False)
    step_at_0_67 = np.array(PLAIN) / [1, 4, 4, 4]
    assert_same_frequencies(rope.inv_freq(8), step_at_0_67)


def test_concentration():
    """A factor below one does not lower it, and one mscale alone says nothing."""
    assert RopeConfig("yarn", factor=0.5).concentration == 1.0
    for rope in (RopeConfig("yarn", factor=1.5), RopeConfig("yarn", factor=1.5, mscale=2.0)):
        assert math.isclose(rope.concentration, 0.1 * math.log(1.5) + 1, rel_tol=1e-15)
