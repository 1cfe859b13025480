"""Prompt lookup: the output of plain decoding in fewer steps, and a pause where these take too long."""

import dataclasses
import json
import math
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cgpt
from cgpt.cli import main as cli
from cgpt.errors import InputError
from cgpt.generation.engine import Engine
from cgpt.generation.generate import Scheduler
from cgpt.generation.prompt_lookup import PromptLookup
from cgpt.generation.speculation import Speculation, SpeculationController
from cgpt.kernels._kernels import PRECISIONS

from support.greedy import load_greedy
from support.request_cases import make_request, make_scheduler

NAMES = ["demo-gpt2", "demo-gpt-oss"]
LOOP = [*range(40, 60)] * 6  # 120 ids that repeat themselves
CHOICES = {
    "greedy": dict(),
    "sampled": dict(temperature=0.8, top_k=50, top_p=0.95, min_p=0.01, seed=11),
    "penalty": dict(repetition_penalty=1.3),
    "all": dict(temperature=0.5, repetition_penalty=1.05, seed=5, logprobs=3),
}


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    return load_greedy(request.param, threads=1, precision="exact")


def same(done):
    """What a completion must have in common with that of plain decoding: all but times and counts."""
    fields = dataclasses.asdict(done)
    for name in ("prefill_seconds", "decode_seconds", "num_draft_tokens", "num_accepted_tokens"):
        del fields[name]
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in fields.items()}


def always(monkeypatch):
    """Guesses at every step, whatever it costs."""
    monkeypatch.setattr(SpeculationController, "may_draft", lambda self, requests: True)
    monkeypatch.setattr(SpeculationController, "record_drafted", lambda *args: None)


def foresee(model, monkeypatch, prompt):
    """Guesses what greedy decoding says, always."""
    always(monkeypatch)
    truth = np.array(model.generate(prompt, max_new_tokens=100, ignore_eos=True).ids)

    def propose(self, pool, prompt_ids, ids, most):
        return truth[len(ids) : len(ids) + min(self.num_tokens, most)]

    monkeypatch.setattr(PromptLookup, "propose", propose)


class Counted:
    """The transformer of a scheduler, which notes the sizes of its steps."""

    def __init__(self, transformer):
        self.transformer, self.sizes = transformer, []

    def __getattr__(self, name):
        return getattr(self.transformer, name)

    def step(self, batch, **how):
        self.sizes.append([len(ids) for _, ids in batch])
        return self.transformer.step(batch, **how)


class Forced:
    """A LogitsConstraint that stands for what a model says: these ids, one after the other."""

    def __init__(self, ids):
        self.ids, self.at = ids, 0

    def mask(self, logits):
        masked = np.full_like(logits, -np.inf)
        masked[self.ids[self.at]] = 0
        return masked

    def push(self, token_id):
        assert token_id == self.ids[self.at]
        self.at += 1


def run(model, requests):
    counted = Counted(model.transformer)
    scheduler = Scheduler(counted)
    for request in requests:
        scheduler.add(request)
    while scheduler.has_unfinished:
        scheduler.step()
    return counted.sizes


# ---- The same output


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    prompt=st.lists(st.integers(0, 500), min_size=1, max_size=30),
    times=st.integers(1, 3),
    guesses=st.integers(1, 12),
    choice=st.sampled_from(list(CHOICES)),
    tokens=st.integers(1, 40),
)
def test_the_output_is_that_of_plain_decoding(model, prompt, times, guesses, choice, tokens):
    options = CHOICES[choice] | dict(max_new_tokens=tokens, ignore_eos=True)
    plain = model.generate(prompt * times, **options)
    with pytest.MonkeyPatch.context() as patch:
        always(patch)
        done = model.generate(prompt * times, prompt_lookup_num_tokens=guesses, **options)
    assert same(done) == same(plain)
    assert (plain.num_draft_tokens, plain.num_accepted_tokens) == (0, 0)


@pytest.mark.parametrize("choice", CHOICES)
def test_where_it_guesses_long_and_often(model, choice, monkeypatch):
    """Through 250 positions, so that gpt-oss's rings wrap around with guesses in them."""
    always(monkeypatch)
    options = CHOICES[choice] | dict(max_new_tokens=130, ignore_eos=True)
    done = model.generate(LOOP, prompt_lookup_num_tokens=7, **options)
    assert same(done) == same(model.generate(LOOP, **options))
    assert 0 < done.num_accepted_tokens <= done.num_draft_tokens


def test_fewer_steps(model, monkeypatch):
    always(monkeypatch)
    counts = []
    for guesses in (None, 5):
        options = dict(max_new_tokens=60, ignore_eos=True, prompt_lookup_num_tokens=guesses)
        requests = [make_request(model, LOOP[:50], constraint=Forced(LOOP[50:] + [*range(60)]), **options)]
        sizes = run(model, requests)
        counts.append((len(sizes), requests[0].completion()))
    (plain_steps, plain), (steps, done) = counts
    assert plain.ids == done.ids == LOOP[50:110] and plain_steps == 60
    assert steps == 60 - done.num_accepted_tokens and done.num_accepted_tokens >= 45
    assert [max(size) for size in sizes[1:4]] == [3, 6, 6] and max(max(size) for size in sizes[1:]) == 6


def test_no_more_steps_than_right_guesses_need(model, monkeypatch):
    foresee(model, monkeypatch, LOOP)
    for guesses, steps in ((1, 31), (4, 13), (100, 2)):  # the prompt's, then 59 ids in steps of 1 + guesses
        request = make_request(model, LOOP, max_new_tokens=60, ignore_eos=True, prompt_lookup_num_tokens=guesses)
        sizes = run(model, [request])
        done = request.completion()
        assert len(sizes) == steps and done.num_accepted_tokens == done.num_draft_tokens == 60 - steps
        assert sum(map(sum, sizes[1:])) == 59


@pytest.mark.parametrize("end", ["stop id", "eos", "stop text", "max_new_tokens"])
def test_an_end_among_accepted_guesses(model, end, monkeypatch):
    """At each of the places in turn, so that most are within a run of guesses that came true."""
    foresee(model, monkeypatch, LOOP)
    ids = model.generate(LOOP, max_new_tokens=40, ignore_eos=True).ids
    for n in range(20, 40):
        options = dict(max_new_tokens=40, ignore_eos=True)
        if end == "stop id":
            options["stop"] = ids[n]
        elif end == "stop text":
            options["stop"] = model.tokenizer.decode(ids[n : n + 2])
        elif end == "max_new_tokens":
            options["max_new_tokens"] = n
        else:
            options["ignore_eos"] = False
            monkeypatch.setattr(model.transformer, "eos_token_ids", (ids[n],))
        done = model.generate(LOOP, prompt_lookup_num_tokens=9, **options)
        assert same(done) == same(model.generate(LOOP, **options))
        after_prompt = len(done.ids) - 1  # in steps of ten, nine of which were guessed
        assert done.num_accepted_tokens == after_prompt - math.ceil(after_prompt / 10)


@pytest.mark.parametrize("choice", CHOICES)
def test_a_stream_has_the_same_pieces(model, choice, monkeypatch):
    always(monkeypatch)
    options = dict(max_new_tokens=60, ignore_eos=True, stop=["zzz"]) | CHOICES[choice]
    options.pop("logprobs", None)
    prompt = model.tokenizer.decode(LOOP)
    assert list(model.stream(prompt, prompt_lookup_num_tokens=4, **options)) == list(model.stream(prompt, **options))


@pytest.mark.parametrize("room", [0, 1, 3, 20])
def test_a_full_context(room, monkeypatch):
    always(monkeypatch)
    model = cgpt.load("demo-gpt2", precision="exact")
    prompt = (LOOP * 3)[: model.context_length - room]
    done = model.generate(prompt, ignore_eos=True, prompt_lookup_num_tokens=5)
    assert same(done) == same(model.generate(prompt, ignore_eos=True)) and len(done.ids) == room + 1


# ---- In batches


def requests_of(model, guesses):
    """Eight requests, some without lookup; they end one after another."""
    random = np.random.default_rng(0)
    prompts = [LOOP, random.integers(0, 500, 30), LOOP[:45], [7], random.integers(0, 500, 300) % 300, *[LOOP[3:60]] * 3]
    return [
        make_request(
            model,
            prompt[: model.context_length - 30],
            max_new_tokens=8 + 6 * i,
            ignore_eos=True,
            prompt_lookup_num_tokens=None if i % 3 == 2 else guesses,
            **list(CHOICES.values())[i % 4],
        )
        for i, prompt in enumerate(prompts)
    ]


def mostly_right(truth):
    """Guesses all but every seventh id of a text."""

    def propose(pool, prompt_ids, ids, most):
        guess = [i + (at % 7 == 0) for at, i in enumerate(truth)][len(ids) : len(ids) + min(4, most)]
        return np.array(guess, np.int64) % 500

    return propose


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
def test_a_batch(level, name, precision, monkeypatch):
    """In auto a step may not hold more tokens than get the bits of single ones."""
    always(monkeypatch)
    model = load_greedy(name, precision=precision)
    plain, guessing = requests_of(model, None), requests_of(model, 4)
    plain_sizes = run(model, plain)
    for request, truth in zip(guessing, plain, strict=True):
        if request.lookup:
            request.lookup.propose = mostly_right(truth.ids)
    sizes = run(model, guessing)
    assert [same(r.completion()) for r in guessing] == [same(r.completion()) for r in plain]
    assert sum(r.completion().num_accepted_tokens for r in guessing) >= 10 and len(sizes) < len(plain_sizes)
    guessed = [size for size in sizes if len(size) < sum(size) <= 64]
    assert guessed and max(map(sum, guessed)) <= model.transformer.uniform_tokens(Scheduler.MAX_RUNNING)


def test_a_request_that_joins(model, monkeypatch):
    always(monkeypatch)
    options = dict(max_new_tokens=40, ignore_eos=True, prompt_lookup_num_tokens=4)
    first, second = make_request(model, LOOP, **options), make_request(model, LOOP[5:90], **options)
    scheduler = make_scheduler(model, [first])
    for _ in range(4):
        scheduler.step()
    scheduler.add(second)
    while scheduler.has_unfinished:
        scheduler.step()
    for request in (first, second):
        alone = model.generate(request.prompt_ids, max_new_tokens=40, ignore_eos=True)
        assert same(request.completion()) == same(alone)


# ---- From the texts of others


CASES = [
    dict(stop=[" the", "zz"]),
    dict(logprobs=2, temperature=1.0, seed=3),
    dict(max_new_tokens=1),
    dict(max_new_tokens=2),
    dict(min_new_tokens=20, ignore_eos=False),
    dict(prompt_logprobs=1, top_k=20, temperature=0.7, seed=1),
    *CHOICES.values(),
]


def test_an_engine_s_requests_share_the_pool(model, monkeypatch):
    """Sent again from other threads, they find what was said the first time: the same results, nearly all drafted."""
    always(monkeypatch)
    random = np.random.default_rng(3)
    prompts = random.integers(0, 500, (len(CASES), 40)).tolist()
    cases = [dict(max_new_tokens=30, ignore_eos=True) | case for case in CASES]
    plain = [make_request(model, p, **case) for p, case in zip(prompts, cases, strict=True)]
    run(model, plain)
    alone = [request.completion() for request in plain]
    with Engine(model, prompt_lookup_num_tokens=32) as engine:
        for again in range(2):
            requests = [make_request(model, p, **case) for p, case in zip(prompts, cases, strict=True)]
            found = {}

            def ask(request, found=found):
                found[request] = "".join(event.delta for event in engine.submit([request]))

            threads = [threading.Thread(target=ask, args=[request]) for request in requests]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for request, plain in zip(requests, alone, strict=True):
                done = request.completion()
                assert same(done) | {"num_cached_tokens": 0} == same(plain) and found[request] == plain.text
            accepted = sum(request.lookup.num_accepted for request in requests)
            drafted = sum(request.lookup.num_drafted for request in requests)
            new = sum(len(request.ids) for request in requests)
            assert not again or 0.8 * drafted <= accepted and accepted > new / 2
        assert engine.stats.draft_tokens >= drafted and engine.stats.accepted_tokens >= accepted
        assert engine.stats.generated_tokens == 2 * sum(len(one.ids) for one in alone)


def test_what_was_cancelled_is_in_the_pool_and_what_failed_is_alone(model, monkeypatch):
    """A constraint that breaks in a step with drafts fails its own request."""
    monkeypatch.setattr(SpeculationController, "may_draft", lambda *_: False)
    said = [*range(100, 140)]
    options = dict(max_new_tokens=40, ignore_eos=True)
    scheduler = make_scheduler(model, isolated=True, prompt_lookup_num_tokens=8)
    first = make_request(model, [1, 2, 3], constraint=Forced(said), **options)
    scheduler.add(first)
    for _ in range(30):
        scheduler.step()
    scheduler.cancel(first)
    always(monkeypatch)
    requests = [make_request(model, [n, 2, 3], constraint=Forced(said), **options) for n in (4, 5)]
    requests[1].constraint.ids = said[:12]
    for request in requests:
        scheduler.add(request)
    failed, steps = [], 0
    while scheduler.has_unfinished:
        scheduler.step()
        failed += scheduler.failed
        steps += 1
    assert requests[0].ids == said and steps < 20 and requests[0].lookup.num_accepted > 20
    assert failed == [requests[1]] and isinstance(failed[0].error, IndexError) and failed[0].ids == said[:12]


@pytest.mark.parametrize("bad", [0, True, 2.5])
def test_bad_numbers_of_an_engine(model, bad):
    with pytest.raises(InputError, match="prompt_lookup_num_tokens must be an integer of at least 1"):
        Engine(model, prompt_lookup_num_tokens=bad)


# ---- Whether it pays


def played(steps, cost, accepted, guesses=4):
    """Times (in plain steps, of 1 s) and kinds of so many steps; a longer one takes `cost` and gives 1 + accepted."""
    account, kinds, saved = SpeculationController(), "", 0.0
    for _ in range(steps):
        if account.may_draft(1):
            account.record_drafted(1 + guesses, 1 + accepted, cost)
            kinds, saved = kinds + "g", saved + 1 + accepted - cost
        else:
            account.record_plain(1.0)
            kinds += "p"
    return kinds, saved


def test_what_pays_goes_on():
    kinds, saved = played(1000, cost=1.5, accepted=2)
    assert kinds[:3] == "ppp" and kinds.count("p") <= 20 and saved > 1400


def test_what_does_not_pay_costs_little():
    for cost in (1.1, 2.0, 5.0):
        kinds, saved = played(1000, cost, accepted=0)
        assert 0 > saved > -6 * (SpeculationController.CREDIT + cost)
    tries = kinds.strip("p").split("p")
    pauses = [len(pause) for pause in kinds.strip("p").split("g") if pause]
    assert kinds.endswith("p") and len("".join(tries)) < 12 and pauses == [64, 128, 256, 512]


def test_it_tries_again_when_guesses_come_true_later():
    account = SpeculationController()
    for accepted in [0] * 200 + [3] * 400:
        if account.may_draft(1):
            account.record_drafted(4, 1 + accepted, 1.2)
            last = "g"
        else:
            account.record_plain(1.0)
            last = "p"
    assert last == "g"


def test_old_profits_do_not_pay_for_new_losses():
    account, guessed = SpeculationController(), 0
    for accepted in [3] * 300 + [0] * 30:
        if account.may_draft(1):
            account.record_drafted(4, 1 + accepted, 2.0)
            guessed = guessed + 1 if not accepted else 0
        else:
            account.record_plain(1.0)
    assert 4 <= guessed <= 6


def test_a_plain_step_that_was_slow_is_not_the_measure_forever():
    """Guessing costs two steps and gains nothing, but the first plain steps were timed while others used the CPU."""
    account, guessed = SpeculationController(), 0
    for i in range(400):
        if account.may_draft(1):
            account.record_drafted(5, 1, 2.0)
            guessed += 1
        else:
            account.record_plain(3.0 if i < 3 else 1.0)
    assert guessed < 220  # of 390: three steps of 1 s must be among the last five


def test_another_process_does_not_end_it():
    account = SpeculationController()
    for i in range(40):
        if account.may_draft(1):
            account.record_drafted(4, 4, 1000.0 if i == 20 else 1.2)
        else:
            account.record_plain(1000.0 if i == 1 else 1.0)
    assert account.may_draft(1)


def test_requests_that_come_and_go_are_timed_anew():
    account = SpeculationController()
    for _ in range(3):
        account.may_draft(2)
        account.record_plain(2.0)
    assert account.may_draft(2) and not account.may_draft(1)
    account.record_plain(1.0)
    assert account.may_draft(2), "what two took is still known"


class Clock:
    """Says what steps of so many tokens are supposed to take."""

    def __init__(self, seconds):
        self.seconds, self.now = seconds, 0.0

    def __call__(self):
        return self.now

    def watch(self, model, monkeypatch):
        step = model.transformer.step

        def timed(batch, **how):
            self.now += self.seconds(sum(len(ids) for _, ids in batch))
            return step(batch, **how)

        monkeypatch.setattr(model.transformer, "step", timed)


def test_it_turns_itself_off_where_steps_grow_with_their_tokens(model, monkeypatch):
    """What follows 1 2 3 is never what followed it before."""
    drafts, said = [], [i for new in range(100, 135) for i in (1, 2, 3, new)]
    for seconds in (lambda T: 1.0, lambda T: 10.0 * T):
        clock = Clock(seconds)
        clock.watch(model, monkeypatch)
        options = dict(max_new_tokens=130, ignore_eos=True, prompt_lookup_num_tokens=6)
        request = make_request(model, [4, 5], constraint=Forced(said), **options)
        scheduler = make_scheduler(model, [request])
        scheduler.speculation = Speculation(model.transformer, Scheduler.MAX_RUNNING, clock)
        while scheduler.has_unfinished:
            scheduler.step()
        monkeypatch.undo()
        drafts.append(request.completion().num_draft_tokens)
        assert request.ids == said[:130] and request.lookup.num_accepted == 0
    assert drafts[0] >= 60 and 4 <= drafts[1] <= drafts[0] / 4


# ---- What is refused; from the shell


@pytest.mark.parametrize("bad", [0, -1, 2.0, True, "5"])
def test_bad_numbers(model, bad):
    with pytest.raises(InputError, match="prompt_lookup_num_tokens must be an integer of at least 1"):
        model.generate([1, 2], prompt_lookup_num_tokens=bad)


def test_from_the_shell(capsys):
    prompt, outputs = "To be or not to be, to be or not to be, to be or not", []
    for lookup in ([], ["--prompt-lookup-num-tokens", "4"]):
        assert cli.main(["generate", "--json", "--precision", "exact", "--max-new-tokens", "60", *lookup, prompt]) == 0
        outputs.append(json.loads(capsys.readouterr().out))
    plain, done = outputs
    assert (plain["text"], plain["ids"]) == (done["text"], done["ids"])
    assert plain["prompt_lookup"] == {"draft_tokens": 0, "accepted_tokens": 0}
    assert done["prompt_lookup"]["draft_tokens"] >= done["prompt_lookup"]["accepted_tokens"] > 0
