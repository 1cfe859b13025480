"""What a setting costs: the numbers by hand, the cutting into windows, and the command."""

import dataclasses
import io
import json
import math
import re

import numpy as np
import pytest

import cgpt
from cgpt.analysis import quality
from cgpt.analysis.quality import Quality, compare, measure, summary
from cgpt.cli import main as cli
from cgpt.errors import ContextLengthError, EmptyPromptError, InputError, TokenIdError
from cgpt.kernels._kernels import PRECISIONS

from golden import case

PLAIN = "gptoss_basic/hf_mxfp4"


@pytest.fixture(scope="module")
def gpt2():
    return cgpt.load("demo-gpt2", precision="exact")


def random_ids(model, length, seed=0):
    return np.random.default_rng(seed).integers(0, model.vocab_size, length)


class Disturbed:
    """A model whose logits are multiplied by `factor`; notes the sizes of its steps."""

    def __init__(self, model, factor=1.0):
        self.model, self.factor, self.sizes, self.transformer = model, np.float32(factor), [], self

    def __getattr__(self, name):
        return getattr(self.model if hasattr(self.model, name) else self.model.transformer, name)

    def step(self, batch, **how):
        self.sizes += [len(ids) for _, ids in batch]
        return self.model.transformer.step(batch, **how) * self.factor


# ---- The numbers


def test_by_hand():
    """Two tokens of a vocabulary of 3: p = (1/2, 1/4, 1/4) against q = (1/8, 3/8, 1/2), and equal ones."""
    p = np.log(np.array([[2, 1, 1], [1, 1, 8]], np.float32)) + np.float32([[3], [-50]])
    q = np.log(np.array([[1, 3, 4], [1, 1, 8]], np.float32)) + np.float32([[-2], [7]])
    found = measure(p, q, np.array([0, 1]))
    kl = math.log(4) / 2 + math.log(2 / 3) / 4 + math.log(1 / 2) / 4
    np.testing.assert_allclose(found[0], [kl, 0], rtol=0, atol=1e-6)
    assert found[1].tolist() == [0, 1]
    np.testing.assert_allclose(found[2], [math.log(2), math.log(10)], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found[3], [math.log(8), math.log(10)], rtol=0, atol=1e-6)


def test_in_float64_at_any_number_of_tokens(rng):
    p, q = (rng.standard_normal((21, 50)).astype(np.float32) * 4 for _ in range(2))
    targets = rng.integers(0, 50, 21)
    found = measure(p, q, targets)
    for t in range(21):
        a, b = ([math.exp(float(x)) for x in logits[t]] for logits in (p, q))
        a, b = [x / math.fsum(a) for x in a], [x / math.fsum(b) for x in b]
        kl = math.fsum(x * math.log(x / y) for x, y in zip(a, b, strict=True))
        expected = [kl, a.index(max(a)) == b.index(max(b)), -math.log(a[targets[t]]), -math.log(b[targets[t]])]
        np.testing.assert_allclose(found[:, t], expected, rtol=1e-12, atol=1e-14)


def test_far_logits_neither_overflow_nor_divide_by_zero():
    found = measure(np.float32([[0, 2000]]), np.float32([[2000, 0]]), np.array([1]))
    assert found[:, 0].tolist() == [2000, 0, 0, 2000]


def test_rounding_makes_no_kl_negative(rng):
    p = rng.standard_normal((2000, 50)).astype(np.float32) * 4
    assert measure(p, p + np.float32(1), np.zeros(len(p), int))[0].min() >= 0


def test_summary_by_hand():
    kl, agree = [0.1, 0.2, 0.3, 0.8], [1, 0, 1, 1]
    expected, found = [1.0, 2.0, 3.0, 4.0], [1.5, 2.0, 3.5, 5.0]  # differences 0.5, 0, 0.5, 1: mean 0.5
    got = summary(np.array([kl, agree, expected, found]), windows=2, context=3)
    deviation = math.sqrt((0 + 0.25 + 0 + 0.25) / 3)
    assert (got.tokens, got.windows, got.context, got.top1_agreement) == (4, 2, 3, 0.75)
    assert got.kl_mean == pytest.approx(0.35) and got.kl_median == pytest.approx(0.25)
    assert got.kl_max == 0.8 and got.kl_p99 == pytest.approx(0.3 + 0.97 * 0.5)
    assert got.kl_mean_se == pytest.approx(math.sqrt((0.0625 + 0.0225 + 0.0025 + 0.2025) / 3) / 2)
    assert got.perplexity_reference == pytest.approx(math.exp(2.5)) and got.perplexity == pytest.approx(math.exp(3))
    assert got.perplexity_change == pytest.approx(math.exp(0.5) - 1)
    assert got.perplexity_change_se == pytest.approx(math.exp(0.5) * deviation / 2)


# ---- Models


@pytest.mark.parametrize("name", ["demo-gpt2", "demo-gpt-oss"])
def test_a_model_is_like_itself(name):
    model = cgpt.load(name, precision="exact")
    found = compare(model, model, random_ids(model, 300), context=100)
    assert (found.kl_mean, found.kl_max, found.top1_agreement) == (0, 0, 1)
    assert (found.perplexity_change, found.perplexity_change_se) == (0, 0)
    assert found.perplexity == found.perplexity_reference > 1


def test_a_disturbed_model_is_not(gpt2):
    ids = random_ids(gpt2, 200)
    mild, strong = (compare(gpt2, Disturbed(gpt2, factor), ids) for factor in (1.05, 1.5))
    assert 0 < mild.kl_median < mild.kl_mean < mild.kl_max < strong.kl_max
    assert mild.kl_mean < strong.kl_mean / 10 and mild.perplexity_change < strong.perplexity_change
    assert mild.top1_agreement == 1  # a factor moves no maximum


def test_rounded_weights_are_measured():
    directory = case("gpt2_plain_f32").directory
    exact, rounded = (cgpt.load(directory, precision="exact", dense=dense) for dense in (None, "bf16"))
    found = compare(exact, rounded, random_ids(exact, 60))
    assert 1e-9 < found.kl_mean < 1e-2 and 0.5 < found.top1_agreement <= 1
    assert abs(found.perplexity_change) < 20 * found.perplexity_change_se


def test_every_token_but_the_first_is_predicted_once_in_its_window(gpt2):
    ids, other = random_ids(gpt2, 131), Disturbed(gpt2, 1.2)
    found = compare(gpt2, other, ids, context=50)
    logits = np.concatenate([gpt2.logits(ids[i : min(i + 50, 130)]) for i in range(0, 130, 50)])
    assert found == summary(measure(logits, logits * np.float32(1.2), ids[1:]), windows=3, context=50)
    assert other.sizes == [50, 50, 30]
    whole = compare(gpt2, other, ids)
    assert (whole.windows, whole.context, whole.tokens) == (1, 130, 130)


def test_logits_are_bounded(gpt2, monkeypatch):
    ids, other = random_ids(gpt2, 200), Disturbed(gpt2, 1.2)
    whole = compare(gpt2, other, ids)
    told = []
    monkeypatch.setattr(quality, "LOGITS_BYTES", 4 * gpt2.vocab_size * 33)
    assert compare(gpt2, other, ids, progress=lambda *done: told.append(done)) == whole
    assert other.sizes == [199] + [33] * 6 + [1]
    assert told == [(33 * i, 199) for i in range(1, 7)] + [(199, 199)]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["demo-gpt2", "demo-gpt-oss"])
def test_decode_measures_what_generation_computes(level, name, precision):
    exact = cgpt.load(name, precision="exact")
    model, ids = cgpt.load(name, precision=precision), random_ids(exact, 40)
    sequence = model.transformer.new_cache()
    alone = np.concatenate([model.transformer.step([(sequence, [i])]) for i in ids[:-1]])
    expected = summary(measure(exact.logits(ids[:-1]), alone, ids[1:]), windows=1, context=39)
    assert compare(exact, model, ids, decode=True) == expected
    assert (expected.kl_mean > 0) == (precision != "exact")  # the others keep keys and values in f16 at least


def test_the_same_weights_at_another_precision(level):
    model = cgpt.load(case(PLAIN).directory)
    ids, before = random_ids(model, 40), model.logits(random_ids(model, 40))
    twin = model.at_precision("exact")
    assert (model.precision, twin.precision) == (
        "auto",
        "exact",
    )
    assert twin.transformer.blocks is model.transformer.blocks
    assert np.array_equal(twin.logits(ids), cgpt.load(case(PLAIN).directory, precision="exact").logits(ids))
    assert np.array_equal(model.logits(ids), before)


# ---- What is refused


def test_refusals(gpt2, monkeypatch):
    monkeypatch.setattr(gpt2.transformer, "step", None)
    other = cgpt.load("demo-gpt-oss")
    for error, message, ids, how in (
        (InputError, "2048 and 5\\d\\d tokens", [1, 2, 3], dict(model=other)),
        (InputError, "has 2 tokens; give 3", [1, 2], {}),
        (EmptyPromptError, "no token", "", {}),
        (EmptyPromptError, "no token", [], {}),
        (TokenIdError, "2048", [1, 2, 2048], {}),
        (ContextLengthError, "context is 257, the model has 256", [1, 2, 3], dict(context=257)),
        (InputError, "context must be an integer of at least 1", [1, 2, 3], dict(context=0)),
    ):
        with pytest.raises(error, match=message):
            compare(gpt2, how.pop("model", gpt2), ids, **how)


# ---- The command


def run(capsys, *args):
    try:
        status = cli.main(["quality", *map(str, args)])
    except SystemExit as exit:
        status = exit.code
    return status, *capsys.readouterr()


def test_json(capsys, gpt2, tmp_path):
    text = "But soft, what light through yonder window breaks? " * 12
    (tmp_path / "text").write_text(text)
    exact = cgpt.load("demo-gpt-oss", precision="exact")
    for model, options, setting in (
        (cgpt.load("demo-gpt-oss"), ["--decode"], dict(precision="auto", dense=None, decode=True)),
        (exact, ["--precision", "exact"], dict(precision="exact", dense=None, decode=False)),
        (cgpt.load("demo-gpt-oss", dense="bf16"), ["--dense", "bf16"], dict(dense="bf16", decode=False)),
    ):
        args = ["--model", "demo-gpt-oss", "--text", tmp_path / "text", "--context", 100, "--json", *options]
        status, out, err = run(capsys, *args)
        got = json.loads(out)
        expected = compare(exact, model, text, context=100, decode="--decode" in options)
        assert (status, err) == (0, "") and got.items() >= dataclasses.asdict(expected).items()
        assert got.items() >= setting.items() and got["model"] == "demo-gpt-oss"
        assert {field.name for field in dataclasses.fields(Quality)} | {
            "model",
            "kv_cache_dtype",
            *setting,
            "precision",
        } == set(got)


def test_the_table_and_the_text_of_the_package(capsys, gpt2, monkeypatch):
    status, out, err = run(capsys, "--context", 200)
    tokens = len(gpt2.tokenizer.encode(quality.TEXT.read_text(encoding="utf-8"))) - 1
    assert (status, err) == (0, "") and tokens > 1000
    assert f"{tokens} predicted tokens in {-(-tokens // 200)} windows of 200" in out
    for name in ("model", "against", "text", "KL divergence", "top-1 agreement", "perplexity"):
        assert re.search(rf"^{name} +\S", out, re.M)
    found = Quality(100, 1, 100, 0.0125, 0.001, 0.01, 0.05, 0.25, 0.985, 20.0, 20.5, 0.025, 0.003)
    monkeypatch.setattr(quality, "compare", lambda *args, **options: found)
    out = run(capsys, "--precision", "exact")[1]
    assert "mean 0.0125 +- 0.001, median 0.01, p99 0.05, max 0.25 nats" in out and "one window" in out
    assert "98.50 %" in out and "20.0000 -> 20.5000 (+2.5000 % +- 0.3000 %)" in out


def test_stdin_and_errors(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("na\u00efve words\n".encode()), encoding="ascii"))
    status, out, _ = run(capsys, "--text", "-", "--json")
    assert status == 0 and 3 <= json.loads(out)["tokens"] < 20
    (tmp_path / "latin").write_bytes(b"\xff")
    for args in (["--text", tmp_path / "none"], ["--text", tmp_path / "latin"], ["--context", 10**6]):
        status, out, err = run(capsys, *args)
        assert (status, out) == (2, "") and re.fullmatch(r"cgpt: error: .+\n", err)
    assert run(capsys, "--dense", "int3")[0] == run(capsys, "--precision", "most")[0] == 2
