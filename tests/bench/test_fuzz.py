"""bench/fuzz.py goes on where it ended, and says which seed failed."""

import json
import subprocess
import sys
from pathlib import Path

from support import fuzz_requests, fuzz_streams

SCRIPT = Path(__file__).parents[2] / "bench" / "fuzz.py"


def run(*args):
    return subprocess.run([sys.executable, SCRIPT, *map(str, args)], capture_output=True, text=True)


def test_runs_add_up(tmp_path):
    counts = tmp_path / "counts.json"
    for total in (30, 60):
        assert run("tokenizers", "--count", 30, "--counts", counts).returncode == 0
        found = json.loads(counts.read_text())["tokenizers"]
        assert found["next_seed"] == found["cases"] == sum(found["outcomes"].values()) == total
    assert run("tokenizers", "--seed", 5, "--counts", counts).returncode == 0
    assert json.loads(counts.read_text())["tokenizers"] == found


CRASHES = """
import os
from contextlib import contextmanager

@contextmanager
def cases():
    yield lambda seed: ["fine"] if seed < 7 else os.abort()
"""


def test_a_crash_is_told_with_its_seed(tmp_path):
    for name, text in {
        "bench/fuzz.py": SCRIPT.read_text(),
        "tests/support/fuzz.py": CRASHES,
        "cgpt/kernels/_kernels.so": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    command = [sys.executable, tmp_path / "bench" / "fuzz.py", "checkpoints", "--counts", tmp_path / "counts.json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "python bench/fuzz.py checkpoints --seed 7" in done.stderr


def test_the_first_streams():
    with fuzz_streams.cases() as run_case:
        outcomes = {outcome for seed in range(1500) for outcome in run_case(seed)}
    assert outcomes >= {"turn: stop", "turn: length", "turn: tool_calls", "constrained: stop", "constrained: broken"}


def test_the_first_requests():
    with fuzz_requests.cases() as run_case:
        outcomes = [outcome for seed in range(25) for outcome in run_case(seed)]
    assert outcomes.count("200") > 30 < outcomes.count("400")
