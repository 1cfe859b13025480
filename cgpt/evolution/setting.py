"""The shapes that both ways of a step share, and the operands they run on."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
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

    @property
    def qkv_width(self) -> int:
        """The numbers of a token's queries, keys and values."""
        return (self.heads + 2 * self.kv_heads) * D

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
        y, x = tensor(T, N), tensor(T, K)
        size = N * K * {"F32": 4, "MXFP4": 17 / 32}.get(dtype, 2)
        weights = copies(lambda: matrix(dtype, N, K, bias=bias), int(size))
        turns = [[partial(k.linear, self.ctx, y, x, w, T)] for w in weights]
        return way(name, turns, parameters=N * K + N * bias)

    def projections(self, T: int) -> list[tuple[k.Matrix, k.Matrix]]:
        """A layer's qkv and out matrices, bf16 with biases."""
        C, N, K = self.width, self.qkv_width, self.heads * D
        size, limit = 2 * C * (N + K), 1 if T > 1 else 24
        return copies(lambda: (matrix("BF16", N, C, bias=True), matrix("BF16", C, K, bias=True)), size, limit)

    # ---------------------------------------------------------------------------------------------------- experts

    def experts(self, number: int) -> tuple[k.Matrix, k.Matrix]:
        """gate_up [E, 2I, C] and down [E, C, I] in MXFP4, I = C: the first of the most that were asked for."""
        held, C = self._held, self.width
        if not held or held[0].shape[0] < number:
            held.clear()
            held += [matrix("MXFP4", number, 2 * C, C), matrix("MXFP4", number, C, C)]
        gate_up, down = (k.Matrix("MXFP4", w.arrays[0][:number], w.arrays[1][:number]) for w in held)
        return gate_up, down

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
        attend = partial(k.attention, self.ctx, out, qkv, H=H, scale=D**-0.5, sinks=tensor(1, H) if sinks else None)
        turns = [
            [partial(attend, [(layer, 0, start, T)], window=w) for layer, w in zip(cache.layers, windows, strict=True)]
            for cache in caches
        ]
        made = way(name, turns)
        return replace(made, cache=made.bytes)

    # ---------------------------------------------------------------------------------------------------- a block

    def block(self, T: int) -> Way:
        """A whole block of gpt-oss, without window, after the first context's positions (T = 1) or from none."""
        C, H, G = self.width, self.heads, self.kv_heads
        start = self.contexts[0] - 1 if T == 1 else 0
        qkv, attended = tensor(T, self.qkv_width), tensor(T, H * D)
        x, normed, weight = tensor(T, C), tensor(T, C), tensor(1, C)
        routed, turns = self.routed(FEW, T), list[list[Call]]()
        for n, (w_qkv, w_out) in enumerate(self.projections(T)):
            (layer,) = KVCache([0], G, D, start + T, dtype=KEPT).layers
            norm = partial(k.rmsnorm, self.ctx, normed, x, weight, EPS, T)
            calls = [
                norm,
                partial(k.linear, self.ctx, qkv, normed, w_qkv, T),
                partial(k.rope, self.ctx, qkv, *self.rope_tables(start + T), 0, start, H + G, D, T),
                partial(k.attention, self.ctx, attended, qkv, [(layer, 0, start, T)], H, scale=D**-0.5),
                partial(k.linear, self.ctx, x, attended, w_out, T),
                norm,
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
            score = partial(k.linear, self.exact, logits, x, router, T)
            choose = partial(k.topk, self.ctx, index, weight, logits, T)
            score()
            choose()  # what is counted depends on the choice
            turns.append([score, choose, partial(k.moe, self.ctx, out, x, index, weight, gate_up, down, *SWIGLU, T)])
        return turns

    def dense(self, name: str, number: int, T: int, all_slices: bool) -> Way:
        """The weights of `number` experts as a dense layer in slices [E / TOP_K, .., ..], each as wide as the experts a
        token uses: all of it, or one slice at a time."""
        C = self.width
        gate_up, down = self.experts(number)
        gate_up, down = _sliced(gate_up, 2 * TOP_K * C, C), _sliced(down, C, TOP_K * C)
        S, x, out = gate_up.shape[0], tensor(T, C), tensor(T, C)
        width, turns = S if all_slices else 1, list[list[Call]]()
        for choice in np.arange(S, dtype=np.int32).reshape(-1, width):
            index, one = np.tile(choice, (T, 1)), k.Tensor(np.ones((T, width), np.float32))
            turns.append([partial(k.moe, self.ctx, out, x, index, one, gate_up, down, *SWIGLU, T)])
        return way(name, turns, parameters=sum(prod(m.shape[1:]) for m in (gate_up, down)) * width)


def _sliced(w: k.Matrix, N: int, K: int) -> k.Matrix:
    """The weights of a matrix in MXFP4 as [.., N, K]."""
    blocks, scales = w.arrays
    return k.Matrix("MXFP4", blocks.reshape(-1, N, K // 32, 16), scales.reshape(-1, N, K // 32))
