"""Generation: where it ends, what it returns, and that batches, chunks and streams change nothing."""

import inspect
import time
from collections import UserDict

import numpy as np
import pytest

import cgpt
from cgpt.errors import ContextLengthError, EmptyPromptError, InputError, TokenIdError, TokenizerError
from cgpt.generation.sampling import Sampler, SamplingParams

from golden import case
from support.fake_model import EOS, FakeModel
from support.greedy import load_greedy
from support.request_cases import make_request, make_scheduler

SAMPLED = dict(temperature=0.8, top_k=50, top_p=0.95, min_p=0.01, repetition_penalty=1.1, seed=11)


@pytest.fixture(scope="module")
def gpt2():
    return load_greedy("demo-gpt2", threads=1, precision="exact")


@pytest.fixture(scope="module")
def gpt_oss():
    return load_greedy("demo-gpt-oss", threads=1, precision="exact")


@pytest.fixture
def fake(gpt2):
    def make(text_or_ids=None):
        script = gpt2.tokenizer.encode(text_or_ids) if isinstance(text_or_ids, str) else text_or_ids
        return FakeModel(gpt2.tokenizer, script)

    return make


# ---- The loop, against one that computes everything anew for each token


PENALTY = dict(repetition_penalty=1.3)


@pytest.mark.parametrize("options", [dict(), SAMPLED, PENALTY], ids=["greedy", "sampled", "penalty"])
@pytest.mark.parametrize("name", ["gpt2", "gpt_oss"])
def test_ids_are_those_of_a_plain_loop(name, options, request):
    model = request.getfixturevalue(name)
    prompt = model.tokenizer.encode("The king")
    settings = {key: value for key, value in options.items() if key != "seed"}
    sampler = Sampler(SamplingParams(seed=options.get("seed"), **settings), model.vocab_size, prompt_ids=prompt)
    ids = []
    for _ in range(12):
        ids.append(sampler.choose(model.logits(prompt + ids)[-1]))
    done = model.generate("The king", max_new_tokens=12, ignore_eos=True, **options)
    assert done.ids == ids and all(type(i) is int for i in done.ids)
    assert done.prompt_ids == prompt
    assert done.text == model.tokenizer.decode(ids)
    assert done.finish_reason == "length"
    assert done.logprobs is None and done.top_logprobs is None


@pytest.mark.parametrize("options", [dict(), SAMPLED], ids=["greedy", "sampled"])
def test_logprobs_are_those_of_the_models_own_distribution(gpt2, options):
    done = gpt2.generate("The king", max_new_tokens=20, logprobs=3, **options)
    scores = gpt2.score(done.prompt_ids + done.ids)[len(done.prompt_ids) - 1 :]
    assert done.logprobs.dtype == np.float32 and done.logprobs.shape == (20,)
    np.testing.assert_allclose(done.logprobs, scores, rtol=0, atol=1e-5)
    rows = gpt2.logits(done.prompt_ids + done.ids)[len(done.prompt_ids) - 1 : -1]
    for row, top, token, logprob in zip(rows, done.top_logprobs, done.ids, done.logprobs, strict=True):
        assert list(top) == np.argsort(-row, kind="stable")[:3].tolist()
        assert list(top.values()) == sorted(top.values(), reverse=True)
        assert top.get(token, logprob) == pytest.approx(logprob, abs=1e-6)


def test_logprobs_only_of_what_was_asked_for(gpt2):
    for asked, alternatives in ((True, None), (0, None), (1, 1), (np.int64(2), 2), (5000, gpt2.vocab_size)):
        done = gpt2.generate("The king", max_new_tokens=2, logprobs=asked)
        assert len(done.logprobs) == 2
        assert (done.top_logprobs and len(done.top_logprobs[1])) == alternatives
    assert gpt2.generate("The king", max_new_tokens=2, logprobs=False).logprobs is None


# ---- Where it ends


def test_eos_ends_it_and_stays_out_of_the_text(fake):
    model = fake("Good morrow, cousin.")
    said = model.script
    model.script = [*said, EOS, *said, EOS]
    done = model.generate([0])
    assert (done.text, done.ids, done.finish_reason) == ("Good morrow, cousin.", [*said, EOS], "stop")
    done = model.generate([0], ignore_eos=True, max_new_tokens=len(said) + 3)
    assert (done.ids, done.finish_reason) == (model.script[: len(said) + 3], "length")
    assert "<|endoftext|>" in done.text


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_stop_ids_end_it_and_stay_out_of_the_text(fake, ignore_eos):
    model = fake([5, 6, 7, 8])
    for stop in (7, np.int64(7), [7], [100, 7], {7}, (7, "never")):
        done = model.generate([0], stop=stop, ignore_eos=ignore_eos)
        assert (done.ids, done.finish_reason) == ([5, 6, 7], "stop")
        assert done.text == model.tokenizer.decode([5, 6])


def test_max_new_tokens(fake):
    assert len(fake().generate([1, 2], ignore_eos=True).ids) == 256
    for n in (1, 2, 50):
        done = fake().generate([1, 2], max_new_tokens=n, ignore_eos=True)
        assert (len(done.ids), done.finish_reason) == (n, "length")


@pytest.mark.parametrize("room", [0, 1, 5])
def test_a_full_context_ends_it(gpt2, room):
    prompt = list(range(gpt2.context_length - room))
    done = gpt2.generate(prompt, ignore_eos=True)
    assert (len(done.ids), done.finish_reason) == (room + 1, "length")


def test_a_sequence_has_room_for_what_may_come_and_is_given_back(fake):
    model = fake()
    request = make_request(model, [1, 2, 3], max_new_tokens=4)
    scheduler = make_scheduler(model, [request])
    scheduler.step()
    assert request.cache.context == 3 + 4 - 1
    while scheduler.has_unfinished:
        scheduler.step()
    assert request.cache is None
    assert [sum(sizes) for sizes, _ in model.steps] == [3, 1, 1, 1]


# ---- Stop strings and whole characters

STOPS = [
    ("one two three", ["two"], "one ", "stop"),
    ("one two three", "two", "one ", "stop"),
    ("one two three", ["three", "two"], "one ", "stop"),
    ("one two three", ["o t"], "one tw", "stop"),
    ("one two three", ["one"], "", "stop"),
    ("one two three", ["four", "threes"], "one two three", "length"),
    ("one two three", ["e two t", "two"], "one ", "stop"),
    ("one two three", ["one two three four", "two"], "one ", "stop"),
    ("aaab", ["aab"], "a", "stop"),
    ("abcabd", ["abd"], "abc", "stop"),
    ("sigh \u2026 \U0001f451 end", ["\U0001f451"], "sigh \u2026 ", "stop"),
    ("sigh \u2026 \U0001f451 end", ["\u2026 \U0001f451 e"], "sigh ", "stop"),
]


@pytest.mark.parametrize("by_bytes", [False, True])
@pytest.mark.parametrize("said, stop, text, reason", STOPS, ids=str)
def test_stop_strings(fake, said, stop, text, reason, by_bytes):
    model = fake(said)
    if by_bytes:
        byte = {model.tokenizer.token_bytes(i): i for i in range(EOS)}
        model.script = [byte[bytes([b])] for b in said.encode()]
    done = model.generate([0], stop=stop, max_new_tokens=len(model.script))
    assert (done.text, done.finish_reason) == (text, reason)
    assert done.ids == model.script[: len(done.ids)]
    assert "".join(model.stream([0], stop=stop, max_new_tokens=len(model.script))) == text
    if by_bytes and reason == "stop":  # it ended with the very byte that completed a stop string
        stops = [stop] if isinstance(stop, str) else stop
        assert not any(one in model.tokenizer.decode(done.ids[:-1]) for one in stops)


def test_what_was_held_back_comes_when_eos_ends_it(fake):
    model = fake("one tw")
    model.script.append(EOS)
    assert model.generate([0], stop="two").text == "".join(model.stream([0], stop="two")) == "one tw"
    model.script = [*fake("\U0001f451").script[:-1], EOS]
    assert model.generate([0]).text == "".join(model.stream([0])) == "\ufffd"


def test_pieces_are_whole_characters(fake):
    said = "caf\u00e9 \U0001f468\u200d\U0001f469\u200d\U0001f467 na\u00efve \u4f60\u597d"
    model = fake(said)
    pieces = list(model.stream([0], max_new_tokens=len(model.script)))
    assert "".join(pieces) == said == model.generate([0], max_new_tokens=len(model.script)).text
    assert len(pieces) > 10 and all(pieces) and "\ufffd" not in "".join(pieces)


def test_a_broken_character_at_the_end_is_decoded_as_the_tokenizer_does(fake):
    model = fake("so \U0001f451")
    n = len(model.script) - 1
    assert n > 1
    done = model.generate([0], max_new_tokens=n)
    assert done.text == model.tokenizer.decode(model.script[:n]) == "so \ufffd"
    assert "".join(model.stream([0], max_new_tokens=n)) == "so \ufffd"


# ---- Streams, batches, chunks, threads


@pytest.mark.parametrize("options", [dict(), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", ["gpt2", "gpt_oss"])
def test_a_stream_is_the_text_of_generate(name, options, request):
    model = request.getfixturevalue(name)
    text = model.generate("The king", max_new_tokens=30, stop=["zzz", "\nThe q"], **options).text
    pieces = list(model.stream("The king", max_new_tokens=30, stop=["zzz", "\nThe q"], **options))
    assert "".join(pieces) == text and len(pieces) > 10


def test_a_stream_computes_what_is_asked_of_it(fake):
    model = fake("To be, or not to be")
    pieces = model.stream([0])
    assert model.steps == []
    next(pieces)
    next(pieces)
    assert len(model.steps) == 2
    pieces.close()
    assert list(pieces) == [] and len(model.steps) == 2


@pytest.mark.parametrize("options", [dict(), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", ["gpt2", "gpt_oss"])
def test_a_batch_is_its_prompts_alone(name, options, request):
    model = request.getfixturevalue(name)
    prompts = ["The king", "O", [5, 6, 7], np.array([9, 8]), "The king", "What ho! " * 20]
    options = options | dict(max_new_tokens=9, logprobs=2)
    together = model.generate(prompts, **options)
    for prompt, got in zip(prompts, together, strict=True):
        alone = model.generate(prompt, **options)
        assert (got.ids, got.text, got.finish_reason) == (alone.ids, alone.text, alone.finish_reason)
        assert np.array_equal(got.logprobs, alone.logprobs) and got.top_logprobs == alone.top_logprobs


def test_a_list_of_ids_is_one_prompt_and_a_list_of_lists_a_batch(gpt2):
    alone = gpt2.generate([5, 6, 7], max_new_tokens=3).ids
    for one in ([5, 6, 7], (5, 6, 7), np.array([5, 6, 7], np.uint16), range(5, 8)):
        assert gpt2.generate(one, max_new_tokens=3).ids == alone
    for batch in ([[5, 6, 7]] * 2, ((5, 6, 7),) * 2, np.array([[5, 6, 7]] * 2)):
        assert [done.ids for done in gpt2.generate(batch, max_new_tokens=3)] == [alone] * 2


def test_each_prompt_of_a_batch_may_have_its_own_seed(gpt2):
    options = dict(temperature=1.0, max_new_tokens=10)
    same = gpt2.generate(["The king"] * 3, seed=4, **options)
    assert len({done.text for done in same}) == 1
    differ = gpt2.generate(["The king"] * 3, seed=range(3), **options)
    alone = [gpt2.generate("The king", seed=seed, **options) for seed in range(3)]
    assert [done.text for done in differ] == [done.text for done in alone]
    assert len({done.text for done in differ}) == 3
    assert len({done.text for done in gpt2.generate(["The king"] * 3, **options)}) == 3


@pytest.mark.parametrize("precision", ["auto", "exact"])
@pytest.mark.parametrize("name", ["demo-gpt2", "demo-gpt-oss"])
def test_texts_do_not_depend_on_the_threads(name, precision):
    texts = set()
    for threads in (1, 2, 3):
        model = load_greedy(name, threads=threads, precision=precision)
        texts.add(model.generate("The king", max_new_tokens=30, ignore_eos=True, **SAMPLED).text)
    assert len(texts) == 1


def test_times(fake):
    before = time.perf_counter()
    done = fake().generate([1, 2], max_new_tokens=20)
    assert done.prefill_seconds > 0 and done.decode_seconds > 0
    assert done.prefill_seconds + done.decode_seconds <= time.perf_counter() - before
    assert fake().generate([1, 2], max_new_tokens=1).decode_seconds < 0.01


def test_the_loop_costs_little_beside_the_model(fake):
    """Less than 100 us of CPU time per token, a hundredth of what a token of GPT-2 takes."""
    model = fake()
    logits = np.zeros((1, 50257), np.float32)
    model.transformer.step = lambda batch, rows, head: logits
    times = []
    for _ in range(5):
        before = time.process_time()
        model.generate([1, 2], max_new_tokens=500, ignore_eos=True)
        times.append(time.process_time() - before)
    assert min(times) / 500 < 100e-6


# ---- What is refused, before anything is computed


BAD_ARGUMENTS = [
    *(dict(max_new_tokens=bad) for bad in (0, -1, 2.0, True, "5")),
    *(dict(stop=bad) for bad in ("", ["a", ""], b"a", 1.5, [["a"]], True, 2048, [-1])),
    *(dict(logprobs=bad) for bad in (-1, 1.5, "5")),
    *(dict(seed=bad) for bad in (-2, "x", [1, 2])),
    *(dict(temperature=bad) for bad in (-1, float("nan"))),
    dict(top_k=-2),
    dict(top_p=1.5),
    dict(min_p=-1),
    dict(repetition_penalty=0),
]


@pytest.mark.parametrize("options", BAD_ARGUMENTS, ids=str)
@pytest.mark.parametrize("call", [cgpt.Model.generate, cgpt.Model.stream], ids=["generate", "stream"])
def test_bad_arguments(fake, call, options):
    model = fake()
    with pytest.raises(InputError) as refusal:
        call(model, [1, 2], **options)
    assert next(iter(options)) in str(refusal.value)
    assert model.steps == []


TOO_LONG = list(range(257))
BAD_PROMPTS = {
    EmptyPromptError: ["", [], [[1], []], ["a", ""], np.zeros((2, 0), int)],
    TokenIdError: [[5, 2048], [[5], [-1]]],
    ContextLengthError: [TOO_LONG, [[1], TOO_LONG], "word " * 300],
    InputError: [[1.5], [True, False], None, 5, b"bytes", [1, "a"], {"a": 1}, [[[1]]], [[1, [2]]]],
}


@pytest.mark.parametrize("error", BAD_PROMPTS)
def test_bad_prompts(gpt2, monkeypatch, error):
    monkeypatch.setattr(gpt2.transformer, "step", None)
    for prompt in BAD_PROMPTS[error]:
        with pytest.raises(error) as refusal:
            gpt2.generate(prompt)
        assert type(refusal.value) is error


def test_a_prompt_beyond_the_context_is_told_its_length(gpt2):
    with pytest.raises(ContextLengthError, match="257 tokens, the model 256 positions"):
        gpt2.stream(TOO_LONG)


def test_seeds_must_match_the_prompts(gpt2):
    with pytest.raises(InputError, match="2 seeds for 3 prompts"):
        gpt2.generate(["a"] * 3, seed=[1, 2])


def test_a_stream_takes_one_prompt(gpt2):
    with pytest.raises(InputError, match="flat list"):
        gpt2.stream(["a", "b"])


def test_unknown_options(gpt2):
    with pytest.raises(InputError, match="no argument 'top_q'; did you mean top_p?"):
        gpt2.generate("a", top_q=1)
    with pytest.raises(InputError, match="no argument 'elephants'; it has prompt, max_new_tokens"):
        gpt2.generate("a", elephants=1)
    with pytest.raises(InputError, match="prompt"):
        gpt2.generate()


def test_every_option_is_explained():
    options = [
        name for name, p in inspect.signature(cgpt.Model.generate).parameters.items() if p.kind is p.KEYWORD_ONLY
    ]
    assert len(options) == 18
    for name in options:
        assert name in cgpt.Model.generate.__doc__
        assert name in ("prefix_cache", "special") or name in SamplingParams.__doc__


def test_special_tokens_in_a_prompt_are_text_and_warn_once():
    model = cgpt.load("demo-gpt2")
    text = "Hello<|endoftext|>"
    with pytest.warns(UserWarning, match=r"'<\|endoftext\|>'.*special=True, --special") as caught:
        for _ in range(2):
            assert EOS not in model.generate(text, max_new_tokens=1).prompt_ids
    assert len(caught) == 1


@pytest.mark.filterwarnings("error")
def test_special_reads_names_of_special_tokens_as_them(gpt2):
    text, ids = "Hello<|endoftext|>", [*gpt2.encode_prompt("Hello"), EOS]
    assert gpt2.encode_prompt(text, special=True) == ids
    assert gpt2.generate([text, "Hello"], max_new_tokens=2, special=True)[0].prompt_ids == ids
    options = dict(max_new_tokens=5, ignore_eos=True)
    assert "".join(gpt2.stream(text, special=True, **options)) == gpt2.generate(ids, **options).text
    for call in (gpt2.score, gpt2.logits, gpt2.hidden):
        np.testing.assert_array_equal(call(text, special=True), call(ids))
    assert (gpt2.inspect(text, "hidden", special=True)["hidden"] == gpt2.inspect(ids, "hidden")["hidden"]).all()
    with pytest.raises(InputError, match="special is True or False"):
        gpt2.encode_prompt(text, special="all")


def test_output_without_the_names_of_special_tokens(gpt2):
    options = dict(max_new_tokens=4, logit_bias={EOS: 1e9}, ignore_eos=True)
    assert gpt2.generate("Hello", **options).text == "<|endoftext|>" * 4  # as ever, the default
    assert gpt2.generate("Hello", skip_special_tokens=True, **options).text == ""
    assert "".join(gpt2.stream("Hello", skip_special_tokens=True, **options)) == ""


class Tensor:
    """What torch.Tensor has of an array."""

    def __init__(self, values):
        self.values, self.ndim = np.array(values), np.ndim(values)

    def tolist(self):
        return self.values.tolist()


class ArrayTensor(Tensor):
    def __array__(self, dtype=None, copy=None):
        return self.values


class BatchEncoding(UserDict):
    """What transformers' tokenizers return."""


def test_prompts_as_other_libraries_have_them(gpt2):
    ids = gpt2.encode_prompt("Hello")
    for wrap in (np.array, Tensor, ArrayTensor, list):
        for prompt in (wrap(ids), wrap([ids]), {"input_ids": wrap(ids)}, BatchEncoding(input_ids=wrap([ids]))):
            assert gpt2.encode_prompt(prompt) == ids
            assert "".join(gpt2.stream(prompt, max_new_tokens=2)) == gpt2.generate(ids, max_new_tokens=2).text
        (done,) = gpt2.generate(BatchEncoding(input_ids=wrap([ids])), max_new_tokens=1)
        assert gpt2.generate({"input_ids": wrap(ids)}, max_new_tokens=1).ids == done.ids
        assert [one.prompt_ids for one in gpt2.generate([wrap(ids), wrap([5])], max_new_tokens=1)] == [ids, [5]]
    padded = BatchEncoding(input_ids=Tensor([[0, 7], [5, 6]]), attention_mask=Tensor([[0, 1], [1, 1]]))
    assert [one.prompt_ids for one in gpt2.generate(padded, max_new_tokens=1)] == [[7], [5, 6]]
    for prompt in ({"ids": ids}, {}, {"input_ids": ids, "attention_mask": [1]}, [ids, ids], object()):
        with pytest.raises(InputError, match="input_ids"):
            gpt2.encode_prompt(prompt)


# ---- Models without a tokenizer


def test_without_a_tokenizer_ids_go_in_and_out():
    golden = case("gpt2_plain_f32")
    model = cgpt.load(golden.directory, precision="exact")
    prompt = next(prompt for prompt in golden.prompts() if prompt.greedy)
    done = model.generate(prompt.tokens, max_new_tokens=32, ignore_eos=True, logprobs=True)
    assert (done.ids, done.text) == (prompt.greedy, None) and len(done.logprobs) == 32
    stop = prompt.greedy[5]
    assert model.generate(prompt.tokens, stop=stop, ignore_eos=True).ids[-1] == stop
    for call in (
        lambda: model.generate("text"),
        lambda: model.generate([1], stop="text"),
        lambda: model.stream([1]),
    ):
        with pytest.raises(TokenizerError, match="tokenizer"):
            call()
