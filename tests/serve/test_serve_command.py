"""The command `cgpt serve`: it starts, warns, ends what runs, and says what it cannot do."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import openai
import pytest

import cgpt
from cgpt.cli import main as cli


def command(*args, **how):
    environment = os.environ | {"CGPT_API_KEY": ""} | how.pop("env", {})
    run = [sys.executable, "-m", "cgpt", "serve", "--port", "0", *args]
    return subprocess.Popen(run, stderr=subprocess.PIPE, text=True, env=environment, **how)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_and_lets_what_runs_finish(number):
    with command("--precision", "exact", "--threads", "1", env={"CGPT_API_KEY": "k"}) as process:
        line = process.stderr.readline()
        assert line.startswith("cgpt: serving at http://127.0.0.1:"), line
        client = openai.OpenAI(base_url=line.split()[-1] + "/v1", api_key="k", max_retries=0)
        ask = dict(model="demo-gpt2", prompt="a", max_tokens=200, temperature=0)
        stream = client.completions.create(stream=True, **ask)
        text = next(iter(stream)).choices[0].text
        process.send_signal(number)
        text += "".join(chunk.choices[0].text for chunk in stream)
        assert text == cgpt.load("demo-gpt2", precision="exact").generate("a", max_new_tokens=200).text
        assert process.wait(20) in (-number, cli.INTERRUPTED)
        assert "Traceback" not in process.stderr.read()


def test_a_stream_that_must_end_is_told_why(tmp_path):
    with command("--threads", "1", "--drain", "0") as process:
        client = openai.OpenAI(base_url=process.stderr.readline().split()[-1] + "/v1", api_key="k", max_retries=0)
        bias = {str(cgpt.load("demo-gpt2").eos_token_ids[0]): -100}
        ask = dict(model="demo-gpt2", prompt="a", max_tokens=250, n=16, logit_bias=bias)
        stream = iter(client.completions.create(stream=True, **ask))
        next(stream)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.APIError, match="shut"):
            list(stream)
        assert process.wait(20) in (-signal.SIGTERM, cli.INTERRUPTED)
        assert "Traceback" not in process.stderr.read()


def test_a_checkpoint_that_changes_ends_the_server(tmp_path):
    directory = shutil.copytree(cgpt.locate("demo-gpt2"), tmp_path / "model")
    with command("--threads", "1", "--model", str(directory)) as process:
        client = openai.OpenAI(base_url=process.stderr.readline().split()[-1] + "/v1", api_key="k", max_retries=0)
        ask = dict(model="model", prompt="a", max_tokens=2)
        client.completions.create(**ask)
        with open(directory / "model.safetensors", "r+b") as file:
            file.write(b"\1" * 100)
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(**ask)
        assert caught.value.status_code == 503 and caught.value.code == "checkpoint_changed"
        assert str(tmp_path) not in str(caught.value)
        assert process.wait(20) == cli.FAILED
        assert f"cgpt: error: {directory}/model.safetensors changed on disk" in process.stderr.read()


def test_a_checkpoint_that_changes_ends_an_idle_server(tmp_path):
    directory = shutil.copytree(cgpt.locate("demo-gpt2"), tmp_path / "model")
    with command("--threads", "1", "--model", str(directory)) as process:
        assert "serving at" in process.stderr.readline()
        os.truncate(directory / "model.safetensors", 1000)
        assert process.wait(20) == cli.FAILED
        assert f"cgpt: error: {directory}/model.safetensors changed on disk" in process.stderr.read()


def test_the_prefix_cache_outlives_the_server(tmp_path):
    """A server that was restarted knows what the one before it had read: the same text, to the bit."""
    text = "".join(f"{i} little words. " for i in range(60))  # beyond the windows
    ask = dict(model="demo-gpt-oss", prompt=text, max_tokens=20, temperature=0, logprobs=2)
    answers, metrics = [], []
    options = ("--model", "demo-gpt-oss", "--precision", "exact", "--threads", "1", "--prefix-cache-dir", str(tmp_path))
    for cached in (False, True, True):
        with command(*options, "--prefix-cache-disk", "0.1") as process:
            url = process.stderr.readline().split()[-1]
            client = openai.OpenAI(base_url=url + "/v1", api_key="k", max_retries=0)
            answers.append(client.completions.create(**ask))
            metrics.append(urllib.request.urlopen(url + "/metrics").read().decode())
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) in (-signal.SIGTERM, cli.INTERRUPTED)
            assert not re.search("Traceback|warning", process.stderr.read())
        usage = answers[-1].usage
        assert usage.prompt_tokens > 500
        found = usage.prompt_tokens - 1 if cached else 0
        assert usage.prompt_tokens_details.cached_tokens == found
        assert f"cgpt_prefix_cache_disk_hits_total {int(cached)}\n" in metrics[-1]
        assert f"cgpt_disk_prompt_tokens_total {found}\n" in metrics[-1]
    assert re.search(r"cgpt_prefix_cache_disk_bytes [1-9]\d{5,}\n", metrics[-1])
    assert answers[0].choices == answers[1].choices == answers[2].choices
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("*/*.kv")} == {0o600}


def test_streamed_experts():
    """The line at the start says so; what /metrics counts grows."""
    found = []
    with command("--model", "demo-gpt-oss", "--threads", "1", "--memory", "500MB") as process:
        line = process.stderr.readline()
        url = line.split()[-1]
        client = openai.OpenAI(base_url=url + "/v1", api_key="k", max_retries=0)
        for _ in range(2):
            client.completions.create(model="demo-gpt-oss", prompt="What is 3 + 4?", max_tokens=4, temperature=0)
            found.append(urllib.request.urlopen(url + "/metrics").read().decode())
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in (-signal.SIGTERM, cli.INTERRUPTED)
    assert line.startswith("cgpt: serving, with 48 of 48 experts in memory within 0.50 GB, at http://127.0.0.1:")
    sample = r"^cgpt_experts?_(\S+) (\S+)$"
    first, second = ({name: float(n) for name, n in re.findall(sample, text, re.M)} for text in found)
    assert first["capacity"] == second["capacity"] == 48 and 0 < first["resident"] <= second["resident"] <= 48
    assert first["misses_total"] > 0 and first["read_bytes_total"] > 0 and first["wait_seconds_total"] > 0
    assert second["hits_total"] > first["hits_total"]


def test_what_the_command_cannot_do(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for args, message in (
            (["--port", port], f"cannot listen at 127.0.0.1 port {port}: Address already in use"),
            (["--host", "no.such.host.invalid"], "cannot listen at no.such.host.invalid"),
            (["--port", "70000"], "--port must be 0 to 65535"),
            (["--max-running", "0"], "--max-running must be 1 or more"),
            (["--prefix-cache-disk", "-1"], "--prefix-cache-disk must be 0 or more"),
            (["--prompt-lookup-num-tokens", "0"], "--prompt-lookup-num-tokens must be 1 or more"),
            (["--prefix-cache-disk", "5"], "--prefix-cache-disk needs --prefix-cache-dir"),
            (["--port", "0", "--prefix-cache-dir", "file"], "'file' is no directory for a prefix cache"),
            (["--port", "0", "--model", "nothing"], "nothing: no such directory"),
        ):
            assert cli.main(["serve", *args]) == cli.FAILED
            assert f"cgpt: error: {message}" in capsys.readouterr().err


def test_without_the_extra(monkeypatch, capsys):
    for name in [name for name in sys.modules if re.match(r"(cgpt\.serve|uvicorn)(\.|$)", name)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert cli.main(["serve"]) == cli.FAILED
    assert "cgpt serve needs the package uvicorn: pip install starlette uvicorn pydantic" in capsys.readouterr().err


def test_anyone_may_ask_is_warned_of(monkeypatch, capsys):
    monkeypatch.delenv("CGPT_API_KEY", raising=False)
    assert cli.main(["serve", "--host", "0.0.0.0", "--port", "0", "--model", "nothing"]) == cli.FAILED
    assert "anyone who reaches this address may use the model" in capsys.readouterr().err
