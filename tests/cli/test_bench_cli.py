"""cgpt bench from the command line, on the models of the package: what it prints, and that nothing stays behind."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from cgpt.bench import checkpoints, plot, session, share
from cgpt.bench.checkpoints import checkpoint
from cgpt.cli import main as cli
from cgpt.errors import InputError
from cgpt.kernels import isa
from cgpt.machine import roofline
from cgpt.models import synth
from cgpt.models.streaming import MemoryBudget

from support.synth_cases import GPT2

QUICK = ("-p", "16", "-n", "4", "-r", "2")


@pytest.fixture
def bench(capsys, monkeypatch):
    """Runs cgpt bench in this process -> exit status, stdout, stderr."""
    monkeypatch.setattr(session, "ROOFLINE_SECONDS", 0.01)
    monkeypatch.setattr(roofline, "buffer_bytes", lambda caches, available: roofline.BLOCK)

    def run(*args):
        return cli.main(["bench", *args]), *capsys.readouterr()

    return run


@pytest.mark.parametrize("model", ["demo-gpt2", "demo-gpt-oss"])
def test_jsonl(bench, model):
    status, out, err = bench("--model", model, *QUICK, "-d", "0,32", "-b", "1,3", "-t", "1,2", "--jsonl")
    rows = [json.loads(line) for line in out.splitlines()]
    tests = ["pp16", "tg4", "tg4 x3", "pp16 @ d32", "tg4 @ d32", "tg4 x3 @ d32"]
    assert status == 0 and [(row["n_threads"], row["test"]) for row in rows] == [(t, x) for t in (1, 2) for x in tests]
    assert err.splitlines() == [f"cgpt: {x}, {t} threads" for t in (1, 2) for x in tests]
    for row in rows:
        assert len(row["samples_ns"]) == 2 and row["median_ts"] > 0
        assert 0 < row["bytes_per_token"] < 4e6 and row["flops_per_token"] > 1e6
    one, three = rows[1], rows[2]
    assert three["bytes_per_token"] < one["bytes_per_token"], "three sequences share the weights"
    assert rows[4]["bytes_per_token"] > one["bytes_per_token"], "a cache is read"


def test_share(bench, monkeypatch, tmp_path):
    """Both demos, the machine and its peaks; nothing says where the files lie."""
    monkeypatch.setattr(roofline, "SLICE", 0.001)
    path = tmp_path / "sent.json"
    status, out, _ = bench(*QUICK, "--share", str(path))
    found = json.loads(path.read_text())
    assert status == 0 and "demo-gpt2: " in out and "demo-gpt-oss: " in out
    assert [row["test"] for row in found["rows"]] == ["pp16", "tg4"] * 2
    assert len({row["model_type"] for row in found["rows"]}) == 2 and all(row["median_ts"] > 0 for row in found["rows"])
    assert found["flops_per_s"]["f32"] > 1e8 and found["kernels"]["read"] != "-" and found["level"] in isa.available()
    assert not any(word in path.read_text() for word in (os.sep + "demo", str(tmp_path), os.path.expanduser("~")))
    with pytest.raises(InputError, match="nowhere/sent.json cannot be written: No such file"):
        share.write(str(tmp_path / "nowhere/sent.json"), found["rows"], 0)


def test_table_and_profile(bench):
    status, out, _ = bench(*QUICK, "--profile")
    assert status == 0 and out.startswith("demo-gpt2: GPT-2 2M BF16, ")
    assert "\npp16 " in out and "\ntg4 " in out and "GFLOP/s; loaded in" in out
    assert "tg4, " in out and "  outside the kernels " in out and "  linear c_attn " in out


def test_json_dense_and_precision(bench):
    status, out, _ = bench(*QUICK, "-n", "0", "--json", "--precision", "exact", "--dense", "bf16")
    (row,) = json.loads(out)
    assert (status, row["precision"], row["dense"], row["test"]) == (0, "exact", "bf16", "pp16")


def test_streamed_experts(bench, monkeypatch):
    """In slots for the experts of a token, so that some come from the disk whenever they are wanted."""
    monkeypatch.setattr(MemoryBudget, "slots", lambda self, tokens: 24)
    monkeypatch.setattr(session, "DISK_SECONDS", 0.01)
    status, out, _ = bench("--model", "demo-gpt-oss", "-p", "16", "-n", "8", "-r", "2", "--jsonl", "--memory", "1GB")
    found = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and [row["memory_limit"] for row in found] == [10**9] * 2
    for row in found:
        assert 0 <= row["expert_hit_rate"] < 1 and row["disk_bytes_per_token"] > 0
        assert row["disk_request_bytes"] == 12288  # 8192 bytes, rounded outward
        assert row["disk_share"] == pytest.approx(row["disk_bytes_per_s"] / row["disk_rate_bytes_per_s"])
        assert row["wait_ns"] > 0 and row["wait_ns"] + row["compute_ns"] == pytest.approx(row["avg_ns"])
    assert bench("--model", "demo-gpt-oss", *QUICK, "--memory", "1MB")[0] == 2
    status, out, _ = bench("--model", "demo-gpt-oss", *QUICK, "--memory", "1GB")
    assert status == 0 and "experts streamed within 1.00 GB" in out and "the disk's own rate: " in out
    assert "memory_limit" not in bench("--model", "demo-gpt2", *QUICK)[1]


def test_what_does_not_fit_is_left_out(bench):
    status, out, err = bench(*QUICK, "-d", "0,250", "--jsonl")  # the model has 256 positions
    assert status == 0 and [json.loads(line)["test"] for line in out.splitlines()] == ["pp16", "tg4", "tg4 @ d250"]
    assert "cgpt: pp16 @ d250 is left out: it takes more than the 256 positions of this model\n" in err


def test_kv_cache_dtype(bench):
    """What a token reads of 100 more positions follows: keys and values, 160 wide, of 4 layers; int8 with the scales of
    5 heads."""
    for name, size in {"f32": 4, "f16": 2, "bf16": 2, "int8": 1 + 5 * 4 / 160}.items():
        status, out, _ = bench("-p", "0", "-n", "4", "-d", "0,100", "-r", "1", "--jsonl", "--kv-cache-dtype", name)
        flat, deep = rows = [json.loads(line) for line in out.splitlines()]
        assert status == 0 and {(row["type_k"], row["type_v"]) for row in rows} == {(name, name)}
        assert deep["bytes_per_token"] - flat["bytes_per_token"] == 100 * 2 * 4 * 160 * size


@pytest.mark.parametrize(
    "args, message",
    [
        (("--model", "gpt-5"), "gpt-5: no such directory"),
        (("-p", "0", "-n", "0"), "nothing to measure"),
        (("-r", "0"), "repetitions must be"),
        (("--json", "--jsonl"), "--json or --jsonl, not both"),
        (("-p", "300"), "pp300 takes more than the 256 positions"),
    ],
)
def test_errors(bench, args, message):
    status, out, err = bench("-n", "0", *args)
    assert status == 2 and out == "" and message in err


# ---- published sizes


@pytest.fixture
def small(monkeypatch, tmp_path):
    """ "gpt2" is written small, and temporary directories are made in tmp_path / "temporary"."""
    write = synth.write
    monkeypatch.setattr(synth, "write", lambda size, directory, progress: write(GPT2, directory))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(checkpoints.tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def test_a_published_size_lasts_as_long_as_it_is_used(small):
    said = []
    with checkpoint("gpt2", None, said.append) as directory:
        assert (directory / "model.safetensors").exists() and small in directory.parents
    assert not any(small.iterdir())
    assert said == [f"gpt2: writing 0.5 GB of random weights to {directory} until the end (--keep DIR, TMPDIR)"]


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit, ValueError])
def test_nothing_stays_after_an_interruption(small, end):
    with pytest.raises(end), checkpoint("gpt2", None, lambda text: None):
        raise end
    assert not any(small.iterdir())


def test_nothing_stays_after_a_signal(tmp_path):
    """Ctrl-C and SIGTERM, in a process of its own, while it writes."""
    for number, status in ((signal.SIGINT, cli.INTERRUPTED), (signal.SIGTERM, 143)):
        command = [sys.executable, "-m", "cgpt", "bench", "--model", "gpt2", "-n", "0"]
        environment = os.environ | {"TMPDIR": str(tmp_path)}
        running = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        assert "writing 0.5 GB" in running.stderr.readline()
        assert len(list(tmp_path.iterdir())) == 1
        running.send_signal(number)
        assert running.wait(60) == status
        assert not any(tmp_path.iterdir())


def test_keep(small, tmp_path):
    said = []
    for _ in range(2):
        with checkpoint("gpt2", str(tmp_path / "kept"), said.append) as directory:
            written = (directory / "model.safetensors").stat().st_mtime_ns
            time.sleep(0.01)
    assert directory == tmp_path / "kept" / "gpt2" and not any(small.iterdir())
    assert (directory / "model.safetensors").stat().st_mtime_ns == written
    assert said == [
        f"gpt2: writing 0.5 GB of random weights to {directory}, to stay",
        f"gpt2: random weights of {directory}",
    ]


def test_a_disk_too_full(monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(InputError, match="takes 0.5 GB, but only 0.0 GB are free"):
        with checkpoint("gpt2", str(tmp_path), lambda text: None):
            pass


# ---- the picture


def test_plot(bench, tmp_path):
    pytest.importorskip("matplotlib")
    status, _, _ = bench(*QUICK, "-d", "0,32", "--plot", str(tmp_path / "x.png"))
    assert status == 0 and (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    status, _, err = bench(*QUICK, "--plot", str(tmp_path / "x.what"))
    assert status == 2 and "x.what: Format 'what' is not supported" in err


def test_no_matplotlib(bench, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, out, err = bench(*QUICK, "--plot", "x.png")
    assert (status, out) == (2, "") and err == "cgpt: error: a plot needs matplotlib: pip install matplotlib\n"
    with pytest.raises(InputError, match="matplotlib"):
        plot.plot([], "x.png")
