"""Reads the JSON bodies of requests, bounded in bytes, in time, in values and in depth."""

from __future__ import annotations

import asyncio
import math
import zlib
from itertools import islice
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect, Request

from cgpt.fields import json_levels, parse_json_object, shown
from cgpt.serve.errors import ApiError
from cgpt.serve.limits import Limits


async def read_body(request: Request, limits: Limits) -> bytes:
    """Reads the body of a request that says it is JSON; ApiError if it does not, is too large, or too slow."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # A page of another site may send the other kinds here without asking first.
        raise ApiError("the body must be JSON: send Content-Type: application/json", 415)
    return unpacked(await read_raw(request, limits), request.headers.get("content-encoding", "identity"), limits)


async def read_raw(request: Request, limits: Limits) -> bytes:
    """Reads a body as it is sent; ApiError if it is too large, or too slow."""
    try:
        return await asyncio.wait_for(_read(request, limits.body_bytes), limits.body_seconds)
    except (asyncio.TimeoutError, TimeoutError):
        raise ApiError(f"the body did not come within {limits.body_seconds:g} seconds", 408) from None


def parse_body(raw: bytes, limits: Limits) -> dict[str, Any]:
    """Parses the JSON object that is a body; ApiError if it is none, holds too much, or is too deep."""
    values = parse_json_object(raw, Path("the body"), ApiError, _number, limits.values, limits.keys)
    if is_deeper(values, limits.depth):  # so that nothing that walks through it later meets the end of the stack
        raise ApiError(f"the body is nested deeper than {limits.depth} levels")
    return values


def _number(digits: str) -> float:
    """Reads a number with a point or an exponent; 1.0 is an integer, as JSON has one kind of numbers."""
    value = float(digits)
    if math.isinf(value):  # which an answer that repeats it could not write
        raise ValueError(f"{shown(digits)} is beyond float64")
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def is_deeper(value: Any, max_depth: int) -> bool:
    """Whether lists and objects in `value` are nested more than `max_depth` levels deep."""
    return next(islice(json_levels(value), max_depth, None), None) is not None


def unpacked(raw: bytes, encoding: str, limits: Limits) -> bytes:
    """The body that was sent with this Content-Encoding; ApiError where it is none, or too large."""
    encoding, max_bytes = encoding.strip().lower(), limits.body_bytes
    if encoding == "identity":
        return raw
    if encoding != "gzip":
        raise ApiError(f"the Content-Encoding {shown(encoding)} is not known here; gzip is", 415)
    packed = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        found = packed.decompress(raw, max_bytes + 1)
    except zlib.error:
        raise ApiError("the body is not gzip, as its Content-Encoding says") from None
    if len(found) > max_bytes:
        raise ApiError(f"the body has more than {max_bytes} bytes, unpacked", 413)
    if not packed.eof or packed.unused_data:
        raise ApiError("the body is not one whole gzip member")
    return found


async def _read(request: Request, max_bytes: int) -> bytes:
    announced = request.headers.get("content-length", "0")
    raw = bytearray()
    if not announced.isdigit() or len(announced) > 20 or int(announced) > max_bytes:
        raise ApiError(f"the body has {shown(announced)} bytes; at most {max_bytes} are read", 413)
    try:
        async for chunk in request.stream():
            raw += chunk
            if len(raw) > max_bytes:
                raise ApiError(f"the body has more than {max_bytes} bytes", 413)
    except ClientDisconnect:
        raise ApiError("the client left in the middle of the body") from None
    return bytes(raw)
