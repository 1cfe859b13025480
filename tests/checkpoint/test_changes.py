"""A checkpoint that changes on disk under a loaded model: an error that names the file, never other weights."""

import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest

import cgpt
from cgpt.checkpoint import safetensors
from cgpt.checkpoint.changes import FileWatch
from cgpt.checkpoint.safetensors import Checkpoint
from cgpt.errors import CheckpointError, ModelClosed, OutOfMemoryError
from cgpt.generation.engine import Engine
from cgpt.generation.request import Request
from cgpt.generation.sampling import SamplingParams

IDS, PARAMS = [1, 2, 3], SamplingParams(max_new_tokens=3)


@pytest.fixture(autouse=True)
def every_check_counts(monkeypatch):
    """On a busy machine a check may look slow, and the next one would come too late for a file that was cut."""
    monkeypatch.setattr(FileWatch, "SLOW", float("inf"))


@pytest.fixture(params=["demo-gpt2", "demo-gpt-oss"])
def directory(request, tmp_path):
    return shutil.copytree(cgpt.locate(request.param), tmp_path / "model")


def weights(directory):
    return directory / "model.safetensors"


def truncate(path):
    os.truncate(path, 1000)


def write_over(path):
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\1" * (path.stat().st_size // 4))


def copy_over(path):
    data = path.read_bytes()
    with open(path, "wb") as file:
        file.write(data[: len(data) // 4])


@pytest.mark.parametrize("change", [truncate, write_over, copy_over])
def test_a_change_is_an_error_and_closes_the_model(directory, change):
    model = cgpt.load(directory, threads=1)
    twin = model.at_precision("exact")
    model.logits(IDS)
    change(weights(directory))
    with pytest.raises(CheckpointError, match="model.safetensors changed on disk.*renaming"):
        model.logits(IDS)
    with pytest.raises(ModelClosed, match="checkpoint changed on disk"):
        model.generate(IDS)
    with pytest.raises(CheckpointError):
        twin.logits(IDS)


@pytest.mark.parametrize("how", ["replace", "unlink"])
def test_a_file_in_its_place_is_no_change(directory, how):
    model = cgpt.load(directory, threads=1)
    before, path = model.logits(IDS), weights(directory)
    if how == "replace":
        other = path.with_name("new")
        other.write_bytes(path.read_bytes()[::-1])
        os.rename(other, path)
    else:
        path.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(model.logits(IDS), before)


def test_a_touch_warns_once(directory):
    model = cgpt.load(directory, threads=1)
    before = model.logits(IDS)
    os.utime(weights(directory))
    with pytest.warns(UserWarning, match="was touched") as caught:
        np.testing.assert_array_equal(model.logits(IDS), before)
        model.logits(IDS)
    assert len(caught) == 1


def test_what_was_copied_does_not_follow_the_file(tmp_path):
    checkpoint = Checkpoint(shutil.copytree(cgpt.locate("demo-gpt2"), tmp_path / "model"))
    watch, name = checkpoint.watch(), next(iter(checkpoint.tensors))
    mapped, copied = checkpoint.array(name), checkpoint.array(name).copy()
    del checkpoint
    truncate(weights(tmp_path / "model"))
    with pytest.raises(CheckpointError):
        watch.require_unchanged()
    checkpoint = Checkpoint(shutil.copytree(cgpt.locate("demo-gpt2"), tmp_path / "other"))
    watch = checkpoint.watch()
    del checkpoint
    truncate(weights(tmp_path / "other"))
    watch.require_unchanged()
    assert mapped.shape == copied.shape


def test_a_change_while_it_is_loaded(directory):
    checkpoint = Checkpoint(directory)
    os.utime(weights(directory))
    with pytest.raises(CheckpointError, match="changed on disk"):
        checkpoint.watch()


def test_the_engine_ends_with_its_model(directory):
    model = cgpt.load(directory, threads=1)
    with Engine(model) as engine:
        list(engine.submit([Request(model, IDS, PARAMS)]))
        truncate(weights(directory))
        job, later = engine.submit([Request(model, ids, PARAMS) for ids in (IDS, [4, 5])]), Request(model, IDS, PARAMS)
        with pytest.raises(CheckpointError):
            list(job)
        engine._thread.join(10)
        with pytest.raises(CheckpointError):
            engine.submit([later])
        assert isinstance(engine.failure, CheckpointError)


def test_an_engine_with_nothing_to_do_looks_too(directory, monkeypatch):
    monkeypatch.setattr(Engine, "IDLE_SECONDS", 0.02)
    with Engine(cgpt.load(directory, threads=1)) as engine:
        truncate(weights(directory))
        engine._thread.join(10)
        assert isinstance(engine.failure, CheckpointError)


BUS_ERROR = """
import os, sys, cgpt
from cgpt.cli.main import main
if sys.argv[2] == "command":
    main(["kernels"])
model = cgpt.load(sys.argv[1], threads=1)
model.transformer.files = None
os.truncate(os.path.join(sys.argv[1], "model.safetensors"), 5000)
model.logits([1, 2, 3])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say which file it was")
@pytest.mark.parametrize("where", ["library", "command"])
def test_a_bus_error_names_the_file_in_the_command_line_only(directory, where):
    """What the check before a step comes too late for."""
    done = subprocess.run([sys.executable, "-c", BUS_ERROR, directory, where], capture_output=True, text=True)
    assert done.returncode == -7
    said = f"cgpt: error: {weights(directory)} could not be read"
    assert (said in done.stderr) == (where == "command") and done.stderr.count("\n") == (where == "command")


def test_no_memory_to_map_a_file(monkeypatch):
    def fails(*_, **__):
        raise MemoryError("Cannot allocate memory")

    monkeypatch.setattr(safetensors, "safe_open", fails)
    with pytest.raises(OutOfMemoryError, match="model.safetensors: no memory to map it"):
        cgpt.load("demo-gpt2")
