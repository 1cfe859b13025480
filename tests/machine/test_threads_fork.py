"""Threads that share a model, children of fork, Ctrl-C, and other threads while kernels run."""

import functools
import json
import os
import platform
import select
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import cgpt
from cgpt.checkpoint.changes import OpenFile
from cgpt.errors import InputError
from cgpt.generation.speculation import Speculation
from cgpt.kernels import _kernels

from support.greedy import load_greedy
from support.kernel_cases import context, tensor, tensor_of

PROMPTS = ["The king", "To be, or not", "O Romeo, Romeo! wherefore art thou", "What ho! " * 30]
MODELS = ["demo-gpt2", "demo-gpt-oss"]


def generate(model, prompt="The king", **options):
    return model.generate(prompt, **dict(max_new_tokens=12, ignore_eos=True) | options).ids


def product(threads=2):
    """A matrix product large enough to be shared out, so that OpenMP's threads exist afterwards."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((64, 256), np.float32), rng.standard_normal((512, 256), np.float32)
    out = np.zeros((64, 512), np.float32)
    _kernels.linear(context(threads=threads), tensor_of(out), tensor(x), _kernels.Matrix("F32", w), 64)
    return out


# ---- Threads


def at_once(*jobs):
    """Runs each job in a thread of its own, all beginning together -> their results."""
    begin = threading.Barrier(len(jobs))

    def run(job):
        begin.wait()
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(run, jobs))


@pytest.mark.parametrize("precision", ["exact", "auto"])
@pytest.mark.parametrize("name", MODELS)
def test_threads_share_a_model(name, precision):
    alone = load_greedy(name, threads=2, precision=precision)
    expected = [generate(alone, prompt) for prompt in PROMPTS]
    shared = load_greedy(name, threads=2, precision=precision)  # whose tokenizer and workspaces they make
    for _ in range(2):
        jobs = [functools.partial(generate, shared, prompt) for prompt in PROMPTS]
        assert at_once(*jobs) == expected


def test_steps_that_run_at_once_share_no_memory():
    """Steps of other sizes in other threads, in the middle of each block of a step."""
    model = cgpt.load("demo-gpt2", threads=1, precision="exact")
    ids = list(range(100, 120))
    expected, blocks = model.logits(ids), model.transformer.blocks
    depth = threading.local()

    def interrupted(block):
        def run(*args):
            block(*args)
            if not getattr(depth, "inner", False):
                other = threading.Thread(target=inner)
                other.start()
                other.join()

        return run

    def inner():
        depth.inner = True
        model.logits(list(range(200, 240)))

    model.transformer.blocks = [interrupted(block) for block in blocks]
    assert np.array_equal(model.logits(ids), expected)


# ---- Fork


def in_child(job):
    """What `job`, run in a child of fork(), returns; it must be something that JSON can hold."""
    sys.stdout.flush()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writer, json.dumps(job()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    try:
        ready, _, _ = select.select([reader], [], [], 60)
        assert ready, "the child hangs"
        with open(reader, closefd=False) as file:
            answer = file.read()
        assert answer, "the child failed"
        return json.loads(answer)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize("name", MODELS)
def test_a_forked_child_generates_the_same(name):
    model = load_greedy(name, threads=2, precision="exact")
    expected, before = [generate(model), generate(model, PROMPTS[-1])], product()

    def job():
        return [generate(model), generate(model, PROMPTS[-1])], product().tolist()

    ids, products = in_child(job)
    assert ids == expected
    assert np.array_equal(products, before)
    assert [generate(model), generate(model, PROMPTS[-1])] == expected  # and the parent still does
    assert np.array_equal(product(), before)
    assert in_child(lambda: in_child(job))[0] == expected  # so does a child's child


def test_a_fork_in_a_thread():
    model = cgpt.load("demo-gpt2", threads=2, precision="exact")
    expected, _ = generate(model), product()

    def child():
        product()
        return generate(model)

    def fork():
        product()
        return in_child(child)

    assert at_once(fork) == [expected]
    assert at_once(fork, fork) == [expected] * 2


def test_a_fork_while_another_thread_runs_kernels():
    model = cgpt.load("demo-gpt2", threads=2, precision="exact")
    expected, running, done = generate(model), threading.Event(), threading.Event()

    def other():
        while not done.is_set():
            product()
            generate(model)
            running.set()

    def fork():
        running.wait()
        try:
            return [in_child(lambda: [product().tolist(), generate(model)])[1] for _ in range(3)]
        finally:
            done.set()

    assert at_once(other, fork)[1] == [expected] * 3


def loaded_libgomp():
    """The file of the OpenMP runtime in use, None where it is not GCC's."""
    maps = Path("/proc/self/maps")
    return (
        next((x.split()[-1] for x in maps.read_text().splitlines() if "libgomp" in x), None) if maps.exists() else None
    )


OTHER_LIBGOMP = """if True:
    import ctypes, os, signal, sys
    first, library, used = sys.argv[1:]
    if first == "cgpt":
        import cgpt
    other = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    import cgpt
    region = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p)  # what its threads run
    other.GOMP_parallel.restype = None
    model = cgpt.load("demo-gpt2", threads=2, precision="exact")
    compute = {
        "cgpt": lambda: model.logits([1, 2, 3]).tobytes(),
        "other": lambda: other.GOMP_parallel(region, None, 2, 0),
    }
    expected = {name: compute[name]() for name in ("other", "cgpt")}
    child = os.fork()
    if not child:
        signal.alarm(20)
        os._exit(compute[used]() != expected[used])
    code = os.waitpid(child, 0)[1]
    print(code, compute["cgpt"]() == expected["cgpt"])
"""


@pytest.fixture
def other_libgomp(tmp_path):
    """Makes the path of a copy of libgomp; an old one cannot give its threads back, as those of GCC 8 and before."""

    def make(old):
        code = Path(loaded_libgomp()).read_bytes()
        assert b"omp_pause_resource_all\0" in code
        path = tmp_path / "libgomp-other.so.1"
        path.write_bytes(code.replace(b"omp_pause_resource_all\0", b"omp_pause_resource_nil\0") if old else code)
        return str(path)

    return make


@pytest.mark.skipif(not loaded_libgomp(), reason="this build does not use GCC's OpenMP")
@pytest.mark.parametrize("used, old", [("cgpt", False), ("other", False), ("cgpt", True)])
@pytest.mark.parametrize("first", ["cgpt", "other"])
def test_a_forked_child_beside_another_libgomp(other_libgomp, first, used, old):
    """As with torch, in both orders. Nothing helps an old one, but cgpt runs in the child even where it serves cgpt."""
    if used == "other" and platform.libc_ver()[0] != "glibc":
        pytest.skip("with musl libgomp crashes when it gives its threads back, so cgpt does not ask it to")
    command = [sys.executable, "-c", OTHER_LIBGOMP, first, other_libgomp(old), used]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "0 True\n"), done.stderr


# ---- Ctrl-C


@pytest.fixture
def sigint():
    """Makes SIGINT raise KeyboardInterrupt, which it does not in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_stops_within_a_token(sigint):
    model = load_greedy("demo-gpt-oss", threads=2, precision="exact")
    expected = generate(model)
    begun, at_signal = [0], []
    step = model.transformer.step

    def counted(*args, **how):
        begun[0] += 1
        return step(*args, **how)

    def interrupt():
        while begun[0] < 20:
            time.sleep(0.001)
        at_signal.append(begun[0])
        os.kill(os.getpid(), signal.SIGINT)

    model.transformer.step = counted
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        model.generate("The king", max_new_tokens=100_000, ignore_eos=True)
    thread.join()
    assert begun[0] - at_signal[0] <= 2  # one may begin before the signal is sent, and one before it is seen
    assert generate(model) == expected


def test_ctrl_c_in_a_stream_leaves_what_came(sigint):
    model = cgpt.load("demo-gpt2", threads=2, precision="exact")
    text = model.generate("The king", max_new_tokens=40, ignore_eos=True).text
    pieces = []
    with pytest.raises(KeyboardInterrupt):
        for piece in model.stream("The king", max_new_tokens=40, ignore_eos=True):
            pieces.append(piece)
            if len(pieces) == 10:
                os.kill(os.getpid(), signal.SIGINT)
    assert len(pieces) in (10, 11) and text.startswith("".join(pieces))
    assert model.generate("The king", max_new_tokens=40, ignore_eos=True).text == text


@pytest.mark.parametrize("name", MODELS)
def test_a_step_cut_short_spoils_its_sequence_only(name, sigint):
    model = load_greedy(name, threads=2, precision="exact")
    expected = model.logits([1, 2, 3])
    spoilt, other = model.transformer.new_cache(), model.transformer.new_cache()
    model.transformer.step([(spoilt, [1, 2])])
    model.transformer.step([(other, [1, 2])])
    blocks = model.transformer.blocks
    model.transformer.blocks = [blocks[0], lambda *args: os.kill(os.getpid(), signal.SIGINT), *blocks[1:]]
    with pytest.raises(KeyboardInterrupt):
        model.transformer.step([(spoilt, [3])])
    model.transformer.blocks = blocks
    with pytest.raises(InputError, match="interrupted"):
        model.transformer.step([(spoilt, [3])])
    assert np.array_equal(model.transformer.step([(other, [3])])[0], expected[-1])
    assert np.array_equal(model.logits([1, 2, 3]), expected)


# ---- The GIL


def counted_meanwhile(call):
    """How far another thread counts while `call` runs three times. It needs the GIL for that."""
    count, stop = [0], threading.Event()

    def run():
        while not stop.is_set():
            count[0] += 1
            time.sleep(0.0005)

    thread, interval = threading.Thread(target=run), sys.getswitchinterval()
    thread.start()
    try:
        sys.setswitchinterval(60)
        before = count[0]
        for _ in range(3):
            call()
        return count[0] - before
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join()


def zeros(*shape):
    return tensor(np.zeros(shape, np.float32))


def linear():
    weights = _kernels.Matrix("F32", np.zeros((1024, 1024), np.float32))
    y, x, ctx = zeros(1024, 1024), zeros(1024, 1024), context()
    return lambda: _kernels.linear(ctx, y, x, weights, 1024)


def attention():
    T, D = 1536, 64
    shapes = _kernels.kv_shapes(T // _kernels.KV_BLOCK, 1, D)
    cache = _kernels.LayerCache(*(np.zeros(shape, np.float32) for shape in shapes))
    out, qkv, ctx = zeros(T, 8 * D), zeros(T, 10 * D), context()
    return lambda: _kernels.attention(ctx, out, qkv, [(cache, 0, 0, T)], 8, scale=1.0)


def moe():
    T, E, C = 512, 2, 512
    matrices = np.zeros((E, 2 * C, C), np.float32), np.zeros((E, C, C), np.float32)
    biases = np.zeros((E, 2 * C), np.float32), np.zeros((E, C), np.float32)
    gate_up, down = (_kernels.Matrix("F32", m, bias=b) for m, b in zip(matrices, biases, strict=True))
    index, weight = np.zeros((T, 1), np.int32), zeros(T, 1)
    out, x, ctx = zeros(T, C), zeros(T, C), context()
    return lambda: _kernels.moe(ctx, out, x, index, weight, gate_up, down, 1.702, 7.0, T)


@pytest.mark.parametrize("kernel", [linear, attention, moe], ids=lambda kernel: kernel.__name__)
def test_other_threads_run_while_kernels_do(kernel):
    assert counted_meanwhile(kernel()) > 0


def test_other_threads_wait_for_what_holds_the_gil():
    """Or the test above would say nothing."""
    numbers = np.random.default_rng(0).random(400_000).tolist()
    assert counted_meanwhile(lambda: sorted(numbers)) == 0


# ---- Dependencies


def test_torch_is_not_needed():
    script = """if True:
        import sys
        for name in ("torch", "transformers", "tensorflow", "jax"):
            sys.modules[name] = None  # import fails
        import cgpt
        print(len(cgpt.load("demo-gpt2").generate("The king", max_new_tokens=3).ids))
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")


@pytest.mark.parametrize(("owner", "name"), [(OpenFile, "change"), (Speculation, "__init__")])
def test_a_fork_while_another_thread_is_in(owner, name, monkeypatch):
    """Whatever lock the other thread holds there, the child gets on."""
    model = cgpt.load("demo-gpt2", threads=1, precision="exact")
    expected, inside, leave, real = generate(model), threading.Event(), threading.Event(), getattr(owner, name)

    def slow(*of, **options):
        if threading.current_thread() is other:
            inside.set()
            leave.wait()
        return real(*of, **options)

    other = threading.Thread(target=generate, args=[model])
    monkeypatch.setattr(owner, name, slow)
    other.start()
    inside.wait()
    try:
        assert in_child(lambda: generate(model)) == expected
    finally:
        leave.set()
        other.join()
