"""Sampling against a plain reference, and against the distribution that it promises."""

import math
from decimal import Decimal

import numpy as np
import pytest

from cgpt.errors import InputError, NumericsError, TokenIdError
from cgpt.generation.sampling import Sampler, SamplingParams
from cgpt.models.logprobs import gather_logprobs, log_probabilities, top_logprobs

SETTINGS = [
    dict(),
    dict(top_k=1),
    dict(top_k=7),
    dict(top_k=10**9),
    dict(top_p=0.5),
    dict(top_p=0.95),
    dict(top_p=1e-9),
    dict(top_p=1.0),
    dict(min_p=0.1),
    dict(min_p=1.0),
    dict(min_p=0.0),
    dict(top_k=20, top_p=0.8),
    dict(top_k=20, min_p=0.05),
    dict(top_p=0.9, min_p=0.02),
    dict(top_k=30, top_p=0.97, min_p=0.01),
    dict(top_k=30, top_p=0.97, min_p=0.01, temperature=0.3),
    dict(top_k=30, top_p=0.97, min_p=0.01, temperature=3.0),
]


def reference(logits, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """{id: probability} of what may be drawn: softmax, sort, one filter after another, as defined."""
    exps = [math.exp((float(x) - float(max(logits))) / temperature) for x in logits]
    total = math.fsum(exps)
    left = sorted(((x / total, i) for i, x in enumerate(exps)), key=lambda pair: (-pair[0], pair[1]))
    if top_k is not None:
        left = left[:top_k]
    if top_p is not None:
        total, kept, mass = math.fsum(p for p, _ in left), [], []
        for p, i in left:
            kept.append((p, i))
            mass.append(p)
            if top_p < 1 and math.fsum(mass) >= top_p * total:
                break
        left = kept
    if min_p is not None:
        left = [(p, i) for p, i in left if p >= min_p * left[0][0]]
    total = math.fsum(p for p, _ in left)
    return {i: p / total for p, i in left if p > 0}


class Draws:
    """Stands for the generator of a sampler: the given numbers instead of random ones."""

    def __init__(self, values):
        self.random = iter(values).__next__


def chosen(logits, values, **settings):
    """The tokens that given draws choose."""
    sampler = Sampler(SamplingParams(**{"temperature": 1.0} | settings), len(logits))
    sampler._random = Draws(values)
    return [sampler.choose(logits) for _ in values]


def assert_distribution(logits, expected, settings, margin=1e-12):
    """Asserts that the draws chosen for each token are those from the sum of the probabilities {id: p} before it, to
    within a margin, up to its own."""
    ids = sorted(expected)
    ends = np.array([expected[i] for i in ids]).cumsum()
    starts = np.append(0, ends[:-1])
    wide = ends - starts > 3 * margin
    assert wide.any()
    for inside in (starts + margin, (starts + ends) / 2, ends - margin):
        assert chosen(logits, inside[wide].tolist(), **settings) == np.array(ids)[wide].tolist()


def draws(n, logits, seed=0, **settings):
    sampler = Sampler(SamplingParams(**{"temperature": 1.0, "seed": seed} | settings), len(logits))
    return [sampler.choose(logits) for _ in range(n)]


def some_logits(V, seed=0, scale=3.0):
    return (np.random.default_rng(seed).standard_normal(V) * scale).astype(np.float32)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", ["distinct", "ties", "with -inf", "one token", "two", "flat", "peaked"])
def test_filters_keep_what_the_reference_keeps(kind, settings):
    for seed in range(5):
        logits = {
            "distinct": some_logits(300, seed),
            "ties": np.round(some_logits(300, seed)),
            "with -inf": np.where(np.arange(300) % 3, -np.inf, some_logits(300, seed)).astype(np.float32),
            "one token": some_logits(1, seed),
            "two": some_logits(2, seed),
            "flat": np.full(300, seed, np.float32),
            "peaked": some_logits(300, seed) * np.float32(10),
        }[kind]
        assert_distribution(logits, reference(logits, **settings), settings)


@pytest.mark.parametrize("scale", [0.01, 1.0, 8.0])
@pytest.mark.parametrize("top_p", [0.1, 0.9, 0.999])
def test_nucleus_of_a_large_vocabulary(scale, top_p):
    """At the size of gpt-oss's, from flat to peaked, against a full sort: some draws of all, and some at the boundaries
    that a single token more or less would move."""
    logits = some_logits(201_088, scale=scale)
    p = np.exp(log_probabilities(logits.reshape(1, -1))[0])
    order = np.argsort(-p, kind="stable")
    kept = np.sort(order[: int((p[order].cumsum() < top_p).sum()) + 1])
    ends = p[kept].cumsum() / p[kept].sum()
    some = np.linspace(0, len(kept) - 1, 15).astype(int)
    for shift in (-1e-9, -0.5 * p[kept[some]]):
        values = (ends[some] + shift)[p[kept[some]] > 3e-9].tolist()
        assert chosen(logits, values, top_p=top_p) == kept[some][p[kept[some]] > 3e-9].tolist()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_draws_follow_the_distribution(settings):
    """Pearson's chi-square: its mean is the degrees of freedom f, its standard deviation sqrt(2 f)."""
    n, logits = 20_000, np.append(some_logits(40, scale=1.0), np.float32(-np.inf))
    expected = reference(logits, **settings)
    got = np.bincount(draws(n, logits, **settings), minlength=len(logits))
    assert got.sum() == sum(got[i] for i in expected)
    p = np.array(list(expected.values()))
    statistic = (((got[list(expected)] - n * p) ** 2) / (n * p)).sum()
    freedom = len(p) - 1
    assert statistic <= freedom + 4 * math.sqrt(2 * freedom)


def test_seeds_repeat():
    logits = some_logits(1000)
    assert draws(50, logits, seed=7) == draws(50, logits, seed=7) == draws(50, logits, seed=np.int64(7))
    assert draws(50, logits, seed=7) != draws(50, logits, seed=8)
    assert draws(50, logits, seed=2**200) == draws(50, logits, seed=2**200)
    assert draws(50, logits, seed=None) != draws(50, logits, seed=None)


def test_seeds_keep_their_meaning():
    """What users have noted down must come out again with later versions; so these ids may not change."""
    logits = (np.arange(1000) * 37 % 101 / 20).astype(np.float32)
    assert draws(8, logits, seed=7) == [627, 898, 775, 228, 300, 873, 8, 825]


def test_filters_that_keep_everything_change_no_draw():
    logits = some_logits(1000)
    for idle in (dict(top_k=1000), dict(top_p=1.0), dict(min_p=0.0), dict(repetition_penalty=1.0)):
        assert draws(100, logits, **idle) == draws(100, logits)


def test_greedy_takes_the_first_of_the_largest():
    logits = np.array([1, 5, 3, 5], np.float32)
    for settings in SETTINGS:
        assert draws(3, logits, **settings | dict(temperature=0)) == [1, 1, 1]
    assert draws(3, logits, top_k=1) == draws(3, logits, min_p=1.0, top_k=1) == [1, 1, 1]
    assert set(draws(100, logits, top_k=2)) == {1, 3}


def test_temperatures_at_the_ends():
    logits = some_logits(50)
    best = int(logits.argmax())
    for tiny in (1e-6, 1e-300, 5e-324):
        assert set(draws(100, logits, temperature=tiny)) == {best}
    for huge in (1e300, 10**300):
        assert len(set(draws(2000, logits, temperature=huge))) == 50


def test_probability_zero_is_never_drawn():
    logits = np.full(100, -np.inf, np.float32)
    logits[[40, 60]] = 0
    for settings in SETTINGS:
        assert set(draws(50, logits, **settings)) <= {40, 60}
    assert set(draws(50, logits)) == {40, 60}

    assert chosen(logits, [0.0, 1 - 2**-53]) == [40, 60]


@pytest.mark.parametrize("bad", [[np.nan, 1], [1, np.nan], [np.inf, 1], [-np.inf, -np.inf]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_without_a_choice_are_refused(bad, temperature):
    with pytest.raises(NumericsError, match="logits"):
        Sampler(SamplingParams(temperature=temperature), 2).choose(np.array(bad, np.float32))


def test_repetition_penalty():
    logits = np.array([2, -2, 1, -1, 0, -np.inf], np.float32)
    sampler = Sampler(SamplingParams(repetition_penalty=4.0), 6, prompt_ids=[2, 2])
    assert [sampler.choose(logits) for _ in range(3)] == [0, 0, 0]  # 2, then 0.5 against the prompt's 0.25
    sampler = Sampler(SamplingParams(repetition_penalty=4.0), 6)
    assert [sampler.choose(logits) for _ in range(4)] == [0, 2, 0, 0]
    assert logits.tolist() == [2, -2, 1, -1, 0, -np.inf]
    weights = np.exp([0.5, -8, 1, -1, 0])  # with 0, 1, 4 and 5 in the prompt
    for token, end in enumerate(weights.cumsum() / weights.sum()):
        sampler = Sampler(SamplingParams(temperature=1.0, repetition_penalty=4.0), 6, prompt_ids=[5, 4, 0, 1])
        sampler._random = Draws([end - weights[token] / weights.sum() / 2])
        assert sampler.choose(logits) == token


def test_penalty_comes_before_the_filters():
    logits = np.array([3, 2, 1], np.float32)
    sampler = Sampler(SamplingParams(temperature=1.0, top_k=1, repetition_penalty=10.0), 3, prompt_ids=[0])
    assert sampler.choose(logits) == 1


def test_log_probabilities():
    logits = np.array([[1000, 1001, 999, -np.inf]], np.float32)
    total = math.log(math.exp(-1) + 1 + math.exp(-2))
    expected = [-1 - total, -total, -2 - total, -math.inf]
    np.testing.assert_allclose(log_probabilities(logits)[0], expected, rtol=1e-14)
    assert list(top_logprobs(logits, 2)[0]) == [1, 0]
    assert list(top_logprobs(logits, 9)[0]) == [1, 0, 2, 3]
    assert list(top_logprobs(np.zeros((1, 9), np.float32), 3)[0]) == [0, 1, 2]
    found, top = gather_logprobs(np.repeat(logits, 3, 0), [2, 1, 3], 1)
    np.testing.assert_allclose(found, [expected[2], expected[1], expected[3]], rtol=1e-14)
    assert top == [{1: found[1]}] * 3
    assert gather_logprobs(logits[:0], [], 2)[1] == top_logprobs(logits[:0], 2) == []


@pytest.mark.parametrize(
    "settings",
    [
        dict(temperature=-0.1),
        dict(temperature=math.nan),
        dict(temperature=math.inf),
        dict(temperature=None),
        dict(temperature="1"),
        dict(temperature=True),
        dict(temperature=10**400),
        dict(top_k=-2),
        dict(top_k=2.0),
        dict(top_k=True),
        dict(top_p=0),
        dict(top_p=-0.5),
        dict(top_p=1.01),
        dict(top_p=math.nan),
        dict(top_p=[0.5]),
        dict(min_p=-0.1),
        dict(min_p=1.1),
        dict(min_p=math.nan),
        dict(repetition_penalty=0),
        dict(repetition_penalty=-1.0),
        dict(repetition_penalty=math.inf),
        dict(top_k=10**5000 * -1),
        dict(top_p=10**5000),
        dict(temperature=np.array([1.0, 2.0])),
        dict(temperature=Decimal(1)),
        dict(presence_penalty=np.bool_(True)),
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_without_sense_are_refused(settings):
    (name,) = settings
    with pytest.raises(InputError, match=f"^{name} must be "):
        SamplingParams(**settings)


def test_what_other_libraries_pass_to_turn_settings_off():
    assert SamplingParams(top_k=0) == SamplingParams(top_k=-1) == SamplingParams(seed=-1) == SamplingParams()


@pytest.mark.parametrize("seed", [-2, 1.5, "1", True, [1]])
def test_seeds_that_are_no_seeds_are_refused(seed):
    with pytest.raises(InputError, match="^seed must be "):
        Sampler(SamplingParams(seed=seed), 10)


def test_numpy_numbers_are_numbers():
    settings = SamplingParams(
        seed=np.uint8(3), temperature=np.float32(0.5), top_k=np.int64(5), top_p=np.float64(0.9), min_p=np.float32(0.1)
    )
    assert 0 <= Sampler(settings, 100).choose(some_logits(100)) < 100


@pytest.mark.parametrize("presence, frequency", [(1.5, None), (None, 0.75), (2, -1.0), (-2.0, 0.5)])
def test_presence_and_frequency_penalties_count_the_new_tokens(rng, presence, frequency):
    """As OpenAI defines them: logit - count * frequency - (count > 0) * presence; the prompt does not count."""
    sampler = Sampler(SamplingParams(presence_penalty=presence, frequency_penalty=frequency), 50, prompt_ids=[1, 2, 3])
    counts = np.zeros(50)
    for _ in range(200):
        logits = rng.normal(size=50).astype(np.float32)
        before = logits.copy()
        expected = logits - counts * (frequency or 0) - (counts > 0) * (presence or 0)
        token = sampler.choose(logits)
        assert token == expected.argmax() and np.array_equal(logits, before)
        counts[token] += 1


def test_logit_bias(rng):
    logits = rng.normal(size=50).astype(np.float32)
    best, other = int(logits.argmax()), int(logits.argmin())
    assert Sampler(SamplingParams(logit_bias={other: 100}), 50).choose(logits) == other
    assert Sampler(SamplingParams(logit_bias={best: -100.0}), 50).choose(logits) == np.argsort(logits)[-2]
    drawn = [
        Sampler(SamplingParams(temperature=1.0, logit_bias={7: 2.0}, seed=seed), 50).choose(logits)
        for seed in range(2000)
    ]
    weights = np.exp(logits.astype(np.float64) + 2.0 * (np.arange(50) == 7))
    assert abs(np.mean(np.array(drawn) == 7) - weights[7] / weights.sum()) < 0.04


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(presence_penalty=math.nan), "presence_penalty must be a finite number, not nan"),
        (dict(frequency_penalty="1"), "frequency_penalty must be a finite number, not '1'"),
        (dict(logit_bias={-1: 2}), "a token id in logit_bias must be an integer of at least 0, not -1"),
        (dict(logit_bias={1: math.inf}), "logit_bias of 1 must be a finite number, not inf"),
        (dict(logit_bias=[1, 2]), r"logit_bias is a dict of token ids to numbers, not \[1, 2\]"),
        (dict(logit_bias={1: "2"}), "logit_bias of 1 must be a finite number, not '2'"),
        (dict(logit_bias={10**5000: math.nan}), "logit_bias of a int must be a finite number, not nan"),
        (dict(logit_bias={"1": 2}), "a token id in logit_bias must be an integer of at least 0, not '1'"),
    ],
)
def test_what_penalties_and_biases_cannot_be(settings, message):
    with pytest.raises(InputError, match=message):
        SamplingParams(**settings)


def test_ids_beyond_the_vocabulary():
    with pytest.raises(TokenIdError, match="logit_bias holds the id 50; the vocabulary has 0 to 49"):
        Sampler(SamplingParams(logit_bias={3: 1, 50: 1}), 50)
    with pytest.raises(TokenIdError, match="logit_bias holds the id a int; the vocabulary has 0 to 49"):
        Sampler(SamplingParams(logit_bias={10**5000: 1}), 50)
    for ids in ([3, 50], [-1]):
        with pytest.raises(TokenIdError, match="the vocabulary has 0 to 49"):
            Sampler(SamplingParams(repetition_penalty=2), 50, prompt_ids=ids)


def test_params_are_plain_values_of_their_own():
    bias = {np.int64(3): np.float32(0.5)}
    params = SamplingParams(temperature=np.float32(0.5), top_k=np.int64(5), presence_penalty=1, logit_bias=bias)
    bias[4] = 1
    assert params == SamplingParams(temperature=0.5, top_k=5, presence_penalty=1.0, logit_bias={3: 0.5})
    assert [type(value) for value in (params.temperature, params.top_k, params.presence_penalty)] == [float, int, float]
    assert SamplingParams(top_k=10**30).top_k == 10**30
    with pytest.raises(AttributeError):
        params.top_k = 3
