"""Paths, names and ids that stand for a checkpoint: found without a network, or refused with what to do."""

import ast
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import cgpt
from cgpt.checkpoint.formats import explain
from cgpt.checkpoint.locate import SYNTH, locate, model_name
from cgpt.cli import main as cli
from cgpt.errors import CheckpointError, InputError
from cgpt.models import synth
from cgpt.models.description import describe

TINY = dict(model_type="gpt2", vocab_size=50, n_positions=8, n_embd=8, n_layer=1, n_head=2)
OLD, NEW = "0" * 40, "1a2b3c4d" + "5" * 32


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user's home, with nothing said about caches; the current directory is another."""
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def model(directory, **config):
    synth.write(TINY | config, directory)
    return directory


def cached(hub, repo, commit=NEW, ref="main"):
    """A model in the hub's cache, its files links to blobs, as huggingface_hub lays it out."""
    folder = hub / f"models--{repo.replace('/', '--')}"
    snapshot = model(folder / "snapshots" / commit)
    (folder / "blobs").mkdir(exist_ok=True)
    for file in list(snapshot.iterdir()):
        blob = folder / "blobs" / f"{commit[:6]}{file.name}"
        file.rename(blob)
        file.symlink_to(os.path.relpath(blob, snapshot))
    if ref:
        (folder / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (folder / "refs" / ref).write_text(commit)
    return snapshot


def refused(path_or_name, *parts, error=CheckpointError, **how):
    with pytest.raises(error) as refusal:
        cgpt.load(path_or_name, **how)
    assert all(part in str(refusal.value) for part in parts), str(refusal.value)


# ---- paths


def test_home_and_relative_paths(home):
    expected = model(home / "models/g")
    assert locate("~/models/g") == locate(Path("~/models/g")) == expected
    assert locate("../home/models/g").samefile(expected)


def test_a_file_of_the_checkpoint(home):
    directory = model(home / "g")
    for name in ("model.safetensors", "config.json"):
        assert locate(directory / name) == directory
    shutil.copy(directory / "model.safetensors", directory / "model.fp16.safetensors")
    refused(directory / "model.fp16.safetensors", "is not the file that cgpt reads", "model.safetensors")


def test_a_trainers_output(home):
    model(home / "out/checkpoint-500")
    with pytest.warns(UserWarning, match="out: holds no model itself; checkpoint-500 is taken"):
        assert locate(home / "out") == home / "out/checkpoint-500"
    model(home / "out/checkpoint-1000")
    (home / "out/checkpoint-best").mkdir()
    with pytest.warns(UserWarning, match="checkpoint-1000, the last of 2 is taken"):
        assert locate(home / "out") == home / "out/checkpoint-1000"
    (home / "out/training_args.bin").write_bytes(b"pickle")
    with pytest.warns(UserWarning, match="checkpoint-1000"):
        assert locate(home / "out") == home / "out/checkpoint-1000"
    model(home / "finished")
    model(home / "finished/checkpoint-500")
    assert locate(home / "finished") == home / "finished"


def test_a_directory_in_place_of_an_id(home):
    cached(home / ".cache/huggingface/hub", "gpt2")
    assert locate(model(Path("gpt2"))) == Path("gpt2") == locate("gpt2")


# ---- the hub's cache


@pytest.mark.parametrize(
    "variables, hub",
    [
        ({}, ".cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "~/xdg"}, "xdg/huggingface/hub"),
        ({"XDG_CACHE_HOME": "~/xdg", "HF_HOME": "$HOME/hf"}, "hf/hub"),
        ({"HF_HOME": "~/hf", "HUGGINGFACE_HUB_CACHE": "~/old"}, "old"),
        ({"HF_HOME": "~/hf", "HUGGINGFACE_HUB_CACHE": "~/old", "HF_HUB_CACHE": "~/new"}, "new"),
    ],
)
def test_ids_are_found_where_the_hub_keeps_them(home, monkeypatch, variables, hub):
    snapshot = cached(home / hub, "someone/tiny.model_1")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert locate("someone/tiny.model_1") == snapshot
    with cgpt.load("someone/tiny.model_1") as loaded:
        assert loaded.config.n_embd == 8 and model_name(loaded.directory) == "someone/tiny.model_1"


@pytest.mark.parametrize("kept", ["gpt2", "openai-community/gpt2"])
def test_both_names_of_a_published_model(home, kept):
    snapshot = cached(home / ".cache/huggingface/hub", kept)
    cached(home / ".cache/huggingface/hub", "someone/gpt2")
    assert locate("gpt2") == locate("openai-community/gpt2") == snapshot != locate("someone/gpt2")
    refused("other/gpt2", "not in the Hugging Face cache")


def test_the_other_name_of_a_model_that_is_not_whole(home):
    hub = home / ".cache/huggingface/hub"
    (cached(hub, "gpt2") / "model.safetensors").unlink()
    refused("gpt2", "not complete", "cgpt pull gpt2")
    whole = cached(hub, "openai-community/gpt2")
    assert locate("gpt2") == whole


def test_a_folder_of_the_cache(home):
    hub = home / ".cache/huggingface/hub"
    snapshot = cached(hub, "a/b")
    for path in ("models--a--b", "models--a--b/snapshots", f"models--a--b/snapshots/{NEW}", "models--a--b/blobs"):
        assert locate(hub / path) == snapshot
    assert locate(snapshot / "model.safetensors") == snapshot


def test_revisions(home):
    hub = home / ".cache/huggingface/hub"
    new, old = cached(hub, "a/b"), cached(hub, "a/b", OLD, "refs/pr/1")
    assert locate("a/b") == new == locate("a/b", NEW[:8]) == locate(hub / "models--a--b", "main")
    assert locate("a/b", "refs/pr/1") == locate("a/b", OLD) == old
    assert cgpt.load("a/b", revision=OLD).directory == old
    refused("a/b", "has no revision v2", "cgpt pull a/b --revision v2", revision="v2")
    (hub / "models--a--b/refs/main").unlink()
    refused("a/b", "several revisions", NEW, OLD)
    shutil.rmtree(old)
    assert locate("a/b") == new
    refused("demo-gpt2", "a revision is one of an id", error=InputError, revision="main")


def test_a_download_that_is_not_complete(home):
    folder = home / ".cache/huggingface/hub/models--a--b"
    snapshot = cached(folder.parent, "a/b")
    (snapshot / "model.safetensors").unlink()
    refused("a/b", "not complete", "model.safetensors is missing", "cgpt pull a/b")
    (snapshot / "model.safetensors").symlink_to("../../blobs/gone")
    refused(folder, "not complete", "model.safetensors is missing")
    (folder / "blobs/abc.incomplete").write_bytes(bytes(1_500_000))
    refused("a/b", "abc.incomplete has 1.5 MB so far")
    shutil.rmtree(folder / "snapshots")
    refused("a/b", "not complete", "abc.incomplete has 1.5 MB so far", "cgpt pull a/b")


def test_shards_that_are_missing(home):
    snapshot = cached(home / ".cache/huggingface/hub", "a/b")
    names = list(load_file(snapshot / "model.safetensors"))
    (snapshot / "model.safetensors").rename(snapshot / "model-00001-of-00002.safetensors")
    files = dict.fromkeys(names, "model-00001-of-00002.safetensors") | {names[0]: "model-00002-of-00002.safetensors"}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    refused("a/b", "not complete", "model-00002-of-00002.safetensors is missing")


def test_an_id_that_is_not_there(home, monkeypatch):
    (home / ".cache/huggingface/hub/models--a--b/refs").mkdir(parents=True)
    for name in ("a/b", "gpt2", "openai/gpt-oss-20b"):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        refused(name, f"pip install huggingface_hub, then cgpt pull {name}")
        monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
        refused(name, f"to download it: cgpt pull {name}")
    with pytest.raises(CheckpointError) as refusal:
        cgpt.load("/no/such/place")
    assert "no such directory or file" in str(refusal.value) and "pull" not in str(refusal.value)


def test_no_network_and_no_client_is_needed(home):
    """Neither finding a model nor failing to imports the hub's client or anything that opens a connection."""
    cached(home / ".cache/huggingface/hub", "a/b")
    code = (
        "import sys, socket, cgpt\n"
        "socket.socket = socket.create_connection = None\n"
        "cgpt.load('a/b')\n"
        "try: cgpt.load('openai/gpt-oss-20b')\n"
        "except cgpt.CgptError: print([m for m in ('huggingface_hub', 'httpx', 'requests') if m in sys.modules])"
    )
    environment = dict(os.environ, PYTHONPATH=str(Path(cgpt.__file__).parents[1]))
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


# ---- sizes and ids


def test_sizes_have_random_weights_where_a_checkpoint_is_none(home, monkeypatch, capsys):
    """`info`, `compare`, `synth` and `bench` mean the size gpt2, load() the id; synth: means the size everywhere."""
    cached(home / ".cache/huggingface/hub", "openai-community/gpt2")
    assert cgpt.load("gpt2").config.n_embd == 8
    size, random = describe("gpt2"), describe("synth:gpt2")
    same = size.keys() - {"name", "here"}  # what is free here changes all the time
    assert all(size[key] == random[key] for key in same) and size["shape"]["width"] == 768
    assert describe("openai-community/gpt2")["shape"]["width"] == 8
    monkeypatch.setitem(synth.SIZES, "gpt2", cgpt.load("gpt2").config)
    monkeypatch.setattr(synth, "published_config", lambda size, layout: TINY)
    with pytest.warns(UserWarning, match="synth:gpt2: random weights"):
        random = cgpt.load("synth:gpt2")
    assert random.directory.name == "gpt2" and not random.directory.exists()
    assert np.isfinite(random.logits([1, 2, 3])).all()
    assert cli.main(["generate", "--model", "synth:gpt2", "x"]) == 2  # 50 ids have no tokenizer
    assert "random weights" in capsys.readouterr().err
    assert cli.main(["synth", "synth:gpt2", "written"]) == 0 and cgpt.load("written").config.n_embd == 8


def test_random_weights_of_a_config(home):
    Path("config.json").write_text(json.dumps(TINY))
    with pytest.warns(UserWarning, match="random weights"):
        assert cgpt.load(f"{SYNTH}config.json").vocab_size == 50
    refused("synth:gpt-5", "gpt-oss-20b", error=InputError)


# ---- what is in the directory, or the file


@pytest.mark.parametrize(
    "files, parts",
    [
        (
            ["config.json", "pytorch_model.bin"],
            ["pytorch_model.bin", "pickle", 'from_pretrained("{}").save_pretrained('],
        ),
        (["config.json", "pytorch_model-00001-of-00002.bin"], ["pickle", "save_pretrained("]),
        (["ckpt.pt"], ["ckpt.pt", "nanoGPT", "transposed", "model.safetensors"]),
        (["consolidated.00.pth"], ["pickle", "model.safetensors"]),
        (["gpt-oss-20b-MXFP4.gguf"], ["GGUF", "cgpt pull openai/gpt-oss-20b"]),
        (["config.json", "gpt2-xl.Q8_0.gguf"], ["GGUF", "cgpt pull openai-community/gpt2-xl"]),
        (
            ["checkpoint", "hparams.json", "model.ckpt.index", "model.ckpt.data-00000-of-00001"],
            ["TensorFlow", "cgpt pull"],
        ),
        (["config.json", "tf_model.h5"], ["TensorFlow", "from_tf=True"]),
        (["config.json", "flax_model.msgpack"], ["Flax", "from_flax=True"]),
        (["config.json", "onnx/model.onnx"], ["model.onnx", "ONNX", "cgpt pull"]),
        (["config.json", "openvino_model.xml", "openvino_model.bin"], ["OpenVINO", "cgpt pull"]),
        (["config.json", "weights.npz"], ["MLX", "cgpt pull"]),
        (["config.json", "model.safetensors.part"], ["model.safetensors.part is a download that is not complete"]),
        (["models/config.json", "readme.txt"], ["its folder models/ has one"]),
    ],
)
def test_other_formats_are_named(home, files, parts):
    for name in files:
        (home / "m" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "m" / name).write_text("{}")
    refused(home / "m", *(part.format(home / "m") for part in parts))


def test_the_line_that_converts_is_quoted_for_the_shell_and_for_python(home):
    folder = home / """it's "my" $m\\"""
    folder.mkdir(parents=True)
    (folder / "pytorch_model.bin").write_bytes(b"")
    said = explain(folder)
    python, option, code = shlex.split(said[said.index("python -c") : said.index(", and copy")])
    strings = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    assert (python, option, set(strings)) == ("python", "-c", {str(folder), "NEW"})


def test_weights_without_a_config(home):
    (model(home / "m") / "config.json").unlink()
    refused(home / "m", "no config.json", "copy that of the model beside its weights", error=cgpt.CgptError)


def test_a_file_of_another_format(home):
    (home / "m").mkdir(parents=True)
    (home / "m/gpt-oss-20b-mxfp4.gguf").write_bytes(b"GGUF")
    refused(home / "m/gpt-oss-20b-mxfp4.gguf", "GGUF", "cgpt pull openai/gpt-oss-20b")


@pytest.mark.parametrize("more", [[], ["config.json"]])
def test_an_adapter(home, more):
    (home / "a").mkdir(parents=True)
    (home / "a/adapter_config.json").write_text('{"base_model_name_or_path": "some/base", "peft_type": "LORA"}')
    save_file({"base_model.model.x.lora_A.weight": np.zeros((2, 2), np.float32)}, home / "a/adapter_model.safetensors")
    for name in more:
        (home / "a" / name).write_text(json.dumps(TINY))
    refused(home / "a", "a LORA adapter of some/base", f'from_pretrained("{home / "a"}").merge_and_unload()')
    (home / "a/adapter_config.json").write_text("[")
    refused(home / "a", "adapter of a model that it does not name")
    (home / "a/adapter_model.safetensors").rename(home / "a/adapter_model.bin")
    refused(home / "a", "adapter of a model that it does not name")
    (model(home / "both") / "adapter_config.json").write_text("{}")
    with pytest.warns(UserWarning, match="the adapter beside the model is not applied"):
        assert locate(home / "both") == home / "both"


@pytest.mark.parametrize(
    "settings, method", [({"quant_method": "gptq"}, "gptq"), ({"load_in_8bit": True}, "bitsandbytes")]
)
def test_other_quantisations_are_named(home, settings, method):
    directory = model(home / "m")
    (directory / "config.json").write_text(json.dumps(TINY | {"quantization_config": settings}))
    refused(directory, f"'{method}'", 'dense="int8"', error=cgpt.CgptError)
    (directory / "config.json").write_text(json.dumps(TINY | {"quantization": {"group_size": 64, "bits": 4}}))
    refused(directory, "MLX", error=cgpt.CgptError)


def test_a_file_that_is_none_of_a_checkpoint(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match="notes.txt: is no file of a checkpoint"):
        cgpt.load(tmp_path / "notes.txt")


def test_a_damaged_ref(tmp_path):
    (tmp_path / "snapshots" / NEW).mkdir(parents=True)
    (tmp_path / "refs").mkdir()
    (tmp_path / "refs/main").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="refs/main"):
        locate(tmp_path)


@pytest.mark.parametrize("name", ["x" * 300, f"{'x' * 300}/y", f"owner/{'x' * 300}", f"./{'x' * 300}"])
def test_a_name_that_no_file_can_have(home, name):
    with pytest.raises(CheckpointError, match="no such directory or file"):
        locate(name)
