"""/v1/completions and the small endpoints, asked by OpenAI's own client over a real socket."""

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cgpt
from cgpt.errors import CheckpointError, NumericsError
from cgpt.serve import errors
from cgpt.serve.app import THREADS
from cgpt.serve.limits import Limits
from cgpt.serve.stream import paused_dumps

from support.serve_cases import serving, wait_for

ROMEO = "ROMEO:\nBut soft, what light"


@pytest.fixture(scope="module")
def model():
    return cgpt.load("demo-gpt2", precision="exact")


@pytest.fixture(scope="module")
def served(model):
    with serving(model, limits=Limits(n=4, requests=8, max_tokens=200)) as served:
        yield served


@pytest.fixture(scope="module")
def client(served):
    return served.client()


def complete(client, prompt=ROMEO, **options):
    return client.completions.create(model="demo", prompt=prompt, **options)


def test_a_completion_is_what_the_model_generates(client, model):
    ids = model.tokenizer.encode(ROMEO)
    for options in ({"temperature": 0}, {"temperature": 0.9, "top_p": 0.8, "seed": 5}, {"seed": -3}):
        done = complete(client, max_tokens=12, **options)
        seed = options.get("seed")
        alone = model.generate(
            ROMEO,
            max_new_tokens=12,
            temperature=options.get("temperature", 1.0),
            top_p=options.get("top_p"),
            seed=None if seed is None else seed % 2**64,
        )
        (choice,) = done.choices
        assert (choice.text, choice.finish_reason, choice.index) == (alone.text, "length", 0)
        assert choice.logprobs is None and done.object == "text_completion" and done.model == "demo"
        assert done.usage.prompt_tokens == len(ids) and done.usage.completion_tokens == 12
        assert done.usage.total_tokens == len(ids) + 12
    assert done.usage.prompt_tokens_details.cached_tokens == len(ids) - 1


def test_what_other_engines_pass_to_turn_settings_off(client):
    first = complete(client, temperature=0).choices[0].text
    for off in ({"top_k": 0}, {"top_k": -1}, {"seed": -1}):
        assert complete(client, temperature=0, extra_body=off).choices[0].text == first
    texts = {complete(client, seed=-1, max_tokens=30, temperature=2).choices[0].text for _ in range(3)}
    assert len(texts) > 1  # no seed


def test_special_tokens_in_prompts_and_texts(client, model):
    eos = model.eos_token_ids[0]
    ids = [*model.tokenizer.encode("Hello"), eos]
    text = "Hello<|endoftext|>"
    done = complete(client, text, max_tokens=5, temperature=0, extra_body={"special": True})
    assert done.choices[0].text == model.generate(ids, max_new_tokens=5).text
    assert done.usage.prompt_tokens == len(ids)
    options = dict(max_tokens=3, temperature=0, echo=True, logprobs=1)
    kept = complete(client, ids, **options).choices[0]
    skipped = complete(client, ids, **options, extra_body={"skip_special_tokens": True}).choices[0]
    assert kept.text == skipped.text.replace("Hello", text, 1)
    assert skipped.logprobs.text_offset[-1] == kept.logprobs.text_offset[-1] - len("<|endoftext|>")


def test_prompts_of_all_kinds(client, model):
    ids = model.tokenizer.encode(ROMEO)
    texts = [model.generate(p, max_new_tokens=5).text for p in (ROMEO, "JULIET:")]
    for prompt in ([ROMEO, "JULIET:"], [ids, model.tokenizer.encode("JULIET:")]):
        done = complete(client, prompt, max_tokens=5, temperature=0)
        assert [choice.text for choice in done.choices] == texts
        assert [choice.index for choice in done.choices] == [0, 1]
    assert complete(client, ids, max_tokens=5, temperature=0).choices[0].text == texts[0]
    assert len(complete(client, "a", temperature=0).choices[0].text) == len(
        model.generate("a", max_new_tokens=16).text
    )  # OpenAI's default


def test_echo_and_logprobs(client, model):
    """What lm-evaluation-harness reads: every token of the prompt scored, with its place in the text."""
    done = complete(client, max_tokens=3, temperature=0, echo=True, logprobs=2).choices[0]
    ids, new = model.tokenizer.encode(ROMEO), model.generate(ROMEO, max_new_tokens=3, logprobs=2)
    log = done.logprobs
    assert done.text == ROMEO + new.text
    assert "".join(log.tokens) == done.text and len(log.tokens) == len(ids) + 3
    assert log.token_logprobs[0] is None and log.top_logprobs[0] is None
    assert np.array_equal(np.array(log.token_logprobs[1 : len(ids)], np.float32), model.score(ROMEO))
    assert np.array_equal(np.array(log.token_logprobs[len(ids) :], np.float32), new.logprobs)
    for token, offset in zip(log.tokens, log.text_offset, strict=True):
        assert done.text[offset : offset + len(token)] == token
    for token, logprob, top in zip(log.tokens[1:], log.token_logprobs[1:], log.top_logprobs[1:], strict=True):
        assert top[token] == logprob and len(top) in (2, 3) and max(top.values()) == list(top.values())[0]


def test_only_the_prompt_is_scored(client, model):
    done = complete(client, max_tokens=0, echo=True, logprobs=0)
    choice = done.choices[0]
    assert choice.text == ROMEO and choice.finish_reason == "length" and done.usage.completion_tokens == 0
    assert len(choice.logprobs.tokens) == done.usage.prompt_tokens
    assert [list(top.values()) for top in choice.logprobs.top_logprobs[1:]] == [
        [logprob] for logprob in choice.logprobs.token_logprobs[1:]
    ]
    assert complete(client, max_tokens=0).choices[0].text == ""
    assert complete(client, max_tokens=1, echo=True).choices[0].text.startswith(ROMEO)


def test_tokens_within_characters(client, model):
    """The text of one that is not whole is written as bytes; offsets count characters."""
    done = complete(client, "naïve 😀", max_tokens=0, echo=True, logprobs=1).choices[0]
    log, text = done.logprobs, done.text
    assert text == "naïve 😀" and any(token.startswith("bytes:\\x") for token in log.tokens)

    def raw(token):
        return bytes.fromhex(token[6:].replace("\\x", "")) if token.startswith("bytes:") else token.encode()

    assert b"".join(map(raw, log.tokens)).decode() == text
    for token, offset in zip(log.tokens, log.text_offset, strict=True):
        assert token.startswith("bytes:") or text[offset:].startswith(token)


@pytest.mark.parametrize(
    "options", [{}, {"logprobs": 2}, {"logprobs": 1, "echo": True, "n": 3}, {"stop": ["e ", "\n"], "logprobs": 0}]
)
def test_a_stream_is_the_completion_in_pieces(client, options):
    options = {"max_tokens": 30, "seed": 1} | options
    whole = complete(client, **options)
    chunks = list(complete(client, stream=True, stream_options={"include_usage": True}, **options))
    assert chunks[-1].choices == [] and all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1 and len(chunks) > 3
    for choice in whole.choices:
        mine = [c.choices[0] for c in chunks[:-1] if c.choices[0].index == choice.index]
        assert "".join(part.text for part in mine) == choice.text
        assert [part.finish_reason for part in mine] == [None] * (len(mine) - 1) + [choice.finish_reason]
        if choice.logprobs:
            joined = [part.logprobs.model_dump() for part in mine]
            for key, value in choice.logprobs.model_dump().items():
                assert sum((part[key] for part in joined), []) == value


def test_stop_strings_cut_text_and_logprobs(client, model):
    text = model.generate(ROMEO, max_new_tokens=40).text
    whole = complete(client, max_tokens=40, temperature=0, logprobs=1).choices[0].logprobs
    assert "".join(whole.tokens) == text and whole.text_offset[0] == 0
    parts = 0
    for start in range(20, 28):
        stop = text[start : start + 3]
        ask = dict(max_tokens=40, temperature=0, stop=stop, logprobs=1, echo=bool(start % 2))
        done = complete(client, **ask).choices[0]
        cut, before = text.index(stop), ROMEO * ask["echo"]
        assert done.text == before + text[:cut] and done.finish_reason == "stop"
        count, log = sum(offset < cut for offset in whole.text_offset), done.logprobs
        parts += text.startswith("".join(whole.tokens[:count])[cut:], cut) and len("".join(whole.tokens[:count])) > cut
        assert log.tokens[-count:] == whole.tokens[:count] and log.top_logprobs[-count:] == whole.top_logprobs[:count]
        assert log.text_offset[-count:] == [len(before) + offset for offset in whole.text_offset[:count]]
        assert len(log.tokens) == count + len(model.tokenizer.encode(before))
        streamed, length = [], 0
        for chunk in complete(client, stream=True, **ask):
            part, length = chunk.choices[0], length + len(chunk.choices[0].text)
            assert all(offset < length for offset in part.logprobs.text_offset)
            streamed += zip(part.logprobs.tokens, part.logprobs.text_offset, strict=True)
        assert streamed == list(zip(log.tokens, log.text_offset, strict=True))
    assert parts  # tokens of which a part was cut


def test_n_and_best_of(client, model):
    alone = [model.generate(ROMEO, max_new_tokens=8, temperature=1.0, seed=s, logprobs=True) for s in range(7, 11)]
    done = complete(client, n=4, seed=7, max_tokens=8)
    assert [choice.text for choice in done.choices] == [one.text for one in alone]
    assert done.usage.completion_tokens == 32 and done.usage.prompt_tokens == len(alone[0].prompt_ids)
    best = sorted(alone, key=lambda one: -one.logprobs.mean())
    done = complete(client, n=2, best_of=4, seed=7, max_tokens=8)
    assert [choice.text for choice in done.choices] == [one.text for one in best[:2]]
    assert [choice.index for choice in done.choices] == [0, 1] and done.choices[0].logprobs is None


@pytest.mark.parametrize("options", [{"n": 4}, {"n": 2, "best_of": 4}, {"n": 3, "echo": True, "logprobs": 2}])
def test_n_reads_its_prompt_once(model, monkeypatch, options):
    step, read, encode, encoded = model.transformer.step, [], model.tokenizer.encode, []

    def counting(batch, **how):
        read.append(sum(len(ids) for _, ids in batch))
        return step(batch, **how)

    def encoding(text, **options):
        encoded.append(text)
        return encode(text)

    monkeypatch.setattr(model.transformer, "step", counting)
    monkeypatch.setattr(model.tokenizer, "encode", encoding)
    made, prompt = options.get("best_of", options["n"]), "Enter the king and his men. " * 6
    for cache in (0, None):
        with serving(model, prefix_cache_bytes=cache) as served:
            read.clear()
            encoded.clear()
            done = complete(served.client(), prompt, max_tokens=5, seed=3, **options)
            assert encoded == [prompt]
        tokens = done.usage.prompt_tokens
        assert sum(read) == tokens + 4 * made and done.usage.prompt_tokens_details.cached_tokens == 0
        assert done.usage.completion_tokens == 5 * made
        assert served.engine.stats.prompt_tokens - served.engine.stats.cached_tokens == tokens
    if "best_of" not in options:
        alone = [model.generate(prompt, max_new_tokens=5, temperature=1.0, seed=3 + i).text for i in range(made)]
        assert [choice.text.removeprefix(prompt) for choice in done.choices] == alone
    if "echo" in options:
        logs = [choice.logprobs for choice in done.choices]
        assert logs[1].token_logprobs[:tokens] == logs[0].token_logprobs[:tokens]
        assert np.array_equal(np.array(logs[2].token_logprobs[1:tokens], np.float32), model.score(prompt))


def test_biases_and_penalties(client, model):
    token = model.tokenizer.encode(" king")[0]
    done = complete(client, max_tokens=4, temperature=0, logit_bias={str(token): 100})
    assert done.choices[0].text == " king" * 4
    done = complete(client, max_tokens=8, temperature=0, logit_bias={str(token): 20}, frequency_penalty=2.0)
    alone = model.generate(ROMEO, max_new_tokens=8, logit_bias={token: 20}, frequency_penalty=2.0)
    assert done.choices[0].text == alone.text


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"prompt": None}, "prompt must be a text"),
        ({"prompt": []}, "prompt must be a text"),
        ({"prompt": ["a", 1]}, "prompt must be a text"),
        ({"prompt": [[1], []]}, "prompt must be a text"),
        ({"prompt": [-1]}, "prompt must be a text"),
        ({"prompt": [999_999]}, "token id 999999 is not in the vocabulary"),
        ({"prompt": ""}, "the prompt holds no token"),
        ({"prompt": "a " * 300}, "301 tokens, the model 256 positions"),
        ({"prompt": ["a"] * 9}, "8 texts at most"),
        ({"suffix": "x"}, "suffix cannot be used"),
        ({"max_tokens": 1.5}, "max_tokens must be an integer"),
        ({"n": 5}, "n must be an integer from 1 to 4"),
        ({"n": 3, "best_of": 2}, "best_of must be an integer from 3"),
        ({"best_of": 2, "stream": True}, "best_of above n cannot be streamed"),
        ({"temperature": -1}, "temperature must be a number from 0 to 2"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"top_p": 0}, "top_p must be a number"),
        ({"presence_penalty": 3}, "presence_penalty must be a number from -2 to 2"),
        ({"logprobs": 21}, "logprobs must be an integer from 0 to 20"),
        ({"logprobs": True}, "logprobs must be an integer"),
        ({"stop": ["x"] * 17}, "stop must be a string or 16 at most"),
        ({"stop": "x" * 257}, "of 256 characters"),
        ({"stop": [1]}, "stop must be a string"),
        ({"seed": 2**63}, "seed must be an integer"),
        ({"logit_bias": {"x": 1}}, "logit_bias must have token ids as keys"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1 must be a number from -100 to 100"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias may name 1024 tokens at most"),
        ({"logit_bias": {"99999": 1}}, "logit_bias must have token ids as keys, 0 to"),
        ({"stream_options": {"include_usage": True}}, "stream_options goes with stream"),
        ({"stream": "yes"}, "stream must be true or false"),
    ],
)
def test_what_cannot_be_asked(served, fields, message):
    error = served.refused("/v1/completions", {"prompt": ROMEO} | fields)
    assert message in error["message"] and error["type"] == "invalid_request_error"


def test_errors_are_those_of_the_client(client, served):
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, "a " * 300)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, n=99)
    assert caught.value.param == "n"
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="gpt-4", prompt="a")
    assert caught.value.code == "model_not_found" and "this server has 'demo'" in str(caught.value)
    assert served.refused("/v1/nothing", {}, 404)["message"].startswith("Not Found; the endpoints are /v1/completions")
    status, headers, _ = served.ask("GET", "/v1/completions")
    assert status == 405 and headers["allow"] == "POST"


def test_models(client, served):
    (card,) = client.models.list().data
    assert (card.id, card.owned_by, card.max_model_len) == ("demo", "cgpt", 256)
    assert client.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other/model")


def test_tokenize_and_back(served, model):
    text = "naïve <|endoftext|> 😀 \ud800"
    ids = model.tokenizer.encode(text)
    for key in ("prompt", "content"):
        status, _, found = served.post("/tokenize", {key: text})
        assert status == 200 and found == {"tokens": ids, "count": len(ids), "max_model_len": 256}
    found = served.post("/tokenize", {"prompt": "<|endoftext|>", "special": True})[2]
    assert found["tokens"] == list(model.eos_token_ids)
    assert served.post("/detokenize", {"tokens": ids})[2] == {"prompt": text.replace("\ud800", "\ufffd")}
    assert "outside the vocabulary" in served.refused("/detokenize", {"tokens": [10**6]})["message"]
    assert "list of token ids" in served.refused("/detokenize", {"tokens": ["a"]})["message"]
    assert "prompt is missing" in served.refused("/tokenize", {})["message"]


def test_health_and_metrics(served, client):
    assert served.ask("GET", "/health")[2] == {"status": "ok"}

    def value(name):
        text = served.ask("GET", "/metrics")[2]
        (line,) = [line for line in text.splitlines() if line.startswith(name + " ")]
        return float(line.split()[-1])

    before = {name: value(name) for name in ("cgpt_generated_tokens_total", "cgpt_first_token_seconds_count")}
    complete(client, max_tokens=7)
    served.ask("GET", "/made/up")
    assert value("cgpt_generated_tokens_total") == before["cgpt_generated_tokens_total"] + 7
    assert value("cgpt_first_token_seconds_count") == before["cgpt_first_token_seconds_count"] + 1
    assert value('cgpt_http_requests_total{path="other",status="404"}') >= 1 and value("cgpt_running") == 0
    assert "cgpt_expert" not in served.ask("GET", "/metrics")[2], "nothing is streamed"


def test_many_at_once_get_what_they_would_get_alone(client, model):
    """Sixteen clients, streaming, some of which leave: with precision="exact" every text is that of a lone request."""
    prompts = [f"Scene {i}. {'Enter a king. ' * (i % 5)}" for i in range(16)]
    alone = [model.generate(p, max_new_tokens=25, temperature=0.7, seed=i).text for i, p in enumerate(prompts)]

    def ask(i):
        text = ""
        with complete(client, prompts[i], max_tokens=25, temperature=0.7, seed=i, stream=True) as stream:
            for count, chunk in enumerate(stream):
                text += chunk.choices[0].text
                if i % 4 == 3 and count == i:
                    return None
        return text

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(ask, range(16)))
    assert [one for i, one in enumerate(found) if i % 4 != 3] == [one for i, one in enumerate(alone) if i % 4 != 3]


@pytest.fixture
def slow(model, monkeypatch):
    """Steps of 20 ms, so that a text of 200 tokens takes four seconds."""
    step, pause = model.transformer.step, threading.Event()

    def slower(*args, **how):
        pause.wait(0.02)
        return step(*args, **how)

    monkeypatch.setattr(model.transformer, "step", slower)
    return model


def test_a_client_that_leaves_frees_its_place(slow):
    with serving(slow, max_running=1) as served:
        client, engine = served.client(), served.engine
        stream = complete(client, max_tokens=200, stream=True)
        next(iter(stream))
        assert engine.running == 1
        stream.close()
        wait_for(lambda: engine.running == 0, 2)
        with pytest.raises(openai.APITimeoutError):
            complete(client, max_tokens=200, timeout=0.2)
        wait_for(lambda: engine.running == 0, 2)
        assert engine.stats.finished["cancelled"] == 2 and engine.stats.generated_tokens < 100
        assert complete(client, max_tokens=2).choices[0].finish_reason == "length"


def test_a_full_queue_is_429(slow):
    with serving(slow, max_running=1, max_waiting=1) as served:
        client = served.client()
        streams = [complete(client, max_tokens=200, stream=True) for _ in range(1)]
        next(iter(streams[0]))
        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(complete, client, max_tokens=1)
            wait_for(lambda: served.engine.waiting == 1)
            with pytest.raises(openai.RateLimitError) as caught:
                complete(client)
            assert caught.value.code == "rate_limit_exceeded" and int(caught.value.response.headers["retry-after"]) >= 1
            streams[0].close()
            assert second.result().choices[0].finish_reason == "length"


def test_a_step_that_fails_is_told_and_survived(model, monkeypatch):
    with serving(model) as served:
        client, step = served.client(), model.transformer.step

        def fails(*args, **how):
            raise NumericsError("NaN or infinity in the model's output")

        monkeypatch.setattr(model.transformer, "step", fails)
        with pytest.raises(openai.InternalServerError, match="NumericsError: NaN or infinity"):
            complete(client, stream=True)
        calls = []

        def fails_later(*args, **how):
            calls.append(1)
            return (step if len(calls) < 4 else fails)(*args, **how)

        monkeypatch.setattr(model.transformer, "step", fails_later)
        stream = complete(client, max_tokens=20, stream=True)
        with pytest.raises(openai.APIError, match="NumericsError"):
            for _ in stream:
                pass
        monkeypatch.setattr(model.transformer, "step", step)
        assert complete(client, max_tokens=3).usage.completion_tokens == 3


def test_surrogates_come_back(served):
    status, _, answer = served.post("/v1/completions", json.dumps({"prompt": "a\ud800", "echo": True}).encode())
    assert status == 200 and answer["choices"][0]["text"].startswith("a\ufffd")


@dataclass
class Entry:
    a: object


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.builds(Entry, inner),
        max_leaves=30,
    ),
    st.integers(1, 3),
)
def test_a_long_answer_is_written_as_a_short_one(content, length):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(errors, "SLICE", length)
        assert errors.sliced_dumps(content) == errors.dumps(content)


def test_a_large_event_is_written_as_a_small_one_with_pauses():
    """In which other tasks run, as those of the other clients."""
    logprobs = [{"token": str(i), "top_logprobs": [{"bytes": [1, 2], "logprob": -0.5}] * 20} for i in range(1000)]
    event = {"item": Entry(logprobs), "n": [], "o": {}}

    async def run():
        turns = 0

        async def other():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        found = await paused_dumps(event)
        task.cancel()
        return found, turns

    found, turns = asyncio.run(run())
    assert found == errors.dumps(event) and turns > 10


def test_health_where_the_model_has_failed(model):
    with serving(model) as served:
        served.engine.failure = CheckpointError("/home/x changed on disk")
        status, _, answer = served.ask("GET", "/health")
        assert status == 503 and answer["error"]["code"] == "checkpoint_changed" and "/home" not in str(answer)


def test_what_takes_long_runs_in_few_threads(model, monkeypatch):
    """Whatever the endpoint; the others answer meanwhile."""
    go, running, most = threading.Event(), [], []
    encode = type(model.tokenizer).encode

    def slow(*args, **options):
        running.append(1)
        most.append(len(running))
        go.wait(20)
        running.pop()
        return encode(*args, **options)

    monkeypatch.setattr(type(model.tokenizer), "encode", slow)
    with serving(model) as served, ThreadPoolExecutor(12) as pool:
        asks = [("/tokenize", {"prompt": "a"}), ("/v1/completions", {"prompt": "a", "max_tokens": 1})] * 6
        found = [pool.submit(served.post, *ask) for ask in asks]
        wait_for(lambda: len(running) == THREADS)
        assert served.ask("GET", "/health")[0] == 200
        go.set()
        assert [one.result()[0] for one in found] == [200] * 12 and max(most) == THREADS
