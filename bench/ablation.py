"""What does each part contribute? An ablation: held-out loss and accuracy of the demo models with one part disturbed.

    python bench/ablation.py [--model demo-gpt2 demo-gpt-oss] [--only window] [--chats 600] [--json]

demo-gpt2 reads scenes of plays that it was not trained on (--text, default tests/golden/demo/heldout.txt) in windows of
a whole context (or --context) that overlap by half, as in its card. demo-gpt-oss reads held-out chats, each task as
often (the problems of its card, seed 2000), loss on the worked solution, and answers them greedily. precision="exact",
the cache f32, so that nothing differs but the switch. Every piece of text is read by both, as it is and disturbed:

    loss      nats per predicted token
    change    of the loss, with its standard error from the differences piece by piece
    KL        nats per token, KL(as it is || disturbed)
    top-1     the share of tokens where both find the same next one likeliest
    right     greedy answers that are exactly right; change with its standard error, again problem by problem

Nothing is trained again. So this measures how far a trained model leans on a part, not how good a model without it
could be. The switches (bench/ablation_switches.py) are this experiment's alone; cgpt has no such options.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
from ablation_switches import SWITCHES

import cgpt
from cgpt.analysis import quality

HELDOUT = Path(__file__).parents[1] / "tests" / "golden" / "demo" / "heldout.txt"
sys.path.append(str(Path(__file__).parent / "demo_training"))  # what the chats were made by; no torch there

SEED, LONGEST = 2000, 320  # the problems of cgpt/demo/README.md: their seed, and the tokens of a prompt
NEW_TOKENS = 200


@dataclass(frozen=True)
class Piece:
    """ids, of which those from `first` on are predicted, and for a chat the answer."""

    ids: list[int]
    first: int
    answer: object = None


@dataclass(frozen=True)
class Row:
    """A line of the table; *_se are standard errors from the differences piece by piece."""

    model: str
    switch: str
    loss: float
    change: float
    change_se: float
    kl: float
    top1: float
    right: int | None = None
    right_change: int | None = None
    right_change_se: float | None = None


def plays(model: cgpt.Model, text: str, context: int | None = None) -> list[Piece]:
    """Windows of a context (None: the model's) that overlap by half, each predicting its second half; the first all."""
    context, ids = context or model.context_length, [*model.eos_token_ids, *model.tokenizer.encode(text)]
    half = context // 2
    return [Piece(ids[s : s + context], half if s else 1) for s in range(0, max(1, len(ids) - half), half)]


def chats(model: cgpt.Model, count: int) -> list[Piece]:
    """Held-out problems, every task in turn, no prompt twice."""
    from demo_harmony import GENERATION_PROMPT, render_message
    from demo_problems import Source
    from demo_tasks import MIX, make_chat

    def encode(messages: list[dict], skip: int, end: list[str]) -> list[int]:
        parts = [part for message in messages for part in render_message(message)][skip:] + end
        return model.tokenizer.encode("".join(parts), allowed_special="all")

    source, tasks, out = Source(SEED, "heldout"), list(MIX), {}
    while len(out) < count:
        chat = make_chat(source, tasks[len(out) % len(tasks)])
        prompt = encode(chat.messages, 0, GENERATION_PROMPT)
        if len(prompt) < LONGEST and tuple(prompt) not in out:
            solution = encode(chat.target, len(GENERATION_PROMPT), [])  # the prompt ends in these
            out[tuple(prompt)] = Piece(prompt + solution, len(prompt), chat.answer)
    return list(out.values())


def predictions(model: cgpt.Model, pieces: list[Piece]) -> list[np.ndarray]:
    """float32 [predicted tokens, V] of each piece."""
    return [model.logits(piece.ids[:-1])[piece.first - 1 :] for piece in pieces]


def right_answers(model: cgpt.Model, pieces: list[Piece]) -> np.ndarray:
    """bool [pieces]: whether the greedy answer is exactly the chat's."""
    from demo_harmony import correct

    done = model.generate([p.ids[: p.first] for p in pieces], max_new_tokens=NEW_TOKENS, temperature=0.0)
    texts = [model.tokenizer.decode(completion.ids) for completion in done]
    return np.array([correct(text, piece.answer) for text, piece in zip(texts, pieces, strict=True)])


def mean_and_error(values: np.ndarray, tokens: np.ndarray) -> tuple[float, float]:
    """The mean over all tokens of what the pieces have as their means, and its standard error where pieces, not tokens,
    are independent: that of a ratio of sums (Cochran, Sampling Techniques, 6.3)."""
    share = tokens / tokens.sum()
    mean, n = (share * values).sum(), len(values)
    return float(mean), float(np.sqrt(n / (n - 1) * ((share * (values - mean)) ** 2).sum()))


@contextmanager
def switched(name: str, change) -> Iterator[cgpt.Model]:
    """The model `name`, with `change` made to it and, until the end, to what it calls."""
    with ExitStack() as stack:
        model = cgpt.load(name, precision="exact")
        change(model.transformer, lambda where, what, value: stack.enter_context(mock.patch.object(where, what, value)))
        yield model


def measure(name: str, pieces: list[Piece], switches: dict) -> Iterator[Row]:
    """A row for the model as it is, then one for each of the switches."""
    solve, count = pieces[0].answer is not None, len(pieces)
    targets = [np.array(piece.ids[piece.first :]) for piece in pieces]
    tokens = np.array([len(ids) for ids in targets])
    model = cgpt.load(name, precision="exact")
    expected, right = predictions(model, pieces), right_answers(model, pieces) if solve else None
    for switch, how in {"as it is": lambda model, patch: None, **switches}.items():
        with switched(name, how) as model:
            found = predictions(model, pieces)
            solved = right_answers(model, pieces) if solve else None
        each = [quality.measure(*three).mean(-1) for three in zip(expected, found, targets, strict=True)]
        kl, agree, before, after = np.transpose(each)
        (loss, _), (change, error) = mean_and_error(after, tokens), mean_and_error(after - before, tokens)
        (kl, _), (agree, _) = mean_and_error(kl, tokens), mean_and_error(agree, tokens)
        row = Row(name, switch, loss, change, error, kl, agree)
        if solve:
            gained = solved.astype(int) - right
            change_se = quality.standard_error(gained) * count
            row = replace(row, right=int(solved.sum()), right_change=int(gained.sum()), right_change_se=change_se)
        yield row


def line(row: Row, pieces: int) -> str:
    text = f"{row.switch:52s}{row.loss:8.4f}{row.change:+9.4f} +-{row.change_se:7.4f}{row.kl:10.2e}{row.top1:8.1%}"
    if row.right is None:
        return text
    return text + f"{row.right:6d} of {pieces}{row.right_change:+5d} +-{row.right_change_se:5.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=list(SWITCHES), default=list(SWITCHES))
    parser.add_argument("--only", default="", help="the switches whose name has this in it")
    parser.add_argument("--chats", type=int, default=600)
    parser.add_argument("--text", default=HELDOUT, help="UTF-8, for demo-gpt2")
    parser.add_argument("--context", type=int, help="tokens of demo-gpt2's windows, 2 to 256 (default: 256)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    a = parser.parse_args()
    for name in a.model:
        model = cgpt.load(name, precision="exact")
        text = Path(a.text).read_text("utf-8")
        pieces = chats(model, a.chats) if name == "demo-gpt-oss" else plays(model, text, a.context)
        if not a.json:
            predicted = sum(len(piece.ids) - piece.first for piece in pieces)
            print(f"\n{name}: {len(pieces)} pieces, {predicted} predicted tokens")
            print(f"{'':52s}{'loss':>8s}{'change':>9s}{'':>10s}{'KL':>10s}{'top-1':>8s}")
        for row in measure(name, pieces, {s: how for s, how in SWITCHES[name].items() if a.only in s}):
            print(json.dumps(asdict(row)) if a.json else line(row, len(pieces)), flush=True)


if __name__ == "__main__":
    main()
