"""sample and logprobs against NumPy's float64 (reference/sampling.py), on every level."""

import numpy as np
import pytest

from cgpt.errors import KernelError
from cgpt.kernels import _kernels

from reference.sampling import Reference, log_probabilities, top_logprobs
from support.kernel_cases import THREADS, check_slots, context, tensor_of

ROUNDING = 1e-12  # of all probability: how near to a boundary a draw may go to either side
SIZES = (1, 2, 15, 255, 256, 257, 600, 5000)


def sampling_state(vocab_size, *, changes=(), **settings):
    """The SamplingState of settings as the reference takes them, and of changes (id, seen, count, bias)."""
    off = dict(top_k=vocab_size, top_p=1.0, min_p=0.0, presence_penalty=0.0, frequency_penalty=0.0)
    off |= dict(repetition_penalty=1.0, temperature=1.0)
    state = _kernels.SamplingState(**off | settings)
    state.changes = np.array(list(changes), _kernels.LOGIT_CHANGE)
    return state


def sample(logits, draws, **settings):
    """The ids that the draws [n] choose from one row of logits [V]."""
    ctx, row, state = context(), tensor_of(np.asarray(logits, np.float32)), sampling_state(len(logits), **settings)
    return [_kernels.sample(ctx, row, state, draw)[0] for draw in draws]


def some_logits(rng, V):
    """Logits of one of the kinds that sampling meets: peaked, flat, with ties, with banned ids."""
    logits = (rng.standard_normal(V) * rng.choice([0.01, 1.0, 3.0, 10.0])).astype(np.float32)
    kind = rng.integers(5)
    if kind == 1:
        logits = np.round(logits)
    elif kind == 2:
        logits[rng.random(V) < 0.9] = -np.inf
        logits[rng.integers(V)] = 1
    elif kind == 3:
        logits[rng.random(V) < 0.3] = -0.0
    return logits


def some_settings(rng, V):
    """Settings of the reference, each off in about every second case."""

    def maybe(value):
        return value if rng.random() < 0.5 else None

    return dict(
        temperature=float(rng.choice([0.0, 0.3, 0.7, 1.0, 1.0, 1.5, 50.0])),
        top_k=maybe(int(rng.integers(1, rng.choice([3, 60, V + 2], p=[0.2, 0.5, 0.3]), endpoint=True))),
        top_p=maybe(float(rng.choice([rng.random() + 1e-9, 0.95, 0.999]))),
        min_p=maybe(float(rng.choice([rng.random() * 0.3, 1.0, 1e-6]))),
    )


def test_tokens_are_the_references(level, rng):
    """Thousands of draws; the few within rounding of a boundary may differ, and so few that they are counted."""
    check_slots(level, "sample")
    near = cases = 0
    for V in SIZES:
        for _ in range(60):
            logits, settings = some_logits(rng, V), some_settings(rng, V)
            reference = Reference(V, **settings)
            draws = np.append(rng.random(4), [0.0, 1 - 2**-53])
            on = {name: value for name, value in settings.items() if value is not None}
            for draw, token in zip(draws, sample(logits, draws, **on), strict=True):
                expected, slack = reference.choose(logits, draw)
                near += slack < ROUNDING and settings["temperature"] > 0 and 0 < draw < 0.99
                cases += 1
                assert token == expected or slack < ROUNDING, (V, settings, draw)
    assert cases == 2880 and near < cases // 20


@pytest.mark.parametrize(
    "penalties",
    [
        dict(repetition_penalty=1.7),
        dict(repetition_penalty=0.6, logit_bias=True),
        dict(presence_penalty=0.7, frequency_penalty=0.3),
        dict(presence_penalty=-1.5, logit_bias=True),
        dict(repetition_penalty=1.3, presence_penalty=0.2, frequency_penalty=-0.4, logit_bias=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_changed_logits(level, penalties, temperature, rng):
    """Penalties and biases, of the first and the last id too, with ties that they make or break."""
    V = 700
    for _ in range(40):
        logits = np.round(rng.standard_normal(V) * 4).astype(np.float32) / np.float32(rng.choice([1, 3]))
        ids = np.union1d(rng.integers(0, V, 40), [0, 255, 256, V - 1])
        seen, count = rng.integers(0, 2, len(ids)), rng.integers(0, 4, len(ids))
        bias = {int(i): float(b) for i, b in zip(ids, rng.integers(-3, 4, len(ids)) / 7, strict=True)}
        settings = penalties | dict(temperature=temperature, top_k=int(rng.choice([5, V])))
        if not settings.pop("logit_bias", False):
            bias = dict.fromkeys(bias, 0.0)
        reference = Reference(V, **settings, logit_bias=bias, prompt_ids=ids[seen == 1])
        reference.counts[ids] = count
        draw = rng.random()
        changes = zip(ids, seen, count, bias.values(), strict=True)
        (token,) = sample(logits, [draw], **settings, changes=changes)
        expected, slack = reference.choose(logits, draw)
        assert token == expected or slack < ROUNDING, settings


def test_levels_and_threads_give_the_same_tokens(level, rng):
    """Whole rows of draws, some at the very boundaries between tokens, as level ref and one thread choose them."""
    V = 3000
    logits = (rng.standard_normal((40, V)) * rng.choice([0.5, 3.0], (40, 1))).astype(np.float32)
    states = [
        sampling_state(V, temperature=0.9, **how) for how in (dict(), dict(top_p=0.9), dict(top_k=40), dict(min_p=0.02))
    ]
    draws = rng.random(40)
    for i in range(0, 40, 4):
        weights = np.exp((logits[i].astype(np.float64) - logits[i].max()) / 0.9)
        draws[i] = (weights.cumsum() / weights.sum())[1234]
    results = []
    for name, threads in [("ref", 1), *((level.partition("-")[0], n) for n in THREADS)]:
        _kernels.use_level(name)
        rows = zip(logits, states * 10, draws, strict=True)
        results.append([_kernels.sample(context(), tensor_of(row), state, draw) for row, state, draw in rows])
        results.append([part.tolist() for part in _kernels.logprobs(context(threads=threads), tensor_of(logits), 7)])
    assert all(result == results[i % 2] for i, result in enumerate(results))


def test_changed_logits_to_the_bit(level, rng):
    """f32, and f64 with penalties on counts."""
    for _ in range(300):
        V = int(rng.integers(1, 4))
        logits = (rng.standard_normal(V) * 5).astype(np.float32)
        seen, count, bias = rng.integers(0, 2, V), rng.integers(0, 9, V), rng.standard_normal(V).astype(np.float32)
        settings = dict(repetition_penalty=float(rng.random() + 0.5))
        if rng.random() < 0.5:
            settings |= dict(presence_penalty=float(rng.random()), frequency_penalty=float(rng.random()))
        reference = Reference(V, **settings, logit_bias=dict(enumerate(bias)), prompt_ids=np.flatnonzero(seen))
        reference.counts[:] = count
        state = sampling_state(V, temperature=0.0, **settings, changes=zip(range(V), seen, count, bias, strict=True))
        token, largest = _kernels.sample(context(), tensor_of(logits), state, 0.0)
        expected = reference.changed(logits)
        assert largest == expected.max() and token == expected.argmax()


def test_levels_give_the_same_weights(level, rng):
    """To the bit, which a fused multiply-add would change: those of two tokens about as likely show in their sum."""
    logits = rng.uniform(-0.7, 0, (4000, 2)).astype(np.float32)
    logits[:, 0] = 0
    found = []
    for name in ("ref", level.partition("-")[0]):
        _kernels.use_level(name)
        found.append(_kernels.logprobs(context(), tensor_of(logits), 0)[1])
    assert np.array_equal(*found)


@pytest.mark.parametrize("bad", [[np.nan, 1], [1, np.nan], [np.inf, 1], [-np.inf, -np.inf]], ids=str)
@pytest.mark.parametrize("V", [2, 300])
def test_no_choice(level, bad, V):
    logits = np.full(V, -np.inf, np.float32)
    logits[-2:] = bad
    for temperature in (0.0, 1.0):
        assert sample(logits, [0.5], temperature=temperature) == [-1]
    largest, log_sum, _, top = _kernels.logprobs(context(), tensor_of(logits.reshape(1, -1)), 2)
    assert np.isnan([*largest, *log_sum, *top[0]]).all()


def test_weights_of_any_size(level):
    """Temperatures from the least to the largest float, logits from the least to the largest."""
    logits = np.array([-3e38, 0.0, 3e38, 3e38, -np.inf], np.float32)
    for temperature in (5e-324, 1e-6, 1.0, 1e30):
        for how in (dict(), dict(top_k=4), dict(top_p=0.99), dict(min_p=1e-300)):
            assert set(sample(logits, [0.0, 0.49, 0.51, 0.99], temperature=temperature, **how)) == {2, 3}, (
                temperature,
                how,
            )
    draws = (np.arange(4) + 0.5) / 4
    assert sample(logits, draws, temperature=1e300) == [0, 1, 2, 3]
    assert sample(logits, draws, temperature=1e300, min_p=1.0) == [0, 1, 2, 3]
    assert sample(logits, [0.1, 0.9], temperature=1e300, top_p=0.5) == [0, 1]  # all of weight 1
    assert sample(logits, [0.1, 0.4, 0.6, 0.9], temperature=1e300, top_k=3) == [1, 2, 2, 3]


@pytest.mark.parametrize("scale", [0.01, 1.0, 8.0])
@pytest.mark.parametrize("V", [1, 255, 257, 50_257])
def test_logprobs(level, scale, V, rng):
    check_slots(level, "logprobs")
    logits = (rng.standard_normal((5, V)) * scale).astype(np.float32)
    logits[1] = np.round(logits[1])
    logits[2, ::2] = -np.inf
    logits[2, 0] = 0
    logits[3] = 1e-30 * logits[3]
    logits[3, 0] = 1000  # the others' differences vanish
    for k in (0, 1, min(5, V), min(300, V), V):
        largest, log_sum, ids, top = _kernels.logprobs(context(threads=2), tensor_of(logits), k)
        found = (logits.astype(np.float64) - largest[:, None]) - log_sum[:, None]
        np.testing.assert_allclose(found, log_probabilities(logits), rtol=1e-12, atol=1e-15)
        for t in range(5):
            assert ids[t].tolist() == sorted(top_logprobs(logits[t], k))
            assert np.array_equal(top[t], found[t, ids[t]])


def test_what_is_refused():
    logits, row, ctx = tensor_of(np.zeros((2, 9), np.float32)), tensor_of(np.zeros(9, np.float32)), context()
    state = sampling_state(9, changes=[(3, 1, 0, 0.0), (9, 1, 0, 0.0)])
    with pytest.raises(KernelError, match="beyond the vocabulary, 9"):
        _kernels.sample(ctx, row, state, 0.0)
    for changes in ([(3, 1, 0, 0.0), (3, 1, 0, 0.0)], [(-1, 1, 0, 0.0)]):
        with pytest.raises(KernelError, match="ascending ids"):
            state.changes = np.array(changes, _kernels.LOGIT_CHANGE)
    with pytest.raises(KernelError, match=r"\(2, 9\), expected one row"):
        _kernels.sample(ctx, logits, sampling_state(9), 0.0)
    with pytest.raises(KernelError, match="the 10 largest"):
        _kernels.logprobs(ctx, logits, 10)
