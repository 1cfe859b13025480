"""Checkpoint: which files it reads, what it refuses, that it never copies or reads more than it must."""

import contextlib
import json
import os
import warnings

import numpy as np
import pytest
from safetensors.numpy import save_file

from cgpt.checkpoint.safetensors import Checkpoint, TensorSpec
from cgpt.errors import CheckpointError

W = np.arange(12, dtype=np.float32).reshape(3, 4)
B = np.array([1.5, -2.0, 0.25], np.float16)


def write_raw(path, header, data=b""):
    """A safetensors file with any header (a dict, or bytes as they are) and no checks."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write_index(directory, weight_map):
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.fixture
def shards(tmp_path):
    """w and b in two shards with an index."""
    save_file({"w": W}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": B}, tmp_path / "model-00002-of-00002.safetensors")
    write_index(tmp_path, {"w": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"})
    return tmp_path


def refused(directory, match):
    with pytest.raises(CheckpointError, match=match):
        Checkpoint(directory)


# -------------------------------------------------------------------------------------------------- reading


def test_single_file(tmp_path):
    save_file({"w": W, "b": B}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    assert set(checkpoint.tensors) == {"w", "b"}
    stored = checkpoint.tensors["w"]
    assert (stored.name, stored.dtype, stored.shape, stored.nbytes) == ("w", "F32", (3, 4), 48)
    assert stored.file == tmp_path / "model.safetensors"
    np.testing.assert_array_equal(checkpoint.array("w"), W)
    np.testing.assert_array_equal(checkpoint.array("b"), B)


@pytest.mark.parametrize("dtype, numpy_dtype, values", [
    ("F64", "<f8", [1.5, -2]), ("F32", "<f4", [1.5, -2]), ("F16", "<f2", [1.5, -2]),
    ("BF16", "<u2", [0x3FC0, 0xC000]),
    ("I64", "<i8", [-3, 4]), ("I32", "<i4", [-3, 4]), ("I16", "<i2", [-3, 4]), ("I8", "i1", [-3, 4]),
    ("U64", "<u8", [3, 4]), ("U32", "<u4", [3, 4]), ("U16", "<u2", [3, 4]), ("U8", "u1", [3, 255]),
    ("BOOL", "?", [True, False]),
])  # fmt: skip
def test_dtypes(tmp_path, dtype, numpy_dtype, values):
    expected = np.array(values, numpy_dtype)
    write_raw(
        tmp_path / "model.safetensors",
        {"x": entry(dtype, [2, 1], 0, expected.nbytes)},
        expected.tobytes(),
    )
    array = Checkpoint(tmp_path).array("x")
    assert array.dtype == expected.dtype
    np.testing.assert_array_equal(array, expected[:, None])


def test_scalars_and_empty_tensors(tmp_path):
    tensors = {"scalar": np.array(7, "f4"), "empty": np.zeros((0, 5), "f4")}
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.array("scalar") == 7
    assert checkpoint.array("empty").shape == (0, 5)


def test_shards_with_an_index(shards):
    checkpoint = Checkpoint(shards)
    assert checkpoint.tensors["b"].file.name == "model-00002-of-00002.safetensors"
    np.testing.assert_array_equal(checkpoint.array("w"), W)
    np.testing.assert_array_equal(checkpoint.array("b"), B)


def test_openai_layout_has_shards_without_an_index(shards):
    (shards / "model.safetensors.index.json").unlink()
    assert set(Checkpoint(shards).tensors) == {"w", "b"}


def test_single_file_comes_before_the_index(shards):
    save_file({"other": W}, shards / "model.safetensors")
    assert set(Checkpoint(shards).tensors) == {"other"}


def test_links_as_in_a_download_cache(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    save_file({"w": W}, tmp_path / "blobs/0123")
    (tmp_path / "snapshot/model.safetensors").symlink_to("../blobs/0123")
    np.testing.assert_array_equal(Checkpoint(tmp_path / "snapshot").array("w"), W)


# ---------------------------------------------------------------------------------------- views, not copies


def is_view_of_a_file(array):
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array.base is not None


def test_arrays_are_read_only_views(tmp_path):
    save_file({"w": W}, tmp_path / "model.safetensors")
    array = Checkpoint(tmp_path).array("w")
    assert is_view_of_a_file(array) and array.flags.aligned
    with pytest.raises(ValueError):
        array[0, 0] = 1


def test_unaligned_tensors_are_copied(tmp_path):
    header = {"byte": entry("U8", [1], 0, 1), "w": entry("F32", [3, 4], 1, 49)}
    for length in range(8):  # of the padding, which shifts the data
        header["__metadata__"] = {"pad": "x" * length}
        write_raw(tmp_path / "model.safetensors", header, b"\x07" + W.tobytes())
        checkpoint = Checkpoint(tmp_path)
        array = checkpoint.array("w")
        assert array.flags.aligned and not array.flags.writeable
        assert is_view_of_a_file(array) == (checkpoint.tensors["w"].offset % 4 == 0)
        np.testing.assert_array_equal(array, W)


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc to see memory use in")


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@needs_proc
def test_opening_reads_no_data(tmp_path):
    """A sparse file as large as gpt-oss-20b: there is no disk to read, but to read it would take seconds."""
    size = 13_800_000_000
    write_raw(tmp_path / "model.safetensors", {"w": entry("U8", [size], 0, size)})
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) + size)
    before = resident_bytes()
    checkpoint = Checkpoint(tmp_path)
    array = checkpoint.array("w")
    assert array[-1] == 0
    assert resident_bytes() - before < 20e6


@needs_proc
def test_released_memory_comes_back(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {name: rng.random(n, np.float32) for name, n in (("a", 1000), ("b", 8_000_000), ("c", 1000))}
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    for name, expected in tensors.items():
        np.testing.assert_array_equal(checkpoint.array(name), expected)
    before = resident_bytes()
    for name in tensors:
        checkpoint.release(name)
    assert resident_bytes() < before - 30e6
    for name, expected in tensors.items():
        np.testing.assert_array_equal(checkpoint.array(name), expected)


# ------------------------------------------------------------------------------------------------- refusals


def test_directory(tmp_path):
    save_file({"w": W}, tmp_path / "model.safetensors")
    refused(tmp_path / "nowhere", "no such directory")
    refused(tmp_path / "model.safetensors", "is a file; give the directory")
    refused(str(tmp_path) + "\0", "no such directory")
    (tmp_path / "loop").symlink_to("loop")
    refused(tmp_path / "loop", "no such directory")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.gguf", "tf_model.h5"])
def test_other_formats_are_never_opened(tmp_path, name):
    refused(tmp_path, r"no \*.safetensors file")
    (tmp_path / name).write_bytes(b"\x80\x04.")
    refused(tmp_path, f"{name} is .*; cgpt reads safetensors only: .")


def test_no_regular_file(tmp_path):
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/model.safetensors").mkdir()
    refused(tmp_path / "dir", "is a directory")
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe/model.safetensors")
    refused(tmp_path / "pipe", "not a regular file")
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop/model.safetensors").symlink_to("model.safetensors")
    refused(tmp_path / "loop", "symbolic links")
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone/model.safetensors").symlink_to("nowhere")
    refused(tmp_path / "gone", "No such file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path):
    save_file({"w": W}, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").chmod(0)
    refused(tmp_path, "Permission denied")


def test_git_lfs_pointer(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:")
    refused(tmp_path, "git lfs pull")


DAMAGE = {
    "empty": lambda data: b"",
    "no_length": lambda data: data[:7],
    "cut_header": lambda data: data[:20],
    "cut_data": lambda data: data[:-1],
    "trailing": lambda data: data + b"\0",
    "huge_header": lambda data: b"\xff" * 8 + data[8:],
    "dtype": lambda data: data[:8] + data[8:].replace(b"F32", b"F33"),
    "shape": lambda data: data[:8] + data[8:].replace(b"[3,4]", b"[4,4]"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_file(tmp_path, name):
    path = tmp_path / "model.safetensors"
    save_file({"w": W}, path)
    path.write_bytes(DAMAGE[name](path.read_bytes()))
    refused(tmp_path, r"model\.safetensors: not a whole safetensors file")


@pytest.mark.parametrize("second", [entry("U8", [4], 2, 6), entry("U8", [2], 5, 7)], ids=["overlap", "hole"])
def test_tensors_fill_the_file(tmp_path, second):
    end = second["data_offsets"][1]
    write_raw(tmp_path / "model.safetensors", {"a": entry("U8", [4], 0, 4), "b": second}, bytes(end))
    refused(tmp_path, r"model\.safetensors: not a whole safetensors file")


ABSURD_HEADERS = {
    "backwards": {"a": entry("F8_E4M3", [4], 4, 0)},
    "overflow": {"a": entry("U8", [1 << 63, 2], 0, 4)},
    "negative": {"a": entry("U8", [-2, -2], 0, 4)},
    "fraction": {"a": entry("F32", [1.0], 0, 4)},
    "dtype": {"a": entry(7, [4], 0, 4)},
    "too_small": {"a": entry("F32", [2], 0, 4)},
    "beyond": {"a": entry("U8", [5], 0, 5)},
    "far_beyond": {"a": entry("F8_E4M3", [1], 0, 1 << 64)},
    "zero_times_huge": {"a": entry("U8", [4, 0, 1 << 57], 0, 0), "b": entry("U8", [4], 0, 4)},
    "rank": {"a": entry("U8", [4] + [1] * 8, 0, 4)},
    "no_offsets": {"a": {"dtype": "U8", "shape": [4]}},
    "three_offsets": {"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4, 4]}},
    "no_entry": {"a": None},
    "deep": b'{"a": ' * 1000,
    "twice": b'{"a":%s,"a":%s}' % ((json.dumps(entry("U8", [4], 0, 4)).encode(),) * 2),
}


@pytest.mark.parametrize("name", ABSURD_HEADERS)
@pytest.mark.parametrize("safetensors_looks_first", [True, False])
def test_absurd_header(tmp_path, monkeypatch, name, safetensors_looks_first):
    """cgpt's own check, the second, keeps views inside the file even if safetensors' missed something."""
    if not safetensors_looks_first:
        monkeypatch.setattr("cgpt.checkpoint.safetensors.safe_open", lambda *_, **__: contextlib.nullcontext())
    write_raw(tmp_path / "model.safetensors", ABSURD_HEADERS[name], bytes(4))
    refused(tmp_path, r"model\.safetensors: ")


def test_header_beyond_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("cgpt.checkpoint.safetensors.safe_open", lambda *_, **__: contextlib.nullcontext())
    (tmp_path / "model.safetensors").write_bytes((3).to_bytes(8, "little") + b"{}")
    refused(tmp_path, "a header of 3 bytes in a file of 10")


def test_no_address_space(tmp_path, monkeypatch):
    def no_memory(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("mmap.mmap", no_memory)
    save_file({"w": W}, tmp_path / "model.safetensors")
    refused(tmp_path, r"model\.safetensors: Cannot allocate memory")


def test_missing_index(shards):
    (shards / "model.safetensors.index.json").unlink()
    (shards / "model.safetensors.index.json").symlink_to("nowhere")
    refused(shards, "model.safetensors.index.json: No such file")


def test_missing_shard(shards):
    (shards / "model-00002-of-00002.safetensors").unlink()
    refused(shards, "model-00002-of-00002.safetensors: No such file")


def test_tensor_in_two_shards(shards):
    save_file({"b": B, "w": W}, shards / "model-00002-of-00002.safetensors")
    refused(shards, "tensor 'w' is in model-00001-of-00002.safetensors too")


def test_index_of_another_checkpoint(shards):
    save_file({"other": W}, shards / "model-00002-of-00002.safetensors")
    refused(shards, "says 'b' is in model-00002-of-00002.safetensors, which does not hold it")
    save_file({"b": W}, shards / "model-00002-of-00002.safetensors")
    write_index(shards, {"b": "model-00001-of-00002.safetensors", "w": "model-00002-of-00002.safetensors"})
    refused(shards, "does not hold it")


@pytest.mark.parametrize("file_name", [
    "../outside.safetensors", "/etc/outside.safetensors", "sub/x.safetensors", "..\\x.safetensors",
    "C:x.safetensors", "x\0.safetensors", "\ud800.safetensors", "pytorch_model.bin", "", "..", 7, None, ["x"],
])  # fmt: skip
def test_index_names_plain_files_only(tmp_path, file_name):
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside/sub").mkdir()
    for path in ("outside.safetensors", "inside/sub/x.safetensors"):
        save_file({"w": W}, tmp_path / path)
    write_index(tmp_path / "inside", {"w": file_name})
    refused(tmp_path / "inside", r"'w' must be in a \*\.safetensors file of this directory, found ")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map":'])
def test_damaged_index(tmp_path, text):
    save_file({"w": W}, tmp_path / "model-00001-of-00001.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(text)
    refused(tmp_path, "model.safetensors.index.json: ")


def test_array_of_unknown_name_or_dtype(tmp_path):
    write_raw(tmp_path / "model.safetensors", {"f8": entry("F8_E4M3", [2], 0, 2)}, b"ab")
    checkpoint = Checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no tensor 'w'"):
        checkpoint.array("w")
    with pytest.raises(CheckpointError, match="'f8' has the unsupported dtype F8_E4M3"):
        checkpoint.array("f8")


# ---------------------------------------------------------------------------------------------------- check

FLOATS = ("F32", "F16", "BF16")
SPEC = {"w": TensorSpec((3, 4), FLOATS), "b": TensorSpec((3,), FLOATS)}


def test_check_accepts_what_fits(shards):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Checkpoint(shards).check(SPEC)


@pytest.mark.parametrize(
    "name, want, message",
    [
        ("w", TensorSpec((4, 3), FLOATS), r"w: expected F32\|F16\|BF16 \[4, 3\], found F32 \[3, 4\] in model"),
        ("w", TensorSpec((12,), FLOATS), r"w: expected F32\|F16\|BF16 \[12\], found F32 \[3, 4\] in model-00001"),
        ("b", TensorSpec((3,), ("U8",)), r"b: expected U8 \[3\], found F16 \[3\] in model-00002"),
        ("c", TensorSpec((3,), ("F32",)), r"c: expected F32 \[3\], found none"),
    ],
)
def test_check_refuses(shards, name, want, message):
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(shards).check({**SPEC, name: want})


def test_check_lists_five_problems(shards):
    spec = {f"missing{i}": TensorSpec((1,), ("F32",)) for i in range(8)}
    with pytest.raises(CheckpointError) as refusal:
        Checkpoint(shards).check(spec)
    message = str(refusal.value)
    assert message.count("missing") == 5 and message.endswith("; and 3 more")


def test_check_warns_of_surplus_tensors(shards):
    with pytest.warns(UserWarning, match="unknown tensors, not used: b$"):
        Checkpoint(shards).check({"w": SPEC["w"]})


def test_check_lists_five_surplus_tensors(tmp_path):
    save_file({f"x{i}": B for i in range(6)}, tmp_path / "model.safetensors")
    with pytest.warns(UserWarning, match="x0; x1; x2; x3; x4; and 1 more"):
        Checkpoint(tmp_path).check({})


def test_check_ignores_whole_names_only(tmp_path):
    names = ("h.0.attn.bias", "h.11.attn.bias", "x", "h.0.attn.bias2", "xh.0.attn.bias")
    save_file(dict.fromkeys(names, B), tmp_path / "model.safetensors")
    with pytest.warns(UserWarning, match="not used: h.0.attn.bias2; xh.0.attn.bias$"):
        Checkpoint(tmp_path).check({}, ignore=[r"h\.\d+\.attn\.bias", "x"])
