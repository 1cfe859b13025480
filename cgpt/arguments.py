"""Checks of what callers pass: each raises InputError, saying what was wrong and what is allowed."""

from __future__ import annotations

import functools
import inspect
import math
import operator
import os
import re
import stat
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cgpt.errors import InputError
from cgpt.fields import shown

F = TypeVar("F", bound=Callable[..., Any])

# What other libraries call arguments, and what does that here, or why nothing does.
_FOREIGN = {
    "max_length": "max_new_tokens, which does not count the prompt",
    **dict.fromkeys(
        ("max_tokens", "max_completion_tokens", "max_output_tokens", "max_gen_len", "n_predict", "num_predict"),
        "max_new_tokens",
    ),
    "do_sample": "temperature, above 0 to sample and 0 not to",
    "greedy": "temperature, above 0 to sample and 0 not to",
    "repeat_penalty": "repetition_penalty",
    **dict.fromkeys(("stop_strings", "stop_sequences", "stop_words", "stop_token_ids"), "stop, texts and ids"),
    "eos_token_id": "stop, which takes ids too, beside the checkpoint's eos ids",
    "num_return_sequences": "prompt, a list that repeats it",
    "n": "prompt, a list that repeats it",
    **dict.fromkeys(("input_ids", "inputs", "prompts", "prompt_token_ids", "text", "messages"), "prompt"),
    "attention_mask": "prompt, without padding",
    **dict.fromkeys(("random_seed", "random_state", "generator"), "seed"),
    "output_scores": "logprobs",
    "top_logprobs": "logprobs, a number",
    **dict.fromkeys(("allowed_special", "parse_special", "split_special_tokens"), "special"),
    "use_cache": "prefix_cache",
    "streamer": "model.stream(), which yields the text",
    "stream": "model.stream(), which yields the text",
    **dict.fromkeys(("num_beams", "beam_width", "length_penalty", "early_stopping"), "cgpt has no beam search"),
    **dict.fromkeys(("n_threads", "num_threads", "nthreads"), "threads"),
    **dict.fromkeys(("dtype", "torch_dtype", "quantization"), 'dense="bf16" or "int8", and precision'),
    "load_in_8bit": 'dense="int8"',
    "load_in_4bit": 'dense="int4"',
    **dict.fromkeys(("device", "device_map", "n_gpu_layers"), "cgpt runs on CPUs"),
    **dict.fromkeys(("pretrained_model_name_or_path", "model_path", "model_id", "model"), "path_or_name"),
}


def checked_arguments(function: F) -> F:
    """Makes a call that does not fit the function's signature an InputError, with the nearest known name for an unknown
    one, instead of a TypeError."""
    signature = inspect.signature(function)
    called = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]
    named = [p.name for p in signature.parameters.values() if p.kind is not p.POSITIONAL_ONLY and p.name != "self"]

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as problem:
            unknown = next((name for name in kwargs if name not in named), None)
            if unknown is None:
                raise InputError(f"{called}(): {problem}") from None
            import difflib

            near = difflib.get_close_matches(unknown, named, 1)
            foreign = _FOREIGN.get(unknown, "")
            word = re.split(r"\W", foreign)[0]
            meant = foreign if word in (*named, "model") else near[0] if near else None
            hint = foreign if word == "cgpt" else f"did you mean {meant}?" if meant else f"it has {', '.join(named)}"
            raise InputError(f"{called}() has no argument {shown(unknown)}; {hint}") from None
        return function(*args, **kwargs)

    return checked  # type: ignore[return-value]


def warn_caller(text: str) -> None:
    """Warns, naming the line outside of this package that led here."""
    level, frame = 2, sys._getframe(1)
    between = ("cgpt", "functools", "contextlib")  # cached properties and context managers have frames of their own
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in between:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)


_UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def require_bytes(name: str, value: Any) -> int:
    """An amount of memory: a number of bytes, or a text such as "18GB" or "16 GiB". InputError for what is none."""
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([KMGT]?I?)B?\s*", value.upper())
        value = int(float(found[1]) * _UNITS[found[2]]) if found and found[2] in _UNITS else value
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise InputError(f'{name} is a number of bytes, or a text such as "18GB" or "16GiB", not {shown(value)}')
    return int(value)


def require_integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """`value` as an int from `low` to `high`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, (bool, np.bool_)) or number < low or (high is not None and number > high):
        wanted = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise InputError(f"{name} must be an integer {wanted}, not {shown(value)}")
    return number


def require_number(name: str, value: Any, wanted: str, valid: Callable[[float], bool]) -> float:
    """`value` as a finite float that is `valid`; `wanted` says so in words."""
    try:
        number = float(value) if isinstance(value, (int, float, np.integer, np.floating)) else math.nan
    except OverflowError:  # an integer beyond the largest float
        number = math.inf
    if isinstance(value, bool) or not math.isfinite(number) or not valid(number):
        raise InputError(f"{name} must be a finite number{wanted}, not {shown(value)}")
    return number


def require_directory(what: str, value: Any) -> Path:
    """`value` as an absolute path; InputError, which names `what` it is for, where it can be none of a directory."""
    try:
        if not (name := os.fspath(value)):
            raise ValueError("it is no name")
        path = Path(os.path.abspath(os.path.expanduser(name)))
        with suppress(OSError):
            if not stat.S_ISDIR(os.stat(path).st_mode):
                raise ValueError("it is a file")
    except (TypeError, ValueError) as problem:
        raise InputError(f"{shown(value)} is no directory for {what}: {problem}") from None
    return path


def require_flag(name: str, value: Any) -> bool:
    """`value`, which must be True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise InputError(f"{name} is True or False, not {shown(value)}")
    return bool(value)


def require_choice(name: str, value: Any, choices: tuple[str | None, ...]) -> None:
    """Raises unless `value` is one of `choices`."""
    if not any(value is one or (isinstance(value, str) and value == one) for one in choices):
        names = [repr(one) for one in choices]
        raise InputError(f"{name} is {', '.join(names[:-1])} or {names[-1]}, not {shown(value)}")
