"""Reading a batch: what is wrong with a line, which lines are the same, which are answered."""

import gc
import io
import itertools
import json
import os
import sys
import threading
import warnings

import pytest

from cgpt.batch import request, source
from cgpt.batch.output import BatchOutput
from cgpt.batch.request import parse_line
from cgpt.batch.run import Batch
from cgpt.batch.source import ScannedSource, StreamedSource, open_source, read_lines, spool_requests
from cgpt.errors import InputError

from support.batch_cases import FakeRunner, line, records, write_lines


def changed(**fields):
    return json.dumps(line("a") | fields).encode()


def without(name):
    return json.dumps({key: value for key, value in line("a").items() if key != name}).encode()


DEEP = b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": ' + b"[" * 200 + b"]" * 200 + b"}"
BAD = {
    "no JSON": (b"{'custom_id': 1}", "invalid_json_line", "JSON"),
    "half": (b'{"custom_id": "a", "me', "invalid_json_line", "JSON"),
    "a list": (b"[1]", "invalid_json_line", "expected a JSON object"),
    "NaN": (changed(body={"x": float("nan")}), "invalid_json_line", "NaN is not a JSON number"),
    "a key twice": (b'{"custom_id": "a", "custom_id": "b"}', "invalid_json_line", "appears twice"),
    "not UTF-8": (b'{"custom_id": "\xff"}', "invalid_json_line", "utf-8"),
    "BOM": (b"\xef\xbb\xbf{}", "invalid_json_line", "BOM"),
    "UTF-16": (changed().decode().encode("utf-16"), "invalid_json_line", "UTF-16"),
    "deep": (DEEP, "invalid_json_line", "nested deeper than 101"),
    "very deep": (DEEP.replace(b"[" * 200, b"[" * 100_000), "invalid_json_line", "nested too deeply"),
    "no custom_id": (without("custom_id"), "invalid_custom_id", "custom_id must be a string, found None"),
    "a number as custom_id": (changed(custom_id=7), "invalid_custom_id", "found 7"),
    "an empty custom_id": (changed(custom_id=""), "invalid_custom_id", "found ''"),
    "no method": (without("method"), "invalid_method", "found None"),
    "GET": (changed(method="GET"), "invalid_method", "found 'GET'"),
    "another url": (changed(url="/v1/embeddings"), "invalid_url", "found '/v1/embeddings'"),
    "a list as url": (changed(url=["/v1/completions"]), "invalid_url", "found ['/v1/completions']"),
    "no body": (without("body"), "invalid_body", "found None"),
    "a text as body": (changed(body="x"), "invalid_body", "found 'x'"),
    "a stream": (changed(body={"prompt": "a", "stream": True}), "invalid_body", "body.stream cannot be used"),
}


@pytest.mark.parametrize("raw, code, message", BAD.values(), ids=BAD)
def test_what_is_wrong_with_a_line(raw, code, message):
    made = parse_line(raw + b"\n", 7)
    assert made.refusal["code"] == code and made.refusal["line"] == 7
    assert made.refusal["message"].startswith("line 7: ") and message in made.refusal["message"]
    assert made.refusal["message"].count("line 7") == 1 and "the line" not in made.refusal["message"]
    json.dumps(made.record(None))


def test_a_refusal_names_the_custom_id_that_the_line_has():
    assert parse_line(changed(method="GET"), 1).custom_id == "a"


def test_a_good_line():
    made = parse_line(changed() + b"\r\n", 3, b"\1" * 8)
    assert (made.custom_id, made.url, made.body, made.refusal) == ("a", "/v1/completions", line("a")["body"], None)
    assert made.id == parse_line(changed(), 9, b"\1" * 8).id != parse_line(changed(), 3, b"\2" * 8).id


def test_lines_are_bounded(monkeypatch):
    monkeypatch.setattr(source, "MAX_LINE", 20)
    monkeypatch.setattr(request, "MAX_LINE", 20)
    file = io.BytesIO(b"a" * 20 + b"\n\n \t\n" + b"b" * 100 + b"\nc\n" + b"d" * 20)
    found = list(read_lines(file))
    assert [(number, len(text)) for number, text in found] == [(1, 21), (4, 21), (5, 2), (6, 20)]
    assert "more than 20 bytes" in parse_line(found[1][1], 4).refusal["message"]
    assert "more than" not in parse_line(found[3][1], 6).refusal["message"]


def test_duplicates_are_named_before_anything_runs(tmp_path):
    lines = [line("a"), b"\n", line("b"), line("a", "JULIET:"), line("c"), line("b"), line("a"), b"bad\n", b"bad\n"]
    path = write_lines(tmp_path / "in", lines)
    with pytest.raises(InputError, match=r"3 lines have .*'a' on lines 1, 4, 7.*'b' on lines 3, 6") as caught:
        open_source(path)
    assert str(path) in str(caught.value) and "'c'" not in str(caught.value)


def test_digests_that_end_in_zeros(tmp_path, monkeypatch):
    """NumPy gives back bytes without the zeros at their end."""
    monkeypatch.setattr(source, "custom_id_hash", lambda custom_id, number: custom_id.encode().ljust(16, b"\0"))
    path = write_lines(tmp_path / "in", [line("a"), line("ab")])
    runner = FakeRunner()
    with Batch(open_source(path), runner, BatchOutput(tmp_path / "out")) as batch:
        next(batch)
    with Batch(open_source(path), runner, BatchOutput(tmp_path / "out")) as batch:
        assert [one["custom_id"] for one in batch] == ["ab"]
    with pytest.raises(InputError, match="'a' on lines 1, 2"):
        open_source(write_lines(tmp_path / "in2", [line("a"), line("a")]))


def test_requests_that_come_one_by_one_refuse_duplicates():
    texts = enumerate((json.dumps(line(name)).encode() for name in "abab"), 1)
    made = list(StreamedSource(texts).requests(b""))
    assert [one.refusal and one.refusal["code"] for one in made] == [None, None, *["duplicate_custom_id"] * 2]


@pytest.mark.parametrize("how", ["missing", "directory", "empty", "blank", "zero byte"])
def test_an_input_that_cannot_be_read(tmp_path, how):
    path = tmp_path / "in"
    if how == "directory":
        path.mkdir()
    elif how in ("empty", "blank"):
        path.write_text("" if how == "empty" else "\n \n")
    with pytest.raises(InputError, match="in"):
        open_source("in\0" if how == "zero byte" else path)


def run(tmp_path, lines, runner, output="out", count=None):
    """Answers `count` lines, or all; returns the custom_ids that the runner was asked for."""
    runner.asked.clear()
    path = write_lines(tmp_path / "in", lines)
    with Batch(open_source(path), runner, BatchOutput(tmp_path / output)) as batch:
        for _ in itertools.islice(batch, count):
            pass
    return runner.asked


def test_it_goes_on_where_it_stopped(tmp_path):
    lines, runner = [line(f"{i}") for i in range(9)] + [b"bad\n", line("x"), b"bad\n"], FakeRunner()
    assert run(tmp_path, lines, runner, count=4) == ["0", "1", "2", "3"]
    assert run(tmp_path, lines, runner, count=6) == ["4", "5", "6", "7", "8", None]
    assert run(tmp_path, lines, runner) == ["x", None]
    assert run(tmp_path, lines, runner) == []
    found = records(tmp_path / "out")
    assert [one["error"]["line"] for one in found if one["error"]] == [10, 12] and len(found) == 12


def test_a_line_that_was_deleted_from_the_output_is_answered_again(tmp_path):
    lines, runner = [line(f"{i}") for i in range(5)], FakeRunner()
    run(tmp_path, lines, runner)
    kept = (tmp_path / "out").read_bytes().splitlines(True)
    (tmp_path / "out").write_bytes(b"".join(kept[:2] + kept[3:]))
    assert run(tmp_path, lines, runner) == ["2"]


@pytest.mark.parametrize(
    "lines, fingerprint, message",
    [
        ([line("0"), line("other"), line("2")], b"12345678", "line 2 answers custom_id '1', which .*in does not hold"),
        ([line("0"), line("1", "JULIET:"), line("2")], b"12345678", "line 2 answers another request of custom_id '1'"),
        ([line("0"), line("1"), line("2")], b"87654321", "line 1 answers custom_id '0' by another model"),
        ([line("0"), line("1"), line("2"), b"\n", b"bad\n"], b"12345678", "line 4 answers line 4, which .*in does not"),
    ],
)
def test_an_output_of_something_else_is_refused(tmp_path, lines, fingerprint, message):
    run(tmp_path, [line("0"), line("1"), line("2"), b"bad\n"], FakeRunner())
    with open(tmp_path / "out", "ab") as file:
        file.write(b'{"id":"batch_req_')
    before = (tmp_path / "out").read_bytes()
    with pytest.raises(InputError, match=message):
        run(tmp_path, lines, FakeRunner(fingerprint))
    assert (tmp_path / "out").read_bytes() == before


def test_an_output_that_answers_a_line_twice_is_refused(tmp_path):
    run(tmp_path, [line("0"), line("1")], FakeRunner())
    text = (tmp_path / "out").read_bytes()
    (tmp_path / "out").write_bytes(text + text.splitlines(True)[0])
    with pytest.raises(InputError, match="line 3 answers custom_id '0' once more"):
        run(tmp_path, [line("0"), line("1")], FakeRunner())


@pytest.mark.parametrize("change", ["another line", "a line more", "a line less"])
def test_an_input_that_changes_while_it_is_read(tmp_path, change):
    lines = [line("0"), line("1"), line("2")]
    found = open_source(write_lines(tmp_path / "in", lines))
    new = {
        "another line": [line("0"), line("9"), line("2")],
        "a line more": [*lines, line("3")],
        "a line less": lines[:2],
    }
    write_lines(tmp_path / "in", new[change])
    with pytest.raises(InputError, match="in changed while it was read"):
        list(found.requests(b""))


@pytest.mark.parametrize("lines", [[], [line("a"), line("a")], [line("a"), 7]])
def test_a_batch_that_is_refused_leaves_no_file_open(tmp_path, lines, monkeypatch):
    left = []
    monkeypatch.setattr(sys, "unraisablehook", lambda problem: left.append(problem.exc_value))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        with pytest.raises(InputError):
            spool_requests(lines)
        if 7 not in lines:
            with pytest.raises(InputError):
                open_source(write_lines(tmp_path / "in", lines))
        gc.collect()
    assert not left


def test_memory_of_a_scan(tmp_path):
    """Of a line no more than its hashes is kept."""
    import tracemalloc

    lines = [line(f"number {i}", "x" * 1000) for i in range(5000)]
    file = open(write_lines(tmp_path / "in", lines), "rb")
    tracemalloc.start()
    found = ScannedSource(file, "in")
    kept = tracemalloc.get_traced_memory()[0] / len(lines)
    tracemalloc.stop()
    found.close()
    assert kept < 50


def test_a_pipe_is_read_as_a_file_is(tmp_path, monkeypatch):
    """With the numbers of its lines, and long ones that do not run into the next."""
    monkeypatch.setattr(source, "MAX_LINE", 150)
    monkeypatch.setattr(request, "MAX_LINE", 150)
    path = write_lines(tmp_path / "in", [line("a"), b"\n", line("long" * 50), line("b")])
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(path.read_bytes()))
    writer.start()
    found = open_source(tmp_path / "pipe")
    writer.join()
    made = [[(one.number, one.id) for one in each.requests(b"")] for each in (found, open_source(path))]
    assert made[0] == made[1] and [number for number, _ in made[0]] == [1, 3, 4]
    found.close()
