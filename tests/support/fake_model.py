"""A model that says what it is told to, and keeps account of its steps."""

import zlib
from pathlib import Path

import numpy as np

from cgpt.errors import EmptyPromptError

EOS = 2047


class FakeSequence:
    def __init__(self, context):
        self.context, self.ids = context, []

    def snapshot(self):
        return len(self.ids)

    def resume(self, source, place):
        self.ids = source.ids[:place]


class FakeModel:
    """Says `script` after a prompt of one id; without one, its logits depend on every id it has read."""

    directory, context_length, vocab_size, PREFILL_CHUNK = Path("fake"), 1000, 2048, 512
    eos_token_ids = (EOS,)

    def __init__(self, tokenizer, script=None):
        self.tokenizer, self.script = tokenizer, script
        self.steps = []  # of each: how many ids each sequence got, and whether the head ran

    def encode_prompt(self, prompt):
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise EmptyPromptError("the prompt holds no token")
        return ids

    def new_sequence(self, context, slack=0):
        return FakeSequence(context)

    def step(self, batch, head=True):
        self.steps.append(([len(ids) for _, ids in batch], head))
        for sequence, ids in batch:
            sequence.ids += list(ids)
            assert len(sequence.ids) <= sequence.context <= self.context_length
        return np.stack([self._logits(sequence.ids) for sequence, _ in batch]) if head else None

    def _logits(self, ids):
        if self.script is None:
            seed = zlib.crc32(np.array(ids, np.int64).tobytes())
            return np.random.default_rng(seed).standard_normal(self.vocab_size).astype(np.float32)
        logits = np.zeros(self.vocab_size, np.float32)
        logits[self.script[len(ids) - 1]] = 9
        return logits
