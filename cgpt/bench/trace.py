"""Which kernels a step calls, how long each takes, and what it must read and calculate: seen from outside, by taking
the place of the functions of cgpt.kernels._kernels for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

from cgpt.bench.costs import cost
from cgpt.kernels import _kernels as k

KERNELS = ("embed", "layernorm", "rmsnorm", "rope", "attention", "linear", "activation", "topk", "moe")


@dataclass
class Op:
    """The calls of one kernel, or of `linear` with one of a block's matrices, so far."""

    calls: int = 0
    seconds: float = 0.0
    bytes: int = 0
    flops: int = 0


class Trace:
    """with Trace(transformer) as trace: transformer.step(..) leaves in trace.ops {name: Op}, in the order of the first
    calls.

    A call takes some 2 us longer while it is watched. Steps of other threads are watched too.
    """

    def __init__(self, model: Any) -> None:
        self.ops: dict[str, Op] = {}
        self._names = {id(matrix): name for name, matrix in model.matrices()}
        self._kept: dict[str, Callable[..., Any]] = {}

    def __enter__(self) -> Trace:
        self._kept = {name: getattr(k, name) for name in KERNELS}
        for name, kernel in self._kept.items():
            setattr(k, name, self._watched(name, kernel))
        return self

    def __exit__(self, *_: Any) -> None:
        for name, kernel in self._kept.items():
            setattr(k, name, kernel)

    @property
    def total(self) -> Op:
        """All calls so far."""
        return Op(*(sum(amounts) for amounts in zip(*map(astuple, self.ops.values()), strict=True)))

    def _watched(self, name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = kernel(*args, **options)
            seconds = time.perf_counter() - start
            label = f"linear {self._names.get(id(args[3]), '?')}" if name == "linear" else name
            op = self.ops.setdefault(label, Op())
            read, flops = cost(name, args, options)
            op.calls += 1
            op.seconds += seconds
            op.bytes += read
            op.flops += flops
            return result

        return call
