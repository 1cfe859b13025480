"""bench/ablation.py: each switch changes what it says and nothing else, and the measurement is the demo cards' own."""

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import cgpt
from cgpt.kernels import _kernels as k
from cgpt.models import gpt2

import reference
from golden import HERE, deviation

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import ablation  # noqa: E402
import ablation_switches as switches  # noqa: E402
from ablation_switches import attending, positions, rope, rounded, setting, windows  # noqa: E402

T = 200  # beyond the windows of 128
SAME = {  # but for rounding
    "experts in bf16 instead of MXFP4 (same values)",
    "positions 64 later",
    "positions 10,000 later",
}


def ids_of():
    return np.random.default_rng(11).integers(0, 490, T)


def logits(name, change):
    with ablation.switched(name, change) as model:
        return model.logits(ids_of())


def unchanged(model, patch):
    pass


@pytest.fixture(scope="module")
def plain():
    return {name: logits(name, unchanged) for name in cgpt.demo_models()}


GPT2, GPT_OSS = switches.SWITCHES["demo-gpt2"], switches.SWITCHES["demo-gpt-oss"]
SLIDING, FULL = "sliding_attention", "full_attention"


@pytest.mark.parametrize(
    "name, change, config",
    [
        ("demo-gpt-oss", GPT_OSS["2 experts"], dict(num_experts_per_tok=2, experts_per_token=2)),
        ("demo-gpt-oss", GPT_OSS["windows of 128 narrowed to 32"], dict(sliding_window=32)),
        ("demo-gpt-oss", GPT_OSS["windows of 128 widened: all layers full"], dict(layer_types=[FULL] * 6)),
        ("demo-gpt-oss", GPT_OSS["full layers narrowed to 128 too"], dict(layer_types=[SLIDING] * 6)),
        ("demo-gpt-oss", GPT_OSS["YaRN off: plain RoPE"], dict(rope_scaling=dict(rope_type="default"))),
        ("demo-gpt-oss", GPT_OSS["YaRN's temperature off, its frequencies kept"], dict(attention_factor=1.0)),
        ("demo-gpt-oss", rope("linear", temperature=False), dict(rope_scaling=dict(rope_type="linear", factor=32.0))),
        ("demo-gpt-oss", GPT_OSS["clamp at 3.5 instead of 7"], dict(swiglu_limit=3.5)),
        ("demo-gpt2", GPT2["ReLU instead of GELU"], dict(activation_function="relu")),
    ],
)
def test_as_a_checkpoint_whose_config_says_so(name, change, config, plain, tmp_path):
    shutil.copytree(cgpt.locate(name), tmp_path / name)
    path = tmp_path / name / "config.json"
    stored = json.loads(path.read_text())
    if "attention_factor" in config:
        config = dict(rope_scaling=stored["rope_scaling"] | config)
    path.write_text(json.dumps(stored | config))
    expected = cgpt.load(tmp_path / name, precision="exact").logits(ids_of())
    found = logits(name, change)
    assert np.array_equal(found, expected) and not np.array_equal(found, plain[name])


def sinks_far_below(model, patch):
    for block in model.blocks:
        block.sinks = k.Tensor(np.full(model.heads, -1e30, np.float32))


@pytest.mark.parametrize(
    "name, one, other",
    [
        ("demo-gpt-oss", setting(experts_per_token=4), unchanged),
        ("demo-gpt-oss", windows(128), unchanged),
        ("demo-gpt-oss", windows(T, T), windows(0)),
        ("demo-gpt-oss", rope(), unchanged),
        ("demo-gpt-oss", setting(swiglu_limit=float("inf")), setting(swiglu_limit=1e9)),
        ("demo-gpt-oss", switches.no_sinks, sinks_far_below),
        ("demo-gpt-oss", switches.cache("f32"), unchanged),
        ("demo-gpt2", attending(switches.EVEN + switches.ODD, window=T), unchanged),
        ("demo-gpt2", attending(switches.EVEN + switches.ODD, sink=-1e30), unchanged),
        ("demo-gpt2", positions(lambda v: v), unchanged),
    ],
)
def test_two_ways_to_say_the_same(name, one, other):
    assert np.array_equal(logits(name, one), logits(name, other))


def rms_norm_with_bias(x, weight, bias, epsilon):
    return reference.gpt_oss.rms_norm(x, weight, epsilon) + bias


@pytest.mark.parametrize(
    "switch, function, wrong",
    [
        ("window 8 in all layers", "attention", partial(reference.gpt2.attention, window=8)),
        ("a sink of logit 0 added", "attention", partial(reference.gpt2.attention, sinks=np.zeros(5))),
        ("LayerNorm without taking the mean away", "layer_norm", rms_norm_with_bias),
    ],
)
def test_as_the_float64_model_disturbed(switch, function, wrong, plain, monkeypatch):
    monkeypatch.setattr(reference.gpt2, function, wrong)
    expected = reference.load(cgpt.locate("demo-gpt2")).logits(ids_of())
    assert deviation(logits("demo-gpt2", GPT2[switch]), expected)[0] < 1e-4
    assert deviation(plain["demo-gpt2"], expected)[0] > 1e-3


def test_windows_are_in_the_layers_named():
    seen = []

    def record(ws, out, qkv, layer, spans, H, **how):
        seen.append((layer, how.get("window", 0)))
        return original(ws, out, qkv, layer, spans, H, **how)

    original, gpt2.attend = gpt2.attend, record
    try:
        logits("demo-gpt2", attending(switches.EVEN, window=32))
    finally:
        gpt2.attend = original
    assert seen == [(0, 32), (1, 0), (2, 32), (3, 0)]


def test_positions_64_later():
    model = cgpt.load("demo-gpt2", precision="exact").transformer
    expected = switches.values(model.wpe)[64:74] + switches.values(model.wte)[7]
    with ablation.switched("demo-gpt2", GPT2["positions 64 later (the last 64 are the first's)"]) as later:
        assert np.array_equal(later.inspect([7] * 10, "hidden")["hidden"][0], expected)


def test_rotations_64_later():
    """Keys and queries are those of positions 64 higher; what comes out depends on their distance alone."""
    with ablation.switched("demo-gpt-oss", GPT_OSS["positions 64 later"]) as later:
        cos, sin = (table.array for table in later.transformer.blocks[3].rope(T))
        assert len({id(block.rope) for block in later.transformer.blocks}) == 1
    for found, table in zip((cos, sin), cgpt.load("demo-gpt-oss").transformer.blocks[3].rope(T + 64), strict=True):
        assert np.array_equal(found[:T], table.array[64 : T + 64])


def test_roundings(rng):
    experts = cgpt.load("demo-gpt-oss").transformer.blocks[2].gate_up
    stored = switches.values(experts)
    assert np.array_equal(switches.to_mxfp4(stored), stored)  # what is MXFP4 already stays
    w = rng.standard_normal((3, 64)).astype(np.float32)
    near, groups = switches.to_mxfp4(w), w.reshape(-1, 32)
    for group, got in zip(groups, near.reshape(-1, 32), strict=True):
        scale = 2.0 ** np.ceil(np.log2(np.abs(group).max() / 7))
        grid = np.concatenate([switches.MXFP4_VALUES, -switches.MXFP4_VALUES]) * scale
        assert np.isin(got, grid).all()
        assert np.allclose(np.abs(got - group), np.abs(group[:, None] - grid).min(-1), atol=1e-7)
    quantised = cgpt.load("demo-gpt2", dense="int8").transformer.blocks[1].c_fc
    q, scales = quantised.arrays[:2]
    scales = np.repeat((scales.astype(np.uint32) << 16).view(np.float32), 64, 1)
    matrix = cgpt.load("demo-gpt2").transformer.blocks[1].c_fc
    assert np.array_equal(switches.to_int8(switches.values(matrix)), (q * scales)[:, : matrix.shape[1]])


def test_same_weights_in_another_format(plain):
    assert deviation(logits("demo-gpt-oss", rounded(switches.EXPERTS, lambda w: w)), plain["demo-gpt-oss"])[0] < 1e-4


def test_the_mean_and_its_error():
    mean, error = ablation.mean_and_error(np.array([1.0, 2.0, 6.0]), np.array([2, 2, 2]))
    assert (mean, error) == (3.0, pytest.approx(np.std([1, 2, 6], ddof=1) / np.sqrt(3)))
    assert ablation.mean_and_error(np.array([1.0, 4.0]), np.array([3, 1]))[0] == 1.75


def test_chats_and_their_solutions():
    model = cgpt.load("demo-gpt-oss", precision="exact")
    pieces = ablation.chats(model, 24)
    assert len({tuple(piece.ids[: piece.first]) for piece in pieces}) == 24
    assert ablation.right_answers(model, pieces).mean() > 0.9
    from demo_harmony import correct

    assert all(correct(model.tokenizer.decode(piece.ids[piece.first :]), piece.answer) for piece in pieces)
    assert not ablation.right_answers(model, [ablation.Piece(p.ids, p.first, "no") for p in pieces[:2]]).any()


def test_the_loss_of_the_card():
    expected = json.loads((HERE / "demo" / "demo-gpt2-expected.json").read_text())["heldout"]
    model = cgpt.load("demo-gpt2", precision="exact")
    pieces = ablation.plays(model, ablation.HELDOUT.read_text("utf-8"))
    assert sum(len(piece.ids) - piece.first for piece in pieces) == expected["tokens"]
    assert max(len(piece.ids) for piece in ablation.plays(model, "to be " * 99, 64)) == 64
    (row,) = ablation.measure("demo-gpt2", pieces, {})
    assert row.loss == pytest.approx(expected["loss"], abs=1e-4)
    assert (row.change, row.change_se, row.kl, row.right) == (0, 0, 0, None) and row.top1 == pytest.approx(1)


@pytest.mark.parametrize("name", cgpt.demo_models())
def test_every_switch(name):
    """Each runs, changes something where it should, and leaves nothing behind."""
    original = gpt2.attend, k.layernorm
    model = cgpt.load(name, precision="exact")
    if name == "demo-gpt2":
        pieces = ablation.plays(model, ablation.HELDOUT.read_text("utf-8"))[:2]
    else:
        pieces = [ablation.Piece(p.ids, p.first) for p in ablation.chats(model, 24) if len(p.ids) > 170][:3]
    as_it_is, *rows = ablation.measure(name, pieces, switches.SWITCHES[name])
    assert as_it_is.kl == 0 and [row.switch for row in rows] == list(switches.SWITCHES[name])
    for row in rows:
        assert np.isfinite([row.loss, row.change, row.change_se, row.kl, row.top1]).all(), row
        assert row.kl < 1e-9 if row.switch in SAME else row.kl > 1e-12, row
    assert (gpt2.attend, k.layernorm) == original


def test_the_table(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ablation.py", "--model", "demo-gpt-oss", "--chats", "4", "--only", "1 expert"])
    ablation.main()
    out = capsys.readouterr().out
    assert "demo-gpt-oss: 4 pieces" in out and "4 of 4   +0 +-  0.0" in out and out.count("\n1 expert ") == 1
    sys.argv.append("--json")
    ablation.main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["switch"] for row in rows] == ["as it is", "1 expert"] and rows[0]["right"] == 4
