"""schemathesis against the served /openapi.json: what it allows is taken, what it forbids is refused, nothing is a 500,
and every answer is of the form it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cgpt
from cgpt.serve.limits import Limits

from support.serve_cases import serving

pytest.importorskip("schemathesis", reason="needs the extra [test]")

HERE = Path(__file__).parents[1] / "support"
LIMITS = Limits(max_tokens=3, n=3, requests=6, messages=3, tools=2, stops=2, logit_biases=3, stop_length=20)
# No dice and no clock: a machine that others use may pause for longer than the usual 10 seconds.
OPTIONS = [
    "--checks",
    "all",
    "--seed",
    "1",
    "--generation-deterministic",
    "--continue-on-failure",
    "--request-timeout",
    "100",
    "--max-response-time",
    "100",
    "--no-color",
]


def run(served, directory, *options):
    """Runs it in a directory of its own, as it leaves files behind; fails with what it found."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{served.url}/openapi.json", *OPTIONS, *options]
    environment = os.environ | {"SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(HERE)}
    found = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-8000:] + found.stderr[-2000:]
    assert served.engine._thread.is_alive()


def answered(served, key="none"):
    """{endpoint: how often it did what was asked}"""
    _, _, text = served.ask("GET", "/metrics", headers={"Authorization": f"Bearer {key}"})
    return {path: int(count) for path, count in re.findall(r'path="([^"]+)",status="200"} (\d+)', text)}


def test_gpt_oss(tmp_path):
    with serving(cgpt.load("demo-gpt-oss"), limits=LIMITS) as served:
        run(served, tmp_path, "-n", "10")
        counts = answered(served)
        for path, least in {
            "completions": 100,
            "chat/completions": 100,
            "responses": 50,
            "messages": 50,
            "models": 10,
        }.items():
            assert counts[f"/v1/{path}"] >= least  # else it tried refusals only
        assert counts["/tokenize"] >= 10 and counts["/detokenize"] >= 10


def test_gpt2_with_a_key(tmp_path):
    with serving(cgpt.load("demo-gpt2"), limits=LIMITS, key="k") as served:
        run(served, tmp_path, "-n", "3", "-H", "Authorization: Bearer k")
        counts = answered(served, "k")
        assert counts["/v1/completions"] >= 100 and "/v1/chat/completions" not in counts


def test_strict(tmp_path):
    """What is only left out otherwise is refused, as the document then says."""
    with serving(cgpt.load("demo-gpt-oss"), limits=LIMITS, strict=True) as served:
        run(served, tmp_path, "-n", "3")
        counts = answered(served)
        assert all(counts[f"/v1/{path}"] >= 20 for path in ("completions", "chat/completions", "responses"))
