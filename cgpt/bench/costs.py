"""What one call of a kernel has to read from memory, and how many floating-point operations it takes.

Counted are weights and the cache, once a call each: what cannot be in the processor's caches. Activations can. A
multiply-add is two operations; those of norms, activations and the like are not counted.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from cgpt.kernels import _kernels as k

Cost = Callable[..., tuple[int, int]]


def cost(kernel: str, args: Sequence[Any], options: Mapping[str, Any]) -> tuple[int, int]:
    """(bytes, operations) of _kernels.<kernel>(*args, **options)."""
    return _COSTS[kernel](*args, **options) if kernel in _COSTS else (0, 0)


def matrix_bytes(matrix: k.Matrix) -> int:
    """The bytes of a matrix: its weights, scales and biases, packed rows or what is stored in their place."""
    held: int = sum(array.nbytes for array in matrix.arrays)
    if matrix.dtype == "BF16_PACKED":
        packed, *others = matrix.arrays
        row_bytes: int = packed.shape[-1]
        held -= row_bytes * sum(len(rows) for rows in others if rows.dtype == np.uint16)
    return held + prod(matrix.shape) * 17 // 32 if len(matrix.arrays) == 1 and matrix.dtype == "MXFP4" else held


def _linear(ctx: k.Context, y: k.Tensor, x: k.Tensor, w: k.Matrix, T: int, **_: Any) -> tuple[int, int]:
    N, K = w.shape
    return matrix_bytes(w), 2 * T * N * K


def _moe(
    ctx: k.Context, out: k.Tensor, x: k.Tensor, index: Any, weight: k.Tensor, gate_up: k.Matrix, down: k.Matrix,
    alpha: float, limit: float, T: int, **_: Any,
) -> tuple[int, int]:  # fmt: skip
    """The experts that some token chose."""
    chosen = index[:T]
    E, experts = gate_up.shape[0], len(np.unique(chosen))
    active = sum(N * K for _, N, K in (gate_up.shape, down.shape))
    return (matrix_bytes(gate_up) + matrix_bytes(down)) * experts // E, 2 * chosen.size * active


def _attention(
    ctx: k.Context, out: k.Tensor, qkv: k.Tensor, spans: Sequence[Any], H: int, *, window: int = 0, **_: Any
) -> tuple[int, int]:
    """The positions that some query sees; a query and each of its keys meet in D products, its values in as many."""
    read, pairs = 0, 0
    G, D = spans[0][0].G, spans[0][0].D
    for cache, _row, start, T in spans:
        first = max(0, start + 1 - window) if window else 0
        read += 2 * cache.row_bytes * G * (start + T - first)
        pairs += sum(min(p + 1, window or p + 1) for p in range(start, start + T))
    return read, 4 * D * H * pairs


def _embed(out: k.Tensor, table: k.Matrix, ids: Any, positions: k.Matrix | None = None, **_: Any) -> tuple[int, int]:
    """A row of each table for a token."""
    tables = [table] if positions is None else [table, positions]
    return sum(matrix_bytes(t) // t.shape[0] for t in tables) * len(ids), 0


_COSTS: dict[str, Cost] = {"linear": _linear, "moe": _moe, "attention": _attention, "embed": _embed}
