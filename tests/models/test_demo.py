"""The two trained checkpoints that ship, against what transformers recorded of them (cgpt/demo/README.md).

These are the only trained weights the tests have.  The chat model must answer 204 held-out problems with the
same tokens, and the loss on plays that the other was not trained on must be the same.
"""

import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

import cgpt

from golden import demo_golden as golden

GOLDEN = Path(__file__).parents[1] / "golden" / "demo"
SHIPPED = Path(cgpt.__file__).parent / "demo"
LOGPROB_TOLERANCE = 1e-3  # nats
FILES = {
    "demo-gpt2": {
        "config.json",
        "generation_config.json",
        "merges.txt",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    },
    "demo-gpt-oss": {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    },
}
MESSAGE = re.compile(r"(?:^|<\|start\|>assistant)<\|channel\|>(.*?)<\|message\|>(.*?)(?:<\|end\|>|$)", re.S)


@pytest.fixture(scope="module")
def gpt2():
    return cgpt.load("demo-gpt2", precision="exact")


@pytest.fixture(scope="module")
def gpt_oss():
    return cgpt.load("demo-gpt-oss", precision="exact")


@pytest.fixture(scope="module")
def problems():
    return golden("problems.json")["problems"]


def answers(model, prompts, max_new_tokens):
    """Greedy ids of a batch, without the eos id that may end them."""
    done = model.generate(prompts, max_new_tokens=max_new_tokens, temperature=0.0)
    return [without_eos(model, completion.ids) for completion in done]


def without_eos(model, ids):
    ids = list(ids)
    return ids[:-1] if ids and ids[-1] in model.config.eos_token_ids else ids


def continuation_logprobs(model, prompt, ids):
    return model.score(prompt + ids)[len(prompt) - 1 :]


def assert_close(logprobs, expected):
    np.testing.assert_allclose(logprobs, expected, rtol=0, atol=LOGPROB_TOLERANCE)


def assert_first_tokens(model, prompt, top):
    """top: (id, log-probability) of the likeliest tokens after the prompt."""
    logits = model.logits(prompt)[-1].astype(np.float64)
    logprobs = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    assert np.argsort(-logprobs)[: len(top)].tolist() == [i for i, _ in top]
    assert_close(logprobs[[i for i, _ in top]], [v for _, v in top])


def solves(text, answer):
    """Whether a completion, without its eos, gives the answer: the final text, or the arguments of a call."""
    messages = {head.split(" to=")[-1].split()[0]: body for head, body in MESSAGE.findall(text)}
    if isinstance(answer, dict):
        try:
            return json.loads(messages[answer["name"]]) == answer["arguments"]
        except (KeyError, ValueError):
            return False
    return messages.get("final") == answer


@pytest.mark.parametrize("name", sorted(FILES))
def test_directory_is_like_a_published_one(name):
    assert {path.name for path in (SHIPPED / name).iterdir()} == FILES[name]


def test_gpt2_greedy(gpt2):
    cases = golden("demo-gpt2-expected.json")["cases"]
    got = answers(gpt2, [case["prompt_ids"] for case in cases], max_new_tokens=64)
    assert got == [without_eos(gpt2, case["greedy_ids"]) for case in cases]


def test_gpt2_logprobs(gpt2):
    for case in golden("demo-gpt2-expected.json")["cases"]:
        assert_first_tokens(gpt2, case["prompt_ids"], case["top5"])
        got = continuation_logprobs(gpt2, case["prompt_ids"], case["greedy_ids"])
        assert_close(got, case["greedy_logprobs"])


def test_gpt2_tokenizer(gpt2):
    for case in golden("demo-gpt2-expected.json")["cases"]:
        ids = gpt2.tokenizer.encode(case["prompt"], allowed_special="all")
        assert ids == case["prompt_ids"]
        assert gpt2.tokenizer.decode(ids) == case["prompt"]


def test_gpt2_heldout_loss(gpt2):
    """Nats per token of scenes it was not trained on, by windows of a whole context that overlap by half."""
    expected = golden("demo-gpt2-expected.json")["heldout"]
    context, stride = expected["context"], expected["stride"]
    text = (GOLDEN / "heldout.txt").read_text(encoding="utf-8")
    ids = [*gpt2.config.eos_token_ids, *gpt2.tokenizer.encode(text)]
    logprobs = list(gpt2.score(ids[:context]))
    for start in range(stride, len(ids) - (context - stride), stride):
        logprobs += list(gpt2.score(ids[start : start + context])[context - stride - 1 :])
    assert len(logprobs) == len(ids) - 1 == expected["tokens"]
    assert -np.mean(logprobs) == pytest.approx(expected["loss"], abs=1e-4)


def right_answers(model, problems):
    """Greedy ids of all problems, and whether each gives the problem's answer."""
    got = answers(model, [problem["prompt_ids"] for problem in problems], max_new_tokens=200)
    right = [solves(model.tokenizer.decode(ids), problem["answer"]) for ids, problem in zip(got, problems, strict=True)]
    return got, right


def assert_accuracy(right, problems):
    """At least 95 % overall and 85 % of every task."""
    by_task = defaultdict(list)
    for ok, problem in zip(right, problems, strict=True):
        by_task[problem["task"]].append(ok)
    assert len(by_task) == 12 and min(map(len, by_task.values())) >= 15
    assert np.mean(right) >= 0.95
    assert {task: np.mean(oks) for task, oks in by_task.items() if np.mean(oks) < 0.85} == {}


def test_gpt_oss_greedy(gpt_oss, problems):
    """The same tokens as transformers, so the very problems that it got right."""
    got, right = right_answers(gpt_oss, problems)
    for ids, problem in zip(got, problems, strict=True):
        assert ids == without_eos(gpt_oss, problem["greedy_ids"]), problem["messages"][-1]["content"]
    assert right == [problem["greedy_correct"] for problem in problems]
    assert_accuracy(right, problems)


def test_gpt_oss_accuracy_as_loaded_by_default(problems):
    """With precision "auto" a rounding may turn a token; it must not turn the answers."""
    _, right = right_answers(cgpt.load("demo-gpt-oss"), problems)
    assert_accuracy(right, problems)


def test_gpt_oss_logprobs(gpt_oss, problems):
    for case in golden("demo-gpt-oss-expected.json")["cases"]:
        prompt, ids = problems[case["problem"]]["prompt_ids"], problems[case["problem"]]["greedy_ids"]
        assert_first_tokens(gpt_oss, prompt, case["top5"])
        got = continuation_logprobs(gpt_oss, prompt, ids)
        assert_close(got, case["greedy_logprobs"])


def test_gpt_oss_tokenizer(gpt_oss, problems):
    """Each message's text, found in the prompt's decoded ids, encodes to a run of those ids again."""
    for problem in problems:
        ids, text = problem["prompt_ids"], gpt_oss.tokenizer.decode(problem["prompt_ids"])
        assert gpt_oss.tokenizer.encode(text, allowed_special="all") == ids
        for message in problem["messages"]:
            assert f"<|message|>{message['content']}<|" in text
