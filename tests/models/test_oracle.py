"""Whole models against the outputs of transformers, or against the NumPy reference where there are none."""

import json
import shutil

import numpy as np
import pytest

import cgpt
from cgpt.errors import ConfigError

import reference
from golden import CASES, case, deviation
from reference.checkpoint import read_header

EXACT = 1e-4  # largest deviation in float32 arithmetic, in std(logits)
AUTO = 0.03  # rms deviation where activations are rounded to bf16

by_name = pytest.mark.parametrize("golden", CASES, ids=lambda golden: golden.name)


@by_name
def test_exact(golden, level):
    model = cgpt.load(golden.directory, precision="exact")
    prompts = list(golden.prompts())
    for prompt in prompts:
        logits = model.logits(prompt.tokens)
        assert logits.dtype == np.float32
        assert deviation(logits, prompt.logits)[0] <= EXACT
        assert deviation(model.hidden(prompt.tokens), prompt.hidden)[0] <= EXACT
        assert np.abs(model.score(prompt.tokens) - prompt.logprobs).max() <= EXACT
        assert greedy(model, prompt.tokens, len(prompt.greedy)) == prompt.greedy
    fresh = cgpt.load(golden.directory, precision="exact")  # nothing of earlier prompts may linger
    assert np.array_equal(model.logits(prompts[0].tokens), fresh.logits(prompts[0].tokens))


def greedy(model, ids, n):
    return list(model.generate(ids, max_new_tokens=n, temperature=0.0, ignore_eos=True).ids) if n else []


@by_name
def test_auto(golden, level):
    model = cgpt.load(golden.directory, precision="auto")
    for prompt in golden.prompts():
        assert deviation(model.logits(prompt.tokens), prompt.logits)[1] <= AUTO


def test_dense_bf16(level):
    golden = case("gpt2_plain_f32")
    prompt = next(golden.prompts())
    logits = cgpt.load(golden.directory, precision="exact", dense="bf16").logits(prompt.tokens)
    maximum, rms = deviation(logits, prompt.logits)
    assert maximum > EXACT  # or nothing was rounded
    assert rms <= AUTO


# ---- Beyond the oracle: the same checkpoints with another config.json, or other weights


def changed(name, directory, config):
    """A copy of a golden case with keys of config.json changed, or removed where the new value is REMOVED."""
    shutil.copytree(case(name).directory, directory, ignore=shutil.ignore_patterns("*.npz"))
    file = directory / "config.json"
    merged = json.loads(file.read_text()) | config
    file.write_text(json.dumps({key: value for key, value in merged.items() if value is not REMOVED}))
    return directory


def assert_agrees_with_reference(directory, ids):
    expected = reference.load(directory).logits(ids)
    assert deviation(cgpt.load(directory, precision="exact").logits(ids), expected)[0] <= EXACT
    return expected


REMOVED = object()
GPT2, YARN, ORIGINAL = "gpt2_plain_f32", "gptoss_yarn/hf_mxfp4", "gptoss_yarn/original"
ROPE = dict(rope_type="yarn", factor=4.0, beta_fast=8.0, original_max_position_embeddings=64)


def rope(**settings):
    return dict(rope_scaling=ROPE | settings)


CONFIGS = {
    "scale by inverse layer": (GPT2, dict(scale_attn_by_inverse_layer_idx=True)),
    "scores not scaled": (GPT2, dict(scale_attn_weights=False)),
    "both scales": (GPT2, dict(scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True)),
    "layer norm epsilon": (GPT2, dict(layer_norm_epsilon=1e-2)),
    "transformers' other names": (
        GPT2,
        dict(n_embd=REMOVED, n_head=REMOVED, n_layer=REMOVED, n_positions=REMOVED)
        | dict(hidden_size=64, num_attention_heads=4, num_hidden_layers=2, max_position_embeddings=128),
    ),
    "truncate absent": (YARN, rope()),
    "truncate true": (YARN, rope(truncate=True)),
    "truncate false": (YARN, rope(truncate=False)),
    "beta_fast null": (YARN, dict(rope_scaling=ROPE | dict(beta_fast=None))),
    "attention factor": (YARN, rope(attention_factor=1.25)),
    "mscale": (YARN, rope(mscale=2.0, mscale_all_dim=0.5)),
    "rope_parameters": (
        YARN,
        dict(rope_scaling=REMOVED, rope_theta=REMOVED, rope_parameters=ROPE | dict(rope_theta=500)),
    ),
    "plain rope": (YARN, dict(rope_scaling=dict(rope_type="default"))),
    "linear rope": (YARN, dict(rope_scaling=dict(rope_type="linear", factor=4.0))),
    "old spelling of rope_type": (YARN, dict(rope_scaling=dict(type="linear", factor=2.0))),
    "no rope settings": (YARN, dict(rope_scaling=REMOVED, rope_theta=REMOVED)),
    "theta alone": (YARN, dict(rope_scaling=REMOVED)),
    "theta": (YARN, dict(rope_theta=77777.0)),
    "layer types absent": (YARN, dict(layer_types=REMOVED)),
    "layer types reversed": (YARN, dict(layer_types=["full_attention", "sliding_attention"])),
    "every layer slides": (YARN, dict(layer_types=["sliding_attention"] * 2)),
    "no layer slides": (YARN, dict(layer_types=["full_attention"] * 2)),
    "window": (YARN, dict(sliding_window=5)),
    "window of one": (YARN, dict(sliding_window=1)),
    "one expert": (YARN, dict(num_experts_per_tok=1, experts_per_token=1)),
    "every expert": (YARN, dict(num_experts_per_tok=4, experts_per_token=4)),
    "rms norm epsilon": (YARN, dict(rms_norm_eps=1e-2)),
    "limit": (YARN, dict(swiglu_limit=0.5)),
    "alpha": (YARN, dict(swiglu_alpha=1.0)),
    "no attention bias": (YARN, dict(attention_bias=False)),
    "original: ntk settings": (ORIGINAL, dict(rope_ntk_alpha=2.0, rope_ntk_beta=4.0)),
    "original: factor one": (ORIGINAL, dict(rope_scaling_factor=1.0, initial_context_length=256)),
    "original: context": (ORIGINAL, dict(initial_context_length=128)),
    "original: window": (ORIGINAL, dict(sliding_window=7)),
    "original: limit": (ORIGINAL, dict(swiglu_limit=0.5)),
}


@pytest.mark.filterwarnings("ignore")  # "no attention bias" leaves tensors over
@pytest.mark.parametrize("variant", CONFIGS)
def test_config_keys_are_honoured(variant, tmp_path):
    name, config = CONFIGS[variant]
    prompt = next(case(name).prompts())
    expected = assert_agrees_with_reference(changed(name, tmp_path / "model", config), prompt.tokens)
    neutral = "transformers' other names", "truncate false", "layer types absent"
    assert (deviation(expected, prompt.logits)[0] > 10 * EXACT) == (variant not in neutral)


@pytest.mark.parametrize("activation", reference.gpt2.ACTIVATIONS)
def test_activations_are_honoured(activation, tmp_path):
    directory = changed(GPT2, tmp_path / "model", dict(activation_function=activation))
    assert_agrees_with_reference(directory, next(case(GPT2).prompts()).tokens)


@pytest.mark.parametrize("activation", ["gelu_10", "relu6", "leaky_relu", "mish", "linear", "GELU", ""])
def test_other_activations_are_refused(activation, tmp_path):
    directory = changed(GPT2, tmp_path / "model", dict(activation_function=activation))
    with pytest.raises(ConfigError, match="activation_function"):
        cgpt.load(directory)


@pytest.mark.parametrize("layout", ["hf_mxfp4", "hf_plain"])
def test_gates_are_not_clamped_from_below(layout, tmp_path, level):
    """Every gate is near -60, where silu is 0; clamped to -7 it would give -5e-5, enlarged by the scales."""
    name = f"gptoss_clamp/{layout}"
    directory = changed(name, tmp_path / "model", {})
    for tensor, (stored, _) in read_header(directory / "model.safetensors", "r+").items():
        if tensor.endswith("gate_up_proj_bias"):
            stored[:, ::2] = 0xC270  # -60 in bf16
        if tensor.endswith("down_proj_scales"):
            stored += 4
        if tensor.endswith("down_proj"):
            stored += 4 << 7  # the exponent of a bf16
    assert_agrees_with_reference(directory, next(case(name).prompts()).tokens)
