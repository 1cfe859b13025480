"""Random operands of the kernels' calls, and as many of them as no cache holds."""

from collections.abc import Callable
from functools import cache
from math import prod
from typing import TypeVar

import numpy as np

from cgpt.kernels import _kernels as k

RING = 200_000_000  # bytes of copies
T = TypeVar("T")
_rng = np.random.default_rng(0)


def tensor(rows: int, cols: int) -> k.Tensor:
    return k.Tensor(_rng.standard_normal((rows, cols), np.float32))


@cache
def _values(dtype: str) -> np.ndarray:
    """A million random values, or the bytes of MXFP4 blocks."""
    if dtype == "MXFP4":
        return _rng.integers(0, 256, 1 << 24, np.uint8)
    values = _rng.standard_normal(1 << 20, np.float32)
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(np.float16) if dtype == "F16" else values


def matrix(dtype: str, *shape: int, bias: bool = False) -> k.Matrix:
    """Random weights [.., N, K], the same values over and over."""
    *outer, K = shape
    added = _rng.standard_normal(outer, np.float32) if bias else None
    if dtype == "MXFP4":
        blocks = np.resize(_values(dtype), (*outer, K // 32, 16))
        return k.Matrix(dtype, blocks, np.full((*outer, K // 32), 120, np.uint8), added)
    if dtype == "INT8":
        return k.Matrix(dtype, *k.quantize_int8(np.resize(_values("F32"), shape), "F32", 1), added, K)
    if dtype == "INT4":
        return k.Matrix(dtype, *k.quantize_int4(np.resize(_values("F32"), shape), "F32", 1), added, K)
    if dtype == "BF16_PACKED":
        data, stored = k.pack_bf16(np.resize(_values("BF16"), (prod(outer), K)), "BF16", 1)
        return k.Matrix(dtype, data.reshape(*outer, -1), stored, added, K)
    return k.Matrix(dtype, np.resize(_values(dtype), shape), bias=added)


def copies(make: Callable[[], T], size: int, limit: int = 24) -> list[T]:
    """As many copies of what takes `size` bytes as fill RING, at most `limit`."""
    return [make() for _ in range(max(1, min(RING // size, limit)))]
