"""Requests run together: whose turn it is, how prompts share a step, and that it changes no text."""

import pytest
from fake_model import FakeModel

import cgpt
from cgpt.generate import Request, generate
from cgpt.scheduler import Scheduler


@pytest.fixture(scope="module")
def fake():
    tokenizer = cgpt.load("demo-gpt2", threads=1).tokenizer
    return lambda: FakeModel(tokenizer)


def test_prompts_are_read_in_chunks_and_mixed(fake):
    prompts = [list(range(1, n + 1)) for n in (20, 3, 4, 1)]
    expected = [generate(fake(), prompt, max_new_tokens=3).ids for prompt in prompts]
    model = fake()
    model.PREFILL_CHUNK = 8
    assert [done.ids for done in generate(model, prompts, max_new_tokens=3)] == expected
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
    expected = [generate(fake(), prompt, max_new_tokens=1 + i % 4).ids for i, prompt in enumerate(prompts)]
    model = fake()
    requests = [Request(model, prompt, max_new_tokens=1 + i % 4) for i, prompt in enumerate(prompts)]
    scheduler = Scheduler(model, requests)
    finished = []
    while scheduler.requests:
        finished += [request for request, _ in scheduler.step() if request.finish_reason]
        assert sum(request.sequence is not None for request in requests) <= Scheduler.MAX_RUNNING
    assert max(len(sizes) for sizes, _ in model.steps) == Scheduler.MAX_RUNNING
    assert [request.ids for request in requests] == expected
    assert sorted(map(id, finished)) == sorted(map(id, requests))


def test_a_request_may_join_while_others_run(fake):
    alone = [generate(fake(), prompt, max_new_tokens=6).ids for prompt in ([1, 2], [3, 4])]
    model = fake()
    first, second = (Request(model, prompt, max_new_tokens=6) for prompt in ([1, 2], [3, 4]))
    scheduler = Scheduler(model, [first])
    scheduler.step()
    scheduler.step()
    scheduler.requests.append(second)
    while scheduler.requests:
        scheduler.step()
    assert [first.completion().ids, second.completion().ids] == alone
    assert [sizes for sizes, _ in model.steps] == [[2], [1], [1, 2], [1, 1], [1, 1], [1, 1], [1], [1]]
