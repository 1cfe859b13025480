"""Models larger than memory: the bits of one that is in memory, within any budget; what cannot be is refused."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import cgpt
from cgpt.errors import CheckpointError, CheckpointReadError, InputError, OutOfMemoryError
from cgpt.generation.engine import Engine
from cgpt.generation.request import Request
from cgpt.generation.sampling import SamplingParams
from cgpt.loading import DENSE, load
from cgpt.models.streaming import MemoryBudget
from cgpt.models.streaming_speed import Rates
from cgpt.models.synth import write

from support.synth_cases import GPT_OSS

DEMO = Path(cgpt.__file__).parent / "demo" / "demo-gpt-oss"
MIN_SLOTS, EXPERTS = 6 * 4, 6 * 8
MEASURE = MemoryBudget.slots  # with_slots() puts another in its place
LONG = 1300  # tokens: several parts of 512


@pytest.fixture
def with_slots(monkeypatch):
    """Loads the demo with so many slots; a budget in bytes is far coarser than its experts."""
    loaded = []

    def load_with(slots, **options):
        monkeypatch.setattr(MemoryBudget, "slots", lambda self, tokens: slots)
        loaded.append(load(options.pop("directory", "demo-gpt-oss"), memory="64GB", **options))
        return loaded[-1]

    yield load_with
    for model in loaded:
        model.close()


def ids_of(length, vocabulary=512, seed=0):
    return np.random.default_rng(seed).integers(0, vocabulary, length)


@pytest.mark.parametrize("precision", ["exact", "auto", "int8"])
@pytest.mark.parametrize("slots", [MIN_SLOTS, 31, EXPERTS])
def test_the_bits_of_a_resident_model(with_slots, precision, slots):
    resident = load("demo-gpt-oss", precision=precision)
    for threads in (1, 2):
        streamed = with_slots(slots, precision=precision, threads=threads)
        for length in (1, 7, 200, LONG):
            ids = ids_of(length)
            assert np.array_equal(resident.transformer.logits(ids), streamed.transformer.logits(ids)), (threads, length)
        store = streamed.transformer.streaming.store
        assert store.resident <= slots
        assert slots == EXPERTS or store.stats.misses > EXPERTS  # something was evicted and came again


def test_a_long_chunk_has_the_bits_of_short_ones(with_slots):
    resident, streamed, ids = load("demo-gpt-oss"), with_slots(MIN_SLOTS), ids_of(LONG)
    assert streamed.transformer.PREFILL_CHUNK >= 2 * LONG
    caches = [model.transformer.new_cache(LONG + 5) for model in (resident, streamed)]
    for at in range(0, LONG, resident.transformer.PREFILL_CHUNK):
        wanted = resident.transformer.step([(caches[0], ids[at : at + 512])])
    read = streamed.transformer.streaming.store.stats.misses
    assert np.array_equal(wanted, streamed.transformer.step([(caches[1], ids)]))
    assert streamed.transformer.streaming.store.stats.misses - read <= EXPERTS  # each expert once
    for token in ids[:5]:
        steps = [model.transformer.step([(c, [token])]) for model, c in zip((resident, streamed), caches, strict=True)]
        assert np.array_equal(*steps)


@pytest.mark.parametrize("dense", [None, *DENSE])
def test_dense_weights_in_every_form(with_slots, dense):
    resident, streamed = load("demo-gpt-oss", dense=dense), with_slots(30, dense=dense)
    assert np.array_equal(resident.transformer.logits(ids_of(90)), streamed.transformer.logits(ids_of(90)))


def test_batches_prefixes_lookup_inspection_and_chat(with_slots):
    resident, streamed = load("demo-gpt-oss", precision="exact"), with_slots(MIN_SLOTS, precision="exact")
    prompts = ["What is 3 + 4?", "What is 12 + 30?", "Name", "What is 3 + 4?"]
    results = []
    for model in (resident, streamed):
        texts = [one.text for one in model.generate(prompts, max_new_tokens=12, temperature=0)]
        texts += [
            one.text for one in model.generate(prompts, max_new_tokens=12, prompt_lookup_num_tokens=4, temperature=0)
        ]
        cache = cgpt.PrefixCache(model)
        texts += [
            model.generate(prompts[0], max_new_tokens=8, prefix_cache=cache, temperature=0).text for _ in range(2)
        ]
        texts += [delta.text for delta in model.chat().stream("What is 5 + 6?", max_new_tokens=20, temperature=0)]
        found = model.inspect([int(i) for i in ids_of(LONG)], window=64)
        results.append((texts, {name: array.tobytes() for name, array in found.items()}))
    assert results[0][0] == results[1][0]
    assert [name for name in results[0][1] if results[0][1][name] != results[1][1][name]] == []


def test_scores_and_hidden_states_of_long_prompts(with_slots):
    resident, streamed, ids = load("demo-gpt-oss"), with_slots(MIN_SLOTS), ids_of(LONG)
    assert np.array_equal(resident.transformer.hidden(ids), streamed.transformer.hidden(ids))
    read = streamed.transformer.streaming.store.stats.misses
    assert np.array_equal(resident.transformer.score(ids), streamed.transformer.score(ids))
    assert streamed.transformer.streaming.store.stats.misses - read <= EXPERTS
    prompt, step, sizes = [int(i) for i in ids], streamed.transformer.step, []

    def recorded(batch, **how):
        sizes.append(sum(len(new) for _, new in batch))
        return step(batch, **how)

    streamed.transformer.step = recorded
    found = [model.generate(prompt, max_new_tokens=1, prompt_logprobs=1) for model in (resident, streamed)]
    assert str(found[0].prompt_logprobs) == str(found[1].prompt_logprobs)
    assert max(sizes) == 512  # more rows of logits would be gigabytes


def test_an_engine_serves_it(with_slots):
    model = with_slots(MIN_SLOTS)
    params = SamplingParams(max_new_tokens=10)
    with Engine(model) as engine:
        jobs = [engine.submit([Request(model, f"What is {n} + 4?", params)]) for n in range(5)]
        for job in jobs:
            assert [event for event in job][-1].finish_reason


# -------------------------------------------------------------------------------------------------------- memory


WIDE = GPT_OSS | dict(hidden_size=1024, intermediate_size=1024, num_hidden_layers=8, num_local_experts=32)
WIDE["layer_types"] = ["sliding_attention", "full_attention"] * 4
PROGRAM = """
import json, sys
import numpy as np, cgpt
from cgpt.machine.memory import process_memory
limit = int(sys.argv[2])
with cgpt.load(sys.argv[1], memory=limit) as model:
    model.transformer.hidden(np.arange(1500) % 500)
    model.generate([1, 2, 3], max_new_tokens=40)
    store = model.transformer.streaming.store
    print(json.dumps([process_memory(), store.capacity, store.experts, store.slot_bytes]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_bounded(tmp_path):
    """A process of its own, whose experts are more than it may take."""
    (tmp_path / "config.json").write_text(json.dumps(WIDE))
    write(tmp_path / "config.json", tmp_path / "m")
    limit = 480_000_000
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "m"), str(limit)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=Path(cgpt.__file__).parents[1])
    assert ran.returncode == 0, ran.stderr
    used, capacity, experts, slot_bytes = json.loads(ran.stdout)
    assert capacity < experts and slot_bytes * (experts - capacity) > 60_000_000
    assert used <= limit


def test_keys_and_values_take_from_the_experts():
    with load("demo-gpt-oss", memory="64GB") as model:
        budget = model.transformer.streaming
        before = budget.slots(1)
        cache = model.transformer.new_cache()
        model.transformer.step([(cache, ids_of(2000))])
        assert before - budget.slots(1) == pytest.approx(cache.nbytes / budget.store.slot_bytes, abs=1)
        del cache
        assert budget.slots(1) == before


def test_a_step_that_memory_cannot_hold_is_refused_and_undone(monkeypatch):
    with load("demo-gpt-oss", memory="64GB") as model:
        budget, cache = model.transformer.streaming, model.transformer.new_cache()
        first = model.transformer.step([(cache, ids_of(5))])
        monkeypatch.setattr(budget, "limit", budget.own)
        with pytest.raises(OutOfMemoryError, match=r"leaves room for 0 experts .* a token takes 24"):
            model.transformer.step([(cache, [1])])
        monkeypatch.undo()
        assert cache.position == 5 and cache.intact
        again = model.transformer.new_cache()
        assert np.array_equal(first, model.transformer.step([(again, ids_of(5))]))


def test_too_small_a_budget_names_the_least_that_works():
    with pytest.raises(InputError, match=r"the least that works is ([\d.]+) GB") as raised:
        load("demo-gpt-oss", memory="10MB")
    least = raised.value.args[0].split("works is ")[1].split()[0]
    with load("demo-gpt-oss", memory=f"{least}GB") as model:
        assert len(model.generate("What is 3 + 4?", max_new_tokens=3).ids) == 3


@pytest.mark.parametrize("memory", ["18 apples", "", 0, -1, 1.5, True, [], "nan", "18GBB"])
def test_an_amount_that_is_none(memory):
    with pytest.raises(InputError, match="memory is a number of bytes"):
        load("demo-gpt-oss", memory=memory)


def test_gpt2_has_no_experts():
    with pytest.raises(InputError, match=r"GPT-2 has no experts: it takes 0\.\d GB"):
        load("demo-gpt2", memory="1MB")
    with load("demo-gpt2", memory="8GiB") as model:
        assert model.transformer.streaming is None


def test_a_model_that_does_not_fit_is_streamed_by_itself(monkeypatch):
    monkeypatch.setattr("cgpt.models.streaming.RUNTIME", 10**13)
    rates = "cgpt.models.streaming.measure_rates"
    monkeypatch.setattr(rates, lambda files: None)
    with pytest.warns(UserWarning, match=r"are read from the files as they are chosen, within memory=\S+GB\"$"):
        model = load("demo-gpt-oss")
    model.close()
    monkeypatch.setattr(rates, lambda files: Rates(1e9, 20e6))
    with pytest.warns(UserWarning, match=r"within memory=\S+GB\"; to expect: about 1\d tok/s"):
        model = load("demo-gpt-oss")
    with model:
        assert model.transformer.streaming is not None
    monkeypatch.setattr("cgpt.models.streaming.available_memory", lambda: None)
    with load("demo-gpt-oss") as model:
        assert model.transformer.streaming is None


def test_a_tensor_that_the_model_does_not_have(tmp_path):
    shutil.copytree(DEMO, tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"model.norm.weight"', b'"model.nose.weight"'))
    for memory in (None, "64GB"):
        with pytest.raises(CheckpointError, match=r"model\.no(rm|se)\.weight"):
            load(tmp_path / "m", memory=memory)


# -------------------------------------------------------------------------------------------------------- faults


def test_a_read_error_undoes_the_step_and_the_model_goes_on(with_slots, monkeypatch):
    model, resident = with_slots(MIN_SLOTS, precision="exact"), load("demo-gpt-oss", precision="exact")
    transformer = model.transformer
    cache, other = transformer.new_cache(), resident.transformer.new_cache()
    transformer.step([(cache, ids_of(40))])
    resident.transformer.step([(other, ids_of(40))])
    store = transformer.streaming.store
    store.resize(1)
    read = store._read

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    store._read = fail
    with pytest.raises(CheckpointReadError, match="Input/output error"):
        transformer.step([(cache, [7])])
    store._read = read
    cache.rollback()
    assert np.array_equal(transformer.step([(cache, [7])]), resident.transformer.step([(other, [7])]))


def test_an_engine_goes_on_after_a_read_error(with_slots):
    model = with_slots(MIN_SLOTS)
    store, params = model.transformer.streaming.store, SamplingParams(max_new_tokens=3)
    read = store._read

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    with Engine(model) as engine:
        store._read = fail
        with pytest.raises(CheckpointReadError):
            list(engine.submit([Request(model, "What is 3 + 4?", params)]))
        store._read = read
        assert list(engine.submit([Request(model, "What is 3 + 4?", params)]))[-1].finish_reason


def test_a_file_that_changes_closes_the_model(tmp_path):
    shutil.copytree(DEMO, tmp_path / "m")
    model = load(tmp_path / "m", memory="64GB")
    with open(tmp_path / "m" / "model.safetensors", "r+b") as file:
        file.truncate(os.path.getsize(file.name) - 1)
    with pytest.raises(CheckpointError, match="changed on disk"):
        model.generate("What is 3 + 4?", max_new_tokens=1)
    assert model.transformer.closed


def test_caches_come_and_go_while_other_threads_step(with_slots):
    class Cache:
        nbytes = 0

    budget, failures, done = with_slots(EXPERTS).transformer.streaming, [], threading.Event()
    kept = [Cache() for _ in range(500)]
    for one in kept:
        budget.add_cache(one)

    def churn():
        while not done.is_set():
            budget.add_cache(Cache())

    def measure():
        try:
            for _ in range(300):
                MEASURE(budget, 1)
        except RuntimeError as problem:
            failures.append(problem)

    threads = [threading.Thread(target=churn) for _ in range(2)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        measure()
    finally:
        sys.setswitchinterval(before)
        done.set()
        for thread in threads:
            thread.join()
    assert not failures


def test_a_twin_keeps_the_experts(with_slots):
    model = with_slots(MIN_SLOTS)
    twin, ids = model.transformer.at_precision("exact"), ids_of(30)
    wanted = load("demo-gpt-oss", precision="exact").transformer.logits(ids)
    model.close()
    assert np.array_equal(twin.logits(ids), wanted)
    twin.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("cgpt-reader")]


def test_two_models_stream_at_once_and_leave_no_thread(with_slots):
    models = [with_slots(MIN_SLOTS, threads=1) for _ in range(2)]
    wanted = load("demo-gpt-oss").transformer.logits(ids_of(60))
    found = [None, None]

    def run(n):
        found[n] = models[n].transformer.logits(ids_of(60))

    threads = [threading.Thread(target=run, args=[n]) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(one, wanted) for one in found)
    for model in models:
        model.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("cgpt-reader")]
