"""Makes text of a model: requests, and the calls on top.

A Request is one prompt being continued. The Scheduler feeds the running requests' next ids to the
model, one `model.step` at a time; requests may join and leave between steps. generate() and stream() loop over it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cgpt.errors import ContextLengthError, EmptyPromptError, InputError, TokenIdError, TokenizerError
from cgpt.fields import shown
from cgpt.generation.sampling import Sampler, Sampling, likeliest, log_probabilities, require_integer
from cgpt.generation.scheduler import Scheduler
from cgpt.generation.speculation import Lookup
from cgpt.tokenizer.tokenizer import StreamDecoder, Tokenizer

if TYPE_CHECKING:
    from cgpt.chat.grammar import Beginning, Guide
    from cgpt.generation.prefix_cache import PrefixCache
    from cgpt.models.base import Model
    from cgpt.models.kv_cache import Sequence


@dataclass(frozen=True, eq=False)
class Completion:
    """What a model made of a prompt.

    text: of `ids`, without the eos or stop id that ended them and cut before a stop string; None where the
        model has no tokenizer (`model.tokenizer` then says why)
    ids: every new id, those that ended it and those of a stop string too
    finish_reason: "stop" (an eos id, a stop id, a stop string), or "length" (max_new_tokens, a full context)
    logprobs: float32 [len(ids)], the log-probability of each id under the model's own distribution, before
        temperature, penalty and filters; None unless asked for
    top_logprobs: for each id {id: log-probability} of the likeliest, these first; None unless asked for
    prompt_ids: the prompt
    prefill_seconds, decode_seconds: from its first step to the first new id, and from there to the last one
    num_draft_tokens, num_accepted_tokens: ids that prompt lookup guessed, and of these the right ones
    num_cached_tokens: ids of the prompt that a prefix cache had, or a companion with the same prompt
    prompt_logprobs, prompt_top_logprobs: as logprobs and top_logprobs, of each id of the prompt after the first; None
        unless asked for
    """

    text: str | None
    ids: list[int]
    finish_reason: str
    logprobs: np.ndarray | None
    top_logprobs: list[dict[int, float]] | None
    prompt_ids: list[int]
    prefill_seconds: float
    decode_seconds: float
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_cached_tokens: int = 0
    prompt_logprobs: np.ndarray | None = None
    prompt_top_logprobs: list[dict[int, float]] | None = None


def generate(
    model: Model, prompt: Any, *, seed: Any = None, prefix_cache: PrefixCache | None = None, **options: Any
) -> Completion | list[Completion]:
    """A completion of a prompt, a str or ids; of a list of prompts a list of completions, run as one batch.

    Special tokens in a str are ordinary text; `model.tokenizer.encode` gives their ids where they are wanted.

    max_new_tokens: 256 unless given
    temperature: 0, greedy, unless given
    top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, logit_bias: see
        cgpt.generation.sampling.Sampling
    seed: an integer that makes sampling repeatable: the same text alone, in a batch or streamed; None takes a
        fresh one. Each prompt of a batch starts from the seed, or from its own in a list of seeds
    stop: a str, a token id, or a list of these, that ends the text too
    logprobs: True keeps the log-probability of each new id, a number k also those of the k likeliest
    prompt_logprobs: the same of the prompt's ids; such a prompt is read anew, whatever a prefix cache holds
    ignore_eos: go on after the checkpoint's eos ids
    prompt_lookup_num_tokens: guess so many tokens at a time from what followed the same words before, and check them
        in one step (speculation). The output is the same, sooner where texts repeat themselves; where guessing does
        not pay, it pauses. None, the default, never guesses
    prefix_cache: a cgpt.PrefixCache of this model, which remembers what was computed: prompts that begin as
        earlier ones, with or without their answers, compute only what is new

    A prompt of n tokens gets context_length - n + 1 new ids at most. Raises, before anything is computed,
    ContextLengthError, EmptyPromptError, TokenIdError or another InputError; TokenizerError where text is
    given to a model without a tokenizer.
    """
    if not _is_batch(prompt):
        request = Request(model, prompt, seed=seed, **options)
        _run_all(model, [request], prefix_cache)
        return request.completion()
    seeds = [seed] * len(prompt) if seed is None or np.ndim(seed) == 0 else list(seed)
    if len(seeds) != len(prompt):
        raise InputError(f"there are {len(seeds)} seeds for {len(prompt)} prompts; give one, or one for each")
    requests = [Request(model, p, seed=s, **options) for p, s in zip(prompt, seeds, strict=True)]
    _run_all(model, requests, prefix_cache)
    return [request.completion() for request in requests]


def stream(model: Model, prompt: Any, *, prefix_cache: PrefixCache | None = None, **options: Any) -> Iterator[str]:
    """Pieces of the text that generate() with the same options makes of one prompt; joined they are it.

    Each comes as soon as it is certain: whole characters, and no beginning of a stop string. Closing the
    iterator ends the work.
    """
    request = Request(model, prompt, **options)
    if request.text is None:
        raise TokenizerError(f"{model.directory}: the model has no tokenizer to make text with; use generate")
    return _pieces(Scheduler(model, [request], prefix_cache), request)


class Request:
    """One prompt being continued. The arguments are those of generate().

    ids: the new ids so far. text: their TextStream, None without a tokenizer. finish_reason: None until then.
    problem: why it cannot go on, where a Scheduler keeps its requests apart. guide: what says which ids may come next,
    as cgpt.chat.grammar.Guide does; None, and yours to set before it starts
    """

    def __init__(
        self,
        model: Model,
        prompt: Any,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        logit_bias: dict[int, float] | None = None,
        seed: int | None = None,
        stop: str | int | Iterable[str | int] | None = None,
        logprobs: bool | int | None = None,
        prompt_logprobs: bool | int | None = None,
        ignore_eos: bool = False,
        prompt_lookup_num_tokens: int | None = None,
    ) -> None:
        if _is_batch(prompt):
            raise InputError(f"one prompt is a text or a flat list of ids, not {shown(prompt)}")
        max_new_tokens = require_integer("max_new_tokens", max_new_tokens, low=1)
        penalties = (repetition_penalty, presence_penalty, frequency_penalty)
        sampling = Sampling(temperature, top_k, top_p, min_p, *penalties, logit_bias)
        stop_ids, stop_texts = _read_stop(stop, model.vocab_size)
        self.alternatives = _read_logprobs("logprobs", logprobs)
        self.prompt_alternatives = _read_logprobs("prompt_logprobs", prompt_logprobs)
        self.prompt_ids: list[int] = model.encode_prompt(prompt)
        if not self.prompt_ids:
            raise EmptyPromptError("the prompt is empty; give a text of one token at least")
        if len(self.prompt_ids) > model.context_length:
            raise ContextLengthError(
                f"the prompt has {len(self.prompt_ids)} tokens, the model {model.context_length} positions; "
                f"shorten the prompt"
            )
        self.limit = min(max_new_tokens, model.context_length - len(self.prompt_ids) + 1)
        self.end_ids = frozenset(stop_ids if ignore_eos else (*stop_ids, *model.eos_token_ids))
        self.sampler = Sampler(sampling, model.vocab_size, seed=seed, prompt_ids=self.prompt_ids)
        self.text = _text_stream(model, stop_texts)
        self.guide: Guide | Beginning | None = None
        self.lookup: Lookup | None = None
        if prompt_lookup_num_tokens is not None:
            guesses = require_integer("prompt_lookup_num_tokens", prompt_lookup_num_tokens, low=1)
            self.lookup = Lookup(guesses, len(self.prompt_ids) + self.limit)

        self.ids: list[int] = []
        self.pieces: list[str] = []
        self.logprobs: list[float] = []
        self.top_logprobs: list[dict[int, float]] = []
        self.prompt_logprobs: list[float] = []
        self.prompt_top_logprobs: list[dict[int, float]] = []
        self.finish_reason: str | None = None
        self.problem: Exception | None = None
        self.unread = np.array(self.prompt_ids, np.int64)  # ids that the model has not seen
        self.prompt_key = self.unread.tobytes(), self.prompt_alternatives  # those with the same one share its work
        self.sequence: Sequence | None = None  # while it runs
        self.num_cached_tokens = 0
        self.started = self.answered = self.finished = 0.0  # perf_counter() at first step, first id, last id

    def start(self, model: Model, prefix_cache: PrefixCache | None = None) -> None:
        """Gets the request its sequence. The last new id is never fed, so it needs no position."""
        self.started = time.perf_counter()
        context, slack = self._room
        if prefix_cache is None or self.prompt_alternatives is not None:  # logits of what was computed are not kept
            self.sequence = model.new_sequence(context, slack)
        else:
            self.sequence = prefix_cache.begin(model, self.prompt_ids, context, slack)
            self.num_cached_tokens = self.sequence.position
            self.unread = self.unread[self.num_cached_tokens :]

    def start_as(self, other: Request, model: Model, sequence: Sequence) -> None:
        """Gets the request a copy of the sequence of another one with the same prompt, which has just been read."""
        self.started = other.started
        self.sequence = model.new_sequence(*self._room)
        self.sequence.resume(sequence, sequence.snapshot())
        self.unread, self.num_cached_tokens = self.unread[:0], len(self.prompt_ids)
        self.prompt_logprobs, self.prompt_top_logprobs = other.prompt_logprobs, other.prompt_top_logprobs

    @property
    def _room(self) -> tuple[int, int]:
        """The positions its sequence needs, and its slack."""
        return len(self.prompt_ids) + self.limit - 1, self.lookup.num_tokens if self.lookup else 0

    def accept(self, logits: np.ndarray) -> str:
        """Chooses the next id from float32 logits [V]; returns the text that is certain now."""
        token = self.sampler.choose(logits if self.guide is None else self.guide.mask(logits))
        if self.guide is not None:
            self.guide.push(token)
        if self.alternatives is not None:
            self._note_logprobs(logits, token)
        self.ids.append(token)
        self.unread = np.array([token], np.int64)
        piece = self._advance_text(token)
        if piece:
            self.pieces.append(piece)
        if len(self.ids) == 1:
            self.answered = time.perf_counter()
        if self.finish_reason:
            self.finished = time.perf_counter()
            self.sequence = None  # gives its memory back
        return piece

    def completion(self) -> Completion:
        """The result, once the request is finished."""
        return Completion(
            text=None if self.text is None else "".join(self.pieces),
            ids=self.ids,
            finish_reason=self.finish_reason,
            logprobs=None if self.alternatives is None else np.array(self.logprobs, np.float32),
            top_logprobs=self.top_logprobs if self.alternatives else None,
            prompt_ids=self.prompt_ids,
            prefill_seconds=self.answered - self.started,
            decode_seconds=self.finished - self.answered,
            num_draft_tokens=self.lookup.proposed if self.lookup else 0,
            num_accepted_tokens=self.lookup.accepted if self.lookup else 0,
            num_cached_tokens=self.num_cached_tokens,
            prompt_logprobs=None if self.prompt_alternatives is None else np.array(self.prompt_logprobs, np.float32),
            prompt_top_logprobs=self.prompt_top_logprobs if self.prompt_alternatives else None,
        )

    def _advance_text(self, token: int) -> str:
        """Adds the newest id to the text, and sees whether it is the last."""
        ended, full, piece = token in self.end_ids, len(self.ids) >= self.limit, ""
        if self.text is not None:
            if not ended:
                piece = self.text.push(token)
            if ended or full:
                piece += self.text.flush()
            ended = ended or self.text.stopped
        if ended or full:
            self.finish_reason = "stop" if ended else "length"
        return piece

    def note_prompt(self, logits: np.ndarray, position: int) -> None:
        """Takes the float32 logits [n, V] after the prompt's ids from `position` on."""
        for row, token in zip(logits, self.prompt_ids[position + 1 :], strict=False):  # the last has no next
            logprobs = log_probabilities(row)
            self.prompt_logprobs.append(float(logprobs[token]))
            if self.prompt_alternatives:
                self.prompt_top_logprobs.append(likeliest(logprobs, self.prompt_alternatives))

    def _note_logprobs(self, logits: np.ndarray, token: int) -> None:
        logprobs = log_probabilities(logits)
        self.logprobs.append(float(logprobs[token]))
        if self.alternatives:
            self.top_logprobs.append(likeliest(logprobs, self.alternatives))


class TextStream:
    """The text of ids that come one by one, up to the first stop string; see StopFilter.

    Pieces do not end within a character.
    """

    def __init__(self, tokenizer: Tokenizer, stops: tuple[str, ...]) -> None:
        self._decoder = StreamDecoder(tokenizer)
        self._filter = StopFilter(stops)

    @property
    def stopped(self) -> bool:
        """A stop string has come; nothing follows."""
        return self._filter.stopped

    def push(self, token_id: int) -> str:
        """The text that is certain once this id is known."""
        return self._filter.push(self._decoder.push(token_id))

    def flush(self) -> str:
        """The rest, when no more ids come."""
        return self._filter.push(self._decoder.flush()) + self._filter.flush()


class StopFilter:
    """Text that comes in pieces, up to the first stop string.

    Pieces do not end with what may be the beginning of a stop string. Of several stop strings that one counts whose
    end comes first, so how the text is cut into pieces makes no difference.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False  # a stop string has come; nothing follows

    def flush(self) -> str:
        """The rest, when no more comes."""
        piece, self._held = self._held, ""
        return piece

    def push(self, piece: str) -> str:
        """What is certain once this piece is known."""
        if not self._stops or self.stopped:
            return "" if self.stopped else piece
        text = self._held + piece
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        certain = 0
        while not any(stop.startswith(text[certain:]) for stop in self._stops):
            certain += 1
        self._held = text[certain:]
        return text[:certain]


def _is_batch(prompt: Any) -> bool:
    """Whether `prompt` is a list of prompts, which holds texts or lists; a flat list of ids is one prompt."""
    if isinstance(prompt, np.ndarray):
        return prompt.ndim > 1
    parts = prompt if isinstance(prompt, (list, tuple)) else ()
    return any(isinstance(part, (str, list, tuple, np.ndarray)) for part in parts)


def _run_all(model: Model, requests: list[Request], prefix_cache: PrefixCache | None) -> None:
    scheduler = Scheduler(model, requests, prefix_cache)
    while scheduler.requests:
        scheduler.step()


def _pieces(scheduler: Scheduler, request: Request) -> Iterator[str]:
    try:
        while scheduler.requests:
            for _, piece in scheduler.step():
                if piece:
                    yield piece
    finally:
        scheduler.cancel(request)


def _text_stream(model: Model, stops: tuple[str, ...]) -> TextStream | None:
    try:
        return TextStream(model.tokenizer, stops)
    except TokenizerError:
        if stops:
            raise
        return None


def _read_stop(stop: Any, vocab_size: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The ids and the strings in `stop`, checked."""
    if stop is None:
        return (), ()
    ids, texts = [], []
    for one in stop if isinstance(stop, (list, tuple, set, frozenset)) else [stop]:
        if isinstance(one, str):
            if not one:
                raise InputError("stop holds an empty string, which would end every text; leave it out")
            texts.append(one)
        elif isinstance(one, (int, np.integer)) and not isinstance(one, bool):
            if not 0 <= one < vocab_size:
                raise TokenIdError(f"stop holds the id {one}; the vocabulary has 0 to {vocab_size - 1}")
            ids.append(int(one))
        else:
            raise InputError(f"stop must be a string, a token id or a list of these, found {shown(one)}")
    return tuple(ids), tuple(texts)


def _read_logprobs(name: str, logprobs: Any) -> int | None:
    """How many likeliest tokens to note beside the chosen one; None to note nothing."""
    if logprobs is None or logprobs is False:
        return None
    return 0 if logprobs is True else require_integer(name, logprobs, low=0)
