"""Random operands of the kernels' calls, and as many of them as no cache holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cgpt import _kernels as k

RING = 200_000_000  # bytes of copies
_rng = np.random.default_rng(0)


def tensor(rows: int, cols: int) -> k.Tensor:
    return k.Tensor(_rng.standard_normal((rows, cols), np.float32))


def matrix(dtype: str, *shape: int, bias: bool = False) -> k.Matrix:
    """Random weights [.., N, K]: 16 MiB of random bits, over and over."""

    def words(count: int) -> np.ndarray:
        return np.resize(_rng.integers(0, 1 << 32, 1 << 22, np.uint32), -(-count // 4))

    *outer, K = shape
    added = _rng.standard_normal(outer, np.float32) if bias else None
    if dtype == "MXFP4":
        blocks = words(int(np.prod(shape)) // 2).view(np.uint8)[: int(np.prod(shape)) // 2]
        return k.Matrix(dtype, blocks.reshape(*outer, K // 32, 16), np.full((*outer, K // 32), 120, np.uint8), added)
    values = np.resize(_rng.standard_normal(1 << 20, np.float32), shape)
    if dtype == "INT8":
        return k.Matrix(dtype, *k.quantize_int8(values, "F32", 1), added, K)
    if dtype == "BF16":
        return k.Matrix(dtype, (values.view(np.uint32) >> 16).astype(np.uint16), bias=added)
    return k.Matrix(dtype, values.astype(np.float16) if dtype == "F16" else values, bias=added)


def copies(make: Callable[[], Any], size: int, most: int = 24) -> list:
    """Of what takes `size` bytes: as many as fill the ring, `most` at the highest."""
    return [make() for _ in range(max(1, min(RING // size, most)))]
