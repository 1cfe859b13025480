"""Prompt lookup: drafts the next tokens from what followed the same tokens before.

Saxena, "Prompt Lookup Decoding" (2023), https://github.com/apoorvumang/prompt-lookup-decoding; transformers'
prompt_lookup_num_tokens, vLLM's method "ngram".
"""

import numpy as np

from cgpt.models.base import Ids

NGRAM_MAX, NGRAM_MIN = 3, 2  # ids in a row that must have stood there before; longer ones are preferred


class PromptLookup:
    """Drafts tokens for one request.

    num_drafted, num_accepted: how many tokens were drafted, and came true, so far
    """

    def __init__(self, num_tokens: int, max_ids: int) -> None:
        """num_tokens: of a draft; max_ids: the prompt's ids and the new ones at most."""
        self.num_tokens = num_tokens
        self.num_drafted = self.num_accepted = 0
        self._ids, self._count = np.empty(max_ids, np.int64), 0

    def propose(self, prompt_ids: list[int], ids: list[int], max_tokens: int) -> Ids:
        """Returns up to `max_tokens` ids that may follow prompt_ids + ids, none where the last ones have not been there
        before."""
        for part, start in ((prompt_ids, 0), (ids, len(prompt_ids))):
            fresh = part[max(0, self._count - start) :]
            self._ids[self._count : self._count + len(fresh)] = fresh
            self._count += len(fresh)
        return continuation(self._ids[: self._count], min(self.num_tokens, max_tokens))


def continuation(ids: Ids, length: int) -> Ids:
    """Returns what followed the last place where the end of `ids` stood before. A repetition that has not come to its
    end is
    taken to go on: after 1 2 3 1 2 3 1 comes 2 3 1 2 ..."""
    none = ids[:0]
    ends = np.flatnonzero(ids[:-1] == ids[-1])
    for n in range(2, NGRAM_MAX + 1):
        longer = ends[ends >= n - 1]
        longer = longer[ids[longer - (n - 1)] == ids[-n]] if len(longer) else none
        if not len(longer):
            if n <= NGRAM_MIN:
                return none
            break
        ends = longer
    return np.resize(ids[ends[-1] + 1 :], length) if length > 0 else none
