"""model.inspect: what it says of a model's inside, against the float64 models and the model's own output."""

import re
import runpy
import warnings
from pathlib import Path

import numpy as np
import pytest

import cgpt
from cgpt import errors
from cgpt.bench.trace import Trace
from cgpt.kernels import _kernels as k
from cgpt.models.logprobs import log_probabilities

import reference
from golden import case, deviation
from reference.attention import softmax

# A trained model with sinks and windows of 128; YaRN, small windows; the learned positions of GPT-2.
CASES = {"demo-gpt-oss": 200, "gptoss_yarn/original": 150, "demo-gpt2": 200, "gpt2_odd_bf16": 64}
GATE = 1e-4  # of the hidden states' standard deviation
MASS_GATE = 2e-6
MASSES = "sink_mass", "window_mass", "beyond_mass"


def directory(name):
    return cgpt.locate(name) if name in cgpt.demo_models() else case(name).directory


def load(name, **options):
    return cgpt.load(directory(name), **{"precision": "exact"} | options)


def prompt_of(model, T):
    return np.random.default_rng(7).integers(0, model.vocab_size - 30, T)


def expected_masses(name, ids, window, monkeypatch):
    """float64 [3, L, H, T], of the queries and keys that the reference hands to its attention."""
    model, found = reference.load(directory(name)), []
    module = {"GPT2": reference.gpt2, "GptOss": reference.gpt_oss}[type(load(name).transformer).__name__]
    attention = module.attention

    def watched(q, keys, v, scale, positions=None, sees=None, sinks=None):
        keys_of_head = np.repeat(keys, q.shape[1] // keys.shape[1], 1)
        scores = np.einsum("thd,shd->hts", q, keys_of_head) * scale
        back = np.arange(len(q))[:, None] - np.arange(len(q))  # how long ago a key is
        visible = (back >= 0) & (back < (sees or len(q)))
        weights = softmax(np.where(visible, scores, -np.inf), None if sinks is None else sinks[:, None, None])
        inside, total = (weights * (back < window)).sum(-1), weights.sum(-1)
        found.append([1 - total, inside, total - inside])
        return attention(q, keys, v, scale, positions, sees, sinks)

    with monkeypatch.context() as patch:
        patch.setattr(module, "attention", watched)
        model.hidden(ids)
    return np.stack(found, 1)


@pytest.mark.parametrize("window", [None, 5, 40])
@pytest.mark.parametrize("name", CASES)
def test_masses(name, window, monkeypatch):
    model = load(name)
    model.transformer.PREFILL_CHUNK = 70
    ids = prompt_of(model, CASES[name])
    seen = model.inspect(ids, [n for n in MASSES if n != "sink_mass" or "oss" in name], window=window)
    default = max(model.transformer.windows) or 128
    expected = dict(zip(MASSES, expected_masses(name, ids, window or default, monkeypatch), strict=True))
    for mass in seen:
        assert np.abs(seen[mass] - expected[mass]).max() <= MASS_GATE, mass
        if window:
            assert expected[mass].max() > 0.1, mass
    assert np.abs(sum(seen.values()) - 1).max() <= MASS_GATE


def test_masses_at_every_level(level, monkeypatch):
    name = "gptoss_basic/hf_mxfp4"  # windows of 16
    model = load(name)
    ids = prompt_of(model, 50)
    expected = expected_masses(name, ids, 16, monkeypatch)
    seen = model.inspect(ids, MASSES)
    for i, mass in enumerate(MASSES):
        assert np.abs(seen[mass] - expected[i]).max() <= MASS_GATE, mass


@pytest.mark.parametrize("kv_cache_dtype", ["f16", "bf16", "int8"])
def test_masses_of_rounded_keys(kv_cache_dtype, monkeypatch):
    model = load("gptoss_basic/hf_mxfp4", kv_cache_dtype=kv_cache_dtype)
    ids = prompt_of(model, 50)
    seen = model.inspect(ids, MASSES, window=7)
    expected = expected_masses("gptoss_basic/hf_mxfp4", ids, 7, monkeypatch)
    bound = {"f16": 0.001, "bf16": 0.01, "int8": 0.01}[kv_cache_dtype]
    for i, mass in enumerate(MASSES):
        assert 0 < np.abs(seen[mass] - expected[i]).mean() <= bound, mass
    assert np.abs(sum(seen.values()) - 1).max() <= (1e-5 if kv_cache_dtype == "int8" else MASS_GATE)


def test_masses_of_int8_leave_the_cache_alone(monkeypatch):
    model = load("gptoss_basic/hf_mxfp4", kv_cache_dtype="int8")
    monkeypatch.setattr(model.transformer, "PREFILL_CHUNK", 16)
    ids = prompt_of(model, 50)
    alone, beside = model.inspect(ids, "hidden"), model.inspect(ids, ["hidden", *MASSES], window=7)
    assert np.array_equal(alone["hidden"], beside["hidden"])


@pytest.mark.parametrize("name", CASES)
def test_hidden_states_and_router(name):
    model, trace = load(name), {}
    ids = prompt_of(model, CASES[name])
    reference.load(directory(name)).hidden(ids, trace)
    seen = model.inspect(ids)
    assert seen["hidden"].shape == trace["residual"].shape
    for actual, expected in zip(seen["hidden"], trace["residual"], strict=True):
        assert deviation(actual, expected)[0] <= GATE
    if "experts" in trace:
        E = trace["router_logits"].shape[-1]
        assert np.array_equal(seen["router_choices"], trace["experts"])
        assert np.abs(seen["router_weights"] - trace["weights"]).max() <= GATE
        load_of = [np.bincount(chosen.ravel(), minlength=E) for chosen in trace["experts"]]
        assert np.array_equal(seen["expert_load"], load_of)
    else:
        assert not {"router_choices", "sink_mass"} & seen.keys()


@pytest.mark.parametrize("name", CASES)
def test_the_end_is_the_model_to_the_bit(name):
    model = load(name)
    ids = prompt_of(model, 60)
    seen = model.inspect(ids, top=model.vocab_size)
    with model.transformer._workspace() as ws:
        normed = k.Tensor(np.empty((60, model.transformer.width), np.float32))
        model.transformer.final_norm(ws, normed, k.Tensor(seen["hidden"][-1]), 60)
    assert np.array_equal(normed.array, model.hidden(ids))
    logprobs = log_probabilities(model.logits(ids)).astype(np.float32)
    assert np.array_equal(seen["lens_logprobs"][-1], -np.sort(-logprobs, -1))
    assert np.array_equal(np.take_along_axis(logprobs, seen["lens_ids"][-1], -1), seen["lens_logprobs"][-1])
    assert np.array_equal(model.inspect(ids, "lens_ids", top=3)["lens_ids"], seen["lens_ids"][..., :3])


@pytest.mark.parametrize("name", ["gptoss_basic/hf_mxfp4", "gpt2_odd_bf16"])
def test_exact_bits_do_not_depend_on_chunks_or_threads(name):
    model = load(name)
    ids = prompt_of(model, 64)
    whole = model.inspect(ids, window=9)
    for chunk, threads in ((64, 1), (64, 4), (1, 1), (17, 2)):
        other = load(name, threads=threads)
        other.transformer.PREFILL_CHUNK = chunk
        seen = other.inspect(ids, window=9)
        assert seen.keys() == whole.keys() and all(np.array_equal(seen[n], whole[n]) for n in whole), (chunk, threads)


@pytest.mark.parametrize("name", ["gptoss_basic/hf_mxfp4", "gpt2_odd_bf16"])
def test_what_is_not_asked_for_is_not_computed(name):
    model = load(name)
    ids = prompt_of(model, 50)

    def calls(run):
        with Trace(model.transformer) as trace:
            run()
        return {op: found.calls for op, found in trace.ops.items()}

    plain = calls(lambda: model.hidden(ids))
    assert calls(lambda: model.inspect(ids, "hidden")) == plain
    assert model.inspect(ids, "hidden").keys() == {"hidden"}
    lens = calls(lambda: model.inspect(ids, "lens_ids"))
    assert lens.pop("linear head") == 2 * (len(model.transformer.blocks) + 1)  # 50 tokens, 32 at a time
    assert lens["attention"] == plain["attention"] and "linear head" not in plain
    masses = calls(lambda: model.inspect(ids, "window_mass", window=9))
    assert masses.pop("attention") > plain.pop("attention") and masses == plain


def test_text_and_precision_auto():
    model = cgpt.load("demo-gpt-oss")
    text = "What is 12 + 30?"
    seen, again = model.inspect(text), model.inspect(model.tokenizer.encode(text))
    assert seen.keys() == again.keys() and all(np.array_equal(seen[n], again[n]) for n in seen)
    exact = load("demo-gpt-oss").inspect(text)
    assert np.abs(seen["sink_mass"] - exact["sink_mass"]).max() < 0.05
    assert (seen["lens_ids"][-1, :, 0] == exact["lens_ids"][-1, :, 0]).all()


@pytest.mark.parametrize(
    "model, options, error, message",
    [
        (
            "demo-gpt2",
            dict(what="sink_mass"),
            errors.InputError,
            "GPT2 has no 'sink_mass'.*; it has hidden, window_mass",
        ),
        ("demo-gpt2", dict(what=["hidden", "expert_load"]), errors.InputError, "no 'expert_load'"),
        ("demo-gpt-oss", dict(what="hiden"), errors.InputError, "GptOss has no 'hiden'.*hidden, sink_mass"),
        ("demo-gpt-oss", dict(what=[3]), errors.InputError, "no 3"),
        ("demo-gpt2", dict(window=0), errors.InputError, "window"),
        ("demo-gpt2", dict(top=0), errors.InputError, "top"),
        ("demo-gpt2", dict(top=2049), errors.InputError, "top is 2049.* 2048"),
    ],
)
def test_bad_questions(model, options, error, message):
    with pytest.raises(error, match=message):
        load(model).inspect([1, 2, 3], **options)


@pytest.mark.parametrize(
    "ids, error",
    [([], errors.EmptyPromptError), ([-1], errors.TokenIdError), ([1] * 257, errors.ContextLengthError)],
)
def test_bad_prompts(ids, error):
    with pytest.raises(error):
        load("demo-gpt2").inspect(ids)


def test_nan_is_the_same_error_as_elsewhere():
    model = load("gpt2_plain_f32")
    model.transformer.blocks[0].c_fc.arrays[-1][3] = np.nan
    with warnings.catch_warnings(), pytest.raises(errors.NumericsError, match="layer 1"):
        warnings.simplefilter("error")
        model.inspect([1, 2, 3])


def test_the_example_of_the_package(capsys):
    runpy.run_path(str(Path(__file__).parents[2] / "bench" / "demo_training" / "inside.py"))["main"]()
    out = capsys.readouterr().out
    assert "7, 15, 31, 45, 86<|return|>" in out and out.count("\n  layer ") == 6
    loads = [int(n) for n in re.findall(r"^  \d +(\d+)  .*'", out, re.M)[-8:]]
    tokens = int(re.search(r"chat of (\d+) tokens", out)[1])
    assert sum(loads) == 4 * tokens
