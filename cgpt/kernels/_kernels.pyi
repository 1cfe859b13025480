"""Types of the compiled module; _kernels.pyx has the code, csrc/cgpt.h the contracts. In shapes T are tokens, C the
model's width, N outputs, K inputs, E experts, H query heads, G key-value heads, D the dimension of a head."""

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray
from typing_extensions import Self, disjoint_base

_Array: TypeAlias = NDArray[Any]

DTYPES: Final[dict[str, int]]
PRECISIONS: Final[tuple[str, ...]]
ACTIVATIONS: Final[tuple[str, ...]]
FLOATS: Final[tuple[str, ...]]
KV_DTYPES: Final[tuple[str, ...]]
NUMPY_DTYPES: Final[dict[str, str]]
FEATURES: Final[tuple[str, ...]]  # that can be masked; the first, "", is none
MAX_HEAD_DIM: Final[int]
MAX_EXPERTS: Final[int]
MAX_TOP_K: Final[int]
KV_BLOCK: Final[int]  # positions
KV_PANEL: Final[int]  # positions of keys, dimensions of values
KV_SPLIT: Final[int]  # positions
INT8_GROUP: Final[int]  # weights that share a scale

# The level of instructions in use

def use_level(name: str, *, mask: str = "") -> None: ...
def level() -> str: ...
def levels() -> dict[str, str | None]: ...
def kernels() -> dict[str, str]: ...
def thread_runtime() -> str: ...
def name_bus_errors() -> None: ...
def openmp_places() -> list[int]: ...

# What kernels take

@disjoint_base
class Context:
    def __init__(self, threads: int, precision: str) -> None: ...

@disjoint_base
class Tensor:
    array: Final[_Array]
    rows: Final[int]
    cols: Final[int]
    def __new__(cls, array: _Array, dtype: str = "F32", aligned: bool = True) -> Self: ...
    def part(self, rows: slice) -> Tensor: ...

@disjoint_base
class Matrix:
    dtype: Final[str]
    shape: Final[tuple[int, ...]]  # [N, K] or [E, N, K]
    arrays: Final[tuple[_Array, ...]]  # data, and the scales and the bias where there are any
    def __init__(
        self,
        dtype: str,
        data: _Array,
        scales: _Array | None = None,
        bias: _Array | None = None,
        columns: int | None = None,
        aligned: bool = True,
    ) -> None: ...
    @staticmethod
    def of_experts(
        addresses: NDArray[np.uint64], shape: tuple[int, ...], bias: _Array, memory: object = None
    ) -> Matrix: ...

@disjoint_base
class LayerCache:
    G: Final[int]
    D: Final[int]
    row_bytes: Final[int]  # of a key, or a value, of a position and a head
    dtype: Final[str]
    def __init__(self, k: _Array, v: _Array, dtype: str = "F32", D: int = 0) -> None: ...

def kv_shapes(blocks: int, G: int, D: int, dtype: str = "F32") -> tuple[tuple[int, ...], tuple[int, ...]]: ...
def kv_row_bytes(D: int, dtype: str) -> int: ...

# Kernels of rows: out, x and qkv are [rows, columns], and T of the rows are worked on

def layernorm(ctx: Context, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float, T: int) -> None: ...
def rmsnorm(ctx: Context, out: Tensor, x: Tensor, weight: Tensor, eps: float, T: int) -> None: ...
def rope(
    ctx: Context,
    x: Tensor,
    cos: Tensor,  # [positions, D/2]
    sin: Tensor,
    row: int,
    start: int,
    heads: int,
    D: int,
    T: int,
) -> None: ...
def activation(ctx: Context, x: Tensor, which: str, T: int, *, column: int = 0, columns: int | None = None) -> None: ...
def topk(ctx: Context, index: NDArray[np.int32], weight: Tensor, logits: Tensor, T: int) -> None: ...
def embed(
    out: Tensor, table: Matrix, ids: NDArray[np.int64], positions: Matrix | None = None, row: int = 0, start: int = 0
) -> None: ...
def mxfp4_dequantize(blocks: _Array, scales: _Array) -> NDArray[np.float32]: ...
def quantize_int8(
    array: _Array,  # [N, K], or [K, N] where transposed
    dtype: str,
    threads: int,
    empty: Callable[[tuple[int, ...], DTypeLike], _Array] = ...,
    transposed: bool = False,
) -> tuple[NDArray[np.int8], NDArray[np.uint16]]: ...
def quantize_int4(
    array: _Array,  # [N, K], or [K, N] where transposed
    dtype: str,
    threads: int,
    empty: Callable[[tuple[int, ...], DTypeLike], _Array] = ...,
    transposed: bool = False,
) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]: ...
def int4_decode(codes: _Array) -> NDArray[np.int8]: ...
def packed_row_bytes(K: int) -> int: ...
def pack_bf16(
    array: _Array,  # [N, K]
    dtype: str,
    threads: int,
    empty: Callable[[tuple[int, ...], DTypeLike], _Array] = ...,
) -> tuple[NDArray[np.uint8], NDArray[np.uint16] | None]: ...
def stored_rows(data: NDArray[np.uint8]) -> NDArray[np.int32]: ...

# Sampling

LOGIT_CHANGE: Final[np.dtype[np.void]]  # id, seen, count: int32; bias: float32

@disjoint_base
class SamplingState:
    changes: _Array  # LOGIT_CHANGE [n], ids ascending
    def __init__(
        self,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        presence_penalty: float,
        frequency_penalty: float,
        repetition_penalty: float,
    ) -> None: ...

def sample(ctx: Context, logits: Tensor, state: SamplingState, draw: float) -> tuple[int, float]: ...
def logprobs(
    ctx: Context, logits: Tensor, k: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int32], NDArray[np.float64]]: ...

# Linear, experts, attention

def linear(
    ctx: Context, y: Tensor, x: Tensor, w: Matrix, T: int, *, column: int = 0, row: int = 0, add: bool = False
) -> None: ...
def uniform_tokens(w: Matrix, limit: int, precision: str) -> int: ...
def moe(
    ctx: Context,
    out: Tensor,  # [T, C], added to
    x: Tensor,  # [T, C]
    index: NDArray[np.int32],  # [T, k]
    weight: Tensor,  # [T, k]
    gate_up: Matrix,  # [E, 2 K, C]
    down: Matrix,  # [E, C, K]
    alpha: float,
    limit: float,
    T: int,
    *,
    part: int = 0,
    arrivals: Iterable[NDArray[np.int32]] | None = None,
    column: int = 0,
    act: Tensor | None = None,  # [T k, K]
    act_column: int = 0,
    gather: Callable[[], None] | None = None,
) -> None: ...
def attention(
    ctx: Context,
    out: Tensor,  # [rows, H D]
    qkv: Tensor,  # [rows, (H + 2 G) D]
    slices: list[tuple[LayerCache, int, int, int]],  # (cache, row, start, T)
    H: int,
    *,
    scale: float,
    window: int = 0,
    sinks: Tensor | None = None,  # [H]
    column: int = 0,
) -> None: ...
def transpose(out: _Array, to: str, array: _Array, dtype: str, threads: int) -> None: ...

# What the machine can do

def read(ctx: Context, out: NDArray[np.int32], data: Tensor) -> None: ...
def peak(ctx: Context, out: Tensor, rounds: int, *, dtype: str = "f32", one: float = 1.0, x: float = 1.0) -> int: ...
