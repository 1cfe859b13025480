"""Chooses the next token from the logits: the largest, or one at random as SamplingParams say.

The settings apply in this order: repetition_penalty, presence_penalty, frequency_penalty, logit_bias, temperature,
top_k, top_p, min_p. Each of the last three keeps some tokens from the likeliest down, of equally likely ones those
with lower ids first. The arithmetic is float64, in C (csrc/kernels/sample.c), and does not depend on the CPU.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any

import numpy as np
import numpy.typing as npt

from cgpt.arguments import checked_arguments, require_flag, require_integer, require_number, warn_caller
from cgpt.errors import InputError, NumericsError, TokenIdError
from cgpt.fields import shown
from cgpt.kernels import _kernels
from cgpt.kernels.scratch import thread_context

# Of SamplingParams, what a checkpoint's generation_config.json can set.
CHECKPOINT_PARAMS = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
REQUIRED = ("max_new_tokens", "min_new_tokens", "temperature")  # the numbers that are never None


@dataclass(frozen=True)
class SamplingParams:
    """How the next tokens of a text are chosen, and when it ends. Checked once; InputError names what makes no sense.

    max_new_tokens: new ids at most; the context may end sooner
    min_new_tokens: before so many new ids no eos id and no id in `stop` is chosen, unless nothing else can be
    temperature: at least 0; 0 takes the likeliest token, whatever the next three say; else logits are divided by it
    top_k: keep the k likeliest tokens; None, 0 and -1 keep all
    top_p: of those, keep the fewest likeliest whose probabilities add up to top_p or more, above 0 and at most 1
        (nucleus sampling, Holtzman et al., https://arxiv.org/abs/1904.09751)
    min_p: of those, keep the ones at least min_p times as likely as the likeliest, 0 to 1
        (Nguyen et al., https://arxiv.org/abs/2407.01082)
    repetition_penalty: divides the positive and multiplies the negative logits of the tokens that the
        sequence holds, prompt included, above 0 (Keskar et al., https://arxiv.org/abs/1909.05858, and transformers)
    presence_penalty, frequency_penalty: any finite number (OpenAI's API: -2 to 2); subtracted from the logits of the
        new tokens so far, once and for each time
    logit_bias: {id: a finite number that is added to its logit} (OpenAI's API: -100 to 100)
    seed: an integer of at least 0 that makes the choice repeatable; None and -1 take a fresh one
    stop: a str, a token id, or several, which end the text too
    logprobs: True keeps the log-probability of each new id, a number k also those of the k likeliest
    prompt_logprobs: the same of the prompt's ids; such a prompt is read anew, whatever a prefix cache holds
    ignore_eos: go on after the checkpoint's eos ids
    prompt_lookup_num_tokens: draft so many tokens at a time from what followed the same tokens before
    detokenize: make text of the ids; without it a Completion has none
    skip_special_tokens: leave the names of special tokens out of the text
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
    skip_special_tokens: bool = False
    min_new_tokens: int = 0

    def __post_init__(self) -> None:
        least = {"max_new_tokens": 1, "min_new_tokens": 0, "top_k": -1, "seed": -1, "prompt_lookup_num_tokens": 1}
        for name, low in least.items():
            if (value := getattr(self, name)) is not None or name in REQUIRED:
                self._set(name, require_integer(name, value, low))
        for name, off in (("top_k", (-1, 0)), ("seed", (-1,))):  # as other libraries write it
            if getattr(self, name) in off:
                self._set(name, None)
        for name, wanted, valid in (
            ("temperature", " at least 0", lambda x: x >= 0),
            ("top_p", " above 0 and at most 1", lambda x: 0 < x <= 1),
            ("min_p", " from 0 to 1", lambda x: 0 <= x <= 1),
            ("repetition_penalty", " above 0", lambda x: x > 0),
            ("presence_penalty", "", lambda x: True),
            ("frequency_penalty", "", lambda x: True),
        ):
            if (value := getattr(self, name)) is not None or name in REQUIRED:
                self._set(name, require_number(name, value, wanted, valid))
        if not isinstance(self.logit_bias, (Mapping, NoneType)):
            raise InputError(f"logit_bias is a dict of token ids to numbers, not {shown(self.logit_bias)}")
        if self.logit_bias is not None:
            self._set("logit_bias", dict(_checked_bias(*item) for item in self.logit_bias.items()))
        for name in ("logprobs", "prompt_logprobs"):
            if not isinstance(getattr(self, name), (bool, NoneType)):
                require_integer(name, getattr(self, name), low=0)
        for name in ("ignore_eos", "detokenize", "skip_special_tokens"):
            require_flag(name, getattr(self, name))
        self._set("stop", _stops(self.stop))

    def _set(self, name: str, value: object) -> None:
        """Replaces what was passed by the checked, plain value."""
        object.__setattr__(self, name, value)

    @classmethod
    def pick(cls, arguments: Mapping[str, Any], defaults: Mapping[str, Any]) -> "SamplingParams":
        """Those of a call's arguments, as its locals() has them, that are parameters of sampling; for None the default
        of the checkpoint, see checkpoint_defaults(), or else of this class."""
        given = {field.name: arguments.get(field.name) for field in fields(cls)}
        return cls(**{**defaults, **{name: value for name, value in given.items() if value is not None}})

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
                raise TokenIdError(f"{name} holds the id {shown(wrong[0])}; the vocabulary has 0 to {vocab_size - 1}")


SamplingParams.__init__ = checked_arguments(SamplingParams.__init__)  # type: ignore[method-assign]


def checkpoint_defaults(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """The SamplingParams that a checkpoint's generation_config.json asks for, {name: value}.

    As in transformers the temperature counts with do_sample only, where it is 1 unless the file says otherwise; without
    do_sample the likeliest token is taken until a call passes a temperature. What the file leaves out is off
    (transformers itself adds top_k 50). A value that SamplingParams refuses is left out, with a warning.
    """
    given = {name: generation_config.get(name) for name in CHECKPOINT_PARAMS}
    if generation_config.get("do_sample") is not True:
        given["temperature"] = None
    elif given["temperature"] is None:
        given["temperature"] = 1.0
    defaults = {}
    for name, value in given.items():
        if value is not None:
            try:
                defaults[name] = getattr(SamplingParams(**{name: value}), name)
            except InputError as problem:
                warn_caller(f"generation_config.json: {problem}; the setting is left out")
    return defaults


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


def _checked_bias(token: int, bias: float) -> tuple[int, float]:
    token = require_integer("a token id in logit_bias", token, low=0)
    return token, require_number(f"logit_bias of {shown(token)}", bias, "", lambda x: True)


class Sampler:
    """Chooses the tokens of one sequence. The same params, seed and logits give the same tokens.

    prompt_ids: the tokens that the repetition penalty applies to from the start; the chosen ones join them.
    """

    def __init__(self, params: SamplingParams, vocab_size: int, *, prompt_ids: Sequence[int] = ()) -> None:
        params.check_vocabulary(vocab_size)
        # PCG64 by name: default_rng may become another generator some day, and seeds must keep their meaning.
        self._random = np.random.Generator(np.random.PCG64(params.seed))
        self._greedy = params.temperature == 0
        penalty = params.repetition_penalty or 1.0
        presence, frequency = params.presence_penalty or 0.0, params.frequency_penalty or 0.0
        self._state = _kernels.SamplingState(
            params.temperature,
            vocab_size if params.top_k is None else min(params.top_k, vocab_size),
            1.0 if params.top_p is None else params.top_p,
            params.min_p or 0.0,
            presence,
            frequency,
            penalty,
        )
        self._records = penalty != 1 or presence != 0 or frequency != 0
        seen = np.unique(np.asarray(prompt_ids if penalty != 1 else (), np.int64))
        bias = params.logit_bias or {}
        if len(seen) and not 0 <= seen[0] <= seen[-1] < vocab_size:
            raise TokenIdError(
                f"the prompt holds ids {seen[0]} to {seen[-1]}; the vocabulary has 0 to {vocab_size - 1}"
            )
        changes = np.zeros(len(seen) + len(bias), _kernels.LOGIT_CHANGE)
        changes = changes[: len(ids := np.union1d(seen, np.array(list(bias), np.int64)))]
        changes["id"], changes["seen"] = ids, np.isin(ids, seen)
        with np.errstate(over="ignore"):  # beyond float32: infinite
            changes["bias"][np.searchsorted(ids, list(bias))] = list(bias.values())
        self._state.changes = changes

    def choose(self, logits: npt.NDArray[np.float32]) -> int:
        """The next token's id. logits: float32 [V], not changed; NumericsError if they hold NaN or +infinity, or
        nothing but -infinity."""
        row = _kernels.Tensor(np.ascontiguousarray(logits, np.float32))
        draw = 0.0 if self._greedy else self._random.random()
        token, largest = _kernels.sample(thread_context(), row, self._state, draw)
        if token < 0:
            raise NumericsError(f"the largest of the logits is {largest}, so no token can be chosen")
        if self._records:
            self._record(token)
        return token

    def _record(self, token: int) -> None:
        """Adds a chosen token to what penalties count."""
        changes = self._state.changes
        at = int(changes["id"].searchsorted(token))
        if at == len(changes) or changes["id"][at] != token:
            changes = np.insert(changes, at, np.array((token, 0, 0, 0), _kernels.LOGIT_CHANGE))
        changes["seen"][at] = 1
        changes["count"][at] += 1
        self._state.changes = changes
