"""compare: the published parameter counts, small cases worked out by hand, and the tables."""

import json
import re

import pytest

import cgpt
from cgpt.analysis.compare import SAME, WHY, WIDTH, compare, groups, markdown, render
from cgpt.checkpoint.sizes import SIZES
from cgpt.cli import main as cli
from cgpt.errors import CheckpointError, ConfigError, ContextLengthError, InputError
from cgpt.models import synth

from support.synth_cases import TINY_GPT2, TINY_GPT_OSS, config_file

MXFP4 = {"quantization_config": {"quant_method": "mxfp4"}}
THREE = ["gpt2-xl", "gpt-oss-20b", "gpt-oss-120b"]


@pytest.fixture(scope="module")
def published():
    return {model["name"]: model for model in compare(list(SIZES))["models"]}


# ------------------------------------------------------------------------------------------ published figures


@pytest.mark.parametrize(
    "name, total",
    [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)],
)
def test_parameters_of_gpt2(published, name, total):
    assert published[name]["parameters"]["total"] == total
    assert sum(published[name]["parameters"]["parts"].values()) == total


@pytest.mark.parametrize(
    "name, L, E, billions, gib",
    [
        ("gpt-oss-20b", 24, 32, [20.91, 3.61, 19.12, 0.64, 1.16], 12.8),
        ("gpt-oss-120b", 36, 128, [116.83, 5.13, 114.71, 0.96, 1.16], 60.8),
    ],
)
def test_parameters_of_gpt_oss(published, name, L, E, billions, gib):
    """To the unit, and rounded as the model card has them. Active are the four experts of a token and the head, but one
    row of the embedding."""
    C, V, rows = 2880, 201088, (64 + 2 * 8) * 64
    expert = (2 * C) * C + 2 * C + C * C + C
    parts = {
        "embedding": V * C,
        "attention": L * (rows * C + rows + C * 64 * 64 + C + 64),
        "mlp": L * (E * C + E + E * expert),
        "norms": (2 * L + 1) * C,
        "unembedding": V * C,
    }
    total = sum(parts.values())
    active = total - L * (E - 4) * expert - (V - 1) * C
    model = published[name]
    assert model["parameters"] == {"total": total, "active": active, "parts": parts}
    both = parts["embedding"] + parts["unembedding"]
    assert [round(n / 1e9, 2) for n in (total, active, parts["mlp"], parts["attention"], both)] == billions
    assert round(model["bytes"]["disk"] / 2**30, 1) == gib


def test_what_decoding_takes(published):
    """At the end of 1,024 positions: half of the 20b's layers see 128 of them."""
    L, C = 24, 2880
    layer = (80 + 64) * 64 * C + 32 * C + 4 * 3 * C * C
    attention = 4 * 64 * 64 * 12 * (128 + 1024)
    assert published["gpt-oss-20b"]["flops"] == {"products": 2 * (L * layer + 201088 * C), "attention": attention}
    xl = 2 * (48 * 12 * 1600**2 + 50257 * 1600)
    assert published["gpt2-xl"]["flops"] == {"products": xl, "attention": 4 * 1600 * 48 * 1024}
    assert published["gpt2-xl"]["bytes"]["per_token"]["cache"] == 2 * 2 * 1600 * 48 * 1024


def test_gpt2_at_the_length_of_gpt_oss(published):
    """Keys and values of 1,600 numbers a layer, 2 bytes each, against 8 heads of 64, half of the layers 128 long."""
    longest = published["gpt2-xl"]["longest"]
    assert longest == {
        "within": False,
        "cache": 48 * 2 * 1600 * 2 * 131072,
        "attention_flops": 48 * 4 * 1600 * 131072,
        "position_parameters": (131072 - 1024) * 1600,
    }
    cache = 12 * 2 * 512 * 2 * (131072 + 128)
    flops = 12 * 4 * 4096 * (131072 + 128)
    expected = {"within": True, "cache": cache, "attention_flops": flops, "position_parameters": 0}
    assert published["gpt-oss-20b"]["longest"] == expected
    assert published["gpt-oss-20b"]["cache"]["full"] == cache


# ----------------------------------------------------------------------------------------------------- by hand


def test_a_small_gpt2(tmp_path):
    """2 blocks of width 4: attention 4 x 12 + 12 + 4 x 4 + 4 = 80, MLP 4 x 16 + 16 + 16 x 4 + 4 = 148, norms 16."""
    other = config_file(tmp_path / "other", TINY_GPT_OSS)
    facts = compare([config_file(tmp_path / "tiny", TINY_GPT2 | dict(attn_pdrop=0.0)), other])
    assert (facts["context"], facts["longest"], facts["kv_cache_dtype"]) == (8, 64, "f16")
    model = facts["models"][0]
    cache = model.pop("cache")
    cache.pop("full")  # in whole blocks: see tests/test_info.py
    model["longest"].pop("cache")
    disk = model["bytes"].pop("disk")
    parts = {"embedding": (10 + 8) * 4, "attention": 160, "mlp": 296, "norms": 2 * 16 + 8}
    assert model == {
        "name": "tiny",
        "source": "config.json",
        "architecture": "GPT-2",
        "choices": {
            "dropout": {"embedding": 0.1, "attention": 0.0, "residual": 0.1},
            "positions": {"kind": "learned", "number": 8},
            "activation": {"kind": "gelu_tanh"},
            "feed_forward": {"width": 16, "experts": 1, "experts_per_token": 1, "router": None},
            "attention": {"kind": "multi-head", "heads": 2, "kv_heads": 2, "head_dim": 2},
            "windows": {"positions": None, "layers": 0, "of_layers": 2, "alternating": False},
            "norm": {"kind": "LayerNorm", "eps": 1e-5, "place": "before"},
            "sinks": 0,
            "biases": {"attention": True, "mlp": True, "norms": True, "unembedding": False},
            "tied_head": True,
            "formats": {"F32": 568},
        },
        "shape": {"layers": 2, "width": 4, "vocabulary": 10, "context": 8},
        "parameters": {"total": 568, "active": 568 - 7 * 4, "parts": parts},
        "bytes": {
            "weights": 4 * 568,
            "per_token": {
                "embedding": 16,
                "attention": 640,
                "mlp": 1184,
                "norms": 160,
                "unembedding": 160,
                "cache": 8 * 32,
            },
        },
        "flops": {"products": 2 * (2 * 192 + 40), "attention": 2 * 4 * 4 * 8},
        "longest": {"within": False, "attention_flops": 2 * 4 * 4 * 64, "position_parameters": 56 * 4},
    }
    assert cache == {"first_position": 32, "last_position": 32}  # 2 layers, 2 heads of 2, key and value of 2 bytes
    assert disk > 4 * (568 + 2 * 8 * 8)  # and the masks


def test_a_small_gpt_oss(tmp_path):
    """A layer: attention 32 x 32 + 32 + 32 x 16 + 32 and 4 sinks = 1604; router 132; 4 experts of 3168, 3072 of that
    weights. MXFP4 takes 17 bytes for 32 of them."""
    tiny = config_file(tmp_path / "tiny", TINY_GPT_OSS | MXFP4)
    model = compare([tiny, "gpt-oss-20b"], context=8, kv_cache_dtype="f32")["models"][0]
    parts = {"embedding": 320, "attention": 3208, "mlp": 2 * (132 + 4 * 3168), "norms": 160, "unembedding": 320}
    assert model["parameters"] == {"total": 29616, "active": 29616 - 9 * 32 - 2 * 2 * 3168, "parts": parts}
    assert model["choices"] == {
        "dropout": {"attention": 0.0},
        "positions": {
            "kind": "rope",
            "theta": 150000.0,
            "scaling": "yarn",
            "factor": 32.0,
            "original_context": 4096,
            "concentration": pytest.approx(1.3465735902799727, rel=1e-15),
        },
        "activation": {"kind": "swiglu", "alpha": 1.702, "clamp": 7.0},
        "feed_forward": {"width": 32, "experts": 4, "experts_per_token": 2, "router": "softmax over the chosen"},
        "attention": {"kind": "grouped-query", "heads": 4, "kv_heads": 2, "head_dim": 4},
        "windows": {"positions": 3, "layers": 1, "of_layers": 2, "alternating": True},
        "norm": {"kind": "RMSNorm", "eps": 1e-5, "place": "before"},
        "sinks": 8,
        "biases": {"attention": True, "mlp": True, "norms": False, "unembedding": False},
        "tied_head": False,
        "formats": {"MXFP4": 24576, "BF16": 5040},
    }
    assert model["bytes"]["weights"] == 24576 * 17 // 32 + 2 * 5040
    experts = 2 * 2 * (3072 * 17 // 32 + 2 * 96)
    assert model["bytes"]["per_token"] == {
        "embedding": 64,
        "attention": 2 * 3208,
        "mlp": experts + 2 * 2 * 132,
        "norms": 320,
        "unembedding": 640,
        "cache": 64 * (3 + 8),
    }
    assert model["cache"]["first_position"] == 2 * 64  # f32: 2 heads of 4, key and value, in both layers
    assert model["cache"]["last_position"] == 64  # the window drops one for it
    assert model["longest"]["attention_flops"] == 4 * 16 * (3 + 131072)


@pytest.mark.parametrize(
    "change, label, cell",
    [
        (dict(layer_types=["full_attention"] * 2), "windows", "none: each sees all"),
        (dict(layer_types=["full_attention", "sliding_attention"]), "windows", "3 in 1 of 2 layers"),
        (dict(num_key_value_heads=4), "heads", "4 of 4"),
        (dict(attention_bias=False), "biases", "mlp"),
        (dict(tie_word_embeddings=True), "head", "tied to the embedding"),
        (dict(rope_scaling={"rope_type": "default"}, rope_theta=10000), "positions", "RoPE, base 10,000"),
        (dict(rope_scaling={"rope_type": "linear", "factor": 4}), "positions", "RoPE, base 150,000 + linear x 4"),
        (dict(attention_dropout=0.2), "dropout", "0.2 in training"),
        (dict(swiglu_limit=5.5), "activation", "SwiGLU, clamp 5.5"),
        (MXFP4, "weights", "MXFP4 83%, BF16 17%"),
    ],
)
def test_cells_of_other_choices(tmp_path, change, label, cell):
    tiny = config_file(tmp_path, TINY_GPT_OSS | change)
    rows = {row.label: row for row in groups(compare([tiny, "gpt2"]))["choices, step by step"]}
    assert rows[label].cells[0] == cell


# ------------------------------------------------------------------------------------------------- what it takes


def test_names_directories_and_configs(tmp_path, monkeypatch):
    synth.write(TINY_GPT2, tmp_path / "model")
    monkeypatch.chdir(tmp_path / "model")
    facts = compare([".", "config.json", tmp_path / "model", "demo-gpt2", "gpt2"])["models"]
    assert [m["name"] for m in facts] == ["model", "model", "model", "demo-gpt2", "gpt2"]
    assert [m["source"] for m in facts] == ["files", "config.json", "files", "files", "published size"]
    assert facts[0] | {"source": "config.json"} == facts[1]


@pytest.mark.parametrize(
    "names, error, message",
    [
        ([], InputError, "two models or more, found 0"),
        (["gpt2"], InputError, "two models or more, found 1"),
        (["gpt2", "gpt3"], InputError, "gpt3: no such directory"),
        (["gpt2", "empty"], ConfigError, "no config.json"),
        (["gpt2", "bad/config.json"], ConfigError, "bad/config.json: num_key_value_heads"),
        (["gpt2", "dropout/config.json"], ConfigError, "attn_pdrop"),
        (["gpt2", "alone"], CheckpointError, "alone"),
    ],
)
def test_refuses(tmp_path, monkeypatch, names, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    config_file(tmp_path / "bad", TINY_GPT_OSS | dict(num_key_value_heads=3))
    config_file(tmp_path / "dropout", TINY_GPT2 | dict(attn_pdrop="much"))
    config_file(tmp_path / "alone", TINY_GPT2)
    with pytest.raises(error, match=message):
        compare(names)


def test_refuses_a_bad_context():
    for context in (0, -1, True, 1.5, "8k"):
        with pytest.raises(InputError, match="context"):
            compare(["gpt2", "gpt-oss-20b"], context)
    with pytest.raises(ContextLengthError, match="1025 is beyond the 1024 positions of gpt2"):
        compare(["gpt-oss-20b", "gpt2"], 1025)
    assert compare(["gpt-oss-20b", "gpt2"], 1024)["context"] == 1024
    with pytest.raises(InputError, match="kv_cache_dtype"):
        compare(["gpt2", "gpt-oss-20b"], kv_cache_dtype="int4")


# ------------------------------------------------------------------------------------------------------ tables


def test_three_models_fit_the_terminal():
    text = render(compare(THREE), why=True)
    assert max(map(len, text.splitlines())) <= WIDTH == 100
    for figure in ("1,557,611,200", "3.61 B (17.3%)", "114.71 B", "12.8 GiB", "60.8 GiB", "40.27 GB", "RoPE + YaRN"):
        assert figure in text, figure
    assert len(text.splitlines()) < 65
    assert max(map(len, render(compare([*SIZES])).splitlines())) > WIDTH  # six are not squeezed


def test_rows_that_are_the_same_are_marked():
    def marked(names):
        return {line[5:21].strip() for line in render(compare(names)).splitlines()[:-1] if line.startswith(SAME)}

    assert marked(THREE) == {"norms stand"}
    assert {"context", "vocabulary", "positions", "attention", "weights"} <= marked(["gpt2", "gpt2-xl"])
    twice = groups(compare(["gpt2", "gpt2"]))
    assert marked(["gpt2", "gpt2"]) == {row.label for rows in twice.values() for row in rows}


def test_long_cells_take_several_lines(tmp_path):
    name = "a-name-of-a-directory-that-is-much-too-long-for-a-column"
    tiny = config_file(tmp_path / name, TINY_GPT2 | dict(attn_pdrop=0.25))
    lines = render(compare([tiny, *THREE])).splitlines()
    assert "".join(line[21:46].strip() for line in lines[:3]) == name
    dropout = [line[21:46].strip() for line in lines[4:6]]
    assert dropout == ["embedding 0.1, attention", "0.25, residual 0.1"]


def test_every_step_has_its_rows_and_its_reason():
    rows = groups(compare(THREE))["choices, step by step"]
    assert [*dict.fromkeys(row.step for row in rows)] == list(WHY) == list(range(1, 11))
    text = render(compare(THREE), why=True)
    assert all(f"{step:2} {reason}" in text for step, reason in WHY.items())
    assert WHY[1] not in render(compare(THREE))


def test_the_longest_context_is_shown_where_a_model_lacks_it():
    assert "at 131,072 positions" in groups(compare(["gpt2", "gpt-oss-20b"]))
    assert not any(title.startswith("at ") for title in groups(compare(["gpt-oss-120b", "gpt-oss-20b"])))


@pytest.mark.parametrize("why", [False, True])
def test_markdown(tmp_path, why):
    odd = config_file(tmp_path / "a|b", TINY_GPT_OSS)
    text = markdown(compare([odd, *THREE]), why)
    table = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]
    assert {len(row) for row in rows} == {6}
    assert rows[0] == ["", "", "a\\|b", *THREE] and rows[1] == ["---"] * 6
    assert text.splitlines()[: len(table)] == table  # in one piece
    shown = {row[1]: row[2:] for row in rows}
    assert shown["total"] == ["29,616", "1,557,611,200", "20,914,757,184", "116,829,156,672"]
    assert [row[1] for row in rows if row[0] == SAME] == ["9 norms stand"]
    assert ("1. " + WHY[1] in text) == why


# ------------------------------------------------------------------------------------------------ command line


def run(capsys, *args):
    status = cli.main(["compare", *map(str, args)])
    out, err = capsys.readouterr()
    return status, out, err


def test_json_holds_the_facts(capsys, tmp_path):
    tiny = config_file(tmp_path, TINY_GPT2)
    names = ["demo-gpt2", "demo-gpt-oss", "gpt-oss-20b", str(tiny)]
    status, out, _ = run(capsys, "--json", *names, "--context", 7, "--kv-cache-dtype", "bf16")
    assert (status, json.loads(out)) == (0, compare(names, 7, "bf16"))


def test_forms(capsys):
    facts = compare(["gpt2", "gpt-oss-20b"])
    assert run(capsys, "gpt2", "gpt-oss-20b") == (0, render(facts) + "\n", "")
    assert run(capsys, "gpt2", "gpt-oss-20b", "--why") == (0, render(facts, True) + "\n", "")
    assert run(capsys, "--markdown", "gpt2", "gpt-oss-20b") == (0, markdown(facts) + "\n", "")
    with pytest.raises(SystemExit):
        run(capsys, "--markdown", "--json", "gpt2", "gpt-oss-20b")


def test_errors_are_one_line(capsys):
    for names in (["gpt2"], ["gpt2", "nothing"], ["gpt2", "demo-gpt2", "--context", 10**6]):
        status, out, err = run(capsys, *names)
        assert (status, out) == (2, "") and re.fullmatch(r"cgpt: error: .+\n", err)


def test_reads_no_weights(monkeypatch):
    monkeypatch.setattr(cgpt.checkpoint.safetensors.Checkpoint, "array", None)
    assert len(compare(cgpt.demo_models())["models"]) == 2
