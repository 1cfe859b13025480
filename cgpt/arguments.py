"""Checks of what callers pass: each raises InputError, saying what was wrong and what is allowed."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import operator
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from cgpt.errors import InputError
from cgpt.fields import shown

F = TypeVar("F", bound=Callable[..., Any])


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
            near = difflib.get_close_matches(unknown, named, 1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(named)}"
            raise InputError(f"{called}() has no argument {shown(unknown)}; {hint}") from None
        return function(*args, **kwargs)

    return checked  # type: ignore[return-value]


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
