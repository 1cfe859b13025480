"""One prompt being continued: its parameters, its state, its result.

SamplingParams (cgpt.generation.sampling) are what the caller asks for, a Request is where a scheduler keeps account of
one text, and a Completion is what comes out.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cgpt.errors import ContextLengthError, TokenizerError
from cgpt.generation.prompt_lookup import PromptLookup
from cgpt.generation.sampling import Sampler, SamplingParams
from cgpt.generation.text_stream import TextStream
from cgpt.models.base import Floats, Ids, Transformer
from cgpt.models.kv_cache import KVCache
from cgpt.models.logprobs import gather_logprobs
from cgpt.tokenizer.tokenizer import Tokenizer

Prompt = str | npt.ArrayLike | Mapping[str, Any]  # text, a flat list of token ids, or a dict with input_ids


class TextModel(Protocol):
    """What generation needs of a model: steps, and a tokenizer (TokenizerError where it has none)."""

    @property
    def transformer(self) -> Transformer: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def sampling_defaults(self) -> Mapping[str, Any]: ...

    def encode_prompt(self, prompt: Prompt, *, special: bool = False) -> list[int]: ...


class LogitsConstraint(Protocol):
    """What may come next, for a text that keeps to a grammar."""

    def mask(self, logits: Floats) -> Floats:
        """The logits [V], -infinity for tokens that may not come."""

    def push(self, token_id: int) -> None:
        """Takes the token that was chosen."""


@dataclass(frozen=True, eq=False)
class Completion:
    """What a model made of a prompt.

    text: of `ids`, without the eos or stop id that ended them and cut before a stop string; None where the
        model has no tokenizer (`model.tokenizer` then says why)
    ids: every new id, those that ended it and those of a stop string too
    finish_reason: "stop" (an eos id, a stop id, a stop string), or "length" (max_new_tokens, a full context)
    logprobs: float32 [len(ids)], the log-probability in nats of each id under the model's own distribution, before
        temperature, penalties and filters; None unless asked for
    top_logprobs: for each id {id: log-probability} of the likeliest, these first; None unless asked for
    prompt_ids: the prompt
    prefill_seconds, decode_seconds: from its first step to the first new id, and from there to the last one
    num_draft_tokens, num_accepted_tokens: ids that prompt lookup drafted, and of these the right ones
    num_cached_tokens: ids of the prompt that a prefix cache had, or another request with the same prompt
    prompt_logprobs, prompt_top_logprobs: as logprobs and top_logprobs, of each id of the prompt after the first; None
        unless asked for
    """

    text: str | None
    ids: list[int]
    finish_reason: str
    logprobs: Floats | None
    top_logprobs: list[dict[int, float]] | None
    prompt_ids: list[int]
    prefill_seconds: float
    decode_seconds: float
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_cached_tokens: int = 0
    prompt_logprobs: Floats | None = None
    prompt_top_logprobs: list[dict[int, float]] | None = None


class Request:
    """The state of one text.

    prompt_ids, ids: the prompt's tokens, and the new ones so far. text: the new text so far. finish_reason: None until
    the text has ended. error: why it cannot go on, where a Scheduler isolates its requests. constraint: what says which
    ids may come next, or None.

    Raises, before anything is computed, ContextLengthError, EmptyPromptError, TokenIdError or another InputError;
    TokenizerError where text is given to a model without a tokenizer, or a stop string.
    """

    def __init__(
        self, model: TextModel, prompt: Prompt, params: SamplingParams, *, constraint: LogitsConstraint | None = None
    ) -> None:
        transformer = model.transformer
        self.params = params
        self.constraint = constraint
        self.prompt_ids = model.encode_prompt(prompt)
        positions = transformer.context_length
        if len(self.prompt_ids) > positions:
            raise ContextLengthError(
                f"the prompt has {len(self.prompt_ids)} tokens, the model {positions} positions; shorten the prompt"
            )
        # The last new id is never fed, so it needs no position.
        self.max_new_tokens = min(params.max_new_tokens, positions - len(self.prompt_ids) + 1)
        self.end_ids = frozenset((*params.stop_ids, *(() if params.ignore_eos else transformer.eos_token_ids)))
        self.sampler = Sampler(params, transformer.vocab_size, prompt_ids=self.prompt_ids)
        self.num_logprobs = _count(params.logprobs)
        self.num_prompt_logprobs = _count(params.prompt_logprobs)
        self.lookup: PromptLookup | None = None
        if params.prompt_lookup_num_tokens is not None:
            self.lookup = PromptLookup(params.prompt_lookup_num_tokens)
        self._stream = _text_stream(model, params)
        self._deltas: list[str] = []

        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.top_logprobs: list[dict[int, float]] = []
        self.prompt_logprobs: list[float] = []
        self.prompt_top_logprobs: list[dict[int, float]] = []
        self.finish_reason: str | None = None
        self.error: Exception | None = None
        self.unread: Ids = np.array(self.prompt_ids, np.int64)  # ids that the model has not seen
        self.prompt_key = self.unread.tobytes(), self.num_prompt_logprobs  # requests of one key share its work
        self.cache: KVCache | None = None  # while it runs
        self.num_cached_tokens = 0
        self.first_step_at = self.first_token_at = self.finished_at = 0.0  # perf_counter()

    @property
    def has_text(self) -> bool:
        """Whether its ids become text."""
        return self._stream is not None

    @property
    def hit_stop_text(self) -> bool:
        """Whether a stop string has ended the text."""
        return self._stream is not None and self._stream.stopped

    @property
    def text(self) -> str:
        """The new text that is certain so far; "" where it has none."""
        return "".join(self._deltas)

    @property
    def cache_positions(self) -> int:
        """The positions that its cache needs."""
        return len(self.prompt_ids) + self.max_new_tokens - 1

    @property
    def cache_slack(self) -> int:
        """How many tokens its cache must be able to go back."""
        return self.lookup.num_tokens if self.lookup else 0

    def start(self, cache: KVCache) -> None:
        """Begins with a cache that holds the first of the prompt's ids already, or none."""
        self.first_step_at = time.perf_counter()
        self.cache, self.num_cached_tokens = cache, cache.position
        self.unread = self.unread[cache.position :]

    def start_as(self, other: Request, cache: KVCache) -> None:
        """Begins with a copy of the cache of another request, which has just read the same prompt."""
        self.first_step_at = other.first_step_at
        self.cache, self.num_cached_tokens = cache, len(self.prompt_ids)
        self.unread = self.unread[:0]
        self.prompt_logprobs, self.prompt_top_logprobs = other.prompt_logprobs, other.prompt_top_logprobs

    def accept(self, logits: Floats) -> str:
        """Chooses the next id from float32 logits [V]; returns the text that is certain by it."""
        allowed = logits if self.constraint is None else self.constraint.mask(logits)
        if len(self.ids) < self.params.min_new_tokens:
            allowed = _without(allowed, self.end_ids)
        token = self.sampler.choose(allowed)
        if self.constraint is not None:
            self.constraint.push(token)
        if self.num_logprobs is not None:
            _note(logits.reshape(1, -1), [token], self.num_logprobs, self.logprobs, self.top_logprobs)
        self.ids.append(token)
        self.unread = np.array([token], np.int64)
        delta = self._advance_text(token)
        if delta:
            self._deltas.append(delta)
        if len(self.ids) == 1:
            self.first_token_at = time.perf_counter()
        if self.finish_reason:
            self.finished_at = time.perf_counter()
            self.cache = None  # gives its memory back
        return delta

    def accept_prompt(self, logits: Floats, position: int) -> None:
        """Takes the float32 logits [n, V] after the prompt's ids from `position` on, for their log-probabilities."""
        assert self.num_prompt_logprobs is not None
        following = self.prompt_ids[position + 1 :][: len(logits)]  # nothing follows the last
        rows = logits[: len(following)]
        _note(rows, following, self.num_prompt_logprobs, self.prompt_logprobs, self.prompt_top_logprobs)

    def completion(self) -> Completion:
        """The result, once the request is finished."""
        assert self.finish_reason is not None
        return Completion(
            text=self.text if self.has_text else None,
            ids=self.ids,
            finish_reason=self.finish_reason,
            logprobs=None if self.num_logprobs is None else np.array(self.logprobs, np.float32),
            top_logprobs=self.top_logprobs if self.num_logprobs else None,
            prompt_ids=self.prompt_ids,
            prefill_seconds=self.first_token_at - self.first_step_at,
            decode_seconds=self.finished_at - self.first_token_at,
            num_draft_tokens=self.lookup.num_drafted if self.lookup else 0,
            num_accepted_tokens=self.lookup.num_accepted if self.lookup else 0,
            num_cached_tokens=self.num_cached_tokens,
            prompt_logprobs=None if self.num_prompt_logprobs is None else np.array(self.prompt_logprobs, np.float32),
            prompt_top_logprobs=self.prompt_top_logprobs if self.num_prompt_logprobs else None,
        )

    def _advance_text(self, token: int) -> str:
        """Adds the newest id to the text, and decides whether it is the last."""
        ended, full, delta = token in self.end_ids, len(self.ids) >= self.max_new_tokens, ""
        if self._stream is not None:
            if not ended:
                delta = self._stream.push(token)
            if ended or full:
                delta += self._stream.flush()
            ended = ended or self._stream.stopped
        if ended or full:
            self.finish_reason = "stop" if ended else "length"
        return delta


def _text_stream(model: TextModel, params: SamplingParams) -> TextStream | None:
    if not params.detokenize:
        return None
    try:
        return TextStream(model.tokenizer, params.stop_texts, params.skip_special_tokens)
    except TokenizerError:
        if params.stop_texts:
            raise
        return None


def _count(logprobs: bool | int | None) -> int | None:
    """How many of the likeliest tokens to note beside the chosen one; None notes nothing."""
    if logprobs is None or logprobs is False:
        return None
    return 0 if logprobs is True else int(logprobs)


def _without(logits: Floats, ids: Collection[int]) -> Floats:
    """The logits [V], -infinity for these ids; as they are, where nothing else can come."""
    others = logits.copy()
    others[list(ids)] = -np.inf
    return others if others.max() > -np.inf else logits


def _note(logits: Floats, tokens: list[int], count: int, chosen: list[float], top: list[dict[int, float]]) -> None:
    """Adds the log-probabilities of one token for each row of logits, and those of the `count` likeliest."""
    found, likeliest = gather_logprobs(logits, tokens, count)
    chosen += found.tolist()
    if count:
        top += likeliest
