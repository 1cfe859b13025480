"""The public calls: what is given back by close(), what odd arguments become, memory that is short."""

import gc
import inspect
import itertools
import os
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

import cgpt
from cgpt.errors import CgptError, InputError, ModelClosed, OutOfMemoryError
from cgpt.generation.engine import Engine

from support.request_cases import make_request

NAMES = ["demo-gpt2", "demo-gpt-oss"]


@pytest.fixture(scope="module")
def model():
    return cgpt.load("demo-gpt2", threads=1)


@pytest.fixture
def own(tmp_path):
    """Copies a model of the package to a directory of its own: other tests may still have the package's mapped."""
    return lambda name: shutil.copytree(cgpt.locate(name), tmp_path / name)


def mapped(directory):
    """How many of this process's mappings are of the checkpoint."""
    with open("/proc/self/maps") as maps:
        return sum(str(directory) in line for line in maps)


# ---- Closing


@pytest.mark.parametrize("name", NAMES)
def test_close_gives_the_weights_back_at_once(own, name):
    directory = own(name)
    gc.disable()  # reference counts must do it alone
    try:
        with cgpt.load(directory) as model:
            assert model.generate([5], max_new_tokens=2).ids and mapped(model.directory)
        assert not mapped(model.directory)
    finally:
        gc.enable()
    calls = [
        lambda: model.generate([5]),
        lambda: list(model.stream([5])),
        lambda: model.logits([5]),
        lambda: model.score([5, 6]),
        lambda: model.hidden([5]),
        lambda: model.inspect([5]),
        lambda: model.at_precision("exact"),
        lambda: model.transformer.new_cache(),
        lambda: model.transformer.step([]),
    ]
    for call in calls:
        with pytest.raises(ModelClosed, match="the model was closed.*load it again"):
            call()
    model.close()
    assert "closed" in repr(model) and model.tokenizer.decode([5]) and model.vocab_size


def test_a_twin_keeps_the_weights(own):
    model = cgpt.load(own("demo-gpt2"))
    twin = model.at_precision("exact")
    model.close()
    assert twin.generate([5], max_new_tokens=2).ids and mapped(twin.directory)
    twin.close()
    assert not mapped(twin.directory)


def test_closing_under_running_requests():
    """They fail by name; nobody waits."""
    model = cgpt.load("demo-gpt2")
    with Engine(model, prefix_cache_bytes=0) as engine:
        job = engine.submit([make_request(model, "ROMEO:", max_new_tokens=200, ignore_eos=True)])
        next(iter(job))
        model.close()
        with pytest.raises(ModelClosed):
            list(job)


# ---- Steps


def test_rows_are_checked_before_anything_is_computed(model):
    cache = model.transformer.new_cache(10)
    with pytest.raises(InputError, match="rows is .last. or .all., not .typo."):
        model.transformer.step([(cache, [1, 2])], rows="typo")
    assert cache.position == 0 and cache.intact
    assert model.transformer.step([(cache, [1, 2])]).shape == (1, model.vocab_size)


# ---- Jobs


@pytest.mark.parametrize("index", [None, 0])
def test_a_job_cancelled_from_another_thread_ends(model, index):
    with Engine(model) as engine:
        blocker = engine.submit([make_request(model, "x", max_new_tokens=250, ignore_eos=True)])
        waiting = engine.submit([make_request(model, "y", max_new_tokens=250, ignore_eos=True)])
        waiting._events.get()  # it runs; from here on nothing comes by itself once it is cancelled
        threading.Timer(0.05, waiting.cancel, (index,)).start()
        reader = threading.Thread(target=list, args=(waiting,), daemon=True)
        reader.start()
        reader.join(20)
        blocker.cancel()
        assert not reader.is_alive()


def test_a_request_runs_once(model):
    request = make_request(model, "x", max_new_tokens=3)
    with Engine(model) as engine:
        with pytest.raises(InputError, match="a request runs once"):
            engine.submit([request, request])
        list(engine.submit([request]))
        with pytest.raises(InputError, match="a request runs once"):
            engine.submit([request])


# ---- Odd arguments: a CgptError, or it works

ODD = [
    None,
    True,
    -1,
    0,
    1.5,
    float("nan"),
    float("inf"),
    10**400,
    -(10**20),
    "",
    "text",
    "\ud800",
    b"bytes",
    [],
    [1],
    [[1]],
    ["a"],
    [None],
    [10**30],
    {},
    {1: 2},
    {"a": float("nan")},
    {1: "b"},
    set(),
    object(),
    len,
    np.float32("nan"),
    np.int64(3),
    np.zeros(0),
    np.zeros((2, 2)),
    np.array(["a"]),
    np.array([2**63], np.uint64),
]


def calls(model):
    """(name, call, the keyword arguments it has, a good call's)."""
    chat = cgpt.load("demo-gpt-oss", threads=1)
    short = {"prompt": [5], "max_new_tokens": 1}
    for name, good in {
        "generate": short,
        "stream": short,
        "score": {"prompt": [5]},
        "logits": {"prompt": [5]},
        "hidden": {"prompt": [5]},
        "encode_prompt": {"prompt": [5]},
        "inspect": {"prompt": [5]},
    }.items():
        yield name, getattr(model, name), good
    yield "chat", chat.chat, {}
    yield "send", lambda **how: chat.chat().send(**({"text": "x", "max_new_tokens": 1} | how)), {}
    yield "load", lambda **how: cgpt.load(**({"path_or_name": "demo-gpt2"} | how)), {}
    yield "PrefixCache", lambda **how: cgpt.PrefixCache(**({"model": model} | how)), {}
    yield "SamplingParams", cgpt.SamplingParams, {}
    yield "locate", lambda **how: cgpt.locate(**({"path_or_name": "demo-gpt2"} | how)), {}


KEYWORDS = {
    "send": ["text", "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"],
    "load": list(inspect.signature(cgpt.load).parameters),
    "PrefixCache": ["model", "max_bytes", "disk_bytes"],
    "SamplingParams": list(inspect.signature(cgpt.SamplingParams).parameters),
    "locate": ["path_or_name"],
}
TYPOS = {"temprature": "temperature", "max_tokens": "max_new_tokens", "sead": "seed", "logprob": "logprobs"}


def test_odd_arguments_are_refused_by_name_or_work(model, tmp_path, monkeypatch):
    """Some two thousand, each argument of each public call with every odd value."""
    monkeypatch.chdir(tmp_path)  # where load() makes directories of such names
    wrong, tried = [], 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, call, good in calls(model):
            known = KEYWORDS.get(name) or list(inspect.signature(call).parameters)
            for keyword, value in itertools.product(known, ODD):
                if keyword == "progress" and callable(value):
                    continue  # what the function of the caller raises is his own
                tried += 1
                try:
                    done = call(**(good | {keyword: value}))
                    if name == "stream":
                        list(done)
                except CgptError as refusal:
                    if not str(refusal):
                        wrong.append(f"{name}({keyword}={value!r}): no message")
                except BaseException as defect:
                    wrong.append(f"{name}({keyword}={value!r}): {type(defect).__name__}: {defect}")
    assert not wrong, "\n".join([f"{len(wrong)} of {tried}", *wrong[:40]])
    assert tried > 2000


@pytest.mark.parametrize("typo", TYPOS)
def test_unknown_keywords_are_told_the_nearest_known_one(model, typo):
    with pytest.raises(InputError, match=f"generate\\(\\) has no argument .{typo}.; did you mean {TYPOS[typo]}"):
        model.generate("x", **{typo: 1})
    with pytest.raises(InputError, match="SamplingParams\\(\\) has no argument .temprature.; did you mean temperature"):
        cgpt.SamplingParams(temprature=1)
    with pytest.raises(InputError, match="PrefixCache\\(\\) has no argument .bytes.; did you mean max_bytes"):
        cgpt.PrefixCache(model, bytes=1)
    with pytest.raises(InputError, match="load\\(\\) has no argument .treads.; did you mean threads"):
        cgpt.load("demo-gpt2", treads=1)


@pytest.mark.parametrize(
    "foreign, ours",
    {
        "max_length": "did you mean max_new_tokens, which does not count the prompt",
        "max_completion_tokens": "did you mean max_new_tokens",
        "do_sample": "did you mean temperature",
        "num_beams": "cgpt has no beam search",
        "repeat_penalty": "did you mean repetition_penalty",
        "stop_strings": "did you mean stop",
        "eos_token_id": "did you mean stop",
        "input_ids": "did you mean prompt",
        "allowed_special": "did you mean special",
        "streamer": r"did you mean model.stream\(\)",
        "n_threads": "it has prompt",  # an argument of load(), not of this
    }.items(),
)
def test_keywords_of_other_libraries_are_told_ours(model, foreign, ours):
    with pytest.raises(InputError, match=f"generate\\(\\) has no argument .{foreign}.; {ours}"):
        model.generate("x", **{foreign: 1})
    with pytest.raises(InputError, match=r"load\(\) has no argument .n_threads.; did you mean threads"):
        cgpt.load("demo-gpt2", n_threads=1)
    with pytest.raises(InputError, match='did you mean dense="int4"'):
        cgpt.load("demo-gpt2", load_in_4bit=True)


def test_help_shows_every_argument():
    for call in (cgpt.Model.generate, cgpt.Model.stream, cgpt.Model.chat, cgpt.load):
        kinds = {p.kind for p in inspect.signature(call).parameters.values()}
        assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}


# ---- Memory that is short

SHORT = """
import resource, sys, cgpt
model = cgpt.load("demo-gpt2", threads=1)
model.generate([1], max_new_tokens=2)  # NumPy loads parts of itself late
with open("/proc/self/status") as lines:
    used = next(int(line.split()[1]) for line in lines if line.startswith("VmSize")) * 1024
unlimited = resource.RLIM_INFINITY
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), unlimited))
try:
    {call}
except cgpt.CgptError as refusal:
    print(type(refusal).__name__, refusal)
resource.setrlimit(resource.RLIMIT_AS, (unlimited, unlimited))
print(len(model.generate([1], max_new_tokens=2).ids))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited by RLIMIT_AS")
@pytest.mark.parametrize(
    "call", ["model.logits([7] * 250)", "model.score([7] * 250)", "model.generate([[7] * 250] * 60, max_new_tokens=3)"]
)
def test_short_memory_is_named_and_the_model_usable_after(call):
    """In a process whose address space ends a little beyond what it has."""
    environment = os.environ | {"PYTHONPATH": str(Path(cgpt.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", SHORT.format(call=call)], capture_output=True, text=True, timeout=120, env=environment
    )
    refusal, usable = done.stdout.splitlines()
    assert refusal.startswith("OutOfMemoryError ") and usable == "2", done


def test_an_allocation_that_fails_in_a_step_is_named(model, monkeypatch):
    def refuse(*_):
        raise MemoryError("Unable to allocate 3 GiB")

    monkeypatch.setattr(model.transformer, "final_norm", refuse)
    with pytest.raises(OutOfMemoryError, match="no memory for a step .Unable to allocate 3 GiB.; use shorter prompts"):
        model.logits([5])


# ---- Warnings


def test_a_warning_names_the_line_that_called(own):
    """Not one of the package's, however deep the call went."""
    directory = own("demo-gpt2")
    (directory / "generation_config.json").write_text('{"do_sample": true, "top_p": 7}')
    model = cgpt.load(directory)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.generate("a<|endoftext|>", max_new_tokens=1)
    assert len(caught) == 2 and {Path(one.filename) for one in caught} == {Path(__file__)}


@pytest.mark.parametrize("prompt", [5, None, b"x", 1.5])
def test_a_prompt_of_another_type_is_told_what_prompts_are(model, prompt):
    with pytest.raises(InputError, match="a prompt is a str or a flat list of token ids.* not "):
        model.generate(prompt)
