"""Prefix reuse: what is taken from earlier sequences has the bits of computing it again."""

import numpy as np
import pytest

import cgpt
from cgpt.errors import InputError
from cgpt.generation import prefix_cache
from cgpt.generation.prefix_cache import SNAPSHOT_INTERVAL

from golden import case
from support.greedy import load_greedy
from support.request_cases import make_request, make_scheduler

NAMES = ["demo-gpt2", "demo-gpt-oss"]  # no windows; windows of 128 in half of the layers


@pytest.fixture(scope="module")
def models():
    return {name: load_greedy(name, precision="exact") for name in NAMES}


def random_ids(model, length, seed=0):
    return np.random.default_rng(seed).integers(0, 256, length).tolist()


def run(model, ids, cache=None, tokens=5, **options):
    return model.generate(ids, max_new_tokens=tokens, ignore_eos=True, logprobs=3, prefix_cache=cache, **options)


def check(model, ids, cache, expected_cached, **options):
    """The answer is that of computing from scratch, to the bit, and so many ids were not computed again."""
    found, scratch = run(model, ids, cache, **options), run(model, ids, **options)
    assert found.ids == scratch.ids and found.top_logprobs == scratch.top_logprobs
    assert np.array_equal(found.logprobs, scratch.logprobs)
    assert found.num_cached_tokens == expected_cached and scratch.num_cached_tokens == 0
    return found


@pytest.mark.parametrize("length", [5, 60, 150, 200])
@pytest.mark.parametrize("name", NAMES)
def test_a_conversation_goes_on(models, name, length):
    model = models[name]
    cache, ids, asked = cgpt.PrefixCache(model), random_ids(model, length), 0
    for turn in range(3):
        asked += len(ids)
        cached = 0 if turn == 0 else len(ids) - 7  # what was said, but for the last new id, which no step has read
        ids += check(model, ids, cache, cached).ids + random_ids(model, 6, seed=turn)
    assert len(cache) == 1  # the later turns hold the earlier ones
    assert cache.num_reused + cache.num_computed == asked and cache.num_computed == length + 7 + 7


@pytest.mark.parametrize("name", NAMES)
def test_another_answer_to_the_same_prompt(models, name):
    """The prompt's last id is computed again: the first logits come from it. With windows, also long after them."""
    model = models[name]
    cache, ids = cgpt.PrefixCache(model), random_ids(model, 100)
    run(model, ids, cache, tokens=150)
    check(model, ids, cache, 99, temperature=1.0, seed=3, tokens=150)
    check(model, ids + random_ids(model, 20, 1), cache, 100 if name == "demo-gpt2" else 99)


def test_branches_begin_at_the_last_snapshot_before_them(models):
    model = models["demo-gpt-oss"]
    cache, ids = cgpt.PrefixCache(model), random_ids(model, 1200)
    run(model, ids, cache)  # read by chunks: snapshots at 512, 1024, 1199, and one at its end
    assert SNAPSHOT_INTERVAL < model.transformer.PREFILL_CHUNK == 512
    for same, cached in ((511, 0), (512, 512), (1023, 512), (1100, 1024), (1199, 1199)):
        check(model, ids[:same] + random_ids(model, 9, seed=same), PrefixCacheView(cache), cached)


class PrefixCacheView(cgpt.PrefixCache):
    """A cache that takes nothing in, so that each branch meets the same one."""

    def __init__(self, cache):
        self.__dict__ = cache.__dict__

    def insert(self, cache, ids):
        pass


@pytest.mark.parametrize("name", ["gptoss_basic/hf_mxfp4", "gptoss_yarn/original", "gpt2_odd_bf16"])
def test_at_every_level(level, name):
    model = cgpt.load(case(name).directory, precision="exact")
    cache, ids = cgpt.PrefixCache(model), random_ids(model, 40)
    ids = [i % model.vocab_size for i in ids]
    first = check(model, ids, cache, 0)
    check(model, ids + first.ids + ids[:4], cache, 44)


def test_while_decoding_snapshots_are_taken_too(models):
    model = models["demo-gpt-oss"]
    cache, ids = cgpt.PrefixCache(model), random_ids(model, 10)
    answer = run(model, ids, cache, tokens=600).ids
    for same, cached in ((200, 9), (300, 9 + SNAPSHOT_INTERVAL), (590, 9 + 2 * SNAPSHOT_INTERVAL)):
        check(model, (ids + answer)[:same] + [1, 2, 3], PrefixCacheView(cache), cached)


def test_with_lookup_and_companions(models):
    model = models["demo-gpt-oss"]
    cache, ids = cgpt.PrefixCache(model), random_ids(model, 50) * 4
    prompts = [ids, ids[:120] + [3], ids + [5, 6]]
    for _ in range(2):
        together = model.generate(prompts, max_new_tokens=40, prompt_lookup_num_tokens=5, prefix_cache=cache)
        for prompt, done in zip(prompts, together, strict=True):
            assert done.ids == model.generate(prompt, max_new_tokens=40).ids
    assert [done.num_cached_tokens for done in together] == [199, 120, 201]


def test_the_least_recently_used_goes_first(models):
    model = models["demo-gpt2"]
    room = cgpt.PrefixCache(model)
    run(model, random_ids(model, 60), room)
    cache = cgpt.PrefixCache(model, max_bytes=2 * room.nbytes)
    a, b, c = (random_ids(model, 60, seed) for seed in range(3))
    for prompt in (a, b, a, c):
        run(model, prompt, cache)
    assert len(cache) == 2 and cache.nbytes <= cache.max_bytes
    assert [run(model, p, PrefixCacheView(cache)).num_cached_tokens for p in (a, b, c)] == [59, 0, 59]
    nothing = cgpt.PrefixCache(model, max_bytes=0)
    run(model, a, nothing)
    assert len(nothing) == 0 and nothing.nbytes == 0
    for wrong in (-1, 1.5, None):
        with pytest.raises(InputError, match="max_bytes"):
            cgpt.PrefixCache(model, max_bytes=wrong)


def test_they_are_not_too_many(models, monkeypatch):
    """A small model's would be thousands, and each prompt is compared with every one."""
    monkeypatch.setattr(prefix_cache, "MAX_ENTRIES", 3)
    model = models["demo-gpt2"]
    cache = cgpt.PrefixCache(model)
    for seed in (0, 1, 2, 0, 3):
        run(model, random_ids(model, 20, seed), cache)
    assert len(cache) == 3
    found = [run(model, random_ids(model, 20, seed), PrefixCacheView(cache)).num_cached_tokens for seed in range(4)]
    assert found == [19, 0, 19, 19]


def test_other_models_are_refused(models):
    cache = cgpt.PrefixCache(models["demo-gpt2"])
    for other in (models["demo-gpt-oss"], models["demo-gpt2"].at_precision("auto")):
        with pytest.raises(InputError, match="belongs to another model"):
            run(other, [1, 2, 3], cache)


def test_what_was_cancelled_is_kept_and_what_was_interrupted_is_not(models, monkeypatch):
    model = models["demo-gpt-oss"]
    cache, ids = cgpt.PrefixCache(model), random_ids(model, 30)
    pieces = model.stream(ids, max_new_tokens=50, ignore_eos=True, prefix_cache=cache)
    next(pieces)
    pieces.close()
    assert len(cache) == 1
    check(model, ids, cache, 29)

    scheduler = make_scheduler(model, [make_request(model, random_ids(model, 30, seed=9))], cache)
    request, kept = scheduler.waiting[0], len(cache)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(model.transformer), "final_norm", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scheduler.step()
    scheduler.cancel(request)
    assert len(cache) == kept and not scheduler.has_unfinished and request.cache is None


def test_rings_of_different_sizes(models):
    """A snapshot of one slack resumes in a sequence of another, whose ring turns at another position."""
    model = models["demo-gpt-oss"]
    ids = np.array(random_ids(model, 430))
    source = model.transformer.new_cache(430, slack=70)
    model.transformer.step([(source, ids[:400])])
    for slack in (0, 5, 200):
        for back in (0, 1, 70):
            copy = model.transformer.new_cache(500, slack)
            copy.resume(source, source.snapshot(400 - back))
            got = model.transformer.step([(copy, ids[400 - back :])], rows="all")
            assert np.array_equal(got, model.logits(ids)[400 - back :])


def test_what_cannot_be_resumed_is_refused(models):
    model = models["demo-gpt-oss"]
    ids = random_ids(model, 200)
    source = model.transformer.new_cache(300, slack=3)
    model.transformer.step([(source, ids)])
    with pytest.raises(InputError, match="cannot be cut to 196"):
        source.snapshot(196)
    place, copy = source.snapshot(), model.transformer.new_cache(300, slack=3)
    source.truncate(198)
    with pytest.raises(InputError, match="cannot resume at 200 of 198"):
        copy.resume(source, place)
    copy.resume(source, source.snapshot())
    with pytest.raises(InputError, match="a sequence of 198 positions cannot resume"):
        copy.resume(source, source.snapshot())
    with pytest.raises(InputError, match="cannot be cut to 197"):
        copy.truncate(197)
    with pytest.raises(InputError, match="exceed the 100 positions"):
        model.transformer.new_cache(100).resume(source, source.snapshot())
