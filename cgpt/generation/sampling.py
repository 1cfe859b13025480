"""Chooses the next token from the logits: the likeliest, or one at random as the settings say.

The settings apply in this order: repetition_penalty, presence_penalty, frequency_penalty, logit_bias, temperature,
top_k, top_p, min_p. Each of the last three keeps some tokens from the likeliest down, of equally likely ones those
with lower ids first.
"""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cgpt.errors import InputError, NumericsError, TokenIdError
from cgpt.fields import shown


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; InputError where a value makes no sense. None turns a setting off.

    temperature: 0 takes the likeliest token, whatever the next three say; else logits are divided by it
    top_k: keep the k likeliest tokens
    top_p: of those, keep the fewest likeliest whose probabilities add up to top_p or more (nucleus sampling,
        Holtzman et al., https://arxiv.org/abs/1904.09751)
    min_p: of those, keep the ones at least min_p times as likely as the likeliest
        (Nguyen et al., https://arxiv.org/abs/2407.01082)
    repetition_penalty: divides the positive and multiplies the negative logits of the tokens that the
        sequence holds, prompt included (Keskar et al., https://arxiv.org/abs/1909.05858, and transformers)
    presence_penalty, frequency_penalty: taken from the logits of the new tokens so far, once and for each time
    logit_bias: {id: what is added to its logit} (these three as OpenAI's API has them)
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None

    def __post_init__(self) -> None:
        _require_number("temperature", self.temperature, " at least 0", lambda x: x >= 0)
        if self.top_k is not None:
            require_integer("top_k", self.top_k, low=1)
        if self.top_p is not None:
            _require_number("top_p", self.top_p, " above 0 and at most 1", lambda x: 0 < x <= 1)
        if self.min_p is not None:
            _require_number("min_p", self.min_p, " from 0 to 1", lambda x: 0 <= x <= 1)
        if self.repetition_penalty is not None:
            _require_number("repetition_penalty", self.repetition_penalty, " above 0", lambda x: x > 0)
        for name in ("presence_penalty", "frequency_penalty"):
            if getattr(self, name) is not None:
                _require_number(name, getattr(self, name), "", lambda x: True)
        for token, bias in (self.logit_bias or {}).items():
            require_integer("a token id in logit_bias", token, low=0)
            _require_number(f"logit_bias of {token}", bias, "", lambda x: True)


class Sampler:
    """Chooses the tokens of one sequence. The same settings, seed and logits give the same tokens.

    seed: an integer >= 0, or None for a fresh one. prompt_ids: the tokens that the repetition penalty
    applies to from the start; the chosen ones join them.
    """

    def __init__(
        self, sampling: Sampling, vocab_size: int, *, seed: int | None = None, prompt_ids: Sequence[int] = ()
    ) -> None:
        if seed is not None:
            seed = require_integer("seed", seed, low=0)
        self._sampling = sampling
        # PCG64 by name: default_rng may become another generator some day, and seeds must keep their meaning.
        self._random = np.random.Generator(np.random.PCG64(seed))
        self._seen: np.ndarray | None = None
        if sampling.repetition_penalty not in (None, 1):
            self._seen = np.zeros(vocab_size, bool)
            self._seen[np.asarray(prompt_ids, np.int64)] = True
        counted = sampling.presence_penalty or sampling.frequency_penalty
        self._counts = np.zeros(vocab_size, np.float32) if counted else None
        bias = sampling.logit_bias or {}
        if bias and max(bias) >= vocab_size:
            raise TokenIdError(f"logit_bias holds the id {max(bias)}; the vocabulary has 0 to {vocab_size - 1}")
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


def candidates(logits: np.ndarray, peak: float, sampling: Sampling) -> tuple[np.ndarray | None, np.ndarray]:
    """The ids that top_k, top_p and min_p leave, ascending (None: all of them), and their weights: float64,
    proportional to their probabilities, 1 for the likeliest. peak: the largest of the logits."""
    ids = None
    if sampling.top_k is not None and sampling.top_k < len(logits):
        ids = _largest(logits, sampling.top_k)
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


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """float64 [.., V]: the logarithms of the softmax of the logits [.., V]."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def likeliest(logprobs: np.ndarray, k: int) -> dict[int, float]:
    """{id: log-probability} of the k largest of `logprobs` [V], the largest first."""
    ids = _largest(logprobs, min(k, len(logprobs)))
    return {int(i): float(logprobs[i]) for i in ids[np.argsort(-logprobs[ids], kind="stable")]}


def _largest(values: np.ndarray, k: int) -> np.ndarray:
    """The indices of the k largest of `values` [V], ascending."""
    return _from_bound_up(values, np.partition(values, len(values) - k)[len(values) - k], k)


def _nucleus(weights: np.ndarray, top_p: float) -> np.ndarray:
    """The indices, ascending, of the fewest largest weights whose sum is top_p of all or more."""
    total = weights.sum()
    # All weights below an even share of what may be left out weigh less than that; mostly these are many.
    head = np.sort(weights[weights >= (1 - top_p) * total / len(weights)])[::-1]
    count = min(int(head.cumsum().searchsorted(top_p * total)) + 1, len(head))
    return _from_bound_up(weights, head[count - 1], count)


def _from_bound_up(values: np.ndarray, bound: float, count: int) -> np.ndarray:
    """The indices, ascending, of the `count` largest values, the least of which is `bound`: of values that
    equal it the first."""
    kept = np.flatnonzero(values >= bound)
    if len(kept) > count:
        ties = np.flatnonzero(values[kept] == bound)
        kept = np.delete(kept, ties[count - len(kept) :])
    return kept


def require_integer(name: str, value: Any, low: int) -> int:
    """`value` as an int; InputError if it is not an integer of at least `low`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, (bool, np.bool_)) or number < low:
        raise InputError(f"{name} must be an integer of at least {low}, not {shown(value)}")
    return number


def _require_number(name: str, value: Any, wanted: str, valid: Callable[[float], bool]) -> None:
    try:
        number = float(value) if isinstance(value, (int, float, np.integer, np.floating)) else math.nan
    except OverflowError:  # an integer beyond the largest float
        number = math.inf
    if isinstance(value, bool) or not math.isfinite(number) or not valid(number):
        raise InputError(f"{name} must be a finite number{wanted}, not {shown(value)}")
