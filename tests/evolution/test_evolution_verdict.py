"""What cgpt evolution concludes from times: on made-up ones, where the answer is known."""

import math

import pytest

from cgpt.evolution import measure
from cgpt.evolution.measure import Case, Way, alternate, counted
from cgpt.evolution.units import shown
from cgpt.evolution.verdict import (
    CONTRADICTED,
    HOLDS,
    NONE,
    NOTED,
    PARTLY,
    UNCLEAR,
    interval,
    judge,
    line,
    of_step,
    percent,
)
from cgpt.machine.roofline import Roofline

STEADY = (0.99, 1.0, 1.0, 1.0, 1.01, 1.0, 1.0, 0.995, 1.005)
WILD = (0.3, 3.0, 0.5, 2.0, 1.0, 0.8, 1.3, 2.5, 0.4)


def pairs(ratio, wobble=STEADY):
    """Times whose ratios old / new are `ratio` and vary by `wobble`."""
    return [ratio * w for w in wobble], [1.0] * len(wobble)


@pytest.mark.parametrize(
    "claim, ratio, wobble, options, kind, text",
    [
        ("faster", 2.0, STEADY, {}, HOLDS, "2.00 x faster"),
        ("faster", 2.0, STEADY, {"counted": 2.2}, HOLDS, "2.00 x faster"),
        ("faster", 2.0, STEADY, {"counted": 8.0}, PARTLY, "2.00 x faster, 8.00 x counted"),
        ("faster", 0.5, STEADY, {"counted": 8.0}, CONTRADICTED, "2.00 x slower"),
        ("faster", 1.02, STEADY, {}, NONE, "no difference beyond the noise (1.02 x, 1.01 to 1.03)"),
        ("faster", 2.0, WILD, {}, UNCLEAR, "no difference beyond the noise (2.00 x, 0.80 to 5.00)"),
        ("free", 1.0, STEADY, {}, HOLDS, "costs nothing measurable"),
        ("free", 0.98, STEADY, {}, HOLDS, "2.0 % more time"),
        ("free", 1.5, STEADY, {}, HOLDS, "costs nothing: 1.50 x faster"),
        ("free", 0.8, STEADY, {}, CONTRADICTED, "25 % more time"),
        ("free", 0.8, STEADY, {"within": 0.3}, HOLDS, "25 % more time"),
        ("free", 1.0, WILD, {}, UNCLEAR, "takes 1.00 of the old time, 0.40 to 2.50"),
        ("share", 0.01, STEADY, {}, HOLDS, "1.0 % of it"),
        ("share", 0.2, STEADY, {}, CONTRADICTED, "20 % of it"),
        ("share", 0.05, STEADY, {}, UNCLEAR, "5.0 % of it, 5.0 % to 5.0 %"),
        ("portion", 0.2, STEADY, {}, NOTED, "20 % of it"),
        ("none", 0.25, STEADY, {}, NOTED, "4.00 x slower"),
        ("none", 1.0, WILD, {}, NOTED, "no difference beyond the noise (1.00 x, 0.40 to 2.50)"),
    ],
)
def test_judge(claim, ratio, wobble, options, kind, text):
    found = judge(claim, *pairs(ratio, wobble), **options)
    assert (found.kind, found.text) == (kind, text)
    assert found.low <= found.ratio <= found.high and found.ratio == pytest.approx(ratio)


@pytest.mark.parametrize(
    "n, first, last", [(1, 1, 1), (3, 1, 3), (6, 1, 6), (9, 2, 8), (15, 4, 12), (20, 6, 15), (3000, 1446, 1555)]
)
def test_interval(n, first, last):
    """The places of the sign test's tables, at 95 %; the last from (n -+ 1.96 sqrt(n)) / 2."""
    values = [math.sqrt(i) for i in range(1, n + 1)]
    assert interval(values[::-1]) == (math.sqrt(first), math.sqrt(last))


@pytest.mark.parametrize(
    "kinds, facts, expected",
    [
        ([HOLDS, HOLDS], [True], HOLDS),
        ([HOLDS, HOLDS, PARTLY], [], PARTLY),
        ([PARTLY], [], PARTLY),
        ([HOLDS, NONE], [], PARTLY),
        ([HOLDS, UNCLEAR, NOTED], [None], HOLDS),
        ([CONTRADICTED], [True], CONTRADICTED),
        ([CONTRADICTED, NONE], [None], CONTRADICTED),
        ([HOLDS], [False], PARTLY),
        ([NONE], [None], NONE),
        ([UNCLEAR, NOTED], [True], UNCLEAR),
        ([NOTED], [None], NOTED),
    ],
)
def test_of_step(kinds, facts, expected):
    assert of_step(kinds, facts) == expected


def test_line():
    cases = [(name, judge("faster", *pairs(ratio))) for name, ratio in (("a", 2.0), ("b", 0.5), ("c", 1.0), ("d", 3.0))]
    cases.append(("e", judge("none", *pairs(4.0))))
    assert line(cases, [("f", None), ("g", True), ("h", True)]) == (
        "Holds: a (2.00 x faster), d (3.00 x faster); makes no difference here: c (no difference beyond the noise "
        "(1.00 x, 0.99 to 1.00)); this CPU contradicts it: b (2.00 x slower); beside it: e (4.00 x faster); both "
        "figures are as claimed"
    )
    assert line([], [("g", True), ("h", False)]) == "This CPU contradicts it: h"


def side(name="", bytes=0, flops=0, turns=(), cached=False):
    return Way(name, turns, bytes, flops, cached=cached)


@pytest.mark.parametrize(
    "old, new, claim, expected",
    [
        (side(bytes=80, flops=1), side(bytes=10, flops=1), "faster", 8.0),  # both bound by memory
        (side(bytes=10, flops=800), side(bytes=10, flops=200), "free", 4.0),  # old 8 s, new 2 s of arithmetic
        (side(bytes=80, flops=200), side(bytes=10, flops=200), "faster", 4.0),  # 8 s of reading, then 2 s of arithmetic
        (side(bytes=80), side(bytes=10, cached=True), "faster", None),
        (side(), side(), "faster", None),
        (side(bytes=80), side(bytes=10), "share", None),
    ],
)
def test_counted(old, new, claim, expected):
    assert counted(Case("", old, new, claim), Roofline(10.0, 100.0, "avx2", "f32", 1)) == expected


def test_in_turn(monkeypatch):
    """A clock that each call advances: a warm-up of both sides, then A B A B, each side's turns in order."""
    now, said = [0.0], []
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])

    def turn(name, seconds):
        def run():
            said.append(name)
            now[0] += seconds

        return run

    old = side(turns=[turn("a0", 0.02), turn("a1", 0.02)])
    new = side(turns=[turn("b", 0.01)])
    times = alternate(Case("", old, new, "faster"), 0.1)
    assert times == (pytest.approx([0.02] * 9), pytest.approx([0.01] * 9)), "nine pairs, though four fill the time"
    assert said == ["a0", "b"] + ["a1", "b", "a0", "b"] * 4 + ["a1", "b"]
    assert len(alternate(Case("", old, new, "faster"), 0.9)[0]) == 30
    for seconds, expected in ((0.49, 4), (3.0, 3)):
        slow = side(turns=[turn("c", seconds)])
        assert len(alternate(Case("", slow, new, "faster"), 0.1)[0]) == expected


def test_short_calls_are_repeated(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])

    def run():
        calls.append(1)
        now[0] += 1e-5

    times = alternate(Case("", side(turns=[run]), side(turns=[run]), "faster"), 0)
    assert times[0] == pytest.approx([1e-5] * 9)
    assert len(calls) == 2 * (6 + 9 * 50)


def test_figures():
    assert [shown(v, "s") for v in (2.5, 0.0123, 3e-5, 4.2e-7)] == ["2.50 s", "12.3 ms", "30 us", "420 ns"]
    assert [shown(v, "B") for v in (0, 512, 393216, 51539607552)] == ["0 B", "512 B", "393 kB", "51.5 GB"]
    assert shown(20914757184, "parameters") == "20.9 B" and shown(0.914, "share") == "91 %"
    assert shown(12.816, "GiB") == "12.8 GiB" and shown(131072, "") == "131,072"
    assert [percent(v) for v in (0, 0.5, 0.0123, 0.00123, 0.0001, 1e-9)] == [
        "0 %",
        "50 %",
        "1.2 %",
        "0.12 %",
        "0.010 %",
        "less than 0.01 %",
    ]
