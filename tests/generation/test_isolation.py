"""Sequences that fail in a step fail alone: the others get every bit that they would get without them."""

import numpy as np
import pytest

import cgpt
from cgpt.errors import NumericsError, OutOfMemoryError
from cgpt.generation.engine import Engine
from cgpt.generation.isolation import step_isolated
from cgpt.generation.prefix_cache import PrefixCache
from cgpt.generation.prompt_lookup import PromptLookup
from cgpt.generation.speculation import SpeculationController

from support.request_cases import make_request, make_scheduler

POISON = 300  # an id that makes NaN of what has read it


@pytest.fixture(scope="module", params=["demo-gpt2", "demo-gpt-oss"])
def model(request):
    return cgpt.load(request.param, precision="exact")


@pytest.fixture(scope="module")
def gpt_oss():
    return cgpt.load("demo-gpt-oss", precision="exact")


def poison(model, monkeypatch):
    embed = model.transformer.embed

    def poisoning(ws, x, ids, spans):
        embed(ws, x, ids, spans)
        x.array[: len(ids)][ids == POISON] = np.nan

    monkeypatch.setattr(model.transformer, "embed", poisoning)
    return model


@pytest.fixture
def poisoned(model, monkeypatch):
    return poison(model, monkeypatch)


def random_ids(length, seed=0):
    return np.random.default_rng(seed).integers(0, 256, length)


def begun(model, lengths):
    """Sequences that hold so many ids."""
    sequences = [model.transformer.new_cache(1000, slack=1) for _ in lengths]
    for i, (sequence, length) in enumerate(zip(sequences, lengths, strict=True)):
        if length:
            model.transformer.step([(sequence, random_ids(length, i))])
    return sequences


LENGTHS = [0, 10, 127, 128, 200, 700]  # the windows of demo-gpt-oss are 128


def batch(model, tokens):
    """Of sequences of these lengths, each of which reads so many ids."""
    return [(s, random_ids(n, 50 + i)) for i, (s, n) in enumerate(zip(begun(model, LENGTHS), tokens, strict=True))]


@pytest.mark.parametrize("rows", ["last", "all"])
@pytest.mark.parametrize("tokens", [[1] * 6, [2, 1, 3, 1, 40, 1], [150, 1, 150, 1, 150, 150]])
@pytest.mark.parametrize("bad", [[2], [0, 5], [1, 2, 3, 4]])
def test_a_step_names_those_that_are_not_finite(gpt_oss, monkeypatch, tokens, bad, rows):
    """And only these are lost, rings that the failed step overwrote too: the others go on as if it had not been."""
    model = poison(gpt_oss, monkeypatch)
    expected = batch(model, tokens)
    logits = model.transformer.step(expected, rows=rows)
    found = batch(model, tokens)
    for place in bad:
        found[place][1][0] = POISON
    with pytest.raises(NumericsError, match="layer 0") as caught:
        model.transformer.step(found, rows=rows)
    assert list(caught.value.caches) == [found[place][0] for place in bad]
    for sequence, _ in found:
        sequence.rollback()
    got, problems = step_isolated(model.transformer, found, rows=rows)
    assert list(problems) == bad and all(isinstance(one, NumericsError) for one in problems.values())
    good = [place for place in range(6) if place not in bad]
    counts = tokens if rows == "all" else [1] * 6
    keep = np.repeat([place in good for place in range(6)], counts)
    assert np.array_equal(got[keep], logits[keep])
    assert [sequence.intact for sequence, _ in found] == [place in good for place in range(6)]
    then = [[(one[place][0], random_ids(130, 9)) for place in good] for one in (expected, found)]
    assert np.array_equal(model.transformer.step(then[0], rows="all"), model.transformer.step(then[1], rows="all"))


@pytest.mark.parametrize("bad", [[3], [0, 4], [0, 1, 2, 3, 4, 5]])
def test_an_error_without_a_name_is_looked_for_by_halves(gpt_oss, monkeypatch, bad):
    """Wherever in the step it comes."""
    model, tokens = gpt_oss, [150, 1, 150, 1, 1, 150]
    logits, found = model.transformer.step(batch(model, tokens)), batch(model, tokens)
    last, step, steps = model.transformer.final_norm, model.transformer.step, []
    guilty = {id(found[place][0]) for place in bad}

    def fails(part, **how):
        steps.append(len(part))
        late = guilty & {id(sequence) for sequence, _ in part}
        monkeypatch.setattr(model.transformer, "final_norm", refuse if late else last)
        return step(part, **how)

    def refuse(*_):
        raise OutOfMemoryError("no room")

    monkeypatch.setattr(model.transformer, "step", fails)
    got, problems = step_isolated(model.transformer, found)
    assert sorted(problems) == bad and all(isinstance(one, OutOfMemoryError) for one in problems.values())
    good = [place for place in range(6) if place not in bad]
    assert got is None if not good else np.array_equal(got[good], logits[good])
    assert len(steps) == {1: 5, 2: 9, 6: 11}[len(bad)]


def options(i):
    never = {POISON: -1000}
    return dict(max_new_tokens=8 + 5 * i, ignore_eos=True, temperature=i % 3 / 2, seed=i, logprobs=2, logit_bias=never)


def result(done):
    return done.ids, done.logprobs.tolist(), done.top_logprobs, done.prompt_logprobs


@pytest.mark.parametrize("room", [0, 10**9])
def test_requests_beside_one_that_fails(poisoned, room):
    """While they read, while they decode, with guesses; it fails by its prompt, or by what it writes."""
    prompts = [random_ids(n, n).tolist() for n in (3, 40, 150, 200, 90)]
    alone = [poisoned.generate(p, **options(i)) for i, p in enumerate(prompts)]
    extra = [{"prompt_lookup_num_tokens": 4} if i % 2 else {} for i in range(5)]
    requests = [make_request(poisoned, p, **options(i), **extra[i]) for i, p in enumerate(prompts)]
    writes = {"logit_bias": {POISON: 1000}, "max_new_tokens": 9}
    bad = [
        make_request(poisoned, random_ids(60).tolist() + [POISON]),
        make_request(poisoned, [5, 6], **writes, prompt_lookup_num_tokens=2),
        make_request(poisoned, [POISON, *random_ids(70).tolist()], prompt_logprobs=2),
        make_request(poisoned, [5], **writes),
    ]
    cache = PrefixCache(poisoned, room)
    scheduler, failed = make_scheduler(poisoned, requests[:3], cache, isolated=True), []
    for joins in ([*bad[:2], requests[3]], [bad[2]], [bad[3], requests[4]]):
        for _ in range(3):
            scheduler.step(max_prompt_tokens=60)
            failed += scheduler.failed
        for request in joins:
            scheduler.add(request)
    while scheduler.has_unfinished:
        scheduler.step(max_prompt_tokens=60)
        failed += scheduler.failed
    assert sorted(map(id, failed)) == sorted(map(id, bad))
    assert all(isinstance(one.error, NumericsError) and one.cache is None for one in bad)
    assert [one.ids for one in bad] == [[], [POISON], [], [POISON]]
    assert [result(one.completion()) for one in requests] == [result(one) for one in alone]
    kept = sorted(len(prompt) + len(one.ids) - 1 for prompt, one in zip(prompts, alone, strict=True))
    assert sorted(len(one.ids) for one in cache._entries) == (kept if room else [])
    with pytest.raises(NumericsError):
        poisoned.generate([prompts[0], [POISON]])


def test_streams_go_on_beside_one_that_fails(poisoned):
    prompts = [random_ids(n, n).tolist() for n in (3, 40, 150)]
    alone = [poisoned.generate(p, **options(9)).text for p in prompts]
    with Engine(poisoned) as engine:
        jobs = [engine.submit([make_request(poisoned, p, **options(9))]) for p in prompts]
        texts = [next(iter(job)).delta for job in jobs]
        for _ in range(3):
            with pytest.raises(NumericsError, match="NaN or infinity"):
                list(engine.submit([make_request(poisoned, [1, POISON])]))
        texts = [text + "".join(event.delta for event in job) for text, job in zip(texts, jobs, strict=True)]
    assert texts == alone and engine.stats.finished == {"stop": 0, "length": 3, "cancelled": 0, "error": 3}


@pytest.mark.parametrize("guessing", [False, True])
def test_guesses_beside_one_that_fails(model, monkeypatch, guessing):
    monkeypatch.setattr(SpeculationController, "may_draft", lambda *_: guessing)
    monkeypatch.setattr(SpeculationController, "record_drafted", lambda *_: None)
    monkeypatch.setattr(PromptLookup, "propose", lambda *about: random_ids(3)[: about[-1]])
    alone = [model.generate(random_ids(20, seed).tolist(), **options(6)) for seed in range(3)]
    requests = [make_request(model, one.prompt_ids, prompt_lookup_num_tokens=3, **options(6)) for one in alone]
    bad, scheduler, embed = requests[1], make_scheduler(model, requests, isolated=True), model.transformer.embed
    for _ in range(3):
        scheduler.step()

    def poisoning(ws, x, ids, spans):
        embed(ws, x, ids, spans)
        for span in spans:
            if span.cache is bad.cache:
                x.array[span.row + span.T - 1] = np.nan

    monkeypatch.setattr(model.transformer, "embed", poisoning)
    scheduler.step()
    assert scheduler.failed == [bad] and isinstance(bad.error, NumericsError)
    assert bad.ids == alone[1].ids[: len(bad.ids)] and len(bad.ids) >= 3
    while scheduler.has_unfinished:
        scheduler.step()
    assert [result(requests[i].completion()) for i in (0, 2)] == [result(alone[i]) for i in (0, 2)]
    assert all((one.lookup.num_drafted > 0) == guessing for one in requests)


def test_a_prompt_whose_logprobs_are_wanted_fails_alone_too(poisoned):
    scheduler = make_scheduler(poisoned, [make_request(poisoned, [1, POISON, 2], prompt_logprobs=1)], isolated=True)
    assert scheduler.step() == [] and len(scheduler.failed) == 1 and not scheduler.has_unfinished


def test_a_choice_that_fails_is_its_request_s_own(model):
    """As where a grammar breaks: what others got in the step is theirs."""
    alone = model.generate([5, 6], **options(2))

    class Broken:
        def mask(self, logits):
            raise ValueError("broken")

    def broken():
        return make_request(model, [5, 6], constraint=Broken(), **options(2))

    good = make_request(model, [5, 6], **options(2))
    for others in ([good], []):
        bad = broken()
        requests = [*others, bad]
        scheduler = make_scheduler(model, requests, isolated=True)
        scheduler.step()
        assert scheduler.failed == [bad] and str(bad.error) == "broken" and bad not in scheduler.running
        while scheduler.has_unfinished:
            scheduler.step()
    assert result(good.completion()) == result(alone)
