"""Continuous batching: runs any number of requests through one model, a step at a time."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from cgpt.arguments import require_integer
from cgpt.errors import InputError
from cgpt.generation.isolation import step_isolated
from cgpt.generation.prefix_cache import PrefixCache
from cgpt.generation.prompt_lookup import PromptLookup
from cgpt.generation.request import Request
from cgpt.generation.speculation import Speculation
from cgpt.models.accounting import cache_bytes
from cgpt.models.base import Floats, Ids, Rows, Transformer
from cgpt.models.kv_cache import KVCache


class Scheduler:
    """Runs requests through one model together.

    In order of arrival, as many requests run as max_running allows, and memory for their caches at full length; the
    others wait. Each step() is one step of the model: the next id of every request that decodes, and with the room that
    is left, up to PREFILL_CHUNK, ids of the prompts, in even shares. So what decodes goes on decoding, and a short
    prompt does not wait for the end of a long one. A prompt that several requests have is read once, for the first of
    them. A step that reads no prompt may check drafts. What a prefix cache has is not computed again, and what ends
    goes into it.
    """

    MAX_RUNNING = 64  # bounds the memory of caches and logits
    MAX_PROMPTS = 8  # that are read in one step; more would get few ids each, and all be late

    def __init__(
        self,
        transformer: Transformer,
        *,
        prefix_cache: PrefixCache | None = None,
        isolated: bool = False,
        max_running: int = MAX_RUNNING,
        kv_cache_bytes: int | None = None,
        prompt_lookup_num_tokens: int | None = None,
    ) -> None:
        """isolated: a request that cannot go on leaves, and has its `error`; the others go on. Else step() raises.
        kv_cache_bytes: bounds the caches of what runs, at full length; one request always runs.
        prompt_lookup_num_tokens: of requests that do not say it themselves."""
        self.transformer, self.prefix_cache, self.isolated = transformer, prefix_cache, isolated
        self.max_running, self.kv_cache_bytes = max_running, kv_cache_bytes
        if prompt_lookup_num_tokens is not None:
            require_integer("prompt_lookup_num_tokens", prompt_lookup_num_tokens, low=1)
        self.prompt_lookup_num_tokens = prompt_lookup_num_tokens
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.failed: list[Request] = []  # in the last step
        self.prompt_ids_read = 0  # in the last step
        self._in_step: list[Request] = []
        # What runs the steps that read no prompt. No cached_property: before Python 3.12 it holds a lock meanwhile,
        # which a fork by another thread would leave held in the child.
        self.speculation = Speculation(transformer, self.MAX_RUNNING, step=self._step, accept=self._accept)
        self._copies: dict[Request, list[Request]] = {}  # those that wait for another one to read their prompt

    @property
    def has_unfinished(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self.running or self.waiting)

    def add(self, request: Request) -> None:
        """Enters a request, which runs from the next step on that has room for it. InputError if it ran before."""
        if request.finish_reason or request.error or request in self.running or request in self.waiting:
            raise InputError("a request runs once; make a new one of the same prompt and parameters")
        if request.lookup is None and self.prompt_lookup_num_tokens is not None:
            request.lookup = PromptLookup(self.prompt_lookup_num_tokens)
        self.waiting.append(request)

    def discard(self, request: Request) -> KVCache | None:
        """Drops a request between steps, if it is here; returns its cache."""
        for queue in (self.waiting, self.running):
            if request in queue:
                queue.remove(request)
        cache, request.cache = request.cache, None
        return cache

    def cancel(self, request: Request) -> None:
        """Drops a request between steps, if it is here; a prefix cache keeps what was computed for it."""
        self._insert(request, self.discard(request))

    def _insert(self, request: Request, cache: KVCache | None) -> None:
        if cache is not None:
            self.speculation.insert(request)
        prefixes = self._prefixes(request)
        if prefixes is not None and cache is not None and cache.intact:
            with self._isolate(request):
                prefixes.insert(cache, request.prompt_ids + request.ids)

    def cache_bytes(self, request: Request) -> int:
        """The bytes of keys and values that a request takes at full length."""
        return cache_bytes(self.transformer.config, request.cache_positions, self.transformer.kv_cache_dtype)

    def step(self, max_prompt_tokens: int | None = None) -> list[tuple[Request, str]]:
        """Returns for each new id of this step its request, with the text, often "", that is certain by it.

        max_prompt_tokens: another bound than PREFILL_CHUNK
        """
        self._admit()
        limit = self.transformer.PREFILL_CHUNK if max_prompt_tokens is None else max_prompt_tokens
        if any(request.num_prompt_logprobs is not None for request in self.running):
            limit = min(limit, self.transformer.LOGITS_CHUNK)
        counts = self._plan(limit)
        self.prompt_ids_read = sum(count for request, count in counts.items() if not request.ids)
        deltas = self._advance(counts) if counts else []
        self.failed = [request for request in self.running if request.error]
        for request in self.failed:
            request.cache = None
        if self.failed or any(request.finish_reason for request, _ in deltas):
            self.running = [one for one in self.running if not (one.finish_reason or one.error)]
        return deltas

    def _admit(self) -> None:
        limit = self.kv_cache_bytes
        taken = sum(map(self.cache_bytes, self.running)) if self.waiting and limit is not None else 0
        while self.waiting and len(self.running) < self.max_running:
            taken += 0 if limit is None else self.cache_bytes(self.waiting[0])
            if self.running and limit is not None and taken > limit:
                break
            self.running.append(self.waiting.popleft())

    def _plan(self, max_tokens: int) -> dict[Request, int]:
        """The requests of the next step, in order of arrival, and how many ids of each it reads."""
        prompts: list[Request] = []
        readers: dict[tuple[bytes, int | None], Request] = {}
        self._copies = {}
        for request in self.running:
            reader = request if request.ids else readers.setdefault(request.prompt_key, request)
            if reader is not request and request.cache is None:
                self._copies.setdefault(reader, []).append(request)
            elif not request.ids:
                prompts.append(request)
        # However many decode: a prompt that waited for their end might wait for ever.
        room = max(max_tokens - sum(bool(request.ids) for request in self.running), max_tokens // 2)
        counts: dict[Request, int] = {}
        for waiting, request in zip(range(len(prompts), 0, -1), prompts, strict=True):
            if room <= 0:
                break
            if request.cache is None:
                with self._isolate(request):
                    request.start(self._new_cache(request))
            if request.error:
                continue
            counts[request] = min(len(request.unread), room, max(room // waiting, max_tokens // self.MAX_PROMPTS))
            room -= counts[request]
        return {request: counts.get(request, 1) for request in self.running if request.ids or request in counts}

    def _new_cache(self, request: Request) -> KVCache:
        context, slack = request.cache_positions, request.cache_slack
        if (prefixes := self._prefixes(request)) is None:
            return self.transformer.new_cache(context, slack)
        return prefixes.lookup(self.transformer, request.prompt_ids, context, slack)

    def _advance(self, counts: dict[Request, int]) -> list[tuple[Request, str]]:
        """Runs the step that was planned."""
        self._in_step = list(counts)
        batch: list[tuple[KVCache, Ids]] = []
        answered: dict[Request, int] = {}  # those whose next id comes out, and their row
        for request, count in counts.items():
            ids, request.unread = request.unread[:count], request.unread[count:]
            if not len(request.unread):
                answered[request] = len(batch)
            assert request.cache is not None
            batch.append((request.cache, ids))
        copies = {request: self._copies.get(request, []) for request in answered}
        deltas: list[tuple[Request, str]] = []
        if len(answered) == sum(counts.values()) and any(r.lookup for r in answered) and not any(copies.values()):
            deltas = self.speculation.step(batch, list(answered))
        else:
            logits = self._logits(batch, head=bool(answered))
            for request, row in answered.items():
                self._accept(request, logits[row], deltas)
        caches = {request: cache for request, (cache, _) in zip(self._in_step, batch, strict=True)}
        for request, cache in caches.items():
            if (prefixes := self._prefixes(request)) is not None and not request.error:
                with self._isolate(request):
                    prefixes.on_step(cache, len(request.prompt_ids))
        for request, row in answered.items():
            for copy in () if request.error else copies[request]:
                with self._isolate(copy):
                    caches[copy] = self._copy(request, caches[request], copy)
                self._accept(copy, logits[row], deltas)
        for request, cache in caches.items():
            if request.finish_reason:
                self._insert(request, cache)
        return deltas

    def _accept(self, request: Request, logits: Floats, deltas: list[tuple[Request, str]]) -> None:
        if not request.error:
            with self._isolate(request):
                deltas.append((request, request.accept(logits)))

    def _copy(self, request: Request, source: KVCache, copy: Request) -> KVCache:
        """Starts a request where another one of the same prompt has read it."""
        cache = self.transformer.new_cache(copy.cache_positions, copy.cache_slack)
        cache.resume(source, source.snapshot())
        copy.start_as(request, cache)
        if (prefixes := self._prefixes(copy)) is not None:
            prefixes.fork(source, cache)
        return cache

    @contextmanager
    def _isolate(self, request: Request) -> Iterator[None]:
        """Makes what fails within this request's failure."""
        try:
            yield
        except Exception as error:
            if not self.isolated:
                raise
            request.error = error

    def _step(self, batch: list[tuple[KVCache, Ids]], *, rows: Rows = "last", head: bool = True) -> Floats:
        """A step over what `_in_step` reads. Rows of requests that failed mean nothing."""
        if not self.isolated:
            return self.transformer.step(batch, rows=rows, head=head)
        logits, errors = step_isolated(self.transformer, batch, rows=rows, head=head)
        for i, error in errors.items():
            self._in_step[i].error = error
        return np.zeros((sum(len(ids) for _, ids in batch), 0), np.float32) if logits is None else logits

    def _logits(self, batch: list[tuple[KVCache, Ids]], head: bool) -> Floats:
        """The logits after each sequence's last id; those after the others go to requests that want them."""
        if all(request.num_prompt_logprobs is None or request.ids for request in self._in_step):
            return self._step(batch, head=head)
        logits, last, row = self._step(batch, rows="all"), [], 0
        for request, (cache, ids) in zip(self._in_step, batch, strict=True):
            if request.num_prompt_logprobs is not None and not request.ids and not request.error:
                request.accept_prompt(logits[row : row + len(ids)], cache.position - len(ids))
            row += len(ids)
            last.append(row - 1)
        return logits[last]

    def _prefixes(self, request: Request) -> PrefixCache | None:
        """The prefix cache, but for a request whose prompt's logits are wanted, which began without it."""
        return self.prefix_cache if request.num_prompt_logprobs is None else None
