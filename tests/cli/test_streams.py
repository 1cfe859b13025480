"""Standard streams that are closed (`cgpt ... >&-`), full or broken: no traceback, and a status that says it."""

import os
import subprocess
import sys

import pytest

GENERATE = 'generate --max-new-tokens 3 "ROMEO:"'


def shell(command):
    """Runs `cgpt command`, redirections included."""
    line = f"{sys.executable} -m cgpt {command}"
    # argparse drops what it cannot write, and without a buffer nobody would hear of it
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(["sh", "-c", line], env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "command", [GENERATE, f"{GENERATE} --json", "kernels", "info gpt2", "--version", "generate -h"]
)
@pytest.mark.parametrize(("redirected", "says"), [(">&-", "Bad file descriptor"), (">/dev/full", "No space left")])
def test_output_that_cannot_be_written(command, redirected, says):
    done = shell(f"{command} {redirected}")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1) and says in done.stderr


@pytest.mark.parametrize("redirected", ["2>&-", "2>/dev/full"])
def test_without_stderr(redirected):
    """Messages go nowhere, not to stdout, and the status is what it would be."""
    done = shell(f"{GENERATE} {redirected}")
    assert done.returncode == 0 and done.stdout.endswith("\n")
    failed, wrong = shell(f"info nothing {redirected}"), shell(f"generate --nonsense {redirected}")
    assert [(d.returncode, d.stdout) for d in (failed, wrong)] == [(2, ""), (2, "")]


def test_without_stdin():
    done = shell("generate - <&-")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1) and "no token" in done.stderr
    done = shell("chat <&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = shell("quality --text - <&-")
    assert done.returncode == 2 and done.stderr.count("\n") == 1


def test_without_any():
    """Nothing that is written may reach a file that got a stream's descriptor."""
    assert shell("kernels <&- >&- 2>&-").returncode == 2
