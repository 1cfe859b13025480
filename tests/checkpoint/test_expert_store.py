"""The expert store: what arrives is what the file holds, whatever is evicted, fails or runs beside it."""

import ctypes
import errno
import mmap
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections import deque
from pathlib import Path

import numpy as np
import pytest

import cgpt
from cgpt.checkpoint import expert_store, file_reader
from cgpt.checkpoint.changes import FileWatch
from cgpt.checkpoint.expert_store import ExpertStore, LeastRecentlyUsed
from cgpt.checkpoint.file_reader import FileReader
from cgpt.checkpoint.safetensors import Checkpoint
from cgpt.errors import CheckpointError, CheckpointReadError, ModelClosed, OutOfMemoryError
from cgpt.machine import huge_pages

DEMO = Path(cgpt.__file__).parent / "demo" / "demo-gpt-oss"
LAYERS, E = 6, 8
NAMES = [
    f"model.layers.{{}}.mlp.experts.{part}_proj_{kind}" for part in ("gate_up", "down") for kind in ("blocks", "scales")
]


class FaultyReader:
    """Reads as a FileReader does, after calling `before(file, offset, into, needed)`."""

    def __init__(self, checkpoint, before):
        self.read, self.before = FileReader(checkpoint), before

    def __call__(self, *args):
        self.before(*args)
        self.read(*args)


def make_store(slots, before=None, directory=DEMO, **options):
    checkpoint = Checkpoint(directory)
    store = ExpertStore(checkpoint, before and FaultyReader(checkpoint, before), **options)
    store.matrices = []
    for layer in range(LAYERS):
        tensors = [checkpoint.tensors[name.format(layer)] for name in NAMES]
        biases = [np.zeros((E, blocks.shape[1]), np.float32) for blocks in tensors[::2]]
        store.matrices.append(store.add_layer([tuple(tensors[:2]), tuple(tensors[2:])], biases))
    store.allocate(slots)
    return store


@pytest.fixture
def make(request):
    made = []

    def make(*args, **options):
        made.append(make_store(*args, **options))
        return made[-1]

    yield make
    for store in made:
        store.close()


def assert_right(store, layer, experts):
    """What lies at the addresses of these experts is what the file holds."""
    for n, name in enumerate(NAMES):
        stored = store.checkpoint.array(name.format(layer))
        for expert in experts:
            address = int(store._layers[layer].addresses[n // 2][expert, n % 2])
            found = np.frombuffer(ctypes.string_at(address, stored[expert].nbytes), np.uint8)
            assert np.array_equal(found, stored[expert].reshape(-1)), (layer, expert, name)


def take(store, layer, experts, following=()):
    arrived = []
    for some in store.stream(layer, experts, following):
        assert_right(store, layer, some)
        arrived += some.tolist()
    assert sorted(arrived) == sorted(experts)
    return arrived


def test_every_expert_arrives_as_it_is_in_the_file(make):
    store = make(LAYERS * E)
    for layer in range(LAYERS):
        take(store, layer, range(E))
    assert (store.stats.hits, store.stats.misses, store.resident) == (0, LAYERS * E, LAYERS * E)
    read = store.stats.bytes_read
    assert read >= sum(t.nbytes for n, t in store.checkpoint.tensors.items() if n.endswith(("blocks", "scales")))
    for layer in range(LAYERS):
        take(store, layer, range(E))
    assert store.stats.hits == LAYERS * E and store.stats.bytes_read == read


@pytest.mark.parametrize("slots", [1, 2, 5, 9])
def test_few_slots_suffice(make, slots):
    store, rng = make(slots), np.random.default_rng(slots)
    for _ in range(60):
        layer, number = rng.integers(LAYERS), rng.integers(1, E + 1)
        take(store, layer, rng.permutation(E)[:number].tolist())
        assert store.resident <= slots


def test_the_least_recently_used_goes_first(make):
    store = make(4 * LAYERS)
    for layer in range(LAYERS):
        take(store, layer, range(4))
    take(store, 0, [0])
    take(store, 1, [5])  # evicts one of layer 0
    before = store.stats.misses
    take(store, 0, [0])
    for layer in range(1, LAYERS):
        take(store, layer, range(4))
    take(store, 1, [5])
    assert store.stats.misses == before
    take(store, 0, [1, 2, 3])
    assert store.stats.misses == before + 1


def test_residents_come_first(make):
    store = make(E)
    take(store, 2, [6, 7])
    arrivals = [some.tolist() for some in store.stream(2, [0, 6, 1, 7])]
    assert sorted(arrivals[0]) == [6, 7] and sorted(sum(arrivals[1:], [])) == [0, 1]


def test_addresses_of_evicted_experts_are_taken_back(make):
    store = make(2)
    take(store, 0, [0, 1])
    take(store, 3, [4, 5])
    assert all(not table[[0, 1]].any() for table in store._layers[0].addresses)


def test_a_policy_can_be_replaced(make):
    class Newest(LeastRecentlyUsed):
        def victims(self, newest):
            return reversed(self._keys)

    store = make(3)
    store._policy = Newest()
    take(store, 0, [0])
    take(store, 0, [1])
    take(store, 0, [2])
    take(store, 0, [3])  # evicts (0, 2)
    misses = store.stats.misses
    take(store, 0, [0, 1])
    assert store.stats.misses == misses


def test_a_pass_over_more_than_fits_keeps_what_it_took_first(make):
    store = make(30)
    for _ in range(2):
        before = store.stats.hits
        for layer in range(LAYERS):
            take(store, layer, range(E))
    assert store.stats.hits - before >= 30 - 3 * expert_store.READERS  # of the least recently used none would be left
    before = store.stats.hits
    for layer in range(LAYERS):
        take(store, layer, range(5))  # 30 fit
        take(store, layer, range(5))
    assert store.stats.hits - before >= LAYERS * 5


def test_pinned_experts_stay(make):
    store = make(7)
    arrivals, held = store.stream(0, [0, 1, 2, 3]), 0
    for some in arrivals:
        for layer in (1, 2, 3):
            take(store, layer, [4, 5, 6])
        assert_right(store, 0, some)
        held += len(some)
    assert held == 4


def test_following_experts_are_read_ahead_and_are_no_hits(make):
    store = make(LAYERS * E)
    take(store, 0, range(E), following=range(E))
    deadline = time.monotonic() + 10
    while store.resident < 2 * E and time.monotonic() < deadline:
        time.sleep(0.01)
    assert store.resident == 2 * E
    take(store, 1, range(E))
    assert (store.stats.hits, store.stats.misses) == (0, 2 * E)
    take(store, 1, range(E))
    assert store.stats.hits == E


def test_resize_gives_memory_back_and_takes_it_again(make):
    store = make(LAYERS * E)
    for layer in range(LAYERS):
        take(store, layer, range(E))
    store.resize(5)
    assert store.resident == 5
    for slot in store._free:  # what was given back reads as zeros
        assert not any(ctypes.string_at(store._base + slot * store.slot_bytes, store.slot_bytes))
    for layer in range(LAYERS):
        take(store, layer, range(E))
        assert store.resident <= 5
    store.resize(20)
    for layer in range(LAYERS):
        take(store, layer, range(E))
    assert store.resident == 20


def resident_slots(store):
    """How many slots have memory, by mincore()."""
    size = store.slot_bytes * LAYERS * E
    pages = (ctypes.c_ubyte * (size // mmap.PAGESIZE))()
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(store._base), ctypes.c_size_t(size), pages) == 0
    return sum(np.frombuffer(pages, np.uint8).reshape(LAYERS * E, -1).any(axis=1) & 1)


def wait_until_prepared(store):
    while store._preparing:
        time.sleep(0.001)


def test_memory_is_made_ready_for_the_experts_that_come_next(make, monkeypatch):
    slot_bytes, made = make(1).slot_bytes, []
    monkeypatch.setattr(expert_store, "PREPARED", 6 * slot_bytes)
    monkeypatch.setattr(expert_store, "PREPARED_AT_ONCE", 2 * slot_bytes)
    monkeypatch.setattr(huge_pages, "populate", lambda *where: made.append(where))
    store = make(12)
    for taken, ready in ((0, 6), (4, 10), (8, 12), (12, 12)):
        take(store, 0, range(min(taken, E)))
        take(store, 1, range(max(0, taken - E)))
        wait_until_prepared(store)
        assert sum(size for _, size in made) == ready * slot_bytes
    assert made == [(store._base + 2 * i * slot_bytes, 2 * slot_bytes) for i in range(6)]


@pytest.mark.skipif(sys.platform != "linux", reason="mincore() and MADV_POPULATE_WRITE")
def test_memory_that_was_made_ready_goes_back_when_there_may_be_less(make, monkeypatch):
    """Also that which a thread is making ready at this moment; and what has come stays."""
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # small pages, since a huge one holds many slots
    monkeypatch.setattr(huge_pages, "anonymous", lambda size, what: mmap.mmap(-1, size, private))
    store = make(LAYERS * E)
    wait_until_prepared(store)
    if resident_slots(store) < LAYERS * E:
        pytest.skip("a system without MADV_POPULATE_WRITE")
    take(store, 0, [3, 1])
    store.resize(10)
    assert resident_slots(store) == 2
    assert_right(store, 0, [3, 1])
    populate, gate = huge_pages.populate, threading.Event()
    monkeypatch.setattr(huge_pages, "populate", lambda *where: gate.wait(10) and populate(*where))
    store = make(LAYERS * E)
    store.resize(4)
    gate.set()
    wait_until_prepared(store)
    assert resident_slots(store) == 4
    take(store, 0, range(E))
    assert store.resident <= 4 and resident_slots(store) <= 4


# ------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("problem", "says"),
    [(OSError(errno.EIO, os.strerror(errno.EIO)), "Input/output error"), (EOFError(), "the file ends before")],
)
def test_a_read_that_fails_names_file_tensor_and_offset_and_can_be_repeated(make, problem, says):
    failing = [True]

    def before(file, offset, into, needed):
        if failing[0]:
            raise problem

    store = make(LAYERS * E, before)
    with pytest.raises(CheckpointReadError) as raised:
        take(store, 3, [2, 5])
    text = str(raised.value)
    (tensor,) = (one for name in NAMES if (one := store.checkpoint.tensors[name.format(3)]).name in text)
    expert = 2 if "expert 2" in text else 5
    assert str(tensor.file) in text and tensor.name in text and says in text
    assert str(tensor.offset + expert * tensor.nbytes // E) in text
    while store._reading:
        time.sleep(0.001)
    failing[0] = False
    take(store, 3, [2, 5])
    assert not any(entry.pins for entry in store._entries.values()) and len(store._free) == LAYERS * E - 2


def test_experts_read_ahead_for_a_layer_that_never_runs_give_way(make):
    store = make(24)
    for layer in (0, 2, 4):
        for _ in store.stream(layer, range(E), following=range(E)):
            pass  # what follows never comes
        for _ in range(100):
            time.sleep(0.001)
            with store._changed:
                store._start(layer, deque(), [], deque((layer + 1, e) for e in range(E)), newest=True)
        while store._reading:
            time.sleep(0.001)
    assert sum(entry.ahead for entry in store._entries.values()) == 24
    take(store, 0, range(E))


def test_a_thread_that_cannot_start_is_named_and_nothing_hangs(make, monkeypatch):
    def refuse(*_):
        raise RuntimeError("can't start new thread")

    store = make(8)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(CheckpointReadError, match="no thread to read experts with"):
            take(store, 0, [0, 1])
    take(store, 0, [0, 1])
    assert not store._reading


def test_slots_begin_at_pages(make, monkeypatch):
    monkeypatch.setattr(expert_store.mmap, "PAGESIZE", 65536)
    store = make(3)
    assert store.slot_bytes % 65536 == 0
    for layer in range(3):
        take(store, layer, range(E))


def test_short_reads_through_the_page_cache_go_on(make, monkeypatch):
    monkeypatch.setattr(file_reader, "_direct", lambda descriptor: None)
    preadv = os.preadv
    store = make(8)
    monkeypatch.setattr(os, "preadv", lambda fd, into, offset: preadv(fd, [into[0][:1000]], offset))
    take(store, 1, range(8))


def test_pins_that_go_bring_a_smaller_store_about(make):
    store = make(8)
    arrivals = store.stream(0, range(8))
    next(arrivals)
    store.resize(2)
    for _ in arrivals:
        pass
    assert store.resident <= 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_after_close_does_not_wait(make):
    release = threading.Event()
    store = make(8, lambda *_: release.wait(10), readers=1)
    arrivals = store.stream(0, range(8))
    waiting = threading.Thread(target=lambda: [None for _ in _until_closed(arrivals)])
    waiting.start()
    while store._reading < 2:
        time.sleep(0.001)
    threading.Timer(0.1, release.set).start()
    store.close()
    waiting.join(10)
    if not (child := os.fork()):
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def _until_closed(arrivals):
    try:
        yield from arrivals
    except ModelClosed:
        pass


def test_an_unexpected_failure_of_a_thread_reaches_who_waits(make):
    def before(*_):
        raise RuntimeError("odd")

    store = make(8, before)
    with pytest.raises(CheckpointReadError, match="expert 1 of layer 0 .*odd"):
        take(store, 0, [1])


def test_a_file_that_was_cut_short(make, tmp_path):
    shutil.copytree(DEMO, tmp_path / "m")
    store = make(8, directory=tmp_path / "m")
    tensor = store.checkpoint.tensors[NAMES[0].format(2)]
    os.truncate(tensor.file, tensor.offset + 100)
    with pytest.raises(CheckpointReadError, match="the file ends before"):
        take(store, 2, [7])


def test_a_file_that_changed_while_it_was_read(make, tmp_path, monkeypatch):
    monkeypatch.setattr(FileWatch, "SLOW", 60)  # else a busy machine's second look may come a second later
    shutil.copytree(DEMO, tmp_path / "m")
    store = make(8, directory=tmp_path / "m")
    store.watch = store.checkpoint.watch()
    take(store, 0, [0])
    file = tmp_path / "m" / "model.safetensors"
    with open(file, "r+b") as opened:
        opened.seek(store.checkpoint.tensors[NAMES[0].format(0)].offset)
        opened.write(b"changed")
    os.utime(file, ns=(1, 1))
    with pytest.raises(CheckpointError, match=r"model\.safetensors changed on disk"):
        take(store, 0, [1])


def test_a_path_that_names_another_file_does_not_matter(make, tmp_path):
    shutil.copytree(DEMO, tmp_path / "m")
    checkpoint = Checkpoint(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    shutil.copy(file, tmp_path / "other")
    with open(tmp_path / "other", "r+b") as opened:
        opened.seek(os.path.getsize(file) // 2)
        opened.write(bytes(1000))
    os.replace(tmp_path / "other", file)
    into = memoryview(bytearray(expert_store.ALIGN * 2))
    reader = FileReader(checkpoint)
    reader._open[file] = None  # a bytearray is not aligned
    reader(file, 0, into, expert_store.ALIGN)
    assert into[: expert_store.ALIGN] == checkpoint._maps[file][: expert_store.ALIGN]


def test_a_file_system_without_direct_reads(make, monkeypatch):
    monkeypatch.setattr(file_reader, "_direct", lambda descriptor: None)
    store = make(LAYERS * E)
    take(store, 4, range(E))
    assert not store._read.direct


def test_a_file_system_that_refuses_a_direct_read(make, monkeypatch):
    store = make(LAYERS * E)
    if not store._read.direct:
        pytest.skip("this file system has no direct reads")
    preadv, direct = os.preadv, set(store._read._open.values())

    def refuse(descriptor, *args):
        if descriptor in direct:
            raise OSError(errno.EINVAL, "Invalid argument")
        return preadv(descriptor, *args)

    monkeypatch.setattr(os, "preadv", refuse)
    take(store, 4, range(E))
    assert not store._read.direct


def test_reads_that_come_in_pieces(make, monkeypatch):
    preadv = os.preadv
    store = make(8)
    monkeypatch.setattr(os, "preadv", lambda fd, into, offset: preadv(fd, [into[0][: expert_store.ALIGN]], offset))
    take(store, 1, range(8))


def test_no_memory_for_slots(make, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    store = make_store(1)
    monkeypatch.setattr(expert_store.mmap, "mmap", refuse)
    with pytest.raises(OutOfMemoryError, match="no memory for 7 experts"):
        store.allocate(7)


# ------------------------------------------------------------------------------------------- threads, ends and forks


def test_threads_share_a_store(make):
    store, failures = make(9), []

    def run(seed):
        rng = np.random.default_rng(seed)
        try:
            for _ in range(40):
                take(store, int(rng.integers(LAYERS)), rng.permutation(E)[: rng.integers(1, E)].tolist())
        except Exception as problem:
            failures.append(problem)

    threads = [threading.Thread(target=run, args=[seed]) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures and not any(thread.is_alive() for thread in threads)
    assert store.resident <= 9 and not any(entry.pins for entry in store._entries.values())


def test_an_interrupted_step_leaves_no_pin(make):
    release = threading.Event()
    store = make(4, lambda *_: release.wait(10))
    arrivals = store.stream(0, [0, 1])
    threading.Timer(0.1, lambda: os.kill(os.getpid(), 2)).start()
    with pytest.raises(KeyboardInterrupt):
        next(arrivals)
    release.set()
    take(store, 0, [0, 1, 2, 3])
    assert not any(entry.pins for entry in store._entries.values())


def test_close_ends_the_threads_and_whoever_waits(make):
    release = threading.Event()
    store = make(4, lambda *_: release.wait(10))
    raised = []

    def wait():
        with pytest.raises(ModelClosed) as found:
            take(store, 0, [0, 1])
        raised.append(found)

    thread = threading.Thread(target=wait)
    thread.start()
    while not store._reading:
        time.sleep(0.01)
    threading.Timer(0.1, release.set).start()
    store.close()
    thread.join(10)
    assert raised and not [t for t in threading.enumerate() if t.name.startswith("cgpt-reader")]
    with pytest.raises(ModelClosed):
        take(store, 0, [0])


def _in_child(store, queue):
    take(store, 0, range(E))
    take(store, 5, range(E))
    queue.put(store.resident)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_reads_by_itself(make):
    store = make(E)
    slow = store.stream(0, range(E), following=range(E))
    next(slow)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=[store, queue])
    child.start()
    try:
        assert queue.get(timeout=30) == E
    finally:
        child.kill()
    for some in slow:
        assert_right(store, 0, some)
    take(store, 5, range(E))
