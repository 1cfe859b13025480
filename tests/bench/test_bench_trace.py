"""What cgpt bench believes a step reads and calculates, against counts by hand, and that it sees every kernel."""

from types import SimpleNamespace

import numpy as np
import pytest

import cgpt
from cgpt.bench import workload
from cgpt.bench.costs import cost
from cgpt.bench.trace import KERNELS, Trace
from cgpt.bench.workload import Case, cases, measure, run
from cgpt.errors import ContextLengthError, InputError
from cgpt.kernels import _kernels
from cgpt.models import synth
from cgpt.models.description import describe
from cgpt.models.kv_cache import int8_scales

from support.kernel_cases import Weights, tensor
from support.synth_cases import GPT2, GPT_OSS


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Small checkpoints of random weights, loaded: {"gpt2", "gpt-oss"}."""
    directory = tmp_path_factory.mktemp("bench")
    for name, config in {"gpt2": GPT2, "gpt-oss": GPT_OSS}.items():
        synth.write(config, directory / name)
    return {name: cgpt.load(directory / name) for name in ("gpt2", "gpt-oss")}


# ---- the cost of a call


def test_linear():
    """7 rows of 5 weights, and 7 biases."""
    for dtype, size in (("F32", 4), ("BF16", 2)):
        w = Weights(dtype, (7, 5)).matrix(bias=np.zeros(7, np.float32))
        assert cost("linear", (None, None, None, w, 3), {"column": 2}) == (35 * size + 28, 2 * 3 * 35)
    w = Weights("MXFP4", (7, 64)).matrix()
    assert cost("linear", (None, None, None, w, 1), {}) == (7 * (32 + 2), 2 * 7 * 64)


def test_moe():
    """Two tokens choose experts 1, 3 and 3, 5 of 8: three are read, four are multiplied with."""
    gate_up, down = Weights("MXFP4", (8, 128, 32)).matrix(), Weights("MXFP4", (8, 32, 64)).matrix()
    index = np.array([[1, 3], [3, 5], [0, 7]], np.int32)  # the third row belongs to no token
    expert_bytes, products = 128 * 17 + 32 * 34, 128 * 32 + 32 * 64
    args = (None, None, None, index, None, gate_up, down, 1.7, 7.0, 2)
    assert cost("moe", args, {}) == (3 * expert_bytes, 2 * 4 * products)


def test_attention():
    """H = 4 heads of D = 8 on G = 2, a key and a value of 64 bytes each: 2 * 64 for a position."""
    out, qkv = tensor(np.zeros((5, 32))), tensor(np.zeros((5, 64)))

    def attention(start, T, **options):
        return cost("attention", (None, out, qkv, [(SimpleNamespace(row_bytes=32, G=2, D=8), 0, start, T)], 4), options)

    assert attention(0, 1) == (128, 4 * 32)
    assert attention(9, 1) == (10 * 128, 4 * 32 * 10)
    assert attention(9, 3, scale=1.0) == (12 * 128, 4 * 32 * (10 + 11 + 12))
    assert attention(9, 1, window=4) == (4 * 128, 4 * 32 * 4)
    assert attention(9, 3, window=4) == (6 * 128, 4 * 32 * 12)  # positions 6 to 11
    assert attention(1, 4, window=4) == (5 * 128, 4 * 32 * (2 + 3 + 4 + 4))
    two = [(SimpleNamespace(row_bytes=32, G=2, D=8), 0, 0, 1), (SimpleNamespace(row_bytes=32), 1, 9, 3)]
    assert cost("attention", (None, out, qkv, two, 4), {}) == (13 * 128, 4 * 32 * (1 + 10 + 11 + 12))


def test_embed_and_the_rest():
    table, positions = Weights("BF16", (50, 8)).matrix(), Weights("F32", (20, 8)).matrix()
    assert cost("embed", (None, table, np.arange(3)), {}) == (3 * 16, 0)
    assert cost("embed", (None, table, np.arange(3), positions), {"row": 0}) == (3 * (16 + 32), 0)
    assert cost("rmsnorm", (None, None), {}) == (0, 0)


# ---- the trace


def counted(trace):
    return {name: op.calls for name, op in trace.ops.items()}


def test_every_kernel_of_a_gpt2_step(models):
    model = models["gpt2"]  # 3 layers
    with Trace(model.transformer) as trace:
        model.transformer.step([(model.transformer.new_cache(), [1, 2, 3]), (model.transformer.new_cache(), [4])])
    assert counted(trace) == {
        "embed": 2,
        "layernorm": 7,
        "linear c_attn": 3,
        "attention": 3,
        "linear c_proj": 3,
        "linear c_fc": 3,
        "activation": 3,
        "linear mlp_c_proj": 3,
        "linear head": 1,
    }
    assert all(op.seconds > 0 for op in trace.ops.values())


def test_every_kernel_of_a_gpt_oss_step(models):
    model = models["gpt-oss"]  # 4 layers
    with Trace(model.transformer) as trace:
        model.transformer.step([(model.transformer.new_cache(50), [1, 2, 3]), (model.transformer.new_cache(50), [4])])
    assert counted(trace) == {
        "embed": 1,
        "rmsnorm": 9,
        "linear qkv": 12,
        "rope": 8,
        "attention": 4,
        "linear out": 4,
        "linear router": 4,
        "topk": 4,
        "moe": 4,
        "linear head": 1,
    }


def test_kernels_are_themselves_again(models):
    kept = {name: getattr(_kernels, name) for name in KERNELS}
    with pytest.raises(ZeroDivisionError), Trace(models["gpt2"].transformer):
        assert _kernels.linear is not kept["linear"]
        raise ZeroDivisionError
    assert {name: getattr(_kernels, name) for name in KERNELS} == kept


@pytest.mark.parametrize(
    "name, differ",
    [
        ("gpt2", 64 * 4),  # the token's row of the embedding, which is the head
        ("gpt-oss", 2 * 4 * (8 * 32 + 64 + 8 + 4 * (2 * 96 + 64) - 4)),  # biases are bf16 as stored, f32 here; no sinks
    ],
)
def test_a_token_reads_what_info_says(models, name, differ):
    """But for norms, which stay in the caches."""
    model, depth = models[name], 40
    sequence = model.transformer.new_cache(60)
    model.transformer.step([(sequence, list(range(depth)))])
    with Trace(model.transformer) as trace:
        model.transformer.step([(sequence, [1])])
    told = describe(model.directory, context=depth + 1)["bytes"]["per_token"]
    assert trace.ops["attention"].bytes == told["cache"]
    assert trace.total.bytes == sum(told.values()) - told["norms"] + differ
    assert trace.ops["linear head"].bytes == told["unembedding"]


# ---- the cases


def test_cases():
    fitting, too_long = cases(100, [30, 0], [20], [0, 75], [1, 2])
    assert list(map(str, fitting)) == ["pp30", "tg20", "tg20 x2", "tg20 @ d75", "tg20 x2 @ d75"]
    assert list(map(str, too_long)) == ["pp30 @ d75"]
    assert [case.tokens for case in fitting] == [30, 20, 40, 20, 40]


@pytest.mark.parametrize(
    "numbers, error, message",
    [
        (([101], [0], [0], [1]), ContextLengthError, "pp101 takes more than the 100 positions"),
        (([0], [0], [0], [1]), InputError, "nothing to measure"),
        (([-1], [0], [0], [1]), InputError, "prompt tokens: -1"),
        (([5], [0], [-2], [1]), InputError, "depth tokens: -2"),
        (([5], [0], [0], [0]), InputError, "sequences at once: 0"),
    ],
)
def test_cases_that_make_no_sense(numbers, error, message):
    with pytest.raises(error, match=message):
        cases(100, *numbers)


@pytest.mark.parametrize("name", ["gpt2", "gpt-oss"])
def test_run(models, name, monkeypatch):
    """Which tokens of which sequences go into which step."""
    model, steps, step = models[name].transformer, [], models[name].transformer.step
    monkeypatch.setattr(model, "PREFILL_CHUNK", 16)

    def noted(batch):
        steps.append([(sequence.position, len(ids)) for sequence, ids in batch])
        return step(batch)

    monkeypatch.setattr(model, "step", noted)
    rng = np.random.default_rng(0)
    assert len(run(model, Case(n_prompt=40), rng)) == 3 and steps == [[(0, 16)], [(16, 16)], [(32, 8)]]
    steps.clear()
    assert len(run(model, Case(n_gen=2, n_depth=33, n_parallel=3), rng)) == 2
    assert steps == [[(33, 1)] * 3, [(34, 1)] * 3]


def test_the_warm_up_tells_what_a_repetition_reads(models):
    """Generation is watched in the middle of its positions, a few steps long."""
    model = models["gpt2"]
    measured = measure(model.transformer, Case(n_gen=21, n_depth=10), 3, np.random.default_rng(0))
    assert [len(steps) for steps in measured.repetitions] == [21] * 3
    told = describe(model.directory, context=1)["bytes"]["per_token"]
    weights = sum(told.values()) - told["cache"] - told["norms"]
    cache = told["cache"] * sum(range(11, 11 + 21))
    # As in test_a_token_reads_what_info_says; eight watched steps are half a position off.
    assert measured.bytes == pytest.approx(21 * weights + cache, abs=21 * (told["cache"] / 2 + 64))
    prompt = measure(model.transformer, Case(n_prompt=30), 2, np.random.default_rng(0))
    assert prompt.flops > 29 * 2 * weights / 4 - told["unembedding"] * 30


def test_a_depth_is_finite_and_different_each_time(models):
    model, seen = models["gpt-oss"], []
    for _ in range(2):
        sequence = model.transformer.new_cache(80)
        workload._fill(sequence, 70, np.random.default_rng())
        assert sequence.position == 70
        seen.append(model.transformer.step([(sequence, [1])]))
    assert not np.array_equal(*seen)


def test_a_depth_of_bf16_is_of_usual_numbers(models, monkeypatch):
    """The integers that hold them are bits: a few of the noise, as such, would be zeros and denormals."""
    monkeypatch.setattr(models["gpt2"].transformer, "kv_cache_dtype", "bf16")
    sequence = models["gpt2"].transformer.new_cache(70)
    workload._fill(sequence, 70, np.random.default_rng(0))
    values = (sequence.arrays[0][0].astype(np.uint32) << 16).view(np.float32)
    assert 0.9 < values.std() < 1.1
    monkeypatch.setattr(models["gpt2"].transformer, "kv_cache_dtype", "int8")
    sequence = models["gpt2"].transformer.new_cache(70)
    workload._fill(sequence, 70, np.random.default_rng(0))
    keys, values = sequence.arrays[0]
    scales = int8_scales(keys)
    assert np.isfinite(scales).all() and 0.9 < values.std() * scales.mean() < 1.1
