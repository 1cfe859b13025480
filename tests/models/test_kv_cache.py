"""Sequences that go back: after truncate(), and in the small steps of lookup, every bit is that of one pass forward."""

import os

import numpy as np
import pytest

import cgpt
from cgpt.errors import InputError, NumericsError
from cgpt.loading import DENSE
from cgpt.models.kv_cache import KVCache

from golden import case

NAMES = ["demo-gpt2", "demo-gpt-oss"]  # contexts of 256 and of more; windows of 128 in half of the latter's layers


def directory(name):
    return name if name.startswith("demo") else case(name).directory


def random_ids(model, length, seed=0):
    return np.random.default_rng(seed).integers(0, model.vocab_size, min(length, model.context_length))


def with_wrong_guesses(model, ids, slack, seed=1):
    """Logits after each of the ids, read in steps of some right ones and some wrong ones, which are taken back."""
    random, sequence, rows = np.random.default_rng(seed), model.transformer.new_cache(len(ids), slack), []
    while (at := sequence.position) < len(ids):
        right = int(random.integers(1, 1 + min(slack + 1, len(ids) - at)))
        wrong = int(random.integers(0, 1 + min(slack + 1, len(ids) - at) - right))
        guess = np.concatenate([ids[at : at + right], random.integers(0, model.vocab_size, wrong)])
        rows.append(model.transformer.step([(sequence, guess)], rows="all")[:right])
        sequence.truncate(at + right)
    return np.concatenate(rows)


@pytest.mark.parametrize("slack, dtype", [(1, None), (7, None), (40, None), (7, "int8")])
@pytest.mark.parametrize("name", NAMES)
def test_what_was_taken_back_leaves_no_trace(name, slack, dtype):
    """Through 400 positions of gpt-oss, so that rings of 128 + slack wrap around more than once."""
    model = cgpt.load(name, precision="exact", kv_cache_dtype=dtype)
    ids = random_ids(model, 400)
    assert np.array_equal(with_wrong_guesses(model, ids, slack), model.logits(ids))


@pytest.mark.parametrize("name", ["gptoss_basic/hf_mxfp4", "gptoss_yarn/original", "gpt2_odd_bf16"])
def test_at_every_level(level, name):
    model = cgpt.load(directory(name), precision="exact")
    ids = random_ids(model, 90)
    assert np.array_equal(with_wrong_guesses(model, ids, slack=6), model.logits(ids))


@pytest.mark.parametrize("precision", ["auto", "exact"])
@pytest.mark.parametrize("name", [*NAMES, "gptoss_basic/hf_mxfp4", "gpt2_odd_bf16"])
@pytest.mark.parametrize("dense", [None, *DENSE])
def test_uniform_steps_have_the_bits_of_single_tokens(level, name, precision, dense):
    """Whatever kernels a precision takes for a few tokens."""
    model = cgpt.load(directory(name), precision=precision, dense=dense)
    most = model.transformer.uniform_tokens(12)
    assert 2 <= most <= 12 and (precision == "auto" or most == 12)
    sequence, ids = model.transformer.new_cache(), random_ids(model, 150 if name in NAMES else 40)
    alone = np.concatenate([model.transformer.step([(sequence, [i])]) for i in ids])
    assert np.array_equal(with_wrong_guesses(model, ids, slack=most - 1), alone)


def test_what_a_ring_has_lost_cannot_come_back():
    model = cgpt.load("demo-gpt-oss")
    sequence, ids = model.transformer.new_cache(300, slack=4), random_ids(model, 200)
    model.transformer.step([(sequence, ids)])
    for position in (195, 201, -1):
        with pytest.raises(InputError, match=f"cannot be cut to {position}"):
            sequence.truncate(position)
    sequence.truncate(198)
    sequence.truncate(196)
    model.transformer.step([(sequence, ids[:2])])
    with pytest.raises(InputError, match="holds 198 tokens and has held 200"):
        sequence.truncate(195)
    assert sequence.position == 198
    with pytest.raises(InputError, match="more slack than 0"):
        sequence = model.transformer.new_cache()
        model.transformer.step([(sequence, ids)])
        sequence.truncate(199)


def test_without_windows_nothing_is_lost():
    model = cgpt.load("demo-gpt2", precision="exact")
    sequence, ids = model.transformer.new_cache(), random_ids(model, 200)
    model.transformer.step([(sequence, ids)])
    sequence.truncate(0)
    assert np.array_equal(model.transformer.step([(sequence, ids[:70])], rows="all"), model.logits(ids[:70]))


def test_bytes_of_int8():
    """0.54 of f16's bytes with heads of 64, in layers without a window; the others stay f16."""
    halves, bytes_ = (KVCache([128, 0], 8, 64, 4096, dtype=dtype).arrays for dtype in ("F16", "INT8"))
    assert [a.dtype for a in bytes_[0]] == [np.float16] * 2
    sizes = [sum(a.nbytes for a in pair) for pair in (*halves, *bytes_)]
    assert sizes[2] == sizes[0] and sizes[3] <= 0.54 * sizes[1]


def test_values_that_int8_cannot_hold_are_named():
    model = cgpt.load("demo-gpt2", precision="exact", kv_cache_dtype="int8")
    model.transformer.blocks[2].c_attn.arrays[-1][-1] = np.nan  # of the last head's values
    with pytest.raises(NumericsError, match="layer 2 are the first") as raised:
        model.logits([1, 2, 3])
    assert "65,504" not in str(raised.value)


def test_slack_rounds_up_to_a_block():
    model = cgpt.load("demo-gpt-oss")
    for slack, blocks in ((0, 4), (1, 5), (32, 5), (33, 6), (500, 10)):  # of 32; the context is 300
        assert [k.shape[1] for k, v in model.transformer.new_cache(300, slack).arrays[:2]] == [blocks, 10]


def test_a_child_process_has_its_own_cache():
    sequence = cgpt.load("demo-gpt2", threads=1).transformer.new_cache(40)
    child = os.fork()
    if not child:
        sequence.arrays[0][0][:] = 1
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert not sequence.arrays[0][0].any()
