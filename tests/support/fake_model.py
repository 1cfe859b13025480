"""A model that says what it is told to, and keeps account of its steps."""

import zlib
from pathlib import Path

import numpy as np

from cgpt.api import Model
from cgpt.models.base import Transformer

EOS = 2047


class FakeCache:
    """Holds ids instead of keys and values."""

    def __init__(self, context):
        self.context, self.ids = context, []

    @property
    def position(self):
        return len(self.ids)

    def snapshot(self):
        return len(self.ids)

    def resume(self, source, position):
        self.ids = source.ids[:position]


class FakeTransformer(Transformer):
    """Predicts `script` after a prompt of one id; without one, its logits depend on every id it has read."""

    context_length, PREFILL_CHUNK = 1000, 512

    def __init__(self, script=None):
        self.vocab_size, self.eos_token_ids, self.closed = 2048, (EOS,), False
        self.script = script
        self.steps = []  # of each: how many ids each sequence got, and whether the head ran

    def new_cache(self, context=None, slack=0):
        return FakeCache(context)

    def step(self, batch, *, rows="last", head=True):
        assert rows == "last"
        self.steps.append(([len(ids) for _, ids in batch], head))
        for cache, ids in batch:
            cache.ids += list(ids)
            assert len(cache.ids) <= cache.context <= self.context_length
        return np.stack([self._logits(cache.ids) for cache, _ in batch]) if head else None

    def _logits(self, ids):
        if self.script is None:
            seed = zlib.crc32(np.array(ids, np.int64).tobytes())
            return np.random.default_rng(seed).standard_normal(self.vocab_size).astype(np.float32)
        logits = np.zeros(self.vocab_size, np.float32)
        logits[self.script[len(ids) - 1]] = 9
        return logits


class FakeModel(Model):
    def __init__(self, tokenizer, script=None):
        super().__init__(FakeTransformer(script), Path("fake"))
        self.tokenizer = tokenizer

    @property
    def steps(self):
        return self.transformer.steps

    @property
    def script(self):
        return self.transformer.script

    @script.setter
    def script(self, ids):
        self.transformer.script = ids
