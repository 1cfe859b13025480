"""Speculative decoding: one step checks a draft of several tokens.

A step reads the weights once for however many tokens it holds, so a drafted token that comes true costs little. The
output is that of plain decoding: a token of a draft is kept only where it equals what the request chooses, or draws,
from the logits before it; and those are the same to the bit. In precision="exact" they always are. Else they are in
steps of up to Transformer.uniform_tokens, which no step with drafts exceeds: while more requests than that run there
are none, and while prompts are read neither. (A request that joins others changes what these get there, with drafts or
without.)
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy as np

from cgpt.generation.prompt_lookup import NgramPool
from cgpt.generation.request import Request
from cgpt.models.base import Floats, Ids, Rows, Transformer
from cgpt.models.kv_cache import KVCache


class SpeculationController:
    """Decides whether drafts pay. All amounts are in durations of a plain step, one without drafts.

    A step with drafts earns the plain steps that its tokens would have taken, and pays what it took: that counts both
    how many come true and what a longer step costs here. The balance begins with CREDIT, which is also its ceiling:
    good luck long ago does not pay for bad drafts now. Below zero, drafting rests for REST steps, and twice as long
    after each further try that lost. So drafts that never come true cost about CREDIT times log2(n / REST) in n steps.
    """

    CREDIT = 4.0
    REST, REST_MAX = 64, 4096  # steps
    PLAIN, REFRESH = 3, 64  # plain steps to know their duration by; one more after so many with drafts, it may be stale

    def __init__(self) -> None:
        self._requests = 0  # in the next step
        self._timed: dict[int, deque[float]] = {}  # durations of the last plain steps of so many requests
        self._balance, self._earned = self.CREDIT, 0.0  # earned: by this try, without the ceiling
        self._resting, self._rest = 0, self.REST
        self._since_plain = 0  # steps

    @property
    def _plain(self) -> deque[float]:
        return self._timed.setdefault(self._requests, deque(maxlen=5))

    def may_draft(self, requests: int) -> bool:
        """Whether the next step, of so many requests, may have drafts."""
        self._requests = requests
        return not self._resting and len(self._plain) >= self.PLAIN and self._since_plain < self.REFRESH

    def record_plain(self, seconds: float) -> None:
        """Records the duration of a step without draft tokens."""
        self._plain.append(seconds)
        self._since_plain = 0
        self._resting = max(0, self._resting - 1)

    def record_drafted(self, read: int, tokens: int, seconds: float) -> None:
        """Records a step with drafts, which read so many ids and gave so many tokens. It is charged as many plain steps
        as it read ids at most: what it took beyond them was another process's doing."""
        from statistics import median  # which takes a tenth of the time that importing cgpt may take

        self._since_plain += 1
        earned = (tokens - min(seconds / median(self._plain) * self._requests, read)) / self._requests
        self._earned += earned
        self._balance = min(self._balance + earned, self.CREDIT)
        if self._balance < 0:
            self._resting = self.REST if self._earned > 0 else self._rest
            self._rest = min(2 * self._resting, self.REST_MAX)
            self._balance, self._earned = self.CREDIT, 0.0


Deltas = list[tuple[Request, str]]  # of new ids, each with the text that is certain by it
Accept = Callable[[Request, Floats, Deltas], None]


class BatchStep(Protocol):
    """A step of the model over a batch."""

    def __call__(self, batch: list[tuple[KVCache, Ids]], *, rows: Rows = "last") -> Floats: ...


class Speculation:
    """Runs the steps in which every request goes on by one id or more; the scheduler runs those that read prompts.

    num_drafted, num_accepted: tokens, so far
    """

    def __init__(
        self,
        transformer: Transformer,
        max_tokens: int,
        clock: Callable[[], float] = time.perf_counter,
        step: BatchStep | None = None,
        accept: Accept | None = None,
    ) -> None:
        """max_tokens: in a step, which bounds the memory of their logits. step: instead of the transformer's. accept:
        instead of Request.accept. Both may give requests an `error`, which are left out then."""
        self._step, self._clock, self._accept = step or transformer.step, clock, accept or _accept
        self._pool: NgramPool | None = None  # until a request drafts
        self._max_tokens: int | None = None
        self.num_drafted = self.num_accepted = 0
        self._transformer, self._limit = transformer, max_tokens
        self.controller = SpeculationController()

    def step(self, batch: list[tuple[KVCache, Ids]], requests: list[Request]) -> Deltas:
        """Steps over the batch, each request's next id and its draft. Returns for every new id its request and the text
        that is certain by it."""
        started = self._clock()
        drafts = self._drafts(requests)
        deltas: Deltas = []
        if not any(len(draft) for draft in drafts):
            for request, row in zip(requests, self._step(batch), strict=True):
                self._accept(request, row, deltas)
            self.controller.record_plain(self._clock() - started)
            return deltas
        longer = [(cache, np.append(ids, draft)) for (cache, ids), draft in zip(batch, drafts, strict=True)]
        logits = self._step(longer, rows="all")
        read = len(logits)
        for request, draft in zip(requests, drafts, strict=True):
            rows, logits = logits[: 1 + len(draft)], logits[1 + len(draft) :]
            if not request.error:
                self._verify(request, draft, rows, deltas)
        self.controller.record_drafted(read, len(deltas), self._clock() - started)
        return deltas

    def insert(self, request: Request) -> None:
        """Puts what is new of a request into the pool."""
        if request.lookup:
            self._pool = self._pool or NgramPool()
            request.lookup.insert(self._pool, request.prompt_ids, request.ids)

    def _drafts(self, requests: list[Request]) -> list[Ids]:
        drafts = [np.empty(0, np.int64)] * len(requests)
        if not any(request.lookup for request in requests):
            return drafts
        if self._max_tokens is None:
            self._max_tokens = self._transformer.uniform_tokens(self._limit)
        room = self._max_tokens - len(requests)
        if room > 0 and self.controller.may_draft(len(requests)):
            for request in requests:
                self.insert(request)
            for i, request in enumerate(requests):
                if request.lookup and self._pool:
                    # The last id that may come is not read, so it needs no draft after it.
                    max_tokens = min(-(-room // (len(requests) - i)), request.max_new_tokens - len(request.ids) - 1)
                    drafts[i] = request.lookup.propose(self._pool, request.prompt_ids, request.ids, max_tokens)
                    room -= len(drafts[i])
        return drafts

    def _verify(self, request: Request, draft: Ids, logits: Floats, deltas: Deltas) -> None:
        """Chooses the request's next ids from the logits [1 + len(draft), V] after its last id and after each of the
        draft: as far as the draft foresaw them, and one beyond. Takes the rest of the draft back."""
        cache, accepted = request.cache, 0
        assert cache is not None
        for accepted, row in enumerate(logits):
            self._accept(request, row, deltas)
            is_over = request.finish_reason or request.error or accepted == len(draft)
            if is_over or request.ids[-1] != draft[accepted]:
                break
        cache.truncate(cache.position - len(draft) + accepted)
        if request.lookup:
            request.lookup.record(len(draft), accepted)
        self.num_drafted += len(draft)
        self.num_accepted += accepted


def _accept(request: Request, logits: Floats, deltas: Deltas) -> None:
    deltas.append((request, request.accept(logits)))
