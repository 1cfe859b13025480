"""The log-probabilities of a prompt's tokens, beside other requests that read and write."""

import numpy as np
import pytest

from cgpt.errors import InputError
from cgpt.generation.prefix_cache import PrefixCache
from cgpt.models.logprobs import top_logprobs

from support.greedy import load_greedy
from support.request_cases import make_request, make_scheduler


@pytest.fixture(scope="module", params=["demo-gpt2", "demo-gpt-oss"])
def model(request):
    return load_greedy(request.param, precision="exact")


def test_they_are_the_score(model):
    ids = np.random.default_rng(3).integers(0, 256, 200).tolist()
    done = model.generate(ids, max_new_tokens=3, prompt_logprobs=4, logprobs=True)
    assert np.array_equal(done.prompt_logprobs, model.score(ids))
    assert done.prompt_top_logprobs == top_logprobs(model.logits(ids)[:-1], 4)
    plain = model.generate(ids, max_new_tokens=3, logprobs=True)
    assert done.ids == plain.ids and np.array_equal(done.logprobs, plain.logprobs)
    assert plain.prompt_logprobs is plain.prompt_top_logprobs is None
    assert model.generate([5], max_new_tokens=1, prompt_logprobs=True).prompt_logprobs.shape == (0,)


def test_in_chunks_beside_others_and_with_a_cache(model):
    """None of it is lost where the cache has the beginning, and companions get what they would alone."""
    ids = np.random.default_rng(4).integers(0, 256, 150).tolist()
    cache = PrefixCache(model)
    alone = [model.generate(p, max_new_tokens=9, prefix_cache=cache) for p in (ids, ids[:50])]
    requests = [
        make_request(model, ids, max_new_tokens=9),
        make_request(model, ids, max_new_tokens=4, prompt_logprobs=True),
        make_request(model, ids[:50], max_new_tokens=9, prompt_lookup_num_tokens=3),
        make_request(model, ids[10:90], max_new_tokens=1, prompt_logprobs=1),
    ]
    scheduler = make_scheduler(model, requests, cache)
    while scheduler.has_unfinished:
        scheduler.step(max_prompt_tokens=30)
    plain, scored, lookup, short = (request.completion() for request in requests)
    assert np.array_equal(scored.prompt_logprobs, model.score(ids)) and scored.num_cached_tokens == 0
    assert np.array_equal(short.prompt_logprobs, model.score(ids[10:90]))
    assert plain.ids == alone[0].ids and plain.num_cached_tokens == 149
    assert lookup.ids == alone[1].ids and scored.ids == plain.ids[:4]


def test_what_it_cannot_be(model):
    with pytest.raises(InputError, match="prompt_logprobs must be an integer of at least 0, not -1"):
        model.generate([1, 2], prompt_logprobs=-1)
