"""`cgpt pull` and load(download=True) by the hub's own client, from a server on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import cgpt
from cgpt.checkpoint import hub as hub_module
from cgpt.checkpoint.hub import needed_files, pull
from cgpt.errors import CgptError, CheckpointError, InputError
from cgpt.models import synth

from support.fake_hub import COMMIT, Hub

TINY = dict(model_type="gpt2", vocab_size=50257, n_positions=8, n_embd=64, n_layer=1, n_head=2)
ROOT = Path(cgpt.__file__).parents[1]
NOT_READ = ("README.md", "pytorch_model.bin", "original/model.safetensors", "metal/model.bin", "model.fp16.safetensors")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("hub") / "tiny"
    synth.write(TINY, directory)
    found = {path.name: path.read_bytes() for path in directory.iterdir()}
    return found | {"generation_config.json": b"{}"} | dict.fromkeys(NOT_READ, b"not read")


@pytest.fixture
def hub(files):
    pytest.importorskip("huggingface_hub")
    hub = Hub(dict(files))
    yield hub
    hub.close()


@pytest.fixture
def run(hub, tmp_path):
    """Runs a command, or code, in a process whose hub is the server and whose cache is tmp_path / "hf"."""
    settings = dict(HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "hf"), PYTHONPATH=str(ROOT), HF_HUB_DISABLE_XET="1")
    without = ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in without} | settings

    def run(*args, code=None, **more):
        command = [sys.executable, *(["-c", code] if code else ["-m", "cgpt", *map(str, args)])]
        done = subprocess.run(
            command, env=environment | more, capture_output=True, text=True, timeout=120, cwd=tmp_path
        )
        return done.returncode, done.stdout, done.stderr

    return run


def snapshot(tmp_path):
    return tmp_path / "hf/hub/models--owner--tiny/snapshots" / COMMIT


def fetched(hub):
    """The names of the files that were downloaded, and from where on."""
    return [
        (path.rpartition(f"resolve/{COMMIT}/")[2], start)
        for method, path, start in hub.asked
        if method == "GET" and "/resolve/" in path
    ]


def test_pull_and_load(hub, run, files, tmp_path):
    status, out, err = run("pull", "owner/tiny")
    assert status == 0 and "owner/tiny" in out and str(snapshot(tmp_path)) in out, err
    wanted = {"config.json", "generation_config.json", "model.safetensors"}
    assert {path.name for path in snapshot(tmp_path).iterdir()} == wanted == {name for name, _ in fetched(hub)}
    assert all((snapshot(tmp_path) / name).read_bytes() == files[name] for name in wanted)
    hub.close()  # from here on nothing needs it
    status, out, err = run("generate", "--model", "owner/tiny", "--max-new-tokens", 1, "x")
    assert status == 0, err


def test_a_cut_in_the_middle_is_gone_on_from(hub, run, files, tmp_path):
    hub.cut = 11_000_000  # the client keeps what came in whole chunks, of 10 MiB
    status, _, err = run("pull", "owner/tiny")
    if status != 0:  # clients before 1.0 go on when they are called again
        assert "the same command goes on" in err
        status, _, err = run("pull", "owner/tiny")
    starts = [start for name, start in fetched(hub) if name == "model.safetensors"]
    assert status == 0 and len(starts) == 2 and starts[1] in ("bytes=10485760-", "bytes=11000000-"), err
    assert (snapshot(tmp_path) / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_what_is_there_is_not_fetched_again(hub, run):
    run("pull", "owner/tiny")
    before = len(fetched(hub))
    assert run("pull", "owner/tiny")[0] == 0 and len(fetched(hub)) == before == 3


def test_a_local_directory(hub, run, files, tmp_path):
    status, out, err = run("pull", "owner/tiny", "--local-dir", "here", "--revision", "v1")
    assert status == 0 and (tmp_path / "here/model.safetensors").read_bytes() == files["model.safetensors"], err
    assert not snapshot(tmp_path).exists() and not (tmp_path / "here/README.md").exists()
    assert run("info", "here")[0] == 0


def test_load_downloads_only_when_told(hub, run, tmp_path):
    load = "import cgpt, sys; print(cgpt.load('owner/tiny'{}).directory)"
    status, _, err = run(code=load.format(""))
    assert status == 1 and "cgpt pull owner/tiny" in err and not hub.asked
    status, out, err = run(code=load.format(", download=True"))
    assert (status, out) == (0, f"{snapshot(tmp_path)}\n"), err
    asked = len(hub.asked)
    assert run(code=load.format(", download=True"))[0] == run(code=load.format(""))[0] == 0
    assert len(hub.asked) == asked
    (snapshot(tmp_path) / "model.safetensors").unlink()
    assert run(code=load.format(", download=True"))[0] == 0 and len(hub.asked) > asked


def test_damage_on_the_way_is_found(hub, run, tmp_path):
    """The client checks sizes alone."""
    hub.damaged = True
    status, _, err = run("pull", "owner/tiny")
    assert status == 2 and "sha256" in err and not (snapshot(tmp_path) / "model.safetensors").exists()
    hub.damaged = False
    assert run("pull", "owner/tiny")[0] == 0


def test_the_disk_is_looked_at_first(hub, run, tmp_path):
    hub.sizes["model.safetensors"] = 10**18
    status, _, err = run("pull", "owner/tiny")
    assert status == 2 and "takes 1000000000.0 GB, but only" in err and not fetched(hub)


def test_refusals(hub, run, tmp_path):
    for args, message in (
        (("owner/none",), "no such model"),
        (("owner/tiny", "--revision", "v2"), "has no revision v2"),
        (("~/models/x",), "is no id"),
    ):
        status, out, err = run("pull", *args)
        assert (status, out) == (2, "") and message in err and err.count("\n") == 1, err
    status, _, err = run("pull", "owner/tiny", HF_HUB_OFFLINE="1")
    assert status == 2 and "HF_HUB_OFFLINE is set" in err
    hub.gated = True
    status, _, err = run("pull", "owner/tiny")
    assert status == 2 and f"is gated; agree to its terms at {hub.url}/owner/tiny" in err and "HF_TOKEN" in err, err
    hub.gated, hub.token = False, "hf_secret"
    status, _, err = run("pull", "owner/tiny")
    assert status == 2 and "HF_TOKEN" in err
    assert run("pull", "owner/tiny", HF_TOKEN="hf_secret")[0] == 0
    hub.close()
    status, _, err = run("pull", "owner/tiny")
    assert status == 2 and "failed" in err and err.count("\n") == 1, err


def test_models_that_cgpt_cannot_read_are_not_downloaded(hub, run):
    hub.config = {"model_type": "llama"}
    status, _, err = run("pull", "owner/tiny")
    assert status == 2 and "is a llama model" in err
    hub.config = {"model_type": "gpt2"}
    for name in [name for name in hub.files if name.endswith(".safetensors")]:
        del hub.files[name]
    status, _, err = run("pull", "owner/tiny")
    assert status == 2 and "pytorch_model.bin is a pickle" in err and not fetched(hub), err


def test_which_files_are_needed():
    settings = ["config.json", "tokenizer.json", "merges.txt", "chat_template.jinja"]
    shards = ["model-00000-of-00002.safetensors", "model-00001-of-00002.safetensors"]
    index = "model.safetensors.index.json"
    useless = [*NOT_READ, "pytorch_model.bin.index.json", "tf_model.h5", "onnx/config.json", ".gitattributes"]
    assert sorted(needed_files([*settings, *shards, index, *useless])) == sorted([*settings, *shards, index])
    assert sorted(needed_files([*settings, "model.safetensors", *shards, index])) == sorted(
        [*settings, "model.safetensors"]
    )
    assert needed_files(["x.safetensors", "y.safetensors", "z.bin"]) == ["x.safetensors", "y.safetensors"]


def test_without_the_client(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for call in (lambda: pull("owner/tiny"), lambda: cgpt.load("owner/tiny", download=True)):
        with pytest.raises(CgptError, match="pip install huggingface_hub"):
            call()
    with pytest.raises(InputError, match="is no id"):
        hub_module.pull("./here")


def test_a_directory_of_that_name_is_no_reason_to_download(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cgpt.loading.pull", lambda *_: pytest.fail("it downloads"))
    (tmp_path / "owner/tiny").mkdir(parents=True)
    (tmp_path / "owner/tiny/pytorch_model.bin").touch()
    with pytest.raises(CheckpointError, match="a pickle of PyTorch"):
        cgpt.load("owner/tiny", download=True)
