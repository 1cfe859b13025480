"""Prompt lookup: guesses the next tokens from what followed the same words before, and lets one step check them all.

Saxena, "Prompt Lookup Decoding" (2023), https://github.com/apoorvumang/prompt-lookup-decoding; transformers'
prompt_lookup_num_tokens, vLLM's method "ngram". A step reads the weights once for however many tokens it holds, so
a guess that comes true is a token for little.

The output is that of plain decoding. A guess is kept only where it equals what the request chooses, or draws, from the
logits before it; and those are the same to the bit. In precision="exact" they always are. Else they are in steps
of up to Model.uniform_tokens, which no step with guesses exceeds: while more requests than that run there are none,
and while prompts are read neither. (A request that joins others changes what these get there, with guesses or
without.)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from cgpt.generation.generate import Request
    from cgpt.models.base import Model
    from cgpt.models.kv_cache import Sequence

NGRAM_MOST, NGRAM_LEAST = 3, 2  # ids in a row that must have stood there before; longer ones are preferred


class Lookup:
    """The guesses for one request. proposed, accepted: how many ids were guessed, and came true, so far."""

    def __init__(self, num_tokens: int, most_ids: int) -> None:
        """num_tokens: guesses at a time; most_ids: the prompt's ids and the new ones, at the most."""
        self.num_tokens = num_tokens
        self.proposed = self.accepted = 0
        self._ids, self._count = np.empty(most_ids, np.int64), 0

    def propose(self, prompt_ids: list[int], ids: list[int], most: int) -> np.ndarray:
        """Up to `most` ids that may follow prompt_ids + ids, none where the last ones have not been there before."""
        for part, start in ((prompt_ids, 0), (ids, len(prompt_ids))):
            fresh = part[max(0, self._count - start) :]
            self._ids[self._count : self._count + len(fresh)] = fresh
            self._count += len(fresh)
        return continuation(self._ids[: self._count], min(self.num_tokens, most))


def continuation(ids: np.ndarray, length: int) -> np.ndarray:
    """What followed the last place where the end of `ids` stood before. A repetition that has not come to its end is
    taken to go on: after 1 2 3 1 2 3 1 comes 2 3 1 2 ..."""
    none = ids[:0]
    ends = np.flatnonzero(ids[:-1] == ids[-1])
    for n in range(2, NGRAM_MOST + 1):
        longer = ends[ends >= n - 1]
        longer = longer[ids[longer - (n - 1)] == ids[-n]] if len(longer) else none
        if not len(longer):
            if n <= NGRAM_LEAST:
                return none
            break
        ends = longer
    return np.resize(ids[ends[-1] + 1 :], length) if length > 0 else none


class Account:
    """Whether guessing pays. All amounts are in times of a plain step, one without guesses.

    A step with guesses earns the plain steps that its tokens would have taken, and pays what it took: that counts both
    how many come true and what a longer step costs here. The balance begins with CREDIT, which is also its ceiling:
    good luck long ago does not pay for bad guesses now. Below zero, guessing rests for REST steps, and twice as long
    after each further try that lost. So guesses that never come true cost about CREDIT times log2(n / REST) in n steps.
    """

    CREDIT = 4.0
    REST, REST_MOST = 64, 4096
    PLAIN, REFRESH = 3, 64  # plain steps to know their time by; one more after so many with guesses, which may be stale

    def __init__(self) -> None:
        self._requests = 0  # in the steps that were timed
        self._plain: deque[float] = deque(maxlen=5)
        self._balance, self._earned = self.CREDIT, 0.0  # earned: by this try, without the ceiling
        self._resting, self._rest = 0, self.REST
        self._guessed = 0  # steps since a plain one

    def open(self, requests: int) -> bool:
        """Whether the next step, of so many requests, may have guesses."""
        if requests != self._requests:
            self._requests = requests
            self._plain.clear()
        return not self._resting and len(self._plain) >= self.PLAIN and self._guessed < self.REFRESH

    def plain(self, seconds: float) -> None:
        """A step without guesses took so long."""
        self._plain.append(seconds)
        self._guessed = 0
        self._resting = max(0, self._resting - 1)

    def guessed(self, read: int, tokens: int, seconds: float) -> None:
        """A step with guesses read so many ids and gave so many tokens, in so long. As many plain steps as it read ids
        would take no less: what it took beyond them was another process's doing."""
        self._guessed += 1
        earned = (tokens - min(seconds / median(self._plain) * self._requests, read)) / self._requests
        self._earned += earned
        self._balance = min(self._balance + earned, self.CREDIT)
        if self._balance < 0:
            self._resting = self.REST if self._earned > 0 else self._rest
            self._rest = min(2 * self._resting, self.REST_MOST)
            self._balance, self._earned = self.CREDIT, 0.0


class Speculation:
    """Runs the steps in which every request goes on by one id or more; the scheduler runs those that read prompts."""

    def __init__(
        self, model: Model, most: int, clock: Callable[[], float] = time.perf_counter, step: Callable | None = None
    ) -> None:
        """most: tokens in a step, which bounds the memory of their logits. step: instead of the model's; it may give
        requests a `problem`, which are left out then."""
        self._step, self._clock = step or model.step, clock
        self._most = model.uniform_tokens(most)
        self.account = Account()

    def step(self, batch: list[tuple[Sequence, np.ndarray]], requests: list[Request]) -> list[tuple[Request, str]]:
        """model.step over the batch, each request's next id and what is guessed after it. Returns for every new id its
        request and the text that is certain by it."""
        begun = self._clock()
        drafts = self._drafts(requests)
        if not any(len(draft) for draft in drafts):
            logits = self._step(batch)
            pieces = [(one, one.accept(row)) for one, row in zip(requests, logits, strict=True) if not one.problem]
            self.account.plain(self._clock() - begun)
            return pieces
        longer = [(sequence, np.append(ids, draft)) for (sequence, ids), draft in zip(batch, drafts, strict=True)]
        logits, pieces = self._step(longer, rows="all"), []
        read = len(logits)
        for request, draft in zip(requests, drafts, strict=True):
            rows, logits = logits[: 1 + len(draft)], logits[1 + len(draft) :]
            pieces += [] if request.problem else check(request, draft, rows)
        self.account.guessed(read, len(pieces), self._clock() - begun)
        return pieces

    def _drafts(self, requests: list[Request]) -> list[np.ndarray]:
        drafts = [np.empty(0, np.int64)] * len(requests)
        room = self._most - len(requests)
        if room > 0 and self.account.open(len(requests)):
            for i, request in enumerate(requests):
                if request.lookup:
                    # The last id that may come is not read, so it needs no guess after it.
                    most = min(room, request.limit - len(request.ids) - 1)
                    drafts[i] = request.lookup.propose(request.prompt_ids, request.ids, most)
                    room -= len(drafts[i])
        return drafts


def check(request: Request, draft: np.ndarray, logits: np.ndarray) -> list[tuple[Request, str]]:
    """Chooses the request's next ids from the logits [1 + len(draft), V] after its last id and after each of the draft:
    as far as the draft foresaw them, and one beyond. Takes the rest of the draft back."""
    sequence, pieces = request.sequence, []
    for accepted, row in enumerate(logits):
        pieces.append((request, request.accept(row)))
        if request.finish_reason or accepted == len(draft) or request.ids[-1] != draft[accepted]:
            break
    sequence.truncate(sequence.position - len(draft) + accepted)
    if request.lookup:
        request.lookup.proposed += len(draft)
        request.lookup.accepted += accepted
    return pieces
