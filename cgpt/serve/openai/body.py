"""Reads the JSON bodies of requests: bounded in bytes and in time, field by field."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect, Request

from cgpt.errors import CgptError
from cgpt.fields import Fields, parse_json_object, shown
from cgpt.serve.errors import ApiError
from cgpt.serve.limits import Limits

# Of OpenAI's fields those that change nothing here.
IGNORED = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
}


class Body(Fields):
    """The JSON object of a request; its readers raise ApiError. null is as good as absent."""

    error = ApiError

    def __init__(self, values: dict[str, Any], prefix: str = "") -> None:
        super().__init__({key: value for key, value in values.items() if value is not None}, prefix)

    def refuse(self, key: str, why: str) -> CgptError:
        return ApiError(str(super().refuse(key, why)), param=self.name(key))

    def refuse_unless(self, key: str, harmless: Iterable[Any], why: str) -> None:
        """Raises where `key` holds what would have to change the answer, and cannot."""
        if key in self and not any(type(one) is type(self.values[key]) and one == self.values[key] for one in harmless):
            raise self.refuse(key, why)

    def objects(self, key: str, most: int, default: Any = None) -> list[Body] | None:
        """The objects in the list under `key`."""
        values = self.array(key, default)
        if values is None:
            return None
        if len(values) > most:
            raise ApiError(f"{self.name(key)} holds {len(values)} entries; at most {most}", param=self.name(key))
        for i, value in enumerate(values):
            if not isinstance(value, dict):
                raise ApiError(f"{self.name(key)}[{i}] must be an object, found {shown(value)}", param=self.name(key))
        return [Body(value, f"{self.name(key)}[{i}].") for i, value in enumerate(values)]


async def read_body(request: Request, limits: Limits) -> Body:
    """The body of a request, ApiError if it is no JSON object, too large, or too slow."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # A page of another site may send the other kinds here without asking first.
        raise ApiError("the body must be JSON: send Content-Type: application/json", 415)
    try:
        raw = await asyncio.wait_for(_read(request, limits.body_bytes), limits.body_seconds)
    except (asyncio.TimeoutError, TimeoutError):
        raise ApiError(f"the body did not come within {limits.body_seconds:g} seconds", 408) from None
    values = parse_json_object(raw, Path("the body"), ApiError, _number)
    if is_deeper(values, limits.depth):  # so that nothing that walks through it later meets the end of the stack
        raise ApiError(f"the body is nested deeper than {limits.depth} levels")
    return Body(values)


def _number(digits: str) -> float:
    """1.0 is an integer: JSON has one kind of numbers."""
    value = float(digits)
    if math.isinf(value):  # which an answer that repeats it could not write
        raise ValueError(f"{shown(digits)} is beyond float64")
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def is_deeper(value: Any, most: int) -> bool:
    """Whether lists and objects in `value` are nested more than `most` levels deep."""
    level = [value]
    for _ in range(most + 1):
        level = [one for one in level if isinstance(one, (dict, list))]
        if not level:
            return False
        level = [v for one in level for v in (one.values() if isinstance(one, dict) else one)]
    return True


async def _read(request: Request, most: int) -> bytes:
    announced = request.headers.get("content-length", "0")
    raw = bytearray()
    if not announced.isdigit() or len(announced) > 20 or int(announced) > most:
        raise ApiError(f"the body has {shown(announced)} bytes; at most {most} are read", 413)
    try:
        async for chunk in request.stream():
            raw += chunk
            if len(raw) > most:
                raise ApiError(f"the body has more than {most} bytes", 413)
    except ClientDisconnect:
        raise ApiError("the client left in the middle of the body") from None
    return bytes(raw)


def read_sampling(body: Body, limits: Limits, vocab_size: int) -> dict[str, Any]:
    """The options of SamplingParams that all endpoints share; the defaults are OpenAI's."""
    seed = body.integer("seed", None, low=-(2**63), high=2**63 - 1)
    return {
        "temperature": body.number("temperature", 1.0, low=0, high=2),
        "top_p": body.number("top_p", 1.0, low=1e-6, high=1),
        "top_k": body.integer("top_k", None, low=1),
        "min_p": body.number("min_p", None, low=0, high=1),
        "repetition_penalty": body.number("repetition_penalty", None, low=0.01, high=100),
        "presence_penalty": body.number("presence_penalty", None, low=-2, high=2),
        "frequency_penalty": body.number("frequency_penalty", None, low=-2, high=2),
        "seed": None if seed is None else seed % 2**64,
        "stop": _read_stop(body, limits),
        "logit_bias": _read_logit_bias(body, limits, vocab_size),
    }


SAMPLING = {
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "logit_bias",
}


def _read_stop(body: Body, limits: Limits) -> list[str]:
    stop = body.values.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    good = isinstance(stops, list) and len(stops) <= limits.stops
    if not good or not all(isinstance(one, str) and len(one) <= limits.stop_length for one in stops):
        raise body.refuse("stop", f"must be a string or {limits.stops} at most, of {limits.stop_length} characters")
    return [one for one in stops if one]


def _read_logit_bias(body: Body, limits: Limits, vocab_size: int) -> dict[int, float] | None:
    section = body.section("logit_bias")
    if section is None:
        return None
    if len(section.values) > limits.logit_biases:
        raise body.refuse("logit_bias", f"may name {limits.logit_biases} tokens at most")
    for key in section.values:
        if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < vocab_size):
            raise body.refuse("logit_bias", f"must have token ids as keys, 0 to {vocab_size - 1}")
    return {int(key): section.number(key, low=-100, high=100) for key in section.values}
