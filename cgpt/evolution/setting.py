"""The shapes that both ways of a step share, and the operands they run on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import numpy as np

from cgpt.bench.operands import copies, matrix, tensor
from cgpt.checkpoint.sizes import GPT_OSS_SIZES
from cgpt.errors import ContextLengthError, InputError
from cgpt.evolution.measure import Call, Way, way
from cgpt.kernels import _kernels as k
from cgpt.machine.memory import available_memory
from cgpt.machine.threads import thread_count
from cgpt.models.gpt_oss import RopeTables
from cgpt.models.kv_cache import DEFAULT_KV_DTYPE, KV_DTYPES, KVCache

GPT_OSS = GPT_OSS_SIZES["gpt-oss-20b"]
D, TOP_K, EPS = GPT_OSS.head_dim, GPT_OSS.experts_per_token, GPT_OSS.rms_norm_eps
SWIGLU = GPT_OSS.swiglu_alpha, GPT_OSS.swiglu_limit
WINDOW = GPT_OSS.sliding_window or 0
FEW, MANY = GPT_OSS.num_experts, GPT_OSS_SIZES["gpt-oss-120b"].num_experts
MAX_WIDTH = 4096  # the dense layer of as many active weights has TOP_K times as many inputs
KEPT = KV_DTYPES[DEFAULT_KV_DTYPE["auto"]]
CACHES = 256  # copies of one layer's cache at most


@dataclass(frozen=True)
class Setting:
    """width: C, a multiple of 64, and of the experts; contexts: positions; prompt: tokens that are read at once;
    seconds: for each measurement. Widths other than gpt-oss's 2,880 have as many heads in proportion."""

    threads: int
    width: int = GPT_OSS.hidden_size
    contexts: tuple[int, ...] = (512, 2048, 8192)
    prompt: int = 512
    seconds: float = 0.6
    _held: list[k.Matrix] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 64 <= self.width <= MAX_WIDTH or self.width % 64:
            raise InputError(f"width: {self.width} is not a multiple of 64 from 64 to {MAX_WIDTH:,}")
        limit = GPT_OSS.max_position_embeddings
        if not self.contexts or min(self.contexts) < 1:
            raise InputError(f"contexts: {list(self.contexts)} are not numbers of positions, each at least 1")
        if max(self.contexts) > limit:
            raise ContextLengthError(f"context {max(self.contexts):,} is beyond the {limit:,} positions of gpt-oss")
        if len(set(self.contexts)) < len(self.contexts):
            raise InputError(f"contexts: {list(self.contexts)} has one twice")
        if not 1 <= self.prompt <= 4096:
            raise InputError(f"prompt: {self.prompt} is not a number of tokens from 1 to 4096")
        thread_count(self.threads)

    @property
    def heads(self) -> int:
        """Query heads: 64 at gpt-oss's width, always a multiple of the 8 that share keys and values."""
        group = GPT_OSS.num_attention_heads // GPT_OSS.num_key_value_heads
        return group * max(1, round(self.width * GPT_OSS.num_attention_heads / GPT_OSS.hidden_size / group))

    @property
    def kv_heads(self) -> int:
        return self.heads * GPT_OSS.num_key_value_heads // GPT_OSS.num_attention_heads

    @cached_property
    def ctx(self) -> k.Context:
        return k.Context(self.threads, "auto")

    @cached_property
    def exact(self) -> k.Context:
        return k.Context(self.threads, "exact")

    @cached_property
    def rope_tables(self) -> RopeTables:
        return RopeTables(GPT_OSS)

    # ------------------------------------------------------------------------------------------------- dense products

    def linear(self, name: str, dtype: str, N: int, K: int, T: int, bias: bool = False) -> Way:
        """A product with weights [N, K]."""
        y, size = tensor(T, N), N * K * {"F32": 4, "MXFP4": 17 / 32}.get(dtype, 2)
        x = tensor(T, K)
        weights = copies(lambda: matrix(dtype, N, K, bias=bias), int(size))
        turns: list[list[Call]] = [[("linear", (self.ctx, y, x, w, T), {})] for w in weights]
        return way(name, turns, parameters=N * K + N * bias)

    def projections(self, T: int) -> list[tuple[k.Matrix, k.Matrix]]:
        """A layer's qkv and out matrices, bf16 with biases."""
        H, G, C = self.heads, self.kv_heads, self.width
        N = (H + 2 * G) * D
        pair = lambda: (matrix("BF16", N, C, bias=True), matrix("BF16", C, H * D, bias=True))  # noqa: E731
        return copies(pair, 2 * C * (N + H * D), 1 if T > 1 else 24)

    # ---------------------------------------------------------------------------------------------------- experts

    def experts(self, number: int) -> tuple[k.Matrix, k.Matrix]:
        """gate_up [E, 2I, C] and down [E, C, I] in MXFP4, I = C: the first of the most that were asked for."""
        held, C = self._held, self.width
        if not held or held[0].shape[0] < number:
            held.clear()
            held += [matrix("MXFP4", number, 2 * C, C), matrix("MXFP4", number, C, C)]
        gate_up, down = (k.Matrix("MXFP4", w.arrays[0][:number], w.arrays[1][:number]) for w in held)
        return gate_up, down

    def slices(self, number: int) -> tuple[k.Matrix, k.Matrix]:
        """The same weights as slices of one dense layer [E / TOP_K, .., ..], each as wide as the experts of a token."""
        gate_up, down = self.experts(number)
        C = self.width
        return _sliced(gate_up, 2 * TOP_K * C, C), _sliced(down, C, TOP_K * C)

    def fits(self, number: int) -> bool:
        """Whether so many experts take at most half of what memory is free."""
        free = available_memory()
        return free is None or 2 * number * 3 * self.width**2 * 17 // 32 <= free

    # -------------------------------------------------------------------------------------------------- attention

    def attention(
        self, name: str, context: int, T: int, G: int, windows: Sequence[int] = (0,), sinks: bool = False
    ) -> Way:
        """T queries at the end of `context` positions, in one layer for each of `windows`."""
        H, start = self.heads, context - T
        size = sum(2 * 2 * G * D * min(window + T if window else context, context) for window in windows)
        qkv, out = tensor(T, (H + 2 * G) * D), tensor(T, H * D)
        caches = copies(lambda: KVCache(list(windows), G, D, context, dtype=KEPT), size, CACHES)
        for array in (a for cache in caches for arrays in cache.arrays for a in arrays):
            array.view(np.uint8).fill(0x38)  # an ordinary number of any dtype; left alone, all pages are one
        options = {"scale": D**-0.5, "sinks": tensor(1, H) if sinks else None}
        turns: list[list[Call]] = [
            [
                ("attention", (self.ctx, out, qkv, [(layer, 0, start, T)], H), options | {"window": window})
                for layer, window in zip(cache.layers, windows, strict=True)
            ]
            for cache in caches
        ]
        made = way(name, turns)
        return Way(name, made.turns, made.bytes, made.flops, made.bytes)

    # ---------------------------------------------------------------------------------------------------- a block

    def block(self, T: int) -> Way:
        """A whole block of gpt-oss, without window, after the first context's positions (T = 1) or from none."""
        C, H, G = self.width, self.heads, self.kv_heads
        start = self.contexts[0] - 1 if T == 1 else 0
        qkv, attended = tensor(T, (H + 2 * G) * D), tensor(T, H * D)
        x, normed, weight = tensor(T, C), tensor(T, C), tensor(1, C)
        routed, turns = self.routed(FEW, T), list[list[Call]]()
        for n, (w_qkv, w_out) in enumerate(self.projections(T)):
            cache = KVCache([0], G, D, start + T, dtype=KEPT)
            calls: list[Call] = [
                ("rmsnorm", (self.ctx, normed, x, weight, EPS, T), {}),
                ("linear", (self.ctx, qkv, normed, w_qkv, T), {}),
                ("rope", (self.ctx, qkv, *self.rope_tables(start + T), 0, start, H + G, D, T), {}),
                ("attention", (self.ctx, attended, qkv, [(cache.layers[0], 0, start, T)], H), {"scale": D**-0.5}),
                ("linear", (self.ctx, x, attended, w_out, T), {"add": False}),
                ("rmsnorm", (self.ctx, normed, x, weight, EPS, T), {}),
                *routed[n % len(routed)],
            ]
            turns.append(calls)
        return way("the whole block", turns)

    def routed(self, number: int, T: int) -> list[list[Call]]:
        """Turns of routing T tokens to TOP_K of `number` experts, and running those: other tokens in each, so that
        other experts are chosen."""
        gate_up, down = self.experts(number)
        router, out = matrix("F32", number, self.width, bias=True), tensor(T, self.width)
        logits, turns = tensor(T, number), list[list[Call]]()
        for _ in range(16 if T <= 8 else 2):
            x, index, weight = tensor(T, self.width), np.zeros((T, TOP_K), np.int32), tensor(T, TOP_K)
            route: list[Call] = [("linear", (self.exact, logits, x, router, T), {})]
            route.append(("topk", (self.ctx, index, weight, logits, T), {}))
            for kernel, args, options in route:
                getattr(k, kernel)(*args, **options)  # the choice, for what is counted
            turns.append([*route, ("moe", (self.ctx, out, x, index, weight, gate_up, down, *SWIGLU, T), {})])
        return turns

    def dense(self, name: str, number: int, T: int, all_slices: bool) -> Way:
        """The weights of `number` experts as a dense layer: all of it, or as much as the experts a token uses."""
        gate_up, down = self.slices(number)
        S = gate_up.shape[0]
        x, out = tensor(T, self.width), tensor(T, self.width)
        width, turns = S if all_slices else 1, list[list[Call]]()
        for choice in np.arange(S).reshape(-1, width):
            index = np.tile(choice.astype(np.int32), (T, 1))
            one = k.Tensor(np.ones(index.shape, np.float32))
            turns.append([("moe", (self.ctx, out, x, index, one, gate_up, down, *SWIGLU, T), {})])
        return way(name, turns, parameters=sum(prod(m.shape[1:]) for m in (gate_up, down)) * width)


def _sliced(w: k.Matrix, N: int, K: int) -> k.Matrix:
    """The weights of a matrix in MXFP4 as [.., N, K]."""
    blocks, scales = w.arrays
    return k.Matrix("MXFP4", blocks.reshape(-1, N, K // 32, 16), scales.reshape(-1, N, K // 32))
