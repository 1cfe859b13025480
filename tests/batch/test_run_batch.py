"""Model.batch(): the answers of the server, many at a time, as an iterator."""

import gc
import inspect
import shutil
import subprocess
import sys
import threading
import time
import warnings

import pytest

import cgpt
from cgpt.batch.output import BatchOutput
from cgpt.batch.run import Batch
from cgpt.batch.source import open_source
from cgpt.errors import CgptError, CheckpointError, InputError, ModelClosed
from cgpt.generation.engine import Engine
from cgpt.serve.limits import Limits

from support.batch_cases import FakeRunner, ids, line, records, text_of, write_lines
from support.serve_cases import serving

# What differs from answer to answer, or with what else runs.
OWN = ("id", "created", "created_at", "completed_at", "call_id", "cached_tokens")
USER = [{"role": "user", "content": "Please compute 10 + 5."}]
GREEDY = {"model": "demo", "temperature": 0, "seed": 3}
WEATHER = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}

COMPLETIONS = {
    "greedy": {"prompt": "ROMEO:", "max_tokens": 20, "temperature": 0},
    "sampled": {"prompt": "JULIET:", "max_tokens": 20, "temperature": 0.9, "seed": 5, "n": 3, "best_of": 4},
    "many prompts": {"prompt": ["To be", "or not", "to be"], "max_tokens": 7, "temperature": 0.5, "seed": 1},
    "scores": {"prompt": "To be, or not to be", "max_tokens": 0, "echo": True, "logprobs": 2, "temperature": 0},
    "ids": {"prompt": [39, 414, 78], "max_tokens": 3, "temperature": 0, "logprobs": 0, "stop": "\n"},
    "no stream": {"prompt": "a", "max_tokens": 1, "temperature": 0, "stream": False, "unknown": 1},
    "no prompt": {"max_tokens": 5},
    "too many tokens": {"prompt": "a", "max_tokens": -5},
    "another model": {"model": "gpt-9", "prompt": "a"},
    "wrong type": {"prompt": "a", "temperature": "hot"},
    "too long": {"prompt": "word " * 2000},
    "stream in words": {"prompt": "a", "stream": "yes"},
    "text": {"prompt": "lone \ud800 and é", "max_tokens": 2, "temperature": 0},
}
CHATS = {
    "greedy": {"messages": USER} | GREEDY,
    "sampled": {"messages": USER, "seed": 7, "n": 2, "logprobs": True, "top_logprobs": 2, "max_tokens": 30},
    "tools": {"messages": USER, "tools": [{"type": "function", "function": WEATHER}]} | GREEDY,
    "no messages": {"messages": []},
    "an image": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
}
RESPONSES = {
    "greedy": {"input": "Please compute 10 + 5."} | GREEDY,
    "items": {"input": USER, "seed": 9, "max_output_tokens": 25, "instructions": "Answer."},
    "no input": {},
    "background": {"input": "a", "background": True},
    "an unknown response": {"input": "a", "previous_response_id": "resp_1"},
}
CASES = {
    "demo-gpt2": {
        "/v1/completions": COMPLETIONS,
        "/v1/chat/completions": {"a model without chats": {"messages": USER}},
    },
    "demo-gpt-oss": {
        "/v1/completions": {"greedy": COMPLETIONS["greedy"]},
        "/v1/chat/completions": CHATS,
        "/v1/responses": RESPONSES,
    },
}


@pytest.fixture(scope="module")
def gpt2():
    return cgpt.load("demo-gpt2", 1, "exact")


def common(value):
    """An answer without what is its own."""
    if isinstance(value, list):
        return [common(one) for one in value]
    return {k: common(v) for k, v in value.items() if k not in OWN} if isinstance(value, dict) else value


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:left out of bodies")
def test_the_answers_are_the_server_s(name):
    model = cgpt.load(name, 1, "exact")
    asked = {f"{url} {case}": (url, body) for url, cases in CASES[name].items() for case, body in cases.items()}
    lines = [{"custom_id": key, "method": "POST", "url": url, "body": body} for key, (url, body) in asked.items()]
    answered = {one["custom_id"]: one for one in model.batch(lines, names=["demo"])}
    assert answered.keys() == asked.keys()
    statuses = set()
    with serving(model) as served:
        for key, (url, body) in asked.items():
            status, headers, answer = served.post(url, body)
            found = answered[key]["response"]
            assert (found["status_code"], common(found["body"])) == (status, common(answer)), key
            assert len(found["request_id"]) == len(headers["x-request-id"])
            statuses.add(status)
    assert 200 in statuses and 400 in statuses


def test_the_text_is_generate_s_whatever_runs_beside_it(gpt2):
    prompts = [f"{name} {i}:" for i in range(100) for name in ("ROMEO", "JULIET")]
    found = {r["custom_id"]: text_of(r) for r in gpt2.batch(line(p, p, model="demo-gpt2") for p in prompts)}
    alone = gpt2.generate(prompts, max_new_tokens=4, temperature=0)
    assert [found[prompt] for prompt in prompts] == [one.text for one in alone]


def test_requests_are_taken_as_they_are_needed(gpt2):
    taken = 0

    def lines():
        nonlocal taken
        for i in range(1000):
            taken += 1
            yield line(f"{i}")

    with gpt2.batch(lines(), names=["demo"], max_running=2) as batch:
        for count in range(1, 30):
            next(batch)
            assert taken <= count + 2 * 2
            assert batch.progress.num_done == count
    assert not [one for one in threading.enumerate() if one.name in ("cgpt-batch", "cgpt-engine")]
    with pytest.raises(StopIteration):
        next(batch)


def test_requests_that_ask_for_many_texts_wait_for_their_turn(gpt2):
    lines = [line(f"{i}", prompt=["a"] * 200, max_tokens=1) for i in range(6)]
    found = list(gpt2.batch(lines, names=["demo"], max_running=2))
    assert [one["response"]["status_code"] for one in found] == [200] * 6


def test_bad_requests_get_records_of_their_own(gpt2):
    lines = [line("a"), {"custom_id": "b"}, line("c", stream=True), line("a"), line("d", max_tokens="x"), {}, line("e")]
    with gpt2.batch(lines, names=["demo"]) as batch:
        found = list(batch)
    errors = {one["error"]["line"]: (one["custom_id"], one["error"]["code"]) for one in found if one["error"]}
    assert errors == {
        2: ("b", "invalid_method"),
        3: ("c", "invalid_body"),
        4: ("a", "duplicate_custom_id"),
        6: (None, "invalid_custom_id"),
    }
    answers = {one["custom_id"]: one["response"]["status_code"] for one in found if one["response"]}
    assert answers == {"a": 200, "d": 400, "e": 200}
    assert (batch.progress.num_done, batch.progress.num_failed) == (7, 5)


def test_usage_of_every_kind_is_counted():
    body = {"input": "Please compute 10 + 5.", "max_output_tokens": 3}
    chat = {"messages": USER, "max_tokens": 4}
    lines = [line("a", model="demo-gpt-oss", prompt=[1, 2, 3], max_tokens=2, ignore_eos=True)]
    lines += [line("b", url="/v1/chat/completions", **chat), line("c", url="/v1/responses", **body)]
    with cgpt.load("demo-gpt-oss", 1).batch(lines) as batch:
        found = {one["custom_id"]: one["response"]["body"]["usage"] for one in batch}
    assert batch.progress.generated_tokens == 2 + 4 + 3
    assert batch.progress.prompt_tokens == 3 + found["b"]["prompt_tokens"] + found["c"]["input_tokens"]


def test_an_output_goes_on_with_dicts_too(gpt2, tmp_path):
    def lines():
        return (line(f"{i}") for i in range(40))

    with gpt2.batch(lines(), output=tmp_path / "out", names=["demo"]) as batch:
        first = [next(batch) for _ in range(15)]
        assert [one["custom_id"] for one in first] == [one["custom_id"] for one in records(tmp_path / "out")]
        with pytest.raises(InputError, match="another process"):
            gpt2.batch(lines(), output=tmp_path / "out", names=["demo"])
    with gpt2.batch(lines(), output=tmp_path / "out", names=["demo"]) as batch:
        assert batch.progress.num_answered == 15 and len(list(batch)) == 25
    assert ids(tmp_path / "out") == {f"{i}" for i in range(40)}


@pytest.mark.parametrize("change", ["precision", "dense", "cache", "model", "names", "max_tokens", "strict"])
def test_other_options_are_another_batch(gpt2, tmp_path, change):
    path, options = write_lines(tmp_path / "in", [line("a"), line("b")]), {"names": ["demo"]}
    with gpt2.batch(str(path), output=tmp_path / "out", **options) as batch:
        next(batch)
    loaded = {"precision": {"precision": "auto"}, "dense": {"dense": "int8"}, "cache": {"kv_cache_dtype": "bf16"}}
    model, how = gpt2, {"precision": "exact"} | loaded.get(change, {})
    if change == "model":
        directory = shutil.copytree(cgpt.locate("demo-gpt2"), tmp_path / "model")
        weights = (directory / "model.safetensors").read_bytes()
        (directory / "model.safetensors").write_bytes(weights[:-100_000] + weights[-100_000:][::-1])
        model = cgpt.load(directory, **how)
    elif change in loaded:
        model = cgpt.load("demo-gpt2", 2, **how)
    options |= {"names": {"names": ["other", "demo"]}, "max_tokens": {"max_tokens": 9}, "strict": {"strict": True}}.get(
        change, {}
    )
    with pytest.raises(InputError, match="by another model, or with other options"):
        model.batch(path, output=tmp_path / "out", **options)
    with cgpt.load("demo-gpt2", 2, "exact").batch(path, output=tmp_path / "out", names=["demo"]) as batch:
        assert len(list(batch)) == 1  # other threads are the same batch


def test_a_checkpoint_that_changes_ends_it(tmp_path, monkeypatch):
    fail = Engine._fail
    monkeypatch.setattr(Engine, "_fail", lambda *of: time.sleep(0.2) or fail(*of))  # lines meet the closed model first
    directory = shutil.copytree(cgpt.locate("demo-gpt2"), tmp_path / "model")
    model = cgpt.load(directory, 1)
    lines = write_lines(tmp_path / "in", [line(f"{i}", model="model") for i in range(500)])
    batch = model.batch(lines, output=tmp_path / "out")
    for _ in range(10):
        next(batch)
    with open(directory / "model.safetensors", "r+b") as file:
        file.write(b"\1" * 100)
    with pytest.raises(CheckpointError, match="changed on disk"):
        list(batch)
    assert all(one["response"]["status_code"] == 200 for one in records(tmp_path / "out"))
    assert 10 <= len(ids(tmp_path / "out")) < 500


def test_what_is_left_out_of_bodies_is_named_once(gpt2):
    lines = [line(f"{i}", foo=1, bar=i) for i in range(5)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(list(gpt2.batch(lines, names=["demo"]))) == 5
    assert sorted(str(one.message).split()[-1] for one in caught) == ["bar", "foo"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"source": "no such file"}, "no such file cannot be read"),
        ({"source": [], "max_running": 0}, "max_running must be an integer of at least 1"),
        ({"source": [], "max_tokens": True}, "max_tokens must be an integer"),
        ({"source": [], "strict": 1}, "strict is True or False"),
        ({"source": [], "names": "demo"}, "names is a list of names"),
        ({"source": 7}, "source is a path or dicts, not 7"),
        ({"source": line("a")}, "source is a path or dicts, not {'custom_id'"),
        ({"source": [], "out": "x"}, "did you mean output"),
        ({"source": [], "output": "none/out"}, "holds no request"),
        ({"source": [line("a")], "output": "none/out"}, "none/out cannot be written"),
    ],
)
def test_arguments(gpt2, arguments, message):
    with pytest.raises(CgptError, match=message):
        gpt2.batch(**arguments)
    assert not [one for one in threading.enumerate() if one.name in ("cgpt-batch", "cgpt-engine")]


@pytest.mark.parametrize("bad", [7, "text", {1, 2}, [("custom_id", "x")], {"custom_id": b"x"}, {"body": float}])
def test_dicts_that_json_cannot_hold(gpt2, bad):
    batch = gpt2.batch([line("a"), bad], names=["demo"])
    with pytest.raises(InputError, match="request 2 is no dict that JSON can hold"):
        list(batch)
    assert not [one for one in threading.enumerate() if one.name in ("cgpt-batch", "cgpt-engine")]


@pytest.mark.parametrize("package", ["starlette", "pydantic", "markdown_it", "nh3"])
def test_a_package_that_is_missing_is_named(package):
    code = f"""import sys
sys.modules["{package}"] = None
import cgpt
from cgpt.cli.main import main
try:
    cgpt.load("demo-gpt2", 1).batch([])
except cgpt.CgptError as problem:
    print(problem)
sys.exit(main(["batch", "in", "out"]))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    install = "pip install starlette pydantic markdown-it-py nh3"
    assert done.returncode == 2 and f"Model.batch() needs the package {package}: {install}" in done.stdout
    assert f"cgpt: error: cgpt batch needs the package {package}: {install}" in done.stderr


def test_importing_cgpt_needs_none_of_it():
    code = "import sys, cgpt; print([m for m in sys.modules if m.startswith(('cgpt.batch', 'cgpt.serve', 'pydantic'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_it_has_the_limit_of_the_server():
    assert inspect.signature(cgpt.Model.batch).parameters["max_tokens"].default == Limits.max_tokens


def test_a_closed_model():
    model = cgpt.load("demo-gpt2", 1)
    model.close()
    with pytest.raises(ModelClosed):
        list(model.batch([line("a")], names=["demo"]))
    assert not [one for one in threading.enumerate() if one.name in ("cgpt-batch", "cgpt-engine")]


def test_a_batch_that_is_dropped_ends(gpt2, tmp_path):
    path = write_lines(tmp_path / "in", [line(f"{i}") for i in range(200)])
    for _ in gpt2.batch(path, output=tmp_path / "out", names=["demo"]):
        break
    gc.collect()
    assert not [one for one in threading.enumerate() if one.name in ("cgpt-batch", "cgpt-engine")]
    with gpt2.batch(path, output=tmp_path / "out", names=["demo"]) as batch:
        assert batch.progress.num_answered >= 1


def test_an_earlier_answer_is_not_there():
    """Whether it were would depend on which line runs first."""
    answers = {}

    def lines():
        for name in "ab":  # so many are handed over at once
            yield line(name, url="/v1/responses", input="Please compute 10 + 5.", max_output_tokens=3)
        known = next(iter(answers.values()))["response"]["body"]["id"]
        yield line("c", url="/v1/responses", input="And 5?", previous_response_id=known)

    for one in cgpt.load("demo-gpt-oss", 1).batch(lines(), max_running=1):
        answers[one["custom_id"]] = one
    problem = answers["c"]["response"]["body"]["error"]
    assert problem["code"] == "previous_response_not_found" and "send the whole conversation" in problem["message"]


def test_a_pause_puts_lines_on_the_disk(tmp_path, monkeypatch):
    due = []
    monkeypatch.setattr(BatchOutput, "sync_if_due", lambda self: due.append(1))
    path = write_lines(tmp_path / "in", [line("a")])
    with Batch(open_source(path), FakeRunner(), BatchOutput(tmp_path / "out")) as batch:
        next(batch)
    assert len(due) == 2  # before the answer, and with it
