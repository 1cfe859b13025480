"""The prefix cache on the disk: what a later process finds has the bits of computing it again, whatever happens to the
files."""

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest

import cgpt
from cgpt.checkpoint.safetensors import Checkpoint
from cgpt.errors import InputError
from cgpt.generation import prefix_store
from cgpt.generation.engine import Engine
from cgpt.generation.prefix_store import HEADER, make_key
from cgpt.models.base import Transformer

from golden import case
from support.greedy import load_greedy
from support.request_cases import make_request

LENGTHS = {"demo-gpt2": 200, "demo-gpt-oss": 700}  # beyond the windows of 128, and a step of 512


@pytest.fixture(scope="module")
def models():
    return {name: load_greedy(name, precision="exact") for name in LENGTHS}


@pytest.fixture
def tmp_path(tmp_path):
    """Below pytest's, so that copies may stand beside it."""
    return tmp_path / "store"


@pytest.fixture
def oss(models):
    return models["demo-gpt-oss"]


def random_ids(length, seed=0):
    return np.random.default_rng(seed).integers(0, 256, length).tolist()


def run(model, ids, cache=None, tokens=5):
    return model.generate(ids, max_new_tokens=tokens, ignore_eos=True, logprobs=3, prefix_cache=cache)


def keep(model, directory, *prompts, **options):
    """What the prompts need is in the directory, as files of one process."""
    cache = cgpt.PrefixCache(model, directory=directory, **options)
    done = [run(model, ids, cache) for ids in prompts]
    cache.flush()
    return done


def check(model, ids, directory, expected):
    """A new process would find so many ids, and compute the rest to the same bits."""
    cache = cgpt.PrefixCache(model, directory=directory)
    found, scratch = run(model, ids, cache), run(model, ids)
    assert found.ids == scratch.ids and found.top_logprobs == scratch.top_logprobs
    assert np.array_equal(found.logprobs, scratch.logprobs)
    assert found.num_cached_tokens == cache.num_reused_from_disk == expected
    assert cache.store.num_hits == (expected > 0)
    cache.flush()
    return cache


def copy_of(directory, name):
    """The directory as it is now, for a look that changes nothing of it."""
    return shutil.copytree(directory, directory.parent / f"{directory.name}-{name}")


def files(directory):
    """The segments, by the position where they end."""
    return sorted(directory.glob("*/*.kv"), key=lambda path: int(path.stem.rpartition("-")[2]))


PROGRAM = """
import json, sys
import cgpt
name, options, ids, directory = json.loads(sys.argv[1])
model = cgpt.load(name, 1, "exact", **options)
cache = cgpt.PrefixCache(model, directory=directory)
ask = dict(max_new_tokens=9, temperature=0, ignore_eos=True, logprobs=3)
found, scratch = model.generate(ids, prefix_cache=cache, **ask), model.generate(ids, **ask)
assert found.ids == scratch.ids and found.logprobs.tobytes() == scratch.logprobs.tobytes()
print(json.dumps([found.ids, found.logprobs.tolist(), found.num_cached_tokens]))
"""


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "int8"])
@pytest.mark.parametrize("name", LENGTHS)
def test_another_process_goes_on(tmp_path, name, dtype):
    """What is kept when a program ends is found by the next one, without a word from either."""

    def process(ids):
        arguments = json.dumps([name, {"kv_cache_dtype": dtype}, ids, str(tmp_path)])
        return json.loads(subprocess.run([sys.executable, "-c", PROGRAM, arguments], check=True, stdout=-1).stdout)

    ids = random_ids(LENGTHS[name])
    first, second = process(ids), process(ids)
    assert first[:2] == second[:2] and [first[2], second[2]] == [0, len(ids) - 1]
    assert process(ids + first[0] + [5, 6])[2] == len(ids) + 8  # the last new id was never read


@pytest.mark.parametrize("name", LENGTHS)
def test_a_conversation_writes_only_what_is_new(models, tmp_path, name):
    model, ids, sizes = models[name], random_ids(60), []
    for turn in range(3):
        cache = check(model, ids, tmp_path, 0 if turn == 0 else len(ids) - 7)
        ids += run(model, ids).ids + random_ids(6, turn)
        sizes.append(cache.store.nbytes)
        assert cache.store.nbytes == sum(path.stat().st_size for path in files(tmp_path))
    assert len(files(tmp_path)) == 6  # the end of each prompt, and of each answer
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0]


def test_branches_share_their_beginning(oss, tmp_path):
    ids = random_ids(1200)
    keep(oss, tmp_path, ids)
    assert len(files(tmp_path)) == 4  # 512, 1024, 1199, 1204
    for same, cached in ((511, 0), (512, 512), (1023, 512), (1100, 1024), (1200, 1199)):
        copy = copy_of(tmp_path, same)
        before = len(files(copy))
        check(oss, ids[:same] + random_ids(9, same), copy, cached)
        assert len(files(copy)) == before + (3 if same in (511, 1023) else 2)


def test_memory_comes_first_where_it_has_as_much(oss, tmp_path):
    ids = random_ids(300)
    cache = cgpt.PrefixCache(oss, directory=tmp_path)
    for _ in range(2):
        run(oss, ids, cache)
        cache.flush()
    assert cache.num_reused == 299 and cache.num_reused_from_disk == cache.store.num_hits == 0
    assert len(files(tmp_path)) == 2


def test_where_a_text_resumed_from_the_disk_others_resume_from_memory(oss, tmp_path):
    ids = random_ids(300)
    ids += keep(oss, tmp_path, ids)[0].ids
    cache = cgpt.PrefixCache(oss, directory=tmp_path)
    for seed in range(2):
        assert run(oss, ids[:304] + random_ids(20, seed), cache).num_cached_tokens == 304
    assert cache.store.num_hits == 1


def test_without_memory_of_its_own(oss, tmp_path):
    ids = random_ids(300)
    cache = cgpt.PrefixCache(oss, 0, directory=tmp_path)
    for cached in (0, 299):
        assert run(oss, ids, cache).num_cached_tokens == cached
        cache.flush()
    assert len(cache) == 0


def test_only_their_owner_reads_files(oss, tmp_path):
    before = os.umask(0)
    try:
        keep(oss, tmp_path / "a" / "b", random_ids(30))
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a" / "b").rglob("*")}
    assert len(modes) == 3
    assert all(mode == (0o700 if path.is_dir() else 0o600) for path, mode in modes.items())
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700


def test_a_folder_that_others_may_write_to_is_not_used(oss, tmp_path):
    keep(oss, tmp_path, random_ids(30))
    folder = files(tmp_path)[0].parent
    folder.chmod(0o777)
    with pytest.warns(UserWarning, match="others may write to it"):
        check(oss, random_ids(30), tmp_path, 0)
    folder.rename(tmp_path / "elsewhere").chmod(0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match="others may write to it"):
        check(oss, random_ids(30), tmp_path, 0)


def test_a_directory_in_which_others_may_rename_is_not_used(oss, tmp_path):
    keep(oss, tmp_path, random_ids(30))
    tmp_path.chmod(0o777)
    with pytest.warns(UserWarning, match="others may write to it"):
        check(oss, random_ids(30), tmp_path, 0)
    tmp_path.chmod(0o1777)  # as /tmp: they may add, and not rename
    check(oss, random_ids(30), tmp_path, 29)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, to give a file away")
def test_files_of_others_are_not_read(oss, tmp_path):
    keep(oss, tmp_path, random_ids(30))
    for path in files(tmp_path):
        os.chown(path, 12345, 12345)
    with pytest.warns(UserWarning, match="no regular file of this user"):
        check(oss, random_ids(30), tmp_path, 0)


# ---- Another model, or another way to run it, finds nothing


def test_what_decides_over_the_bits_is_in_the_key(models, tmp_path):
    def copy(name, change=None):
        directory = shutil.copytree(cgpt.locate("demo-gpt-oss"), tmp_path / name)
        if change:
            change(directory)
        return cgpt.load(directory, precision="exact")

    def reweigh(directory):
        """As where one expert was trained further: the header and the beginning of the tensor stay."""
        stored = max(Checkpoint(directory).tensors.values(), key=lambda tensor: tensor.nbytes)
        with open(stored.file, "r+b") as file:
            file.seek(stored.offset + stored.nbytes // 2)
            file.write(bytes(stored.nbytes // 32))

    def reconfigure(directory):
        config = json.loads((directory / "config.json").read_text())
        config["swiglu_limit"] = 6.5
        (directory / "config.json").write_text(json.dumps(config))

    oss = models["demo-gpt-oss"]
    others = [
        models["demo-gpt2"],
        cgpt.load("demo-gpt-oss", precision="auto", kv_cache_dtype="f32"),
        oss.at_precision("int8"),
        cgpt.load("demo-gpt-oss", precision="exact", kv_cache_dtype="f16"),
        cgpt.load("demo-gpt-oss", precision="exact", dense="int8"),
        copy("reweighed", reweigh),
        copy("reconfigured", reconfigure),
    ]
    keys = {make_key(model.transformer) for model in others}
    assert len(keys) == len(others) and make_key(oss.transformer) not in keys
    assert make_key(copy("same").transformer) == make_key(oss.transformer)


def test_at_every_level(level, tmp_path):
    model = cgpt.load(case("gptoss_basic/hf_mxfp4").directory, precision="exact")
    ids = [i % model.vocab_size for i in random_ids(40)]
    keep(model, tmp_path, ids)
    check(model, ids, tmp_path, 39)


def test_levels_do_not_mix(oss, monkeypatch):
    key = make_key(oss.transformer)
    monkeypatch.setattr(prefix_store._kernels, "kernels", lambda: {"linear": "another"})
    assert make_key(oss.transformer) != key


def test_models_share_the_bound(models, tmp_path):
    keep(models["demo-gpt2"], tmp_path, random_ids(60))
    room = sum(path.stat().st_size for path in files(tmp_path))
    keep(models["demo-gpt-oss"], tmp_path, random_ids(60), disk_bytes=room)
    assert 0 < sum(path.stat().st_size for path in files(tmp_path)) <= room
    check(models["demo-gpt-oss"], random_ids(60), tmp_path, 59)


# ---- Room


def test_the_least_recently_used_goes_first(oss, tmp_path):
    a, b, c = (random_ids(60, seed) for seed in range(3))
    keep(oss, tmp_path, a)
    room = 2 * sum(path.stat().st_size for path in files(tmp_path))
    keep(oss, tmp_path, b, disk_bytes=room)
    check(oss, a, tmp_path, 59)
    keep(oss, tmp_path, c, disk_bytes=room)
    assert sum(path.stat().st_size for path in files(tmp_path)) <= room
    for ids, cached in ((a, 59), (b, 0), (c, 59)):
        check(oss, ids, copy_of(tmp_path, ids[0]), cached)


def test_what_is_too_long_keeps_its_beginning(oss, tmp_path):
    ids = random_ids(1200)
    keep(oss, tmp_path, ids)
    sizes = [path.stat().st_size for path in files(tmp_path)]
    for room, cached in ((sizes[0] - 1, 0), (sizes[0], 512), (sizes[0] + sizes[1], 1024), (0, 0)):
        directory = tmp_path / str(room)
        keep(oss, directory, ids, disk_bytes=room)
        check(oss, ids, directory, cached)


def test_what_has_no_room_takes_none_from_others(oss, tmp_path):
    other = random_ids(60)
    keep(oss, tmp_path, other)
    keep(oss, tmp_path, random_ids(1200, 1), disk_bytes=sum(path.stat().st_size for path in files(tmp_path)) + 1000)
    check(oss, other, tmp_path, 59)


def test_what_a_text_goes_on_from_stays(oss, tmp_path):
    ids, other, branch = random_ids(600), random_ids(60, 1), random_ids(600)[:550] + random_ids(20, 2)
    cache = cgpt.PrefixCache(oss, directory=tmp_path)
    run(oss, ids, cache)
    cache.flush()
    cache.store.max_bytes = cache.store.nbytes
    keep(oss, tmp_path, other)  # later, and yet it goes first
    run(oss, branch, cache)  # its beginning comes from memory
    cache.flush()
    check(oss, other, copy_of(tmp_path, "look"), 0)
    check(oss, branch, tmp_path, 569)


def test_the_end_of_a_text_goes_before_its_beginning(oss, tmp_path):
    ids, other = random_ids(1200), random_ids(60, 1)
    keep(oss, tmp_path, ids)
    keep(oss, tmp_path, other, disk_bytes=sum(path.stat().st_size for path in files(tmp_path)))
    check(oss, ids, tmp_path, 1024)


def test_files_are_not_too_many(oss, tmp_path, monkeypatch):
    monkeypatch.setattr(prefix_store, "MAX_FILES", 4)
    keep(oss, tmp_path, *(random_ids(20, seed) for seed in range(4)))
    assert len(files(tmp_path)) == 4
    check(oss, random_ids(20, 3), tmp_path, 19)


# ---- Files that are not what they should be


def kinds_of_damage():
    def cut(to):
        return lambda path: os.truncate(path, int(path.stat().st_size * to))

    def flip(at):
        def change(path):
            data = bytearray(path.read_bytes())
            data[at if at >= 0 else len(data) + at] ^= 4
            path.write_bytes(data)

        return change

    def other(path):
        path.write_bytes(files(path.parents[1])[0].read_bytes())

    yield "empty", cut(0)
    yield "half of the head", lambda path: os.truncate(path, HEADER.size // 2)
    yield "half-written", cut(0.5)
    yield "without its end", lambda path: os.truncate(path, path.stat().st_size - 1)
    yield "another format", flip(6)
    yield "another key", flip(20)
    yield "another checksum", flip(HEADER.size - 1)
    yield "other ids", flip(HEADER.size + 8)
    yield "other keys", flip(HEADER.size + 8 * 200 + 5000)
    yield "another window", flip(-5)
    yield "another segment", other
    yield "a pipe", lambda path: (path.unlink(), os.mkfifo(path))
    yield "a folder", lambda path: (path.unlink(), path.mkdir())
    yield "a link", lambda path: path.symlink_to(path.rename(path.with_name("moved")))
    yield "zeros", lambda path: path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("what, damage", [pytest.param(*kind, id=kind[0]) for kind in kinds_of_damage()])
def test_a_damaged_file_is_a_miss_and_named_once(oss, tmp_path, what, damage):
    """What stands before it is used. It is replaced where it can be."""
    ids = random_ids(700)
    keep(oss, tmp_path, ids)
    assert [int(path.stem.rpartition("-")[2]) for path in files(tmp_path)] == [512, 699, 704]
    damage(files(tmp_path)[1])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        cache = cgpt.PrefixCache(oss, 0, directory=tmp_path)
        for cached in (512, 512 if what == "a folder" else 699):
            found, scratch = run(oss, ids, cache), run(oss, ids)
            assert found.ids == scratch.ids and np.array_equal(found.logprobs, scratch.logprobs)
            assert found.num_cached_tokens == cached
            cache.flush()
    assert sum("699.kv" in str(one.message) for one in said) == 1, [str(one.message) for one in said]


def test_a_damaged_file_is_removed(oss, tmp_path):
    """Also where nothing takes its place."""
    keep(oss, tmp_path, random_ids(60))
    damaged = files(tmp_path)[0]
    damaged.write_bytes(bytes(damaged.stat().st_size))
    cache = cgpt.PrefixCache(oss, directory=tmp_path, disk_bytes=0)
    with pytest.warns(UserWarning, match="its beginning is damaged"):
        assert run(oss, random_ids(60), cache).num_cached_tokens == 0
    assert damaged not in files(tmp_path)


def test_random_damage_changes_no_bit(oss, tmp_path):
    ids, rng = random_ids(300), np.random.default_rng(5)
    keep(oss, tmp_path / "good", ids)
    for turn in range(40):
        copy = shutil.copytree(tmp_path / "good", tmp_path / str(turn))
        path = rng.choice(files(copy))
        data = bytearray(path.read_bytes())
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(0, len(data)) if turn % 2 else rng.integers(0, HEADER.size + 8 * 40))
            data[at] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(data[: rng.integers(1, len(data))] if turn % 5 == 0 else data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cache = cgpt.PrefixCache(oss, directory=copy)
            found, scratch = run(oss, ids, cache), run(oss, ids)
        assert found.ids == scratch.ids and np.array_equal(found.logprobs, scratch.logprobs)
        cache.flush()


def test_a_file_that_vanishes_is_a_miss_without_a_word(oss, tmp_path):
    ids = random_ids(700)
    keep(oss, tmp_path, ids)
    cache = cgpt.PrefixCache(oss, 0, directory=tmp_path)  # it has listed them
    files(tmp_path)[1].unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(oss, ids, cache).num_cached_tokens == 512
        cache.flush()
        shutil.rmtree(tmp_path)
        assert run(oss, ids, cache).num_cached_tokens == 0
        cache.flush()
        assert run(oss, ids, cache).num_cached_tokens == 699  # made anew


def test_a_directory_that_was_emptied_is_filled_anew(oss, tmp_path):
    """Though memory has what the files had."""
    ids = random_ids(300)
    cache = cgpt.PrefixCache(oss, directory=tmp_path)
    run(oss, ids, cache)
    cache.flush()
    shutil.rmtree(tmp_path)
    run(oss, ids + [1, 2, 3], cache)
    cache.flush()
    check(oss, ids + [1, 2, 3], tmp_path, 302)


def test_foreign_files_are_left_alone_and_named_once(oss, tmp_path):
    ids = random_ids(30)
    ids += keep(oss, tmp_path, ids)[0].ids
    folder, parent = files(tmp_path)[0].parent, files(tmp_path)[0].stem.split("-")[1]
    foreign = [tmp_path / "notes.txt", folder / "other.kv", folder / f"{'0' * 32}-{'1' * 32}-x.kv"]
    for path in foreign:
        path.write_text("mine")
    (tmp_path / "folder").mkdir()
    with pytest.warns(UserWarning, match="left alone: .*other.kv.*folder, notes.txt") as said:
        cache = cgpt.PrefixCache(oss, directory=tmp_path)
        run(oss, random_ids(40, 7), cache)
        cache.flush()
    assert len(said) == 1 and all(path.read_text() == "mine" for path in foreign)
    for end in (0, 5, 10**9 - 1):  # named as ours, but nobody's: they lead nowhere
        (folder / f"{folder.name}-{'1' * 32}-{end}.kv").write_text("mine")
        (folder / f"{parent}-{'1' * 32}-{end}.kv").write_text("mine")
    with pytest.warns(UserWarning, match="left alone"):
        check(oss, ids, tmp_path, 34)


def test_files_that_were_never_finished_go(oss, tmp_path):
    keep(oss, tmp_path, random_ids(30))
    old, new = (files(tmp_path)[0].parent / f"{digit * 32}.tmp" for digit in "01")
    for path in (old, new):
        path.write_bytes(bytes(100))
    os.utime(old, (1, 1))
    check(oss, random_ids(30), tmp_path, 29)
    assert not old.exists() and new.exists()  # somebody may be writing it


# ---- A disk that does not do what it should


def failing(number, where):
    """A function that fails as a system call does."""

    def call(*args, **options):
        if where(*args):
            raise OSError(number, os.strerror(number))
        return real(*args, **options)

    real = os.open
    return call


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EIO])
def test_a_directory_that_cannot_be_written_is_still_read(oss, tmp_path, monkeypatch, number):
    ids = random_ids(300)
    keep(oss, tmp_path, ids)
    before = {path: path.read_bytes() for path in files(tmp_path)}
    monkeypatch.setattr(
        os, "open", failing(number, lambda path, flags, *_: flags & os.O_CREAT and path.suffix == ".tmp")
    )
    cache = cgpt.PrefixCache(oss, 0, directory=tmp_path)
    with pytest.warns(UserWarning, match="cannot be written .*goes on without the disk") as said:
        for prompt in (ids, ids, random_ids(300, 1), random_ids(300, 1)):
            assert run(oss, prompt, cache).ids == run(oss, prompt).ids
            cache.flush()
    assert len(said) == 1 and cache.num_reused_from_disk == 2 * 299
    assert {path: path.read_bytes() for path in files(tmp_path)} == before


def test_a_disk_that_is_full_in_the_middle(oss, tmp_path, monkeypatch):
    """The rest of a file is not written: no part of it stays."""

    tries = []

    def full(file, arrays):
        tries.append(file.write(bytes(1000)))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(prefix_store, "_write_from", full)
    cache = cgpt.PrefixCache(oss, directory=tmp_path)
    with pytest.warns(UserWarning, match="No space left on device") as said:
        for seed in range(2):
            run(oss, random_ids(60, seed), cache)
            cache.flush()
    assert len(said) == len(tries) == 1 and not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert run(oss, random_ids(60), cache).num_cached_tokens == 59  # from memory


def test_a_directory_that_cannot_be_made(oss, tmp_path):
    tmp_path.mkdir()
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot be used .*goes on without the disk"):
        cache = cgpt.PrefixCache(oss, directory=tmp_path / "file" / "below")
    for cached in (0, 29):
        assert run(oss, random_ids(30), cache).num_cached_tokens == cached
    assert cache.num_reused_from_disk == 0


def test_a_file_that_cannot_be_read_is_a_miss(oss, tmp_path, monkeypatch):
    keep(oss, tmp_path, random_ids(60))
    kept = set(files(tmp_path))
    monkeypatch.setattr(os, "open", failing(errno.EIO, lambda path, *_: str(path).endswith("59.kv")))
    with pytest.warns(UserWarning, match="59.kv: Input/output error"):
        check(oss, random_ids(60), copy_of(tmp_path, "look"), 0)
    cache = cgpt.PrefixCache(oss, directory=tmp_path)
    with pytest.warns(UserWarning, match="59.kv: Input/output error"):
        assert run(oss, [*random_ids(60), 5], cache).num_cached_tokens == 0
    cache.flush()
    assert kept < set(files(tmp_path))  # another time it may be read


def test_what_is_no_directory_is_refused(oss, tmp_path):
    tmp_path.mkdir()
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path / "file", "", "a\0b", 3, b"bytes", ["x"]):
        with pytest.raises(InputError, match="directory"):
            cgpt.PrefixCache(oss, directory=wrong)
    for wrong in (-1, 1.5, None):
        with pytest.raises(InputError, match="disk_bytes"):
            cgpt.PrefixCache(oss, directory=tmp_path, disk_bytes=wrong)


def test_a_model_that_load_did_not_make_is_refused(oss, tmp_path, monkeypatch):
    monkeypatch.setattr(oss.transformer, "files", None)
    assert isinstance(oss.transformer, Transformer)
    with pytest.raises(InputError, match="needs a model that load\\(\\) made"):
        cgpt.PrefixCache(oss, directory=tmp_path)


# ---- Beside others


def test_the_writer_holds_nobody_up(oss, tmp_path, monkeypatch):
    """Texts go on while the disk is slow; what would be too much to keep waiting is not kept."""
    free, write = threading.Event(), prefix_store.PrefixStore._write
    monkeypatch.setattr(prefix_store.PrefixStore, "_write", lambda *job: free.wait(60) and write(*job))
    a, b, c = (random_ids(60, seed) for seed in range(3))
    room = cgpt.PrefixCache(oss)
    run(oss, a, room)
    cache = cgpt.PrefixCache(oss, int(2.5 * room.nbytes), directory=tmp_path)
    writer = threading.enumerate()
    for ids in (a, b, c):  # one is being written, one waits
        run(oss, ids, cache)
        assert not files(tmp_path)
    cache.flush(0.01)
    free.set()
    cache.flush()
    assert threading.enumerate() == writer
    for ids, cached in ((a, 59), (b, 59), (c, 0)):
        check(oss, ids, copy_of(tmp_path, ids[0]), cached)


def test_an_engine_ends_when_all_is_written(oss, tmp_path, monkeypatch):
    free, write = threading.Event(), prefix_store.PrefixStore._write
    monkeypatch.setattr(prefix_store.PrefixStore, "_write", lambda *job: free.wait(60) and write(*job))
    with Engine(oss, prefix_cache_bytes=0, prefix_cache_directory=tmp_path) as engine:
        list(engine.submit([make_request(oss, random_ids(60), max_new_tokens=2)]))
        threading.Timer(0.1, free.set).start()
    assert files(tmp_path)
    check(oss, random_ids(60), tmp_path, 59)


BUSY = """
import sys, warnings
import numpy as np
import cgpt
warnings.simplefilter("error")
directory, seed, room = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = cgpt.load("demo-gpt-oss", 1, "exact")
rng, known, hits = np.random.default_rng(seed), {}, 0
for turn in range(40):
    cache = cgpt.PrefixCache(model, 0, directory=directory, disk_bytes=room)
    family, length = int(rng.integers(4)), int(rng.integers(1, 5)) * 100
    ids = np.random.default_rng(family).integers(0, 256, length).tolist()
    ask = dict(max_new_tokens=2, temperature=0, ignore_eos=True, logprobs=1)
    found = model.generate(ids, prefix_cache=cache, **ask)
    if (family, length) not in known:
        known[family, length] = model.generate(ids, **ask)
    assert found.ids == known[family, length].ids
    assert found.logprobs.tobytes() == known[family, length].logprobs.tobytes()
    hits += cache.store.num_hits
    cache.flush()
print(hits)
"""


def test_processes_share_a_directory(tmp_path):
    """Each reads, writes and removes what the others do, too."""
    room = 3_000_000
    run = [[sys.executable, "-c", BUSY, str(tmp_path), str(seed), str(room)] for seed in range(3)]
    started = [subprocess.Popen(one, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for one in run]
    results = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], results
    assert not any(errors for _, errors in results) and sum(int(hits) for hits, _ in results) > 20
    assert not list(tmp_path.rglob("*.tmp"))
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 1.5 * room
