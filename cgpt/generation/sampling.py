"""Chooses the next token from the logits: the likeliest, or one at random as the settings say.

The settings apply in this order: repetition_penalty, presence_penalty, frequency_penalty, logit_bias, temperature,
top_k, top_p, min_p. Each of the last three keeps some tokens from the likeliest down, of equally likely ones those
with lower ids first.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

import numpy as np

from cgpt.arguments import require_flag, require_integer, require_number
from cgpt.errors import InputError, NumericsError, TokenIdError
from cgpt.fields import shown
from cgpt.models.logprobs import down_to, largest


@dataclass(frozen=True)
class SamplingParams:
    """How the next tokens of a text are chosen, and when it ends. Checked once; InputError names what makes no sense.

    max_new_tokens: new ids at most; the context may end sooner
    temperature: 0 takes the likeliest token, whatever the next three say; else logits are divided by it
    top_k: keep the k likeliest tokens
    top_p: of those, keep the fewest likeliest whose probabilities add up to top_p or more, above 0 and at most 1
        (nucleus sampling, Holtzman et al., https://arxiv.org/abs/1904.09751)
    min_p: of those, keep the ones at least min_p times as likely as the likeliest, 0 to 1
        (Nguyen et al., https://arxiv.org/abs/2407.01082)
    repetition_penalty: divides the positive and multiplies the negative logits of the tokens that the
        sequence holds, prompt included, above 0 (Keskar et al., https://arxiv.org/abs/1909.05858, and transformers)
    presence_penalty, frequency_penalty: taken from the logits of the new tokens so far, once and for each time
    logit_bias: {id: what is added to its logit} (these three as OpenAI's API has them)
    seed: an integer of at least 0 that makes the choice repeatable; None takes a fresh one
    stop: a str, a token id, or several, which end the text too
    logprobs: True keeps the log-probability of each new id, a number k also those of the k likeliest
    prompt_logprobs: the same of the prompt's ids; such a prompt is read anew, whatever a prefix cache holds
    ignore_eos: go on after the checkpoint's eos ids
    prompt_lookup_num_tokens: draft so many tokens at a time from what followed the same words before
    detokenize: whether the text is wanted, and not the ids alone
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    stop: str | int | Iterable[str | int] | None = None
    logprobs: bool | int | None = None
    prompt_logprobs: bool | int | None = None
    ignore_eos: bool = False
    prompt_lookup_num_tokens: int | None = None
    detokenize: bool = True

    def __post_init__(self) -> None:
        require_integer("max_new_tokens", self.max_new_tokens, low=1)
        require_number("temperature", self.temperature, " at least 0", lambda x: x >= 0)
        if self.top_k is not None:
            require_integer("top_k", self.top_k, low=1)
        if self.top_p is not None:
            require_number("top_p", self.top_p, " above 0 and at most 1", lambda x: 0 < x <= 1)
        if self.min_p is not None:
            require_number("min_p", self.min_p, " from 0 to 1", lambda x: 0 <= x <= 1)
        if self.repetition_penalty is not None:
            require_number("repetition_penalty", self.repetition_penalty, " above 0", lambda x: x > 0)
        for name in ("presence_penalty", "frequency_penalty"):
            if getattr(self, name) is not None:
                require_number(name, getattr(self, name), "", lambda x: True)
        if not isinstance(self.logit_bias, (Mapping, NoneType)):
            raise InputError(f"logit_bias is a dict of token ids to numbers, not {shown(self.logit_bias)}")
        for token, bias in (self.logit_bias or {}).items():
            require_integer("a token id in logit_bias", token, low=0)
            require_number(f"logit_bias of {token}", bias, "", lambda x: True)
        if self.seed is not None:
            require_integer("seed", self.seed, low=0)
        for name in ("logprobs", "prompt_logprobs"):
            if not isinstance(getattr(self, name), (bool, NoneType)):
                require_integer(name, getattr(self, name), low=0)
        for name in ("ignore_eos", "detokenize"):
            require_flag(name, getattr(self, name))
        if self.prompt_lookup_num_tokens is not None:
            require_integer("prompt_lookup_num_tokens", self.prompt_lookup_num_tokens, low=1)
        object.__setattr__(self, "stop", _stops(self.stop))

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The token ids among `stop`."""
        return tuple(one for one in self.stop if isinstance(one, int))  # type: ignore[union-attr]

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """The strings among `stop`."""
        return tuple(one for one in self.stop if isinstance(one, str))  # type: ignore[union-attr]

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises TokenIdError where an id in `stop` or `logit_bias` is beyond the vocabulary."""
        for name, ids in (("stop", self.stop_ids), ("logit_bias", self.logit_bias or ())):
            if wrong := [one for one in ids if not 0 <= one < vocab_size]:
                raise TokenIdError(f"{name} holds the id {wrong[0]}; the vocabulary has 0 to {vocab_size - 1}")


def _stops(stop: Any) -> tuple[str | int, ...]:
    """The strings and ids in `stop`, checked."""
    if stop is None:
        return ()
    found: list[str | int] = []
    for one in stop if isinstance(stop, (list, tuple, set, frozenset)) else [stop]:
        if isinstance(one, str):
            if not one:
                raise InputError("stop holds an empty string, which would end every text; leave it out")
            found.append(one)
        elif isinstance(one, (int, np.integer)) and not isinstance(one, bool):
            found.append(int(one))
        else:
            raise InputError(f"stop must be a string, a token id or a list of these, found {shown(one)}")
    return tuple(found)


class Sampler:
    """Chooses the tokens of one sequence. The same settings, seed and logits give the same tokens.

    prompt_ids: the tokens that the repetition penalty applies to from the start; the chosen ones join them.
    """

    def __init__(self, sampling: SamplingParams, vocab_size: int, *, prompt_ids: Sequence[int] = ()) -> None:
        sampling.check_vocabulary(vocab_size)
        self._sampling = sampling
        # PCG64 by name: default_rng may become another generator some day, and seeds must keep their meaning.
        self._random = np.random.Generator(np.random.PCG64(sampling.seed))
        self._seen: np.ndarray | None = None
        if sampling.repetition_penalty not in (None, 1):
            self._seen = np.zeros(vocab_size, bool)
            self._seen[np.asarray(prompt_ids, np.int64)] = True
        counted = sampling.presence_penalty or sampling.frequency_penalty
        self._counts = np.zeros(vocab_size, np.float32) if counted else None
        bias = sampling.logit_bias or {}
        self._biased = np.array(list(bias), np.int64), np.array(list(bias.values()), np.float32)

    def choose(self, logits: np.ndarray) -> int:
        """The next token's id. logits: float32 [V], not changed; NumericsError if they hold NaN or +infinity,
        or nothing but -infinity.
        """
        if self._seen is not None:
            logits = penalized(logits, np.flatnonzero(self._seen), self._sampling.repetition_penalty)
        if self._counts is not None:
            presence, frequency = self._sampling.presence_penalty or 0, self._sampling.frequency_penalty or 0
            logits = logits - presence * (self._counts > 0) - frequency * self._counts
        if len(self._biased[0]):
            logits = logits.copy()
            logits[self._biased[0]] += self._biased[1]
        token = int(logits.argmax())  # the first of equal ones; NaN counts as largest
        peak = float(logits[token])
        if not math.isfinite(peak):
            raise NumericsError(f"the largest of the logits is {peak}, so no token can be chosen")
        if self._sampling.temperature > 0:
            ids, weights = candidates(logits, peak, self._sampling)
            cumulative = weights.cumsum()
            # random() < 1, so the product is below the last sum; "right" passes over tokens of weight 0.
            drawn = int(cumulative.searchsorted(self._random.random() * cumulative[-1], side="right"))
            token = drawn if ids is None else int(ids[drawn])
        if self._seen is not None:
            self._seen[token] = True
        if self._counts is not None:
            self._counts[token] += 1
        return token


def penalized(logits: np.ndarray, seen: np.ndarray, penalty: float) -> np.ndarray:
    """A copy of the float32 logits [V] with the repetition penalty on the ids in `seen`."""
    logits = logits.copy()
    values = logits[seen]
    logits[seen] = np.where(values < 0, values * penalty, values / penalty)
    return logits


def candidates(logits: np.ndarray, peak: float, sampling: SamplingParams) -> tuple[np.ndarray | None, np.ndarray]:
    """The ids that top_k, top_p and min_p leave, ascending (None: all of them), and their weights: float64,
    proportional to their probabilities, 1 for the likeliest. peak: the largest of the logits."""
    ids = None
    if sampling.top_k is not None and sampling.top_k < len(logits):
        ids = largest(logits, sampling.top_k)
        logits = logits[ids]
    with np.errstate(over="ignore"):  # a tiny temperature makes all others -infinity, which is right
        weights = np.exp((logits.astype(np.float64) - peak) / float(sampling.temperature))
    if sampling.top_p is not None and sampling.top_p < 1:
        kept = _nucleus(weights, sampling.top_p)
        ids, weights = kept if ids is None else ids[kept], weights[kept]
    if sampling.min_p:
        kept = np.flatnonzero(weights >= sampling.min_p)
        ids, weights = kept if ids is None else ids[kept], weights[kept]
    return ids, weights


def _nucleus(weights: np.ndarray, top_p: float) -> np.ndarray:
    """The indices, ascending, of the fewest largest weights whose sum is top_p of all or more."""
    total = weights.sum()
    # All weights below an even share of what may be left out weigh less than that; mostly these are many.
    head = np.sort(weights[weights >= (1 - top_p) * total / len(weights)])[::-1]
    count = min(int(head.cumsum().searchsorted(top_p * total)) + 1, len(head))
    return down_to(weights, head[count - 1], count)
