"""bench/speed_log.py and regressions.py: what is appended, and what is called fallen."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import regressions  # noqa: E402
import speed_log  # noqa: E402
import threads  # noqa: E402


def lines(*figures, unit="tok/s", machine="m"):
    fields = {"machine": machine, "what": "decode", "command": "python decode.py", "unit": unit, "tree": "abc"}
    return [json.dumps(fields | {"date": date, "value": value}) for date, value in figures]


def test_the_newest_is_compared_with_the_median_before_it_of_the_same_machine():
    rates = lines(("2026-01-03", 80.0), ("2026-01-01", 100.0), ("2026-01-02", 300.0), ("2026-01-01", 90.0))
    assert list(regressions.fallen([*rates, ""], 0.1)) == [
        "decode: 80 tok/s (2026-01-03, abc), 20% worse than 100, the median of 3 before; m"
    ]
    assert not list(regressions.fallen(rates, 0.21))
    assert not list(regressions.fallen([*rates[:1], *lines(("2026-01-01", 100.0), machine="other")], 0.1))


def test_less_is_better_in_seconds():
    assert list(regressions.fallen(lines(("2026-01-01", 1.0), ("2026-01-02", 1.2), unit="s"), 0.1))
    assert not list(regressions.fallen(lines(("2026-01-01", 1.0), ("2026-01-02", 0.5), unit="s"), 0.1))


def test_a_line_says_what_was_measured_how_and_where_without_the_paths_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["/home/one/bench/decode.py", "/models/m124/", "--log", "x/SPEED.jsonl", "-n", "8"]
    )
    file = tmp_path / "SPEED.jsonl"
    for value in (1.23456, 2.0):
        speed_log.append(str(file), {"decode": (value, "tok/s")})
    speed_log.append(None, {"decode": (3.0, "tok/s")})
    first, second = map(json.loads, file.read_text().splitlines())
    assert list(first) == ["date", "machine", "what", "command", "value", "unit", "tree"]
    assert first["command"] == "python decode.py m124 --log SPEED.jsonl -n 8"
    assert (first["what"], first["value"], first["unit"], second["value"]) == ("decode", 1.235, "tok/s", 2.0)


def test_the_numbers_of_threads_end_with_all_cpus_and_too_many():
    assert threads.numbers_of_threads(1) == [1, 64]
    assert threads.numbers_of_threads(6) == [1, 2, 4, 6, 64]
    assert threads.numbers_of_threads(64) == [1, 2, 4, 8, 16, 32, 64]


def test_the_figures_of_the_project_can_be_read():
    file = Path(regressions.__file__).with_name("SPEED.jsonl")
    list(regressions.fallen(file.read_text().splitlines(), 0.1))
