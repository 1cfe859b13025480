"""The NumPy models against the outputs of transformers, and proof that those outputs expose mistakes."""

import dataclasses
import math

import numpy as np
import pytest

import reference
from golden import CASES, case, deviation
from reference import attention, gpt2, gpt_oss, mxfp4, rope
from reference.checkpoint import Checkpoint

GATE = 3e-5  # largest deviation of the reference, in std(logits)
KERNEL_GATE = 1e-4  # of kernels in float32

by_name = pytest.mark.parametrize("golden", CASES, ids=lambda golden: golden.name)


@by_name
def test_logits_hidden_and_greedy_tokens(golden):
    model = reference.load(golden.directory)
    for prompt in golden.prompts():
        ids = prompt.tokens + prompt.greedy  # one pass gives the prompt's logits and every greedy choice
        logits = model.logits(ids)
        T = len(prompt.tokens)
        assert deviation(logits[:T], prompt.logits)[0] <= GATE
        assert logits[T - 1 : -1].argmax(-1).tolist() == prompt.greedy
        assert deviation(model.hidden(prompt.tokens), prompt.hidden)[0] <= GATE
        peak = logits.max(-1, keepdims=True)
        logprobs = logits - peak - np.log(np.exp(logits - peak).sum(-1, keepdims=True))
        assert np.abs(logprobs[np.arange(T - 1), prompt.tokens[1:]] - prompt.logprobs).max() <= GATE


@pytest.mark.parametrize("name", ["gpt2_plain_f32", "gptoss_basic/hf_mxfp4"])
def test_intermediate_results(name):
    golden, trace = case(name), {}
    reference.load(golden.directory).logits(next(golden.prompts()).tokens, trace)
    directory = golden.directory.parent if "/" in name else golden.directory
    with np.load(directory / "debug.npz") as debug:
        assert set(debug) == set(trace)
        for key in debug:
            assert np.abs(trace[key][:, -8:] - debug[key]).max() <= 1e-4 * np.abs(debug[key]).max(), key


@pytest.mark.parametrize("name", ["gptoss_clamp", "gptoss_yarn"])
def test_layouts_hold_the_same_model(name):
    layouts = [golden for golden in CASES if golden.name.startswith(name + "/")]
    prompt = next(layouts[0].prompts())
    first, *others = (reference.load(golden.directory).logits(prompt.tokens) for golden in layouts)
    for other in others:
        assert np.abs(other - first).max() < 1e-12


# ---- The oracle can tell: each mistake, made on purpose in the reference, fails the gate of the kernels


def setting(**changes):
    """A mistake in reading config.json."""

    def mutate(model, monkeypatch):
        model.config = dataclasses.replace(model.config, **changes)

    return mutate


def rope_setting(**changes):
    def mutate(model, monkeypatch):
        changed = dataclasses.replace(model.config.rope, **changes)
        model.config = dataclasses.replace(model.config, rope=changed)

    return mutate


def function(module, name, replacement):
    """A mistake in a function; replacement(original) gives the wrong one."""

    def mutate(model, monkeypatch):
        monkeypatch.setattr(module, name, replacement(getattr(module, name)))

    return mutate


def tensor(fragment, change):
    """A mistake in reading the tensors whose name holds `fragment`."""

    def mutate(model, monkeypatch):
        def read(self, name, *args, **kwargs):
            value = original(self, name, *args, **kwargs)
            return change(value) if fragment in name else value

        original = Checkpoint.tensor
        monkeypatch.setattr(Checkpoint, "tensor", read)

    return mutate


def windows(change):
    def mutate(model, monkeypatch):
        model.config = dataclasses.replace(model.config, windows=change(model.config.windows))

    return mutate


def wider(by):
    return windows(lambda all: [window and window + by for window in all])


def interleaved_rotation(original):
    def rotate(x, cos, sin):
        halves = np.concatenate([x[..., ::2], x[..., 1::2]], -1)
        first, second = np.split(original(halves, cos, sin), 2, -1)
        return np.stack([first, second], -1).reshape(x.shape)

    return rotate


def swiglu_variant(gate_low=-np.inf, gate_high=1.0, up=1.0, one=1.0, halves=False):
    """Clamps in units of the limit; `one` is what is added to the up part."""

    def replacement(original):
        def swiglu(x, alpha, limit):
            half = x.shape[1] // 2
            gate, ups = (x[:, :half], x[:, half:]) if halves else (x[:, ::2], x[:, 1::2])
            gate = np.clip(gate, gate_low * limit, gate_high * limit)
            return gate * gpt_oss.sigmoid(alpha * gate) * (np.clip(ups, -up * limit, up * limit) + one)

        return swiglu

    return replacement


def softmax_over_all(original):
    def route(router_logits, k):
        experts, _ = original(router_logits, k)
        return experts, np.take_along_axis(attention.softmax(router_logits), experts, -1)

    return route


def equal_weights(original):
    def route(router_logits, k):
        experts, _ = original(router_logits, k)
        return experts, np.full(experts.shape, 1 / k)

    return route


def unweighted_down_bias(model, monkeypatch):
    original = model.moe

    def moe(layer, x, trace=None):
        seen = {}
        out = original(layer, x, seen)
        for experts, weights in zip(seen["experts"][0].T, seen["weights"][0].T, strict=True):
            biases = np.stack([model.weights.expert("down", layer, expert)[1] for expert in experts])
            out += (1 - weights[:, None]) * biases
        return out

    monkeypatch.setattr(model, "moe", moe)


def attention_call(module, change):
    """change(arguments of attention(), by name) alters them in place."""

    def replacement(original):
        def attend(q, k, v, scale, positions=None, window=None, sinks=None):
            arguments = dict(q=q, k=k, v=v, scale=scale, positions=positions, window=window, sinks=sinks)
            change(arguments)
            return original(**arguments)

        return attend

    return function(module, "attention", replacement)


def kv_heads_dealt_out(arguments):
    """Query head h reads kv head h % G, not h // (H / G)."""
    for name in "kv":
        groups = arguments["q"].shape[1] // arguments[name].shape[1]
        arguments[name] = np.tile(arguments[name], (1, groups, 1))


def sees_the_next_token(arguments):
    T = len(arguments["k"])
    arguments["positions"] = np.minimum(np.arange(T) + 1, T - 1)


def round_to_bf16(value):
    bits = np.asarray(value, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32).astype(value.dtype)


def concentration_on_q_alone(model, monkeypatch):
    def undo_on_k(arguments):
        arguments["k"] = arguments["k"] / rope.concentration(model.config.rope)

    attention_call(gpt_oss, undo_on_k)(model, monkeypatch)


def tied_head(model, monkeypatch):
    monkeypatch.setattr(model.weights, "head", lambda config: model.weights.embedding())


BASIC, CLAMP, CLAMP_PLAIN = "gptoss_basic/hf_mxfp4", "gptoss_clamp/hf_mxfp4", "gptoss_clamp/hf_plain"
YARN, YARN_PLAIN, YARN_ORIGINAL = "gptoss_yarn/hf_mxfp4", "gptoss_yarn/hf_plain", "gptoss_yarn/original"
PLAIN, ODD, LEGACY, SHARDED = "gpt2_plain_f32", "gpt2_odd_bf16", "gpt2_legacy_f16", "gpt2_sharded_f32"

MISTAKES = {
    # sinks
    "no sinks": (BASIC, tensor("sinks", lambda sinks: np.full_like(sinks, -1e30))),
    "sinks scaled like scores": (BASIC, tensor("sinks", lambda sinks: sinks * 32**-0.5)),
    "sinks of the wrong head": (BASIC, tensor("sinks", lambda sinks: np.roll(sinks, 1))),
    # window
    "window one too wide": (BASIC, wider(1)),
    "window one too narrow": (YARN, wider(-1)),
    "no window": (YARN, windows(lambda all: [None] * len(all))),
    "odd layers slide, not even ones": (BASIC, windows(lambda all: all[::-1])),
    "every layer slides": (BASIC, windows(lambda all: [all[0]] * len(all))),
    # rope
    "truncated ramp": (BASIC, rope_setting(truncate=True)),
    "truncated ramp, OpenAI's layout": (YARN_ORIGINAL, rope_setting(truncate=True)),
    "no YaRN": (YARN, rope_setting(kind="default")),
    "linear for YaRN": (YARN, rope_setting(kind="linear")),
    "no concentration": (CLAMP, rope_setting(attention_factor=1.0)),
    "concentration on q alone": (BASIC, concentration_on_q_alone),
    "beta_fast ignored": (YARN, rope_setting(beta_fast=32.0)),
    "theta of another model": (YARN_ORIGINAL, rope_setting(theta=10000.0)),
    "original context ignored": (YARN_PLAIN, rope_setting(original_context=4096)),
    "neighbours rotated, not halves": (BASIC, function(rope, "rotate", interleaved_rotation)),
    # attention
    "kv heads dealt out": (BASIC, attention_call(gpt_oss, kv_heads_dealt_out)),
    "next token seen by gpt-oss": (BASIC, attention_call(gpt_oss, sees_the_next_token)),
    "unscaled scores": (BASIC, attention_call(gpt_oss, lambda arguments: arguments.update(scale=1.0))),
    # router
    "softmax over all experts": (BASIC, function(gpt_oss, "route", softmax_over_all)),
    "equal weights": (BASIC, function(gpt_oss, "route", equal_weights)),
    "one expert too few": (BASIC, setting(experts_per_token=3)),
    "router bias ignored": (BASIC, tensor("router.bias", np.zeros_like)),
    # experts
    "gate clamped from below": (CLAMP, function(gpt_oss, "swiglu", swiglu_variant(gate_low=-1.0))),
    "gate not clamped": (CLAMP_PLAIN, function(gpt_oss, "swiglu", swiglu_variant(gate_high=np.inf))),
    "up not clamped": (CLAMP, function(gpt_oss, "swiglu", swiglu_variant(up=np.inf))),
    "limit ignored": (CLAMP, setting(swiglu_limit=8.0)),
    "up without one": (CLAMP, function(gpt_oss, "swiglu", swiglu_variant(one=0.0))),
    "gates first, then ups": (CLAMP, function(gpt_oss, "swiglu", swiglu_variant(halves=True))),
    "silu for the gate": (CLAMP, setting(swiglu_alpha=1.0)),
    "down_proj transposed": (CLAMP_PLAIN, tensor("down_proj", np.transpose)),
    "gate_up_proj transposed": (YARN_PLAIN, tensor("gate_up_proj", np.transpose)),
    "down bias not weighted": (BASIC, unweighted_down_bias),
    # mxfp4
    "nibbles swapped": (YARN, tensor("_blocks", lambda blocks: blocks << 4 | blocks >> 4)),
    "scale off by one": (YARN, tensor("_scales", lambda scales: scales + np.uint8(1))),
    # norm
    "rmsnorm epsilon": (BASIC, setting(rms_norm_eps=1e-6)),
    # gpt2
    "erf for tanh": (PLAIN, setting(activation_function="gelu")),
    "tanh for erf": (SHARDED, setting(activation_function="gelu_new")),
    "tied head despite its own": (SHARDED, tied_head),
    "attention's c_proj transposed": (ODD, tensor("attn.c_proj.weight", lambda w: w.T)),
    "default epsilon": (LEGACY, setting(layer_norm_epsilon=1e-5)),
    "positions off by one": (PLAIN, tensor("wpe.weight", lambda w: np.roll(w, -1, 0))),
    "weights rounded to bf16": (PLAIN, tensor("c_fc.weight", round_to_bf16)),
    "scaled by layer": (PLAIN, setting(scale_attn_by_inverse_layer_idx=True)),
    "scores not scaled": (ODD, setting(scale_attn_weights=False)),
    "next token seen by GPT-2": (LEGACY, attention_call(gpt2, sees_the_next_token)),
    "attention bias ignored": (LEGACY, tensor("attn.c_attn.bias", np.zeros_like)),
}


# At the limit, -7, the sigmoid is down to 7e-6. test_oracle.py has a checkpoint that makes this mistake loud.
SUBTLE = {"gate clamped from below"}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_oracle_can_tell(mistake, monkeypatch):
    name, mutate = MISTAKES[mistake]
    golden = case(name)
    model = reference.load(golden.directory)
    mutate(model, monkeypatch)
    worst = max(deviation(model.logits(p.tokens), p.logits)[0] for p in golden.prompts())
    assert worst > (GATE if mistake in SUBTLE else KERNEL_GATE)


# ---- Parts that the golden cases do not reach


def test_published_rope_frequencies():
    published = """1 .689044306 .474782055 .327145872 .225418 .155322989 .107024421 .0737445682 .0508132748
        .0317056962 .0193350011 .0115920493 .00679495949 .00386035932 .00209379238 .0010526021 .000456483919
        .000129318701 3.83088124e-5 2.6396469e-5 1.81883367e-5 1.25325698e-5 8.63549588e-6 5.95023926e-6
        4.09997848e-6 2.82506683e-6 1.94659621e-6 1.34129104e-6 9.2420895e-7 6.36820915e-7 4.38797825e-7
        3.02351143e-7"""  # radians per position, of gpt-oss-20b and 120b
    settings = rope.Rope()
    expected = [float(frequency) for frequency in published.split()]
    assert rope.inverse_frequencies(settings, 64) == pytest.approx(expected, rel=1e-6)
    assert rope.concentration(settings) == pytest.approx(1.3465735902799727, rel=1e-15)


def test_both_config_dialects_and_the_absent_truncate():
    yarn = dict(rope_type="yarn", factor=4.0, beta_fast=8.0, original_max_position_embeddings=64)
    old = rope.from_hf(dict(rope_scaling=yarn, rope_theta=1000, max_position_embeddings=256))
    new = rope.from_hf(dict(rope_parameters=dict(yarn, rope_theta=1000), max_position_embeddings=256))
    assert old == new == rope.Rope(1000, "yarn", 4.0, 64, 8.0, truncate=True)
    assert rope.from_hf({}) == rope.from_original({}) == rope.Rope()


def test_mxfp4_reads_low_nibbles_first():
    blocks = np.zeros((1, 16), np.uint8)
    blocks[0, :3] = 0x21, 0xF7, 0x9A
    values = mxfp4.dequantise(blocks, np.array([128], np.uint8))
    assert values[:7].tolist() == [1, 2, 12, -12, -2, -1, 0]
    assert mxfp4.dequantise(blocks, np.array([0], np.uint8))[0] == 2.0**-128
    assert np.isnan(mxfp4.dequantise(blocks, np.array([255], np.uint8))).all()


def test_attention_by_hand():
    q = np.zeros((3, 1, 2))  # all scores 0: plain averages over what is visible
    v = np.array([[1.0, 0], [2, 0], [4, 0]])[:, None]
    zeros = np.zeros_like(v)
    for expected, arguments in [
        ([1, 1.5, 7 / 3], {}),
        ([1, 1.5, 3], dict(window=2)),
        ([0.5, 1, 7 / 4], dict(sinks=np.zeros(1))),
        ([7 / 3, 1, 1.5], dict(positions=[2, 0, 1])),
        ([7 / 3, 1, 1.5], dict(positions=[2, 0, 1], block=1)),
    ]:
        heads = attention.attention(q, zeros, v, 1.0, **arguments)
        assert heads[:, 0, 0] == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
    "spelling, at_one",
    [
        ("gelu", 0.8413447460685429),
        ("gelu_python", 0.8413447460685429),
        ("gelu_new", 0.8411919906082768),
        ("gelu_fast", 0.8411919906082768),
        ("gelu_pytorch_tanh", 0.8411919906082768),
        ("gelu_accurate", 0.8411919906082768),
        ("quick_gelu", 1 / (1 + math.exp(-1.702))),
        ("silu", 1 / (1 + math.exp(-1))),
        ("swish", 1 / (1 + math.exp(-1))),
        ("relu", 1.0),
        ("tanh", math.tanh(1)),
    ],
)
def test_activation_spellings(spelling, at_one):
    activation = gpt2.ACTIVATIONS[spelling]
    assert activation(np.array([1.0]))[0] == pytest.approx(at_one, rel=1e-9)
    assert np.isfinite(activation(np.array([-1e4, 1e4]))).all()


def test_activations_are_precise_in_the_left_tail():
    assert gpt2.gelu(np.array([-8.0]))[0] == pytest.approx(-8 * 6.22096057427178e-16, rel=1e-12)
    assert gpt2.silu(np.array([-50.0]))[0] == pytest.approx(-50 / (1 + math.exp(50)), rel=1e-12)
    twice_u = 2 * math.sqrt(2 / math.pi) * (8 + 0.044715 * 512)
    assert gpt2.gelu_tanh(np.array([-8.0]))[0] == pytest.approx(-8 / (1 + math.exp(twice_u)), rel=1e-12)


def test_scale_by_inverse_layer_idx_divides_the_scores(monkeypatch):
    golden = case(PLAIN)
    ids = next(golden.prompts()).tokens
    model = reference.load(golden.directory)
    setting(scale_attn_by_inverse_layer_idx=True)(model, monkeypatch)
    scaled = model.logits(ids)

    def halve_q(w):
        return np.concatenate([w[..., :64] / 2, w[..., 64:]], -1)

    tensor("h.1.attn.c_attn", halve_q)(model, monkeypatch)  # layer 1 of 0, 1: scores divided by 2
    assert np.abs(reference.load(golden.directory).logits(ids) - scaled).max() < 1e-12


def test_positions_and_float32_change_nothing_but_rounding():
    golden = case(YARN)
    ids = next(golden.prompts()).tokens
    model = reference.load(golden.directory)
    full = model.logits(ids)
    assert np.abs(model.logits(ids, positions=[149, 3]) - full[[149, 3]]).max() < 1e-12
    single = reference.load(golden.directory, np.float32).logits(ids)
    assert single.dtype == np.float32
    assert 0 < deviation(single, full)[0] <= GATE
