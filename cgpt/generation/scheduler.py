"""Runs any number of requests through one model together, a step at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from cgpt.generation.isolation import Batch, step_apart
from cgpt.generation.speculation import Speculation

if TYPE_CHECKING:
    from cgpt.generation.generate import Request
    from cgpt.generation.prefix_cache import PrefixCache
    from cgpt.models.base import Model
    from cgpt.models.kv_cache import Sequence


class Scheduler:
    """Runs requests through one model together.

    Each step() is one model.step: the next id of every request that decodes, and with the room that is left, up to
    PREFILL_CHUNK, ids of the prompts, in even shares. So what decodes goes on decoding, and a short prompt does not
    wait for the end of a long one. A prompt that several requests have is read once, for the first of them. A step
    that reads no prompt is the place for prompt lookup: its time says what guessing is worth. What a prefix cache has
    is not computed again, and what ends goes into it.
    """

    MAX_RUNNING = 64  # bounds the memory of caches and logits; the others wait for their turn
    SHARES = 8  # prompts that are read in one step; more would get few ids each, and all be late

    def __init__(
        self,
        model: Model,
        requests: Iterable[Request] = (),
        prefix_cache: PrefixCache | None = None,
        apart: bool = False,
    ) -> None:
        """apart: a request that cannot go on leaves, and has its `problem`; the others go on. Else step() raises."""
        self.model, self.prefix_cache, self.apart = model, prefix_cache, apart
        self.requests = list(requests)  # all that are not finished; more may be appended at any time
        self.running: list[Request] = []  # those of the last step
        self.failed: list[Request] = []  # by the last step
        self.prompt_ids_read = 0  # by the last step
        self._copies: dict[Request, list[Request]] = {}  # those that wait for another one to read their prompt

    @cached_property
    def speculation(self) -> Speculation:
        return Speculation(self.model, self.MAX_RUNNING, step=self._run)

    def step(self, chunk: int | None = None) -> list[tuple[Request, str]]:
        """For each new id of this step its request, with the text, often "", that is certain by it.

        chunk: another bound than PREFILL_CHUNK
        """
        shares = self._shares(self.model.PREFILL_CHUNK if chunk is None else chunk)
        self.prompt_ids_read = sum(share for request, share in shares.items() if not request.ids)
        pieces = self._advance(shares) if shares else []
        self.failed = [request for request in self.requests if request.problem]
        for request in self.failed:
            request.sequence = None
        if self.failed or any(request.finish_reason for request, _ in pieces):
            self.requests = [one for one in self.requests if not (one.finish_reason or one.problem)]
        return pieces

    def _advance(self, shares: dict[Request, int]) -> list[tuple[Request, str]]:
        self.running, batch, answered = list(shares), [], {}  # answered: and their places
        for request, share in shares.items():
            ids, request.unread = request.unread[:share], request.unread[share:]
            if not len(request.unread):
                answered[request] = len(batch)
            batch.append((request.sequence, ids))
        copies = {request: self._copies.get(request, []) for request in answered}
        pieces: list[tuple[Request, str]] = []
        if len(answered) == sum(shares.values()) and any(r.lookup for r in answered) and not any(copies.values()):
            pieces = self.speculation.step(batch, list(answered))
        else:
            logits = self._logits(batch, head=bool(answered))
            for request, place in answered.items():
                self._accept(request, logits[place], pieces)
        sequences = {request: sequence for request, (sequence, _) in zip(self.running, batch, strict=True)}
        for request, sequence in sequences.items():
            if self._caches(request) and not request.problem:
                with self._blame(request):
                    self.prefix_cache.saw(sequence, len(request.prompt_ids))
        for request, place in answered.items():
            for copy in () if request.problem else copies[request]:
                with self._blame(copy):
                    self._copy(request, sequences[request], copy)
                    sequences[copy] = copy.sequence
                self._accept(copy, logits[place], pieces)
        for request, sequence in sequences.items():
            if request.finish_reason and self._caches(request):
                with self._blame(request):
                    self.prefix_cache.keep(sequence, request.prompt_ids + request.ids)
        return pieces

    def _accept(self, request: Request, logits: np.ndarray, pieces: list[tuple[Request, str]]) -> None:
        if not request.problem:
            with self._blame(request):
                pieces.append((request, request.accept(logits)))

    def _copy(self, request: Request, sequence: Sequence, copy: Request) -> None:
        """Starts a request where another one of the same prompt has read it."""
        copy.start_as(request, self.model, sequence)
        if self._caches(copy):
            self.prefix_cache.copied(sequence, copy.sequence)

    @contextmanager
    def _blame(self, request: Request) -> Iterator[None]:
        """What fails within is this request's failure."""
        try:
            yield
        except Exception as problem:
            if not self.apart:
                raise
            request.problem = problem

    def _run(self, batch: Batch, **how: Any) -> np.ndarray:
        """model.step over what `running` reads. Rows of requests that failed mean nothing."""
        if not self.apart:
            return self.model.step(batch, **how)
        logits, problems = step_apart(self.model, batch, **how)
        for place, problem in problems.items():
            self.running[place].problem = problem
        return np.zeros((sum(len(ids) for _, ids in batch), 0), np.float32) if logits is None else logits

    def _shares(self, chunk: int) -> dict[Request, int]:
        """The requests of the next step, in order of arrival, and how many ids of each it reads."""
        present = list(islice(self.requests, self.MAX_RUNNING))
        prompts, readers, self._copies = [], {}, {}
        for request in present:
            reader = request if request.ids else readers.setdefault(request.prompt_key, request)
            if reader is not request and request.sequence is None:
                self._copies.setdefault(reader, []).append(request)
            elif not request.ids:
                prompts.append(request)
        # However many decode: a prompt that waited for their end might wait for ever.
        room, shares = max(chunk - sum(bool(request.ids) for request in present), chunk // 2), {}
        for waiting, request in zip(range(len(prompts), 0, -1), prompts, strict=True):
            if room <= 0:
                break
            if request.sequence is None:
                with self._blame(request):
                    request.start(self.model, self.prefix_cache)
            if request.problem:
                continue
            shares[request] = min(len(request.unread), room, max(room // waiting, chunk // self.SHARES))
            room -= shares[request]
        return {request: shares.get(request, 1) for request in present if request.ids or request in shares}

    def _logits(self, batch: Batch, head: bool) -> np.ndarray:
        """The logits after each sequence's last id; those after the others go to requests that want them."""
        if all(request.prompt_alternatives is None or request.ids for request in self.running):
            return self._run(batch, head=head)
        logits, last, row = self._run(batch, rows="all"), [], 0
        for request, (sequence, ids) in zip(self.running, batch, strict=True):
            if request.prompt_alternatives is not None and not request.ids and not request.problem:
                request.note_prompt(logits[row : row + len(ids)], sequence.position - len(ids))
            row += len(ids)
            last.append(row - 1)
        return logits[last]

    def cancel(self, request: Request) -> None:
        """Drops a request between steps; a prefix cache keeps what was computed for it."""
        if request not in self.requests:
            return
        self.requests.remove(request)
        sequence, request.sequence = request.sequence, None
        if self._caches(request) and sequence is not None and sequence.whole:
            with self._blame(request):
                self.prefix_cache.keep(sequence, request.prompt_ids + request.ids)

    def _caches(self, request: Request) -> bool:
        """Whether the prefix cache knows the request; one whose prompt's logits are wanted began without it."""
        return self.prefix_cache is not None and request.prompt_alternatives is None
