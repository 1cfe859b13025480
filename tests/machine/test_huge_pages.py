"""Weights in huge pages: the arrays of an arena, load(huge_pages=True), and when it is refused."""

import mmap
import re
from pathlib import Path

import numpy as np
import pytest

import cgpt
from cgpt.bench.costs import matrix_bytes
from cgpt.checkpoint import names
from cgpt.checkpoint.safetensors import Checkpoint
from cgpt.cli import main as cli
from cgpt.errors import InputError, OutOfMemoryError
from cgpt.loading import DENSE
from cgpt.machine import huge_pages
from cgpt.machine.huge_pages import ALIGN, CHUNK, HUGE, Arena

from support.kernel_cases import assert_same_bits
from support.machine_cases import write

ENABLED = "sys/kernel/mm/transparent_hugepage/enabled"


@pytest.fixture
def offered(monkeypatch):
    """A system that offers huge pages, whatever this one does."""
    monkeypatch.setattr(huge_pages, "transparent", lambda root: "madvise")


# ---- the arena


def test_arrays_lie_behind_each_other():
    arena = Arena()
    kinds = [((3, 5), np.int8), ((7,), np.uint16), ((0, 4), np.float32)]
    arrays = [arena.empty(*kind) for kind in kinds]
    assert [(a.shape, a.dtype) for a in arrays] == kinds
    starts = [a.ctypes.data for a in arrays]
    assert starts[0] % HUGE == 0 and starts[1] == starts[0] + ALIGN and all(a.flags.writeable for a in arrays)
    for value, array in enumerate(arrays):
        array[:] = value
    assert (arrays[0] == 0).all() and (arrays[1] == 1).all()


def test_an_array_beyond_a_chunk():
    arena = Arena()
    arena.empty((CHUNK - 1,), np.uint8)
    big = arena.empty((CHUNK + 3,), np.uint8)
    assert big.size == CHUNK + 3 and big.ctypes.data % HUGE == 0
    with pytest.raises(OutOfMemoryError):
        arena.empty((1 << 60,), np.uint8)


@pytest.mark.skipif(huge_pages.transparent() not in ("always", "madvise"), reason="no transparent huge pages here")
def test_huge_pages_are_asked_for():
    """The kernel says so of the mapping; whether it has any at the moment is its affair."""
    array = Arena().empty((4 * HUGE,), np.uint8)
    for entry in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.M)[1:]:
        first, last = (int(n, 16) for n in entry.split(" ")[0].split("-"))
        if first <= array.ctypes.data < last:
            assert " hg" in re.search("^VmFlags:.*", entry, re.M)[0]
            return
    raise AssertionError("the array is in no mapping")


# ---- load


def mapped(checkpoint, array):
    """Whether an array lies in a checkpoint's mapped files."""
    return any(np.shares_memory(array, np.frombuffer(m, np.uint8)) for m in checkpoint._maps.values())


@pytest.mark.parametrize("dense", [None, *DENSE])
@pytest.mark.parametrize("name", cgpt.demo_models())
def test_the_same_logits_from_copies(name, dense, offered, monkeypatch):
    checkpoints = []
    monkeypatch.setattr(names, "Checkpoint", lambda d: checkpoints.append(Checkpoint(d)) or checkpoints[-1])
    plain, huge = cgpt.load(name, dense=dense), cgpt.load(name, dense=dense, huge_pages=True)
    ids = np.arange(20)
    assert_same_bits(huge.logits(ids), plain.logits(ids), "where the weights lie")
    for (part, kept), (_, copied) in zip(plain.transformer.matrices(), huge.transformer.matrices(), strict=True):
        assert not any(mapped(checkpoints[1], array) for array in copied.arrays), part
        assert matrix_bytes(copied) == matrix_bytes(kept)
    stays = any(mapped(checkpoints[0], array) for _, m in plain.transformer.matrices() for array in m.arrays)
    assert stays == (dense in (None, "bf16") or name == "demo-gpt-oss")


# ---- refusals


@pytest.mark.parametrize(
    "text, found",
    [
        ("always [madvise] never", "madvise"),
        ("[always] madvise never", "always"),
        ("always madvise [never]", "never"),
        ("", None),
    ],
)
def test_transparent(tmp_path, text, found):
    write(tmp_path, {ENABLED: text})
    assert huge_pages.transparent(tmp_path) == found
    if found in (None, "never"):
        with pytest.raises(InputError, match="echo madvise"):
            huge_pages.require(1, lambda: None, tmp_path)
    else:
        huge_pages.require(5, lambda: 5, tmp_path)
        huge_pages.require(5, lambda: None, tmp_path)
        with pytest.raises(OutOfMemoryError, match="copies 20.0 GB of weights, and 5.0 GB"):
            huge_pages.require(20 * 10**9, lambda: 5 * 10**9, tmp_path)


def test_load_asks_before_it_copies(monkeypatch, capsys):
    """For the checkpoint's whole size."""
    asked = []

    def refuse(nbytes):
        asked.append(nbytes)
        raise OutOfMemoryError("too much")

    monkeypatch.setattr("cgpt.loading.require_huge_pages", refuse)
    assert cli.main(["generate", "--huge-pages", "--max-new-tokens", "1", "x"]) == cli.FAILED
    assert "too much" in capsys.readouterr().err
    assert asked == [sum(t.nbytes for t in Checkpoint(cgpt.locate("demo-gpt2")).tensors.values())]


def test_no_address_space_is_named(monkeypatch, offered):
    def refuse(*args):
        raise OSError(12, "Cannot allocate memory")

    make = mmap.mmap
    monkeypatch.setattr(mmap, "mmap", lambda *args, **how: refuse() if args[0] == -1 else make(*args, **how))
    with pytest.raises(OutOfMemoryError):
        cgpt.load("demo-gpt-oss", huge_pages=True)
