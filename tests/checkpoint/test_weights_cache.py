"""Converted weights that are kept in a file: mapped, with the same logits to the bit, and never the wrong ones."""

import os
import shutil

import numpy as np
import pytest

import cgpt
from cgpt.checkpoint import loader, weights_cache
from cgpt.checkpoint.config import read_config
from cgpt.checkpoint.names import open_checkpoint
from cgpt.checkpoint.weights_cache import WeightsCache
from cgpt.errors import CheckpointError, InputError

IDS = list(range(5, 45))


def logits(model):
    return model.transformer.step([(model.transformer.new_cache(), IDS)], rows="all")


def kept(directory):
    return sorted(str(path.relative_to(directory)).partition("/")[2] for path in directory.glob("*/*"))


@pytest.fixture
def no_conversion(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a matrix was converted")

    def begin():
        for name in ("transpose", "pack_bf16"):
            monkeypatch.setattr(loader, name, refuse)
        monkeypatch.setattr(loader, "QUANTIZERS", dict.fromkeys(loader.QUANTIZERS, refuse))

    return begin


@pytest.mark.parametrize("name", ["demo-gpt2", "demo-gpt-oss"])
@pytest.mark.parametrize("dense", [None, "bf16", "bf16-packed", "int8", "int4"])
def test_the_second_load_maps_what_the_first_one_made(tmp_path, name, dense, no_conversion):
    expected = logits(cgpt.load(name, 1, "exact", dense))
    first = cgpt.load(name, 1, "exact", dense, weights_cache=tmp_path)
    assert np.array_equal(logits(first), expected)
    converts = (name, dense) not in {("demo-gpt-oss", None), ("demo-gpt-oss", "bf16")}
    assert kept(tmp_path) == ["model.safetensors"] * converts
    if converts:
        no_conversion()
    second = cgpt.load(name, 1, "exact", dense, weights_cache=tmp_path)
    assert np.array_equal(logits(second), expected)
    assert second.transformer.files.digest() == first.transformer.files.digest()


def test_other_weights_settings_and_versions_have_files_of_their_own(tmp_path, monkeypatch):
    directory = shutil.copytree(cgpt.locate("demo-gpt2"), tmp_path / "model")
    cache = tmp_path / "cache"
    for dense in ("int8", "bf16", "int8"):
        cgpt.load(directory, 1, dense=dense, weights_cache=cache)
    assert len(kept(cache)) == 2
    path = directory / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # the end of the last tensor
    (directory / "new").write_bytes(data)
    (directory / "new").rename(path)
    changed = cgpt.load(directory, 1, dense="int8", weights_cache=cache)
    assert len(kept(cache)) == 3
    assert np.array_equal(logits(changed), logits(cgpt.load(directory, 1, dense="int8")))
    monkeypatch.setattr(weights_cache, "__version__", "0.0.1")
    cgpt.load(directory, 1, dense="int8", weights_cache=cache)
    assert len(kept(cache)) == 4
    checkpoint = open_checkpoint(directory, read_config(directory))
    assert WeightsCache(cache, checkpoint, "int8").kept and not WeightsCache(cache, checkpoint, "int8", (0, 2)).kept


def test_a_damaged_file_is_made_again(tmp_path):
    expected = logits(cgpt.load("demo-gpt2", 1, dense="int8", weights_cache=tmp_path))
    (path,) = tmp_path.glob("*/*")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.warns(UserWarning, match=r"the weights cache is made again: .*model\.safetensors: not a whole"):
        assert np.array_equal(logits(cgpt.load("demo-gpt2", 1, dense="int8", weights_cache=tmp_path)), expected)
    assert path.read_bytes() == whole


def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is no directory for a weights cache: it is a file"):
        cgpt.load("demo-gpt2", 1, weights_cache=str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="converted weights were not kept: Not a directory"):
        model = cgpt.load("demo-gpt2", 1, weights_cache=tmp_path / "file" / "more" / "yet")
    assert model.generate("ROMEO:", max_new_tokens=2).ids

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match="not kept: No space left"):
        cgpt.load("demo-gpt2", 1, weights_cache=tmp_path / "cache")
    assert kept(tmp_path / "cache") == []


def test_a_kept_file_that_changes_closes_the_model(tmp_path):
    cgpt.load("demo-gpt2", 1, weights_cache=tmp_path)
    model = cgpt.load("demo-gpt2", 1, weights_cache=tmp_path)
    logits(model)
    (path,) = tmp_path.glob("*/*")
    with open(path, "r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.truncate()
    with pytest.raises(CheckpointError, match="changed on disk"):
        logits(model)


def test_copies_are_of_what_was_kept(tmp_path, no_conversion):
    """Where memory is bounded, or huge pages are asked for, nothing stays mapped."""
    expected = logits(cgpt.load("demo-gpt-oss", 1, "exact", "int8", weights_cache=tmp_path))
    no_conversion()
    model = cgpt.load("demo-gpt-oss", 1, "exact", "int8", memory="1GB", weights_cache=tmp_path)
    assert np.array_equal(logits(model), expected)
    (path,) = tmp_path.glob("*/*")
    with open(path, "r+b") as file:
        file.truncate(10)
    assert np.array_equal(logits(model), expected)


def test_loads_that_convert_other_matrices_share_a_file(tmp_path):
    """Of values that are unaligned, an embedding is copied only where the model is mapped."""
    directory = shutil.copytree(cgpt.locate("demo-gpt-oss"), tmp_path / "model")
    (path,) = directory.glob("*.safetensors")
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    path.write_bytes((end - 7).to_bytes(8, "little") + data[8:end] + b" " + data[end:])
    expected = logits(cgpt.load(directory, 1, "exact"))
    for memory in ("1GB", None, "1GB"):
        model = cgpt.load(directory, 1, "exact", memory=memory, weights_cache=tmp_path / "cache")
        assert np.array_equal(logits(model), expected)


def test_nothing_is_left_where_a_load_is_interrupted(tmp_path, monkeypatch):
    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cgpt.load("demo-gpt2", 1, weights_cache=tmp_path)
    assert kept(tmp_path) == []


def test_processes_of_one_number_do_not_write_one_file(tmp_path, monkeypatch):
    """As in containers that share a directory: each is the first of its own."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    begun, fsync = [], os.fsync

    def other(descriptor):
        monkeypatch.setattr(os, "fsync", fsync)
        cgpt.load("demo-gpt2", 1, weights_cache=tmp_path)
        begun.extend(tmp_path.glob("*/*"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", other)
    cgpt.load("demo-gpt2", 1, weights_cache=tmp_path)
    assert sorted(path.suffix for path in begun) == [".part", ".safetensors"]
    assert kept(tmp_path) == ["model.safetensors"]
