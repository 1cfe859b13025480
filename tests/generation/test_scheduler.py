"""Requests run together: whose turn it is, how prompts share a step, and that it changes no text."""

import numpy as np
import pytest

import cgpt
from cgpt.generation.prefix_cache import PrefixCache
from cgpt.generation.scheduler import Scheduler

from support.fake_model import FakeModel
from support.request_cases import make_request, make_scheduler


@pytest.fixture(scope="module")
def fake():
    tokenizer = cgpt.load("demo-gpt2", threads=1).tokenizer
    return lambda: FakeModel(tokenizer)


def test_prompts_are_read_in_chunks_and_mixed(fake):
    prompts = [list(range(1, n + 1)) for n in (20, 3, 4, 1)]
    expected = [fake().generate(prompt, max_new_tokens=3).ids for prompt in prompts]
    model = fake()
    model.transformer.PREFILL_CHUNK = 8
    assert [done.ids for done in model.generate(prompts, max_new_tokens=3)] == expected
    assert model.steps == [
        ([2, 2, 2, 1], True),  # even shares; the last prompt has its first id
        ([2, 1, 2, 1], True),
        ([5, 1, 1, 1], True),  # what others leave goes to the long one
        ([6, 1, 1], True),
        ([5], True),
        ([1], True),
        ([1], True),
    ]


def test_more_prompts_than_may_run_at_once_wait_their_turn(fake):
    prompts = [[1 + i % 7, i] for i in range(2 * Scheduler.MAX_RUNNING + 5)]
    expected = [fake().generate(prompt, max_new_tokens=1 + i % 4).ids for i, prompt in enumerate(prompts)]
    model = fake()
    requests = [make_request(model, prompt, max_new_tokens=1 + i % 4) for i, prompt in enumerate(prompts)]
    scheduler = make_scheduler(model, requests)
    finished = []
    while scheduler.has_unfinished:
        finished += [request for request, _ in scheduler.step() if request.finish_reason]
        assert sum(request.cache is not None for request in requests) <= Scheduler.MAX_RUNNING
    assert max(len(sizes) for sizes, _ in model.steps) == Scheduler.MAX_RUNNING
    assert [request.ids for request in requests] == expected
    assert sorted(map(id, finished)) == sorted(map(id, requests))


def test_a_request_may_join_while_others_run(fake):
    alone = [fake().generate(prompt, max_new_tokens=6).ids for prompt in ([1, 2], [3, 4])]
    model = fake()
    first, second = (make_request(model, prompt, max_new_tokens=6) for prompt in ([1, 2], [3, 4]))
    scheduler = make_scheduler(model, [first])
    scheduler.step()
    scheduler.step()
    scheduler.add(second)
    while scheduler.has_unfinished:
        scheduler.step()
    assert [first.completion().ids, second.completion().ids] == alone
    assert [sizes for sizes, _ in model.steps] == [[2], [1], [1, 2], [1, 1], [1, 1], [1, 1], [1], [1]]


def test_prompts_are_read_however_many_decode(fake):
    model = fake()
    streams = [make_request(model, [i, i], max_new_tokens=20) for i in range(1, 11)]
    scheduler = make_scheduler(model, streams)
    scheduler.step()
    late = make_request(model, list(range(1, 13)), max_new_tokens=2)
    scheduler.add(late)
    for _ in range(3):
        scheduler.step(max_prompt_tokens=8)
    assert [sum(sizes) for sizes, _ in model.steps] == [20, 14, 14, 14] and len(late.ids) == 1
    assert {len(request.ids) for request in streams} == {4}


# ---- The same prompt several times

LENGTHS = [1, 5, 127, 128, 129, 200]  # around the window of demo-gpt-oss, 128
CACHES = [None, 0, 10**9]  # bytes of the prefix cache


@pytest.fixture(scope="module", params=["demo-gpt2", "demo-gpt-oss"])
def model(request):
    return cgpt.load(request.param, precision="exact")


def counted(model, monkeypatch):
    """The ids that the model's steps read, of each step."""
    step, read = model.transformer.step, []

    def counting(batch, **how):
        read.append(sum(len(ids) for _, ids in batch))
        return step(batch, **how)

    monkeypatch.setattr(model.transformer, "step", counting)
    return read


def options(i):
    """Of the i-th request: they have nothing but their prompt in common."""
    lookup = 3 if i % 2 == 0 else None
    return dict(max_new_tokens=1 + 9 * i, temperature=i % 3 / 2, seed=i, logprobs=2, prompt_lookup_num_tokens=lookup)


def result(done):
    return done.text, done.ids, done.finish_reason, done.logprobs.tolist(), done.top_logprobs


@pytest.mark.parametrize("room", CACHES)
@pytest.mark.parametrize("length", LENGTHS)
def test_a_prompt_is_read_once_for_all_that_have_it(model, monkeypatch, length, room):
    """And each gets the bits that it gets alone; a later one goes on from what the prefix cache has kept."""
    prompt = np.random.default_rng(length).integers(0, 256, length).tolist()
    alone = [model.generate(prompt, **options(i)) for i in range(5)]
    cache = None if room is None else PrefixCache(model, room)
    read = counted(model, monkeypatch)
    requests = [make_request(model, prompt, **options(i)) for i in range(5)]
    scheduler = make_scheduler(model, requests, cache)
    while len(scheduler.running) + len(scheduler.waiting) == 5:
        scheduler.step(max_prompt_tokens=50)
    assert sum(read) == length and all(len(request.ids) == 1 for request in requests)
    while scheduler.has_unfinished:
        scheduler.step()
    assert [result(request.completion()) for request in requests] == [result(one) for one in alone]
    assert [request.num_cached_tokens for request in requests] == [0] + [length] * 4
    if room:
        again = model.generate(prompt, prefix_cache=cache, **options(3))
        assert result(again) == result(alone[3]) and again.num_cached_tokens == length - 1


def test_a_copy_knows_the_places_to_go_on_from(model):
    """It may be all that is left of the prompt."""
    prompt, alone = np.random.default_rng(3).integers(0, 256, 200).tolist(), PrefixCache(model)
    model.generate(prompt, max_new_tokens=30, temperature=1.0, seed=30, prefix_cache=alone)
    cache = PrefixCache(model, alone.nbytes)
    requests = [make_request(model, prompt, max_new_tokens=n, temperature=1.0, seed=n) for n in (10, 30)]
    scheduler = make_scheduler(model, requests, cache)
    while scheduler.has_unfinished:
        scheduler.step()
    assert len(cache) == 1 and requests[0].ids[:3] != requests[1].ids[:3]
    assert model.generate(prompt, max_new_tokens=1, prefix_cache=cache).num_cached_tokens == 199


def test_a_reader_that_leaves_is_followed_by_another(model, monkeypatch):
    """What it has read is not lost where there is a prefix cache."""
    prompt = np.random.default_rng(1).integers(0, 256, 180).tolist()
    alone = [model.generate(prompt, **options(i)) for i in range(4)]
    for cache, lost in ((None, 60), (PrefixCache(model), 0)):
        with monkeypatch.context() as patched:
            read = counted(model, patched)
            requests = [make_request(model, prompt, **options(i)) for i in range(4)]
            scheduler = make_scheduler(model, requests, cache)
            for _ in range(2):
                scheduler.step(max_prompt_tokens=30)
            scheduler.cancel(requests[0])
            scheduler.cancel(requests[2])
            while not requests[3].ids:
                scheduler.step(max_prompt_tokens=30)
            assert sum(read) == 180 + lost
            while scheduler.has_unfinished:
                scheduler.step()
        assert [result(requests[i].completion()) for i in (1, 3)] == [result(alone[i]) for i in (1, 3)]


def test_other_prompts_are_read_beside_it(fake):
    """Those that wait for it take no share of the steps; a prompt whose log-probabilities are wanted is another."""
    model = fake()
    long, other = list(range(1, 21)), [7, 8, 9]
    requests = [make_request(model, ids, max_new_tokens=2) for ids in (long, other, long, long)]
    scheduler = make_scheduler(model, requests)
    while scheduler.has_unfinished:
        scheduler.step(max_prompt_tokens=8)
    assert [sizes for sizes, _ in model.steps] == [[4, 3], [7, 1], [8], [1], [1, 1, 1]]
    assert requests[0].ids == requests[2].ids == requests[3].ids == fake().generate(long, max_new_tokens=2).ids
    assert make_request(model, long, prompt_logprobs=1).prompt_key != make_request(model, long, logprobs=1).prompt_key


def test_prompt_logprobs_are_shared(model):
    prompt = np.random.default_rng(2).integers(0, 256, 150).tolist()
    done = model.generate([prompt] * 3, max_new_tokens=4, prompt_logprobs=3, temperature=1.0, seed=[1, 2, 3])
    assert all(np.array_equal(one.prompt_logprobs, model.score(prompt)) for one in done)
    assert done[0].prompt_top_logprobs == done[2].prompt_top_logprobs and len(done[2].prompt_top_logprobs) == 149
