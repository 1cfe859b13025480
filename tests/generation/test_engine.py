"""The engine: requests of many threads and tasks run together, and each gets what it would get alone."""

import asyncio
import threading
import time

import numpy as np
import pytest

import cgpt
from cgpt.errors import (
    ContextLengthError,
    EngineClosed,
    InputError,
    KernelError,
    NumericsError,
    OutOfMemoryError,
    QueueFull,
)
from cgpt.generation.engine import Engine
from cgpt.generation.request import Request

from support.request_cases import make_request, make_scheduler
from support.serve_cases import wait_for

LONG = 100_000  # tokens: as long as the context


@pytest.fixture(scope="module", params=["demo-gpt2", "demo-gpt-oss"])
def model(request):
    return cgpt.load(request.param, precision="exact")


@pytest.fixture(scope="module")
def gpt2():
    return cgpt.load("demo-gpt2", precision="exact")


@pytest.fixture
def slow(gpt2, monkeypatch):
    """The model, with steps of 10 ms: what is LONG does not end by itself while a test runs."""
    step = gpt2.transformer.step

    def slower(*args, **how):
        time.sleep(0.01)
        return step(*args, **how)

    monkeypatch.setattr(gpt2.transformer, "step", slower)
    return gpt2


@pytest.fixture
def engine(gpt2):
    with Engine(gpt2) as engine:
        yield engine


def text(job):
    return "".join(event.delta for event in job)


def request(model, prompt="ROMEO:", tokens=20, **options):
    return make_request(model, prompt, max_new_tokens=tokens, **options)


def prompts(model, count):
    rng = np.random.default_rng(7)
    return [rng.integers(0, 256, rng.integers(1, 120)).tolist() for _ in range(count)]


def test_texts_do_not_depend_on_companions(model):
    """Threads and tasks at once, more than there are places, sampled and with log-probabilities: the same bits."""
    asked = prompts(model, 24)
    options = [dict(max_new_tokens=5 + i, temperature=i % 3 / 2, seed=i, logprobs=2) for i in range(24)]
    alone = [model.generate(p, **o) for p, o in zip(asked, options, strict=True)]
    found = [None] * 24

    def in_a_thread(i):
        made = make_request(model, asked[i], **options[i])
        found[i] = text(engine.submit([made])), made.ids, made.top_logprobs, made.finish_reason

    async def in_a_task(i):
        made, pieces = make_request(model, asked[i], **options[i]), ""
        async for event in engine.submit([made]):
            pieces += event.delta
        found[i] = pieces, made.ids, made.top_logprobs, made.finish_reason

    async def tasks():
        await asyncio.gather(*map(in_a_task, range(1, 24, 2)))

    with Engine(model, max_running=7) as engine:
        threads = [threading.Thread(target=in_a_thread, args=(i,)) for i in range(0, 24, 2)]
        for thread in threads:
            thread.start()
        asyncio.run(tasks())
        for thread in threads:
            thread.join()
    assert found == [(one.text, one.ids, one.top_logprobs, one.finish_reason) for one in alone]
    ended = engine.stats.finished
    assert ended["stop"] + ended["length"] == 24 and engine.stats.first_tokens == 24
    assert engine.stats.generated_tokens == sum(len(one.ids) for one in alone)


def test_a_job_of_several_requests(engine, gpt2):
    requests = [request(gpt2, p, 3 + i) for i, p in enumerate(["ROMEO:", "JULIET:", "To be"])]
    events = list(engine.submit(requests))
    for i, one in enumerate(requests):
        mine = [event for event in events if event.index == i]
        assert "".join(event.delta for event in mine) == gpt2.generate(one.prompt_ids, max_new_tokens=3 + i).text
        assert [event.num_ids for event in mine] == list(range(1, 4 + i))
        assert [event.finish_reason for event in mine] == [None] * (2 + i) + ["length"]


def test_cancelling_frees_the_place_within_a_step(slow):
    with Engine(slow, max_running=1) as engine:
        running, waiting = (engine.submit([request(slow, tokens=LONG)]) for _ in range(2))
        next(iter(running))
        third = engine.submit([request(slow, tokens=2)])
        waiting.cancel()
        running.cancel()
        running.cancel()
        steps = engine.stats.steps
        assert len(list(third)) == 2 and engine.stats.steps <= steps + 3
        assert list(running) == list(waiting) == []
        assert engine.stats.finished == {"stop": 0, "length": 1, "cancelled": 2, "error": 0}
        assert not engine.running and not engine.waiting and not engine._entries


def test_the_queue_is_bounded(slow):
    with Engine(slow, max_running=1, max_waiting=2) as engine:
        first = engine.submit([request(slow, tokens=LONG)])
        next(iter(first))
        second = engine.submit([request(slow, tokens=1), request(slow, tokens=1)])
        with pytest.raises(QueueFull, match="3 requests run or wait, and at most 3 may; try again"):
            engine.submit([request(slow)])
        first.cancel()
        assert len(list(second)) == 2 and 1 <= engine.retry_after <= 60
        with pytest.raises(InputError, match="4 requests at once are too many"):
            engine.submit([request(slow) for _ in range(4)])


def test_caches_of_what_runs_fit_into_the_memory_for_them(gpt2):
    needed = make_scheduler(gpt2).cache_bytes(request(gpt2, tokens=100))
    with Engine(gpt2, kv_cache_bytes=2 * needed) as engine:
        jobs = [engine.submit([request(gpt2, tokens=100)]) for _ in range(5)]
        most = 0
        for _ in jobs[0]:
            most = max(most, engine.running)
        assert most == 2
        assert len({text(job) for job in jobs[1:]}) == 1
    with Engine(gpt2, kv_cache_bytes=needed - 1) as engine:
        with pytest.raises(InputError, match="GB for keys and values.*ask for fewer tokens"):
            engine.submit([request(gpt2, tokens=100)])


def test_prompts_do_not_hold_up_streams(gpt2, monkeypatch):
    """A stream gets a token in every step while others read long prompts, in steps of bounded time; short prompts do
    not wait for the end of long ones."""
    engine = Engine(gpt2, prefix_cache_bytes=0)
    monkeypatch.setattr(engine, "_chunk", lambda: 40)
    lengths, step = [], gpt2.transformer.step

    def noted(batch, **how):
        lengths.append([len(ids) for _, ids in batch])
        return step(batch, **how)

    monkeypatch.setattr(gpt2.transformer, "step", noted)
    with engine:
        stream = engine.submit([request(gpt2, tokens=LONG)])
        next(iter(stream))
        ids = [i % 200 for i in range(240)]
        job = engine.submit([request(gpt2, ids, 1), request(gpt2, ids[:100], 1), request(gpt2, ids[:6], 1)])
        order = [event.index for event in job]
        stream.cancel()
    reading = [one for one in lengths[1:] if len(one) > 1 or one[0] > 1]
    assert order == [2, 1, 0] and sum(map(sum, reading)) - len(reading) == 346
    assert all(one[0] == 1 and sum(one) <= 40 for one in reading)
    assert reading[0] == [1, 13, 13, 6]


def test_the_chunk_follows_the_speed(gpt2):
    with Engine(gpt2) as engine:
        chunks = []
        for engine._rate in (None, 5.0, 100.0, 1e6):
            chunks.append(engine._chunk())
    assert chunks == [32, 32, 100, 512]


def test_the_speed_is_learnt_beside_streams_too(gpt2):
    """Where nothing else was read before: else chunks would stay the least."""
    with Engine(gpt2) as engine:
        stream = engine.submit([request(gpt2, [1, 2, 3], LONG)])
        next(iter(stream))
        assert engine._rate is None
        text(engine.submit([request(gpt2, [i % 200 for i in range(200)], 1)]))
        stream.cancel()
        assert engine._rate > 0


@pytest.mark.parametrize(
    "problem, raised",
    [
        (NumericsError("NaN in layer 3"), NumericsError),
        (MemoryError(), OutOfMemoryError),
        (ValueError("what no step should raise"), KernelError),
    ],
)
def test_a_step_that_fails_fails_its_requests_only(gpt2, monkeypatch, problem, raised):
    """Those with which it fails: all but one, and then that one too."""
    step, failing, tokens = gpt2.transformer.step, threading.Event(), 30
    alone = gpt2.generate("ROMEO:", max_new_tokens=tokens).text

    def fails(batch, **how):
        if failing.is_set() and any(sequence.context > 100 for sequence, _ in batch):
            raise problem
        return step(batch, **how)

    monkeypatch.setattr(gpt2.transformer, "step", fails)
    with Engine(gpt2, max_running=4) as engine:
        bad = [engine.submit([request(gpt2, tokens=200 + i)]) for i in range(3)]
        good = [engine.submit([request(gpt2, tokens=tokens)]) for _ in range(2)]
        for job in bad:
            next(iter(job))
        failing.set()
        for job in bad:
            with pytest.raises(raised):
                list(job)
        assert [text(job) for job in good] == [alone] * 2 == [text(engine.submit([request(gpt2, tokens=tokens)]))] * 2
        assert engine.stats.finished["error"] == 3
        with pytest.raises(raised):
            list(engine.submit([request(gpt2, tokens=150)]))
        failing.clear()
        assert text(engine.submit([request(gpt2, tokens=150)])).startswith(alone)


def test_a_defect_of_the_scheduler_leaves_nobody_waiting(gpt2, monkeypatch):
    """Not those either that it has finished in the step that it then failed in."""
    with Engine(gpt2, max_running=2) as engine:
        step = engine._scheduler.step

        def broken(chunk):
            monkeypatch.setattr(engine._scheduler, "step", step)
            step(chunk)
            raise ValueError("a defect")

        monkeypatch.setattr(engine._scheduler, "step", broken)
        with engine._changed:  # so that they come together
            jobs = [engine.submit([request(gpt2, tokens=n)]) for n in (1, 30, 5)]
        for job in jobs[:2]:
            problem = job._events.get(timeout=20)
            assert isinstance(problem, KernelError) and "ValueError: a defect" in str(problem)
        assert text(jobs[2]) == gpt2.generate("ROMEO:", max_new_tokens=5).text
        assert not engine._entries and engine.stats.finished["error"] == 2


def test_a_request_that_cannot_start_fails_alone(slow, monkeypatch):
    start = Request.start

    def refuse(self, *args):
        if self.max_new_tokens == 7:
            raise OutOfMemoryError("no room for this one")
        start(self, *args)

    monkeypatch.setattr(Request, "start", refuse)
    with Engine(slow) as engine:
        good = engine.submit([request(slow, tokens=30)])
        next(iter(good))
        bad = engine.submit([request(slow, tokens=7), request(slow, tokens=8)])
        with pytest.raises(OutOfMemoryError, match="no room for this one"):
            list(bad)
        assert len(list(good)) == 29
        wait_for(lambda: engine.stats.finished["cancelled"] == 1)  # the bad one's companion


def test_the_prefix_cache_is_shared(engine, gpt2):
    prompt = "Now is the winter of our discontent " * 5
    first, second = request(gpt2, prompt), request(gpt2, prompt)
    assert text(engine.submit([first])) == text(engine.submit([second]))
    assert first.num_cached_tokens == 0 and second.num_cached_tokens == len(second.prompt_ids) - 1
    assert engine.stats.cached_tokens == second.num_cached_tokens and engine.stats.prompt_tokens == 2 * len(
        second.prompt_ids
    )


def test_shutdown(slow):
    engine = Engine(slow, max_running=1)
    short, endless, waiting = (engine.submit([request(slow, tokens=n)]) for n in (5, 250, 5))
    closing = threading.Thread(target=engine.close, args=(0.0,))
    assert text(short) and next(iter(endless))
    closing.start()
    for job in (endless, waiting):
        with pytest.raises(EngineClosed, match="shut down"):
            list(job)
    closing.join()
    with pytest.raises(EngineClosed, match="shutting down"):
        engine.submit([request(slow)])

    patient = Engine(slow)
    job = patient.submit([request(slow, tokens=30)])
    patient.close(None)
    assert len(list(job)) == 30 and not patient._thread.is_alive()


def test_idle_costs_nothing(engine, gpt2):
    text(engine.submit([request(gpt2)]))
    time.sleep(0.1)  # the kernels' threads go to sleep
    before = time.thread_time(), time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before[1] < 0.03


def test_a_closed_loop_stops_its_requests(engine, slow):
    async def leave():
        job = engine.submit([request(slow, tokens=LONG)])
        async for _ in job:
            return

    asyncio.run(leave())
    wait_for(lambda: engine.running == 0)
    assert engine.stats.finished["cancelled"] == 1


def test_what_cannot_be_is_refused_before(gpt2):
    with pytest.raises(ContextLengthError):
        request(gpt2, [1] * 2000)
