"""Does prompt lookup pay: on an agent's edits of a file, and where nothing repeats itself?

    python bench/speculation.py MODEL [--dense int8] [--precision auto] [--drafts 32] [--rounds 3]

An agent reads a file and writes it anew, several times with small edits, each as a request of its own. Random weights
would not say that: its ids are forced on the model, which computes what it would. The others are random ids, which are
seldom drafted, and a text that misleads: what follows 1 2 3 is never what followed it before. Turns without and with
drafts alternate in one process, A B A B, each in a scheduler of its own that measures from the start whether drafts
pay. tok/s are those of generation, prompts not counted.
"""

import argparse
import random
import re
import statistics
from pathlib import Path

import numpy as np

import cgpt
from cgpt.generation import speculation
from cgpt.generation.request import Request
from cgpt.generation.sampling import SamplingParams
from cgpt.generation.scheduler import Scheduler
from cgpt.tokenizer.tokenizer import Tokenizer


class Forced:
    """A constraint that lets nothing come but these ids, one after the other."""

    def __init__(self, ids):
        self._ids = iter(ids)

    def mask(self, logits):
        masked = np.full_like(logits, -np.inf)
        masked[next(self._ids)] = 0
        return masked

    def push(self, token_id):
        pass


def edits(tokenizer, vocab_size, turns, tokens, rng):
    """(prompt, answer) of each turn. What a small model has no row for becomes another id, always the same."""

    def encode(text):
        return [token % vocab_size for token in tokenizer.encode(text)]

    text = Path(speculation.__file__).read_text()
    text, found = tokenizer.decode(tokenizer.encode(text)[:tokens]), []
    for turn in range(turns):
        lines = text.splitlines(keepends=True)
        name = rng.choice(sorted(set(re.findall(r"[a-z_]{6,}", text))))
        for at in rng.sample(range(len(lines)), 3):
            lines[at] = f"    note_{turn}_{at} = {rng.random():.3f}  # looked at again\n"
        new = re.sub(rf"\b{name}\b", f"{name}_{turn}", "".join(lines))
        found.append((encode(f"{text}\nRename {name}, and add notes.\n"), encode(new)))
        text = new
    return found


def run(model, turns, drafts):
    """Tokens a second, and of the drafted ids the share that came true and how many there were for each new one."""
    scheduler = Scheduler(model.transformer, prompt_lookup_num_tokens=drafts)
    seconds = new = 0
    for prompt, answer in turns:
        params = SamplingParams(max_new_tokens=len(answer), ignore_eos=True, detokenize=False)
        request = Request(model, prompt, params, constraint=Forced(answer))
        scheduler.add(request)
        while scheduler.has_unfinished:
            scheduler.step()
        assert request.ids == answer
        seconds, new = seconds + request.finished_at - request.first_token_at, new + len(answer) - 1
    done = scheduler.speculation
    return new / seconds, done.num_accepted / max(1, done.num_drafted), done.num_drafted / new


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--dense")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--drafts", type=int, nargs="+", default=[32], help="ids of a draft at most")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=300, help="of the file")
    parser.add_argument("--rounds", type=int, default=3)
    a = parser.parse_args()
    model = cgpt.load(a.model, a.threads, a.precision, a.dense)
    transformer, rng = model.transformer, random.Random(0)
    tokenizer = Tokenizer.packaged("gpt2" if transformer.vocab_size <= 50257 else "o200k_harmony")
    written = edits(tokenizer, transformer.vocab_size, a.turns, a.tokens, rng)
    noise = [[[rng.randrange(500) for _ in ids] for ids in turn] for turn in written]
    false = [[[i % 4 or rng.randrange(4, 500) for i in range(len(ids))] for ids in turn] for turn in written]
    print(f"steps of up to {transformer.uniform_tokens(64)} tokens have the bits of single ones")
    for name, turns in (("edits", written), ("random", noise), ("misleads", false)):
        found = {drafts: [] for drafts in (None, *a.drafts)}
        for _ in range(a.rounds):
            for drafts, rows in found.items():
                rows.append(run(model, turns, drafts))
        plain = [row[0] for row in found[None]]
        print(f"{name:8s}{'plain':>10s}  {statistics.median(plain):8.1f} tok/s")
        for drafts in a.drafts:
            rates, right, drafted = zip(*found[drafts], strict=True)
            ratio = statistics.median(rate / one for rate, one in zip(rates, plain, strict=True))
            print(
                f"{name:8s}{f'drafts {drafts}':>10s}  {statistics.median(rates):8.1f} tok/s  {ratio:.2f} x  "
                f"{statistics.median(drafted):.2f} drafted a token, {statistics.median(right):.0%} right"
            )


if __name__ == "__main__":
    main()
