"""Transformer.step: however a text is cut into steps, mixed with others, spread over threads, it is one model."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

import cgpt
from cgpt import errors

from golden import case

# Windows (16), sinks, grouped queries; YaRN beyond its original context; GPT-2 with an odd width.
CASES = ["gptoss_basic/hf_mxfp4", "gptoss_yarn/original", "gpt2_odd_bf16"]


def load(name, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return cgpt.load(case(name).directory, **options)


def prompt_of(model, length=90):
    length = min(length, model.context_length)
    return np.random.default_rng(3).integers(0, model.vocab_size, length)


def in_steps(model, ids, sizes):
    """Logits of every position when the ids arrive in chunks of these sizes."""
    sequence, out, at = model.transformer.new_cache(), [], 0
    for size in sizes:
        out.append(model.transformer.step([(sequence, ids[at : at + size])], rows="all"))
        at += size
    assert at == len(ids) == sequence.position
    return np.concatenate(out)


def cuts(n):
    return {
        "one by one": [1] * n,
        "fives": [5] * (n // 5) + [n % 5] * (n % 5 > 0),
        "across blocks": [31, 2, n - 33],
        "short then long": [3, n - 3],
    }


@pytest.mark.parametrize("name", CASES)
def test_exact_bits_do_not_depend_on_chunks(level, name):
    model = load(name, precision="exact")
    ids = prompt_of(model)
    whole = model.logits(ids)
    for what, sizes in cuts(len(ids)).items():
        assert np.array_equal(in_steps(model, ids, sizes), whole), what


@pytest.mark.parametrize("name", CASES)
def test_auto_differs_by_rounding_only(level, name):
    model = load(name)
    ids = prompt_of(model)
    whole = model.logits(ids)
    for what, sizes in cuts(len(ids)).items():
        rms = np.sqrt(((in_steps(model, ids, sizes) - whole) ** 2).mean()) / whole.std()
        assert rms <= 0.03, (what, rms)


@pytest.mark.parametrize("name", CASES)
def test_exact_bits_do_not_depend_on_companions(level, name):
    model = load(name, precision="exact")
    rng, ids = np.random.default_rng(5), prompt_of(model, 60)
    alone = in_steps(model, ids, [20, 1, 1, 38])
    mine, others, out = model.transformer.new_cache(), [model.transformer.new_cache() for _ in range(3)], []
    for begin, end, lengths in [(0, 20, (1, 7, 30)), (20, 21, (1, 1, 1)), (21, 22, (9, 1, 2)), (22, 60, (1, 2, 3))]:
        batch = [(o, rng.integers(0, model.vocab_size, n)) for o, n in zip(others, lengths, strict=True)]
        batch.insert(1, (mine, ids[begin:end]))
        row = len(batch[0][1])
        out.append(model.transformer.step(batch, rows="all")[row : row + end - begin])
    assert np.array_equal(np.concatenate(out), alone)


@pytest.mark.parametrize("precision", ["exact", "auto"])
@pytest.mark.parametrize("name", CASES)
def test_bits_do_not_depend_on_threads(level, name, precision):
    one = load(name, precision=precision, threads=1)
    ids = prompt_of(one)
    sizes = [40, 1, len(ids) - 41]
    expected = in_steps(one, ids, sizes)
    for threads in (2, 4):
        assert np.array_equal(in_steps(load(name, precision=precision, threads=threads), ids, sizes), expected)


def test_last_rows_are_the_last_of_all_rows():
    model = load("gptoss_basic/hf_mxfp4", precision="exact")
    a, b = prompt_of(model, 20), prompt_of(model, 7)
    last = model.transformer.step([(model.transformer.new_cache(), a), (model.transformer.new_cache(), b)])
    assert np.array_equal(last, np.stack([model.logits(a)[-1], model.logits(b)[-1]]))


def test_score_is_the_log_softmax_of_the_logits():
    model = load("gpt2_odd_bf16", precision="exact")
    ids = prompt_of(model, 33)
    logits = model.logits(ids).astype(np.float64)[:-1]
    expected = logits[np.arange(32), ids[1:]] - np.log(np.exp(logits).sum(-1))
    assert np.abs(model.score(ids.tolist()) - expected).max() < 1e-5
    assert model.score([5]).shape == (0,)


@pytest.mark.parametrize(
    "ids, error",
    [
        ([], errors.EmptyPromptError),
        ([[1, 2], [3, 4]], errors.InputError),
        ([1.5], errors.InputError),
        ([-1], errors.TokenIdError),
        ([10**6], errors.TokenIdError),
        (list(range(200)) * 10, errors.ContextLengthError),
    ],
)
def test_bad_ids_are_refused_before_anything_runs(ids, error):
    model = load("gpt2_odd_bf16")
    for call in (model.logits, model.hidden, model.score):
        with pytest.raises(error):
            call(ids)
    sequence = model.transformer.new_cache(64)
    with pytest.raises(error):
        model.transformer.step([(sequence, ids)])
    assert sequence.position == 0
    model.transformer.step([(sequence, [1, 2, 3])])  # and the sequence still works


def test_a_stored_head_that_differs_is_used_even_if_tied(tmp_path):
    from safetensors.numpy import load_file, save_file

    source = case("gpt2_plain_f32").directory
    tensors = load_file(source / "model.safetensors")
    wte = tensors["wte.weight"]
    config = (source / "config.json").read_text()
    logits = {}
    for what, head in {"none": None, "copy": wte.copy(), "own": wte[::-1].copy()}.items():
        (tmp_path / what).mkdir()
        save_file(tensors | ({} if head is None else {"lm_head.weight": head}), tmp_path / what / "model.safetensors")
        (tmp_path / what / "config.json").write_text(config)
        logits[what] = cgpt.load(tmp_path / what, precision="exact").logits([1, 2, 3])
    assert np.array_equal(logits["none"], logits["copy"])
    assert np.array_equal(logits["none"][:, ::-1], logits["own"])


def test_a_sequence_stands_once_in_a_step():
    model = load("gpt2_odd_bf16")
    sequence = model.transformer.new_cache()
    with pytest.raises(errors.InputError, match="twice"):
        model.transformer.step([(sequence, [1]), (sequence, [2])])
    with pytest.raises(errors.EmptyPromptError):
        model.transformer.step([])


def test_nan_is_an_error_that_names_the_layer(tmp_path):
    from safetensors.numpy import load_file, save_file

    source = case("gpt2_sharded_f32").directory
    tensors = {}
    for shard in source.glob("*.safetensors"):
        tensors |= load_file(shard)
    name = next(n for n in tensors if n.endswith("h.0.mlp.c_fc.bias"))
    tensors[name][3] = np.nan
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    model = cgpt.load(tmp_path)
    with pytest.raises(errors.NumericsError, match="layer 1"):
        model.logits([1, 2, 3])
    sequence = model.transformer.new_cache()
    with pytest.raises(errors.NumericsError):
        model.transformer.step([(sequence, [1])])
    with pytest.raises(errors.InputError, match="interrupted"):
        model.transformer.step([(sequence, [1])])


@pytest.mark.parametrize("kv_cache_dtype", ["f16", "bf16", "int8"])
@pytest.mark.parametrize("name", CASES)
def test_rounded_caches(level, name, kv_cache_dtype):
    """Half the bytes, near the f32 cache's logits, and the same bits for any chunks and threads."""
    model = load(name, precision="exact", kv_cache_dtype=kv_cache_dtype)
    full = load(name, precision="exact")
    bytes_of = [sum(a.nbytes for pair in m.transformer.new_cache().arrays for a in pair) for m in (full, model)]
    assert bytes_of[0] > 2 * bytes_of[1] if kv_cache_dtype == "int8" else bytes_of[0] == 2 * bytes_of[1]
    ids = prompt_of(model)
    whole, expected = model.logits(ids), full.logits(ids)
    rms = np.sqrt(((whole - expected) ** 2).mean()) / expected.std()
    assert 0 < rms <= {"f16": 0.003, "bf16": 0.02, "int8": 0.05}[kv_cache_dtype]
    for what, sizes in cuts(len(ids)).items():
        assert np.array_equal(in_steps(model, ids, sizes), whole), what
    threaded = load(name, precision="exact", kv_cache_dtype=kv_cache_dtype, threads=4)
    assert np.array_equal(in_steps(threaded, ids, [40, 1, len(ids) - 41]), whole)


def test_values_beyond_f16_are_an_error_that_says_so():
    models = {dtype: load("gpt2_plain_f32", kv_cache_dtype=dtype) for dtype in ("f16", "bf16", "f32")}
    for model in models.values():
        values_bias = model.transformer.blocks[1].c_attn.arrays[-1][2 * model.transformer.width :]
        values_bias[:] = 70_000
    for dtype in ("bf16", "f32"):
        assert np.isfinite(models[dtype].logits([1, 2, 3])).all()
    with pytest.raises(errors.NumericsError, match=r"layer 1 .*65,504.*bf16"):
        models["f16"].logits([1, 2, 3])


@pytest.mark.parametrize("wrong", ["F16", "int4", "", 16, ("f16",)])
def test_other_kv_cache_dtypes_are_refused(wrong):
    with pytest.raises(errors.InputError, match="kv_cache_dtype"):
        load("gpt2_plain_f32", kv_cache_dtype=wrong)


def test_a_ring_is_no_longer_than_its_window():
    model = load("gptoss_basic/hf_mxfp4")  # windows of 16 in layers 0 and 2
    sliding, full = model.transformer.new_cache().arrays[0][0], model.transformer.new_cache().arrays[1][0]
    assert sliding.shape[1] == 1 and full.shape[1] == -(-model.context_length // 32)


# VmHWM: ru_maxrss would begin with the peak of the process that started this one.
PEAK = """
import re, sys, cgpt
model = cgpt.load(sys.argv[1])
model.transformer.step([(model.transformer.new_cache(64), list(range(32)))])
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024)
"""


@pytest.mark.parametrize("size", ["gpt2"])
def test_memory_is_the_checkpoint_and_300_mb(tmp_path, size):
    from cgpt.models import synth

    synth.write(size, tmp_path / size)
    stored = sum(f.stat().st_size for f in (tmp_path / size).glob("*.safetensors"))
    run = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / size)], capture_output=True, text=True, env=os.environ, check=True
    )
    assert int(run.stdout) <= stored + 300e6


def test_the_context_of_a_cache_is_a_number():
    with pytest.raises(errors.InputError, match="context must be an integer"):
        cgpt.load("demo-gpt2", threads=1).transformer.new_cache("x")
