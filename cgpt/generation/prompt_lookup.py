"""Prompt lookup: drafts the next tokens from what followed the same tokens before, in any text of a pool.

Saxena, "Prompt Lookup Decoding" (2023), https://github.com/apoorvumang/prompt-lookup-decoding; transformers'
prompt_lookup_num_tokens, vLLM's method "ngram", llama.cpp's "ngram-mod", which shares a pool of hashed n-grams too.
"""

from operator import mul

import numpy as np

from cgpt.models.base import Ids

NGRAM_SIZES = 12, 3  # ids in a row that must have stood there before; the longer is right more often, and asked first
MULTIPLIER, MASK = 0x9E3779B97F4A7C15, 2**64 - 1
TAG = 0xFFFFFFFF << 32  # the bits of an entry that tell n-grams of one slot apart; the others are an id


class NgramPool:
    """What followed which n-grams, in texts that come in any order and interleaved: a hash table of fixed size, where
    the newest n-gram of a slot replaces what was there. For one thread at a time, as a PrefixCache."""

    def __init__(self, num_slots: int = 1 << 21) -> None:
        """num_slots: a power of two, of 8 bytes each."""
        self._table = np.zeros(num_slots, np.uint64)
        self._slots = self._table.data  # which reads one sooner
        self._shift = 65 - num_slots.bit_length()
        self._powers = {n: [pow(MULTIPLIER, i, 2**64) for i in range(n, 0, -1)] for n in NGRAM_SIZES}

    @property
    def nbytes(self) -> int:
        """Bytes of the table."""
        return self._table.nbytes

    def insert(self, ids: list[int]) -> None:
        """Notes of each of the ids which ones it follows."""
        words = np.array(ids, np.uint64)
        for n in NGRAM_SIZES:
            if n < len(words):
                keys = np.correlate(words[:-1], np.array(self._powers[n], np.uint64))
                self._table[keys >> np.uint64(self._shift)] = keys << np.uint64(32) | words[n:]

    def propose(self, ids: list[int], max_tokens: int) -> list[int]:
        """Returns up to max_tokens ids that may follow `ids`, of which it needs the last max(NGRAM_SIZES): each is what
        followed the ones before it the last time. None where these have not been there."""
        ids = ids[-NGRAM_SIZES[0] :]
        start = len(ids)
        while len(ids) - start < max_tokens and (token := self._next(ids)) is not None:
            ids.append(token)
        return ids[start:]

    def _next(self, ids: list[int]) -> int | None:
        for n in NGRAM_SIZES:
            key = sum(map(mul, self._powers[n], ids[-n:])) & MASK
            entry: int = self._slots[key >> self._shift]
            if entry and entry & TAG == key << 32 & MASK and len(ids) >= n:
                return entry & ~TAG
        return None


class PromptLookup:
    """Drafts tokens for one request. Drafts grow as they come true, and shrink where they do not: a wrong one costs
    what it is long.

    num_drafted, num_accepted: how many tokens were drafted, and came true, so far
    """

    def __init__(self, num_tokens: int) -> None:
        """num_tokens: of a draft at most."""
        self.num_tokens = num_tokens
        self.num_drafted = self.num_accepted = 0
        self._length, self._inserted = 2, 0

    def insert(self, pool: NgramPool, prompt_ids: list[int], ids: list[int]) -> None:
        """Puts what is new of prompt_ids + ids into the pool."""
        known = max(0, self._inserted - NGRAM_SIZES[0])
        pool.insert([*prompt_ids[known:], *ids[max(0, known - len(prompt_ids)) :]])
        self._inserted = len(prompt_ids) + len(ids)

    def propose(self, pool: NgramPool, prompt_ids: list[int], ids: list[int], max_tokens: int) -> Ids:
        """Returns up to `max_tokens` ids that may follow prompt_ids + ids."""
        last = [*prompt_ids[-NGRAM_SIZES[0] :], *ids[-NGRAM_SIZES[0] :]]
        return np.array(pool.propose(last, min(self._length, self.num_tokens, max_tokens)), np.int64)

    def record(self, drafted: int, accepted: int) -> None:
        """Records how many ids of a draft came true."""
        self.num_drafted += drafted
        self.num_accepted += accepted
        if drafted:
            self._length = 2 * accepted + 2
