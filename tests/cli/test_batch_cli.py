"""The command `cgpt batch`: whatever ends it, each line is answered once."""

import os
import pty
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

import cgpt
from cgpt.batch import progress as progress_module
from cgpt.batch.output import BatchOutput
from cgpt.batch.progress import BatchProgress, duration
from cgpt.cli import batch, options
from cgpt.cli import main as cli

from support.batch_cases import ids, line, records, text_of, write_lines

OPTIONS = ["--threads", "1", "--precision", "exact", "--name", "demo"]


def command(*args, **how):
    run = [sys.executable, "-m", "cgpt", "batch", *map(str, args), *OPTIONS]
    return subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how)


def finish(*args, **how):
    """-> exit status, stdout, stderr."""
    given = how.pop("input", None)
    with command(*args, stdin=subprocess.PIPE, **how) as process:
        out, err = process.communicate(given, timeout=120)
    return process.returncode, out, err


@pytest.fixture
def lines(tmp_path):
    """300 lines, some of them bad."""
    made = [line(f"{i}", f"ROMEO {i}:", max_tokens=8) for i in range(300)]
    made[7]["method"], made[100]["body"]["max_tokens"] = "GET", "x"
    return write_lines(tmp_path / "in", [*made[:50], b"bad\n", b"\n", *made[50:]])


def wait_for_lines(process, path, count):
    """Until an output has so many lines, or the process has ended."""
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < count):
        time.sleep(0.002)


def check_all(path):
    """That an output answers all of `lines`, with generate()'s text."""
    found = {one["custom_id"]: one for one in records(path)}
    assert found.keys() == {None, *(f"{i}" for i in range(300))}
    assert found[None]["error"]["line"] == 51 and found["7"]["error"]["line"] == 8
    assert found["100"]["response"]["status_code"] == 400
    names = [f"{i}" for i in range(0, 300, 10) if i != 100]
    alone = cgpt.load("demo-gpt2", 1, "exact").generate([f"ROMEO {i}:" for i in names], max_new_tokens=8, temperature=0)
    assert [text_of(found[i]) for i in names] == [one.text for one in alone]


def test_each_line_once_under_sigkill(tmp_path, lines):
    out, choose = tmp_path / "out", random.Random(5)
    for turn in range(6):
        before = out.read_bytes().count(b"\n") if out.exists() else 0
        if before > 150:  # a busy machine looks late
            break
        with command(lines, out) as process:
            wait_for_lines(process, out, before + choose.randint(1, 45))
            time.sleep(choose.random() * 0.02)
            process.kill()
        if turn % 2 and choose.random() < 0.8:  # as where the power failed
            os.truncate(out, out.stat().st_size - choose.randint(1, 60))
    assert len(out.read_bytes().splitlines()) >= 6
    status, _, err = finish(lines, out)
    assert status == 0 and re.search(r"cgpt: \d+ lines were answered before; going on", err), err
    check_all(out)
    assert re.search(r"done after .*: 301 of 301 lines", err), err
    before = out.read_bytes()
    assert finish(lines, out)[0] == 0 and out.read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption(tmp_path, lines, number):
    out = tmp_path / "out"
    with command(lines, out) as process:
        wait_for_lines(process, out, 20)
        process.send_signal(number)
        err = process.communicate(timeout=30)[1]
    assert process.returncode in (cli.INTERRUPTED, -signal.SIGTERM)
    assert "Traceback" not in err and "Exception" not in err
    if number == signal.SIGINT:
        assert re.search(r"cgpt: stopped after .*: \d+ of 301 lines", err), err
        assert out.read_bytes().endswith(b"\n")
    assert 20 <= len(records(out)) < 301
    assert finish(lines, out)[0] == 0
    check_all(out)


def test_a_disk_that_fills(tmp_path, lines):
    """The system refuses what would make the file longer, in the middle of a line."""

    def bounded():
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    out = tmp_path / "out"
    status, _, err = finish(lines, out, preexec_fn=bounded)
    assert status == cli.FAILED and "Traceback" not in err
    assert f"cgpt: error: {out} cannot be written: File too large; the batch goes on where it stopped" in err
    assert out.read_bytes().endswith(b"\n") and 19_000 < out.stat().st_size <= 20_000
    assert finish(lines, out)[0] == 0
    check_all(out)


def test_two_processes(tmp_path, lines):
    out = tmp_path / "out"
    with BatchOutput(out):
        status, _, err = finish(lines, out)
    assert status == cli.FAILED and f"error: {out}: another process writes a batch to it" in err


def test_pipes(tmp_path, lines):
    given = lines.read_text()
    status, text, err = finish("-", "-", input=given)
    assert status == 0 and "2 failed" not in err and "3 failed" in err
    assert "the first that failed: line 8: method must be" in err
    (tmp_path / "all").write_text(text)
    check_all(tmp_path / "all")
    status, text, err = finish(lines, "-")
    assert status == 0 and len(text.splitlines()) == 301
    out = tmp_path / "out"
    assert finish("-", out, input=given.removesuffix("\n"))[0] == 0
    check_all(out)
    status, _, err = finish("-", out, input=given)  # all of it is answered
    assert status == 0 and "301 lines were answered before" in err
    status, _, err = finish("-", out, input=given.replace("ROMEO 3:", "JULIET:"))
    assert status == cli.FAILED and "answers another request of custom_id '3' than stdin holds" in err


def test_stdout_that_nobody_reads(lines):
    with command(lines, "-") as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(30) in (cli.PIPE_CLOSED, -signal.SIGPIPE)
        assert "Traceback" not in process.stderr.read()


def test_what_is_wrong_is_said_before_the_model_is_loaded(tmp_path, lines):
    def refused(*args):
        status, _, err = finish(*args, "--model", "no such model")
        assert status == cli.FAILED
        return err

    again = write_lines(tmp_path / "again", [line("a"), line("a")])
    assert "have the custom_id of an earlier one" in refused(again, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert "none cannot be read: No such file" in refused(tmp_path / "none", tmp_path / "out")
    assert "out cannot be written: No such file or directory\n" in refused(lines, tmp_path / "none/out")
    assert "--max-running must be 1 or more, not 0" in refused(lines, tmp_path / "out", "--max-running", "0")
    assert "no such model" in refused(lines, tmp_path / "out")


def test_the_input_as_the_output(tmp_path, lines):
    before = lines.read_bytes()
    status, _, err = finish(lines, lines)
    assert status == cli.FAILED and "in: line 1 is no answer of a batch" in err
    assert lines.read_bytes() == before


def test_progress_on_a_terminal(tmp_path, lines):
    ours, its = pty.openpty()
    run = [sys.executable, "-m", "cgpt", "batch", str(lines), str(tmp_path / "out"), *OPTIONS]
    shown = b""
    with subprocess.Popen(run, stderr=its) as process:
        os.close(its)
        with suppress(OSError):  # EIO at the end
            while part := os.read(ours, 4096):
                shown += part
    os.close(ours)
    assert process.returncode == 0
    shown = shown.decode()
    assert re.search(r"\d+ of 301 lines, [\d.]+ lines/s, [\d,]+ prompt and [\d,]+ new tok/s.*about \d+ s left", shown)


def test_the_numbers_of_progress(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    progress = BatchProgress(1000, num_answered=400)
    assert progress.seconds_left is None and str(progress) == "400 of 1,000 lines"
    usages = [{"prompt_tokens": 5, "completion_tokens": 7}, {"input_tokens": 1, "output_tokens": 2}, {}]
    for usage in usages:
        answer = {"status_code": 200, "request_id": "r", "body": {"usage": usage}}
        progress.add({"id": "", "custom_id": "a", "response": answer, "error": None})
    progress.add({"id": "", "custom_id": "a", "response": None, "error": {"message": "line 9: no"}})
    now[0] += 10
    assert (progress.prompt_tokens, progress.generated_tokens, progress.num_failed) == (6, 9, 1)
    assert progress.seconds_left == 596 * 10 / 4
    assert progress.first_failure == "line 9: no"
    expected = "404 of 1,000 lines, 0.4 lines/s, 1 prompt and 1 new tok/s, 1 failed, about 24 min 50 s left"
    assert str(progress) == expected
    progress = BatchProgress(None)
    answer = {"status_code": 404, "request_id": "r", "body": {"error": {"message": "no such model"}}}
    progress.add({"id": "", "custom_id": "b", "response": answer, "error": None})
    now[0] += 2
    assert progress.first_failure == "custom_id 'b': no such model"
    assert str(progress) == "1 lines, 0.5 lines/s, 0 prompt and 0 new tok/s, 1 failed"


@pytest.mark.parametrize(
    "seconds, text",
    [(0.4, "0 s"), (59.7, "1 min 00 s"), (3599, "59 min 59 s"), (7509, "2 h 05 min"), (9e6, "2,500 h 00 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_an_answer_of_each_line_is_in_the_output(tmp_path, lines):
    """In the same order as they finish: short ones overtake."""
    made = [line("long", max_tokens=200, ignore_eos=True), *(line(f"{i}", max_tokens=1) for i in range(30))]
    out = tmp_path / "out"
    assert finish(write_lines(tmp_path / "in2", made), out)[0] == 0
    assert records(out)[-1]["custom_id"] == "long" and len(ids(out)) == 31


def test_a_model_of_an_actor_is_its_own_though_an_mpi_launcher_started_its_node(monkeypatch):
    """As srun does with `ray start`, whose processes have its environment."""
    monkeypatch.setattr(options, "world", lambda: pytest.fail("it asked for the others"))
    args = cli._parser().parse_args(["batch", "in", "out", "--model", "demo-gpt2", *OPTIONS, "--ray"])
    with batch._local_runner(args) as runner:
        assert runner.fingerprint
