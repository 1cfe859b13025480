"""cgpt evolution: what each ratio is made of, counted by hand at small shapes; what the command prints and writes."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from cgpt.bench import operands
from cgpt.cli import main as cli
from cgpt.errors import ContextLengthError, InputError
from cgpt.evolution import page, session, steps_attention, steps_block, steps_mlp
from cgpt.evolution.measure import Case, Way
from cgpt.evolution.setting import Setting
from cgpt.evolution.step import Step
from cgpt.evolution.steps import STEPS, chosen
from cgpt.kernels import isa
from cgpt.machine import roofline

SMALL = Setting(1, width=64, contexts=(200,), prompt=16, seconds=0)
EXPERT = 3 * 64 * 64  # weights: gate, up, down
ROUTER = 4 * (32 * 64 + 32)  # bytes, f32 with biases
LAYERS = 24


@pytest.fixture(autouse=True)
def no_ring(monkeypatch):
    monkeypatch.setattr(operands, "RING", 1)


@pytest.fixture(scope="module")
def cases():
    """{(step, label): case} of every step at small shapes."""
    ring, operands.RING = operands.RING, 1
    found = {(step.number, case.label): case for step in STEPS for case in step.cases(SMALL)}
    operands.RING = ring
    return found


def test_the_small_setting_has_one_key_value_head():
    assert (SMALL.heads, SMALL.kv_heads) == (8, 1)
    assert (Setting(1).heads, Setting(1).kv_heads) == (64, 8), "as gpt-oss"


# (bytes, operations) of the old way and the new one; T = 1 or 16, C = I = 64, H = 8, G = 8 or 1, D = 64.
HAND = {
    # x and y read, the sum written; the mask's random numbers and itself written and read, and two products.
    (1, "training, residual of 16 tokens"): ((4096 * 3 + 4096 * 6 + 1024 * 2, 5 * 1024), (4096 * 3, 1024)),
    # A row of 64 bf16 of each table and 64 sums; 24 layers that rotate 9 heads of 32 pairs.
    (2, "one token, all 24 layers"): ((256, 64), (128, 24 * 6 * 9 * 32)),
    (2, "share of a block, one token"): ((8 * 9 * 64, 6 * 9 * 32), None),
    (3, "4 x 256 values, in the caches"): ((8192, 0), (8192, 0)),
    # 2 x 256 x 64 weights; 3 x 176 x 64 (8/3 of 64 is 170.7, in whole sixteens 176).
    (3, "feed-forward, one token"): ((2 * 32768, 2 * 32768), (2 * 33792, 2 * 33792)),
    (3, "feed-forward, prompt of 16"): ((2 * 32768, 32 * 32768), (2 * 33792, 32 * 33792)),
    # 17 bytes for 32 weights; four of 32 experts and the router.
    (4, "equal total, one token"): (
        (32 * EXPERT * 17 // 32, 2 * 32 * EXPERT),
        (4 * EXPERT * 17 // 32 + ROUTER, 2 * (4 * EXPERT + 32 * 64)),
    ),
    (4, "equal active, one token"): (
        (4 * EXPERT * 17 // 32, 2 * 4 * EXPERT),
        (4 * EXPERT * 17 // 32 + ROUTER, 2 * (4 * EXPERT + 32 * 64)),
    ),
    (4, "128 experts for 32, one token"): (
        (4 * EXPERT * 17 // 32 + ROUTER, 2 * (4 * EXPERT + 32 * 64)),
        (4 * EXPERT * 17 // 32 + 4 * ROUTER, 2 * (4 * EXPERT + 128 * 64)),
    ),
    # f16 keys and values of 200 positions: 2 x 2 x 64 x 200 a head; q k and p v of 8 heads: 4 x 64 x 8 a pair.
    (5, "decode at 200"): ((8 * 51200, 409600), (51200, 409600)),
    # Queries at 184 .. 199 see 185 .. 200 positions, 3080 pairs.
    (5, "prompt of 16 at 200"): ((8 * 51200, 2048 * 3080), (51200, 2048 * 3080)),
    # (8 + 2 x 8) or (8 + 2) heads of 64 rows of 64 bf16.
    (5, "qkv product, one token"): ((2 * 24 * 4096, 2 * 24 * 4096), (2 * 10 * 4096, 2 * 10 * 4096)),
    (6, "decode, alternating at 200"): ((2 * 51200, 2 * 409600), (51200 + 32768, 409600 + 262144)),
    (6, "decode, Gemma's 5:1 at 200"): ((6 * 51200, 6 * 409600), (51200 + 5 * 32768, 409600 + 5 * 262144)),
    # In a window of 128, the 16 queries see 128 positions each: 143 in all.
    (6, "prompt of 16, alternating at 200"): (
        (2 * 51200, 2 * 2048 * 3080),
        (51200 + 256 * 143, 2048 * (3080 + 16 * 128)),
    ),
    (7, "one token"): ((512, 512), (512, 256)),
    (7, "16 rows from memory"): ((8192, 8192), (8192, 4096)),
    (7, "share of a block, one token"): ((1024, 512), None),
    (8, "decode at 200"): ((51200, 409600), (51200, 409600)),
    (9, "qkv product, one token"): ((2 * 40960, 2 * 40960), (2 * 40960 + 4 * 640, 2 * 40960)),
    (10, "one token against f32"): ((4 * 8192, 2 * 8192), (17 * 256, 2 * 8192)),
    (10, "one token against bf16"): ((2 * 8192, 2 * 8192), (17 * 256, 2 * 8192)),
}


@pytest.mark.parametrize("number, label", HAND)
def test_bytes_and_operations_by_hand(cases, number, label):
    case = cases[number, label]
    for way, expected in zip((case.old, case.new), HAND[number, label], strict=True):
        assert expected is None or (way.bytes, way.flops) == expected, way.name


def test_a_block_is_the_sum_of_its_parts(cases):
    """qkv and out in bf16 with biases, 200 cached positions, router, four experts; norms and RoPE are not counted."""
    block = cases[7, "share of a block, one token"].new
    weights = 2 * (640 * 64 + 64 * 512) + 4 * (640 + 64)
    assert block.bytes == weights + 51200 + ROUTER + 4 * EXPERT * 17 // 32
    assert block.flops == 2 * (640 * 64 + 64 * 512) + 409600 + 2 * 32 * 64 + 2 * 4 * EXPERT


def test_caches_and_parameters(cases):
    old, new = cases[5, "decode at 200"].old, cases[5, "decode at 200"].new
    assert (old.cache, new.cache) == (8 * 51200, 51200)
    assert cases[6, "decode, alternating at 200"].new.cache == 51200 + 32768
    assert (cases[3, "feed-forward, one token"].old.parameters, cases[3, "feed-forward, one token"].new.parameters) == (
        2 * 256 * 64,
        3 * 176 * 64,
    )
    total = cases[4, "equal total, one token"]
    assert total.old.parameters == total.new.parameters == 32 * EXPERT
    assert cases[4, "equal active, one token"].old.parameters == 4 * EXPERT


def test_every_step_is_run_both_ways(cases):
    assert [step.number for step in STEPS] == list(range(1, 11)) == sorted({number for number, _ in cases})
    for case in cases.values():
        for way in (case.old, case.new):
            for turn in way.turns:
                turn()


def test_caches_and_weights_fill_the_ring(monkeypatch):
    """As many copies as take its bytes, so that each comes from memory when its turn is there again."""
    monkeypatch.setattr(operands, "RING", 10 * 51200)
    assert [len(SMALL.attention("", 200, 1, g).turns) for g in (1, 8)] == [10, 1]
    assert len(SMALL.linear("", "MXFP4", 128, 64, 1).turns) == 24, "at most"
    assert len(SMALL.linear("", "F32", 1280, 64, 1).turns) == 1
    assert len(SMALL.linear("", "BF16", 400, 64, 1).turns) == 10


def facts(number):
    return {fact.label: fact for fact in chosen([number])[0].facts(SMALL)}


def test_whole_models():
    """What is counted for the published sizes: by hand, or as published."""
    a_model = SimpleNamespace(n_embd=4, n_layer=2, n_head=2)
    assert steps_block.dropout_masks(3, a_model) == 12 + 2 * (2 * 12 + 2 * 9)
    assert facts(2)["parameters of positions, were there 131,072 at width 2,880"].old == 131072 * 2880
    found = facts(5)
    assert found["cache of a token, gpt-oss-20b"].new == LAYERS * 2 * 2 * 8 * 64
    assert found["cache at all 131,072 positions"].old == LAYERS * 2 * 2 * 64 * 64 * 131072
    found = facts(6)
    full, window = 2 * 2 * 8 * 64 * 4096, 2 * 2 * 8 * 64 * 128
    assert found["cache at 4,096, window in every other layer"].new == 12 * full + 12 * window
    assert found["cache at 4,096, window in five of six"].new == 4 * full + 20 * window
    assert found["cache at 4,096, window in five of six"].old == 24 * full
    biases = LAYERS * (5120 + 2880 + 32 * (5760 + 2880 + 1))
    assert facts(9)["share of gpt-oss-20b's parameters in biases"].new == pytest.approx(biases / 20914757184)
    assert facts(10)["bits of a weight (bf16, MXFP4)"].new == 4.25


@pytest.mark.parametrize("number", range(1, 11))
def test_published_figures_hold(number):
    assert all(fact.holds is not False for fact in facts(number).values())


def test_what_the_kernels_show(monkeypatch):
    assert steps_mlp.largest_swiglu(7.0) == pytest.approx(56, rel=1e-4), "7 sigmoid(1.702 x 7) (7 + 1)"
    assert steps_mlp.largest_swiglu(float("inf")) == pytest.approx(50 * 51)
    assert steps_attention.attended(None) == pytest.approx(1)
    assert steps_attention.attended(0.0) == pytest.approx(4 / 5, rel=1e-3), "four scores of 0 and a sink of 0"
    assert 0 < steps_block.relative_change(100) < 0.01


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"width": 100}, InputError, "width: 100 is not a multiple of 64 from 64 to 4,096"),
        ({"width": 0}, InputError, "width: 0"),
        ({"width": 8192}, InputError, "width: 8192"),
        ({"contexts": ()}, InputError, "contexts"),
        ({"contexts": (0,)}, InputError, "contexts"),
        ({"contexts": (5, 5)}, InputError, "twice"),
        ({"contexts": (131073,)}, ContextLengthError, "131,073"),
        ({"prompt": 0}, InputError, "prompt: 0"),
        ({"threads": 0}, InputError, "threads must be"),
    ],
)
def test_settings(change, error, message):
    with pytest.raises(error, match=message):
        Setting(**{"threads": 1} | change)


# ---- the command


@pytest.fixture
def evolution(capsys, monkeypatch):
    """Runs cgpt evolution in this process -> exit status, stdout, stderr."""
    monkeypatch.setattr(session, "ROOFLINE_SECONDS", 0.01)
    monkeypatch.setattr(roofline, "buffer_bytes", lambda caches, available: roofline.BLOCK)

    def run(*args):
        return cli.main(["evolution", "--threads", "1", *args]), *capsys.readouterr()

    return run


TINY = ("--width", "64", "--contexts", "200,32", "--prompt", "16", "--seconds", "0")


class Page(HTMLParser):
    """A page's tags, closed in order, and what stands in them."""

    VOID = {"meta", "br"}
    ADDRESSES = {"href", "src", "action", "data", "xlink:href"}

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.series, self.texts, self.ids = [], [], {}, [], set()
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.links += [attrs[name] for name in self.ADDRESSES & set(attrs)]
        self.ids.add(attrs.get("id"))
        if "data-series" in attrs:
            self.series.setdefault(attrs["data-series"], []).append(attrs["data-points"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data):
        self.texts.append(data.strip())


def test_report_on_ref(evolution, tmp_path):
    """The whole report at the slowest level: JSON, page, and what stands in both."""
    before = isa.level()
    status, out, err = evolution(*TINY, "--level", "ref", "--json", "--html", str(tmp_path / "x.html"))
    result = json.loads(out)
    assert status == 0 and isa.level() == before and err.endswith(f"cgpt: wrote {tmp_path / 'x.html'}\n")
    assert result["level"] == "ref" and result["threads"] == 1 and len(result["rooflines"]) == 11
    assert result["setting"] == {
        "width": 64,
        "heads": 8,
        "kv_heads": 1,
        "contexts": [32, 200],
        "prompt": 16,
        "seconds": 0.0,
    }
    assert [step["number"] for step in result["steps"]] == list(range(1, 11))
    for step in result["steps"]:
        assert set(step) == {"number", "title", "claim", "note", "cases", "facts", "verdict", "line", "warnings"}
        assert step["cases"] and step["line"] and step["claim"]
        for case in step["cases"]:
            assert set(case) == {
                "label", "phase", "context", "claim", "within", "old", "new", "counted", "ratio", "low", "high",
                "verdict", "text"}  # fmt: skip
            assert case["low"] <= case["ratio"] <= case["high"]
            for way in (case["old"], case["new"]):
                assert set(way) == {"name", "median_s", "samples_s", "bytes", "flops", "cache_bytes", "parameters"}
                assert way["median_s"] > 0 and len(way["samples_s"]) >= 3
        for fact in step["facts"]:
            assert set(fact) == {"label", "unit", "old", "new", "claimed", "holds"}
    assert result["models"]["gpt-oss-120b"]["parameters"]["active"] == 5132852352
    text = (tmp_path / "x.html").read_text()
    check_page(text, result)


def check_page(text, result):
    found = Page(text)
    assert all(link.startswith("#step-") and link[1:] in found.ids for link in found.links) and len(found.links) == 10
    assert not re.search(r"https?:|//|url\(|@import|<script|<link|<img", text), "a report needs nothing else"
    words = " ".join(found.texts)
    for step in result["steps"]:
        assert step["title"] in words and step["line"] in words and step["claim"] in words
    # Every point of the curves, with its figures.
    by_number = {step["number"]: step["cases"] for step in result["steps"]}
    for phase in ("decode", "prompt"):
        for name, side in (("8 KV heads", "old"), ("1 KV heads", "new")):
            points = " ".join(
                f"{c['context']},{c[side]['median_s']:.9g}"
                for c in by_number[5]
                if c["context"] and c["phase"].startswith(phase)
            )
            assert points in found.series[name] and len(points.split()) == 2
    points = " ".join(f"{c['context']},{c['new']['median_s'] / 6:.9g}" for c in by_number[6] if "5:1" in c["phase"])
    assert found.series["5 windows, full: mean of 6 layers"] == [points]
    for name, curve in result["caches"].items():
        assert found.series[name] == [" ".join(f"{x},{y:.9g}" for x, y in curve)] and len(curve) == 11
    for name, model in result["models"].items():
        for part, number in model["parameters"]["parts"].items():
            assert found.series[f"{name}: {part}"] == [f"0,{number:.9g}"]
        for kind in ("active", "total"):
            assert found.series[f"{name}: {kind}"] == [f"0,{model['parameters'][kind]:.9g}"]
    cases = [case for cases in by_number.values() for case in cases]
    assert found.series["ratio"] == [f"0,{c['ratio']:.9g}" for c in cases if c["claim"] not in ("share", "portion")]


def test_text_of_some_steps(evolution):
    status, out, err = evolution(*TINY, "--step", "7,5")
    assert status == 0 and re.findall(r"^ (\d)  (.{8})", out, re.M) == [
        ("5", "Multi-he"),
        ("7", "LayerNor"),
        ("5", "Multi-he"),
        ("7", "LayerNor"),
    ]
    assert "    claimed: one reduction instead of two" in out and "    here: " in out
    assert "8 KV heads -> 1 KV heads" in out and "cache at all 131,072 positions: 51.5 GB -> 6.44 GB" in out
    assert "cgpt:    decode at 200\n" in err


def test_what_a_page_shows_is_escaped(evolution):
    result = json.loads(evolution(*TINY, "--step", "7", "--json")[1])
    result["cpu_info"] = result["steps"][0]["title"] = result["steps"][0]["cases"][0]["label"] = "<b>&'\""
    text = page.render(result)
    assert "<b>" not in text and Page(text).texts.count("<b>&'\"") == 4


@pytest.mark.parametrize(
    "args, message",
    [
        (("--width", "100"), "width: 100 is not a multiple of 64 from 64 to 4,096"),
        (("--contexts", "200000"), "context 200,000 is beyond the 131,072 positions"),
        (("--step", "11"), "step 11: there are steps 1 to 10"),
        (("--level", "sse"), "unknown level 'sse'"),
        (("--html", "no/such/directory/x.html"), "there is no directory no/such/directory"),
        (("--threads", "0"), "threads must be an integer from 1 to 4096"),
    ],
)
def test_errors(evolution, args, message):
    status, out, err = evolution("--step", "8", *args)
    assert status == 2 and out == "" and err.startswith("cgpt: error: ") and message in err


@pytest.mark.parametrize(
    "seconds, shares, expected",
    [
        (0, [0.0, 0.5], "too noisy"),  # too short for counters of its own: the step's
        (0, [0.9, 0.1], "noted"),
        (0.3, [0.9, 0.0], "too noisy"),
        (0.3, [0.1, 0.9], "noted"),
    ],
)
def test_no_verdict_while_others_compute(monkeypatch, seconds, shares, expected):
    """shares: what others used during the measurement, and during the step."""

    class Watch(session.Watch):
        def shares(self):
            return (shares[0] if self is watches[-1] and len(watches) > 1 else shares[1]), None

        def __init__(self):
            super().__init__()
            watches.append(self)

    watches = []
    monkeypatch.setattr(session, "Watch", Watch)
    monkeypatch.setattr(session, "ROOFLINE_SECONDS", 0.01)
    monkeypatch.setattr(roofline, "buffer_bytes", lambda caches, available: roofline.BLOCK)
    way = Way("", [lambda: None], 0, 0)
    step = Step(1, "", lambda s: iter([Case("x", way, way, "none")]), lambda s: [], "")
    (found,) = session.run(replace(SMALL, seconds=seconds), [step])["steps"]
    assert (found["cases"][0]["verdict"], found["verdict"]) == (expected, expected)
