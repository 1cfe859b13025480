"""The output of a batch: whole lines, one writer, nothing of other files is lost."""

import errno
import json
import os

import pytest

from cgpt.batch import output
from cgpt.batch.output import BatchOutput
from cgpt.errors import InputError, OutputError

ID = "batch_req_" + "0" * 32


def record(custom_id, **body):
    answer = {"status_code": 200, "request_id": "r", "body": body}
    return {"id": ID, "custom_id": custom_id, "response": answer, "error": None}


def opened(path):
    """An output whose lines were read."""
    found = BatchOutput(path)
    return found, [one.custom_id for one in found.answered()]


def test_lines_are_written_as_they_come(tmp_path):
    out, before = opened(tmp_path / "out")
    assert before == []
    for name in ("a", "b \ud800 \n"):
        out.write(record(name, text="é"))
        last = (tmp_path / "out").read_bytes().splitlines(True)[-1]
        assert json.loads(last) == record(name, text="é") and last.endswith(b"\n") and last.isascii()
    out.close()
    out.close()
    again, before = opened(tmp_path / "out")
    again.close()
    assert before == ["a", "b \ud800 \n"]


@pytest.mark.parametrize(
    "torn", [b'{"id"', b'{"id":"batch_req_00', b"{", b"\0" * 5000, json.dumps(record("b")).encode()]
)
def test_a_torn_last_line_is_cut_off(tmp_path, torn):
    whole = json.dumps(record("a"), separators=(",", ":")).encode() + b"\n"
    torn = torn.replace(b'": "', b'":"')
    (tmp_path / "out").write_bytes(whole + torn)
    out, before = opened(tmp_path / "out")
    assert before == ["a"]
    out.write(record("c"))
    out.close()
    assert (tmp_path / "out").read_bytes() == whole + whole.replace(b'"a"', b'"c"')


def test_a_last_line_that_another_program_wrote_without_a_newline(tmp_path):
    (tmp_path / "out").write_text("\n".join(json.dumps(record(name)) for name in "ab"))  # with spaces
    out, before = opened(tmp_path / "out")
    out.write(record("c"))
    out.close()
    again, after = opened(tmp_path / "out")
    again.close()
    assert before == ["a", "b"] and after == ["a", "b", "c"]


@pytest.mark.parametrize(
    "text",
    [
        b"notes, without a newline",
        b"a line\nand another",
        b"a line\n",
        b"[]\n",
        b"{}\n",
        b"\n",
        b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {}}\n',
        b'{"id": "batch_req_1", "custom_id": "a", "response": null, "error": null}\n',
        json.dumps(record("a") | {"custom_id": None}).encode() + b"\n",
        json.dumps(record("a") | {"custom_id": None, "error": {"line": 1e400}}).encode() + b"\n",
        json.dumps(record("a") | {"custom_id": 7}).encode() + b"\n",
        b"[" * 100_000 + b"\n",
        b"\xff\n",
    ],
)
def test_a_file_that_is_no_output_is_left_as_it_is(tmp_path, text):
    (tmp_path / "out").write_bytes(text)
    with BatchOutput(tmp_path / "out") as out:
        with pytest.raises(InputError, match="out: line 1 is no answer"):
            list(out.answered())
    assert (tmp_path / "out").read_bytes() == text


def test_one_process_writes(tmp_path):
    with BatchOutput(tmp_path / "out"):
        with pytest.raises(InputError, match="out: another process writes"):
            BatchOutput(tmp_path / "out")
    BatchOutput(tmp_path / "out").close()


@pytest.mark.parametrize("how", ["a directory", "no directory", "a pipe", "a device", "zero byte"])
def test_an_output_that_cannot_be_written(tmp_path, how):
    path = tmp_path / "out"
    if how == "a directory":
        path.mkdir()
    elif how == "a pipe":
        os.mkfifo(path)
    name = {"no directory": tmp_path / "none/out", "a device": "/dev/null", "zero byte": "\0out"}.get(how, path)
    with pytest.raises((InputError, OutputError), match="out|/dev/null"):
        BatchOutput(name)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_fills(tmp_path, monkeypatch, number):
    """Half of a line is written, and then no more: nothing of it stays, and later lines may be written."""
    out, _ = opened(tmp_path / "out")
    out.write(record("a"))
    before, write, calls = (tmp_path / "out").read_bytes(), os.write, []

    def failing(file, data):
        calls.append(len(data))
        if len(calls) % 2:
            return write(file, data[: len(data) // 2])
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(output.os, "write", failing)
    with pytest.raises(OutputError, match=f"out cannot be written: {os.strerror(number)}.*goes on where it stopped"):
        out.write(record("b"))
    assert (tmp_path / "out").read_bytes() == before
    monkeypatch.undo()
    out.write(record("c"))
    out.close()
    again, found = opened(tmp_path / "out")
    again.close()
    assert found == ["a", "c"]


def test_a_line_that_is_written_in_parts(tmp_path, monkeypatch):
    out, _ = opened(tmp_path / "out")
    write = os.write
    monkeypatch.setattr(output.os, "write", lambda file, data: write(file, data[:7]))
    out.write(record("a"))
    monkeypatch.undo()
    out.close()
    again, found = opened(tmp_path / "out")
    again.close()
    assert found == ["a"]


def test_when_lines_are_put_on_the_disk(tmp_path, monkeypatch):
    """In groups: with the first line after SYNC_SECONDS, or the first pause; and at the end."""
    now, synced = [100.0], []
    monkeypatch.setattr(output.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(output.os, "fsync", lambda file: synced.append(now[0]))
    out, _ = opened(tmp_path / "out")
    for at in (100.1, 100.9, 101.0, 101.5, 101.9):
        now[0] = at
        out.write(record("a"))
    assert synced == [101.0]
    now[0] = 102.0
    out.sync_if_due()
    now[0] = 104.0
    out.sync_if_due()  # nothing is new
    assert synced == [101.0, 102.0]
    out.write(record("b"))
    now[0] = 104.5
    out.write(record("c"))
    assert synced == [101.0, 102.0]
    out.close()
    assert synced == [101.0, 102.0, 104.5]


def test_a_disk_that_fails_when_it_must_hold_the_lines(tmp_path, monkeypatch):
    def failing(_):
        raise OSError(errno.EIO, "Input/output error")

    out, _ = opened(tmp_path / "out")
    out.write(record("a"))
    monkeypatch.setattr(output.os, "fsync", failing)
    with pytest.raises(OutputError, match="out cannot be written: Input/output error"):
        out.close()
    monkeypatch.undo()
    BatchOutput(tmp_path / "out").close()  # the lock is gone
