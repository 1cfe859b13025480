"""What the kernels refuse: every wrong argument is a named exception, never a crash or a write elsewhere."""

import subprocess
import sys

import numpy as np
import pytest

from cgpt.errors import KernelError, TokenIdError
from cgpt.kernels import _kernels

from support.kernel_cases import context, tensor, tensor_of

T, C, N, E = 4, 32, 6, 3
HUGE = 2**63 - 1


def f32(*shape):
    return _kernels.Tensor(np.ones(shape, np.float32))


def read_only(*shape):
    array = np.ones(shape, np.float32)
    array.setflags(write=False)
    return _kernels.Tensor(array)


def bf16(*shape):
    return _kernels.Tensor(np.ones(shape, np.uint16), "BF16")


def matrix(*shape):
    return _kernels.Matrix("F32", np.ones(shape, np.float32))


def mxfp4(*shape):
    return _kernels.Matrix("MXFP4", np.ones((*shape, 16), np.uint8), np.full(shape, 127, np.uint8))


def indices(*shape, dtype=np.int32, value=0):
    return np.full(shape, value, dtype)


def cache(blocks=2, G=1, D=8):
    return _kernels.LayerCache(*(np.zeros(shape, np.float32) for shape in _kernels.kv_shapes(blocks, G, D)))


# The arguments of a call that works, by name; each refused call changes one or two of them.
GOOD = {
    "layernorm": {
        "ctx": context,
        "out": lambda: f32(T, C),
        "x": lambda: f32(T, C),
        "weight": lambda: f32(C),
        "bias": lambda: f32(C),
        "eps": lambda: 1e-5,
        "T": lambda: T,
    },
    "rmsnorm": {
        "ctx": context,
        "out": lambda: f32(T, C),
        "x": lambda: f32(T, C),
        "weight": lambda: f32(C),
        "eps": lambda: 1e-5,
        "T": lambda: T,
    },
    "rope": {
        "ctx": context,
        "x": lambda: f32(T, C),
        "cos": lambda: f32(9, 4),
        "sin": lambda: f32(9, 4),
        "row": lambda: 1,
        "start": lambda: 6,
        "heads": lambda: 4,
        "D": lambda: 8,
        "T": lambda: 3,
    },
    "activation": {"ctx": context, "x": lambda: f32(T, C), "which": lambda: "silu", "T": lambda: T},
    "topk": {
        "ctx": context,
        "index": lambda: indices(T, 2),
        "weight": lambda: f32(T, 2),
        "logits": lambda: f32(T, E),
        "T": lambda: T,
    },
    "embed": {
        "out": lambda: f32(T, C),
        "table": lambda: matrix(5, C),
        "ids": lambda: indices(3, dtype=np.int64),
        "positions": lambda: matrix(9, C),
        "row": lambda: 1,
        "start": lambda: 6,
    },
    "linear": {
        "ctx": context,
        "y": lambda: f32(T, N + 2),
        "x": lambda: f32(T + 1, C),
        "w": lambda: matrix(N, C),
        "T": lambda: T,
        "column": lambda: 2,
        "row": lambda: 1,
        "add": lambda: True,
    },
    "moe": {
        "ctx": context,
        "out": lambda: f32(T, N),
        "x": lambda: f32(T, C),
        "index": lambda: indices(T, 2),
        "weight": lambda: f32(T, 2),
        "gate_up": lambda: matrix(E, 20, C),
        "down": lambda: matrix(E, N, 10),
        "alpha": lambda: 1.702,
        "limit": lambda: 7.0,
        "T": lambda: T,
    },
    "attention": {
        "ctx": context,
        "out": lambda: f32(T, 16),
        "qkv": lambda: f32(T, 32),
        "cache": cache,
        "row": lambda: 1,
        "start": lambda: 61,
        "T": lambda: 3,
        "H": lambda: 2,
        "scale": lambda: 1.0,
        "window": lambda: 0,
        "sinks": lambda: f32(2),
    },
}
REFUSED = [
    *[(op, {"T": T + 1}) for op in ("layernorm", "rmsnorm", "activation", "topk", "linear", "moe")],
    *[(op, {"T": bad}) for op in GOOD if op != "embed" for bad in (-1, HUGE)],
    *[(op, {"out": lambda: read_only(T, C)}) for op in ("layernorm", "rmsnorm", "embed")],
    *[(op, {"out": lambda: bf16(T, C)}) for op in ("layernorm", "rmsnorm", "embed")],
    *[(op, {"out": lambda: f32(T, C + 1)}) for op in ("layernorm", "rmsnorm", "embed")],
    *[(op, {"x": lambda: bf16(T, C)}) for op in ("layernorm", "rmsnorm", "rope", "activation", "linear", "moe")],
    *[(op, {"x": lambda: read_only(T, C)}) for op in ("rope", "activation")],
    *[(op, {"row": bad}) for op in ("rope", "embed", "linear", "attention") for bad in (-1, 2, HUGE, -HUGE)],
    *[(op, {"start": bad}) for op in ("rope", "embed", "attention") for bad in (-1, 7 + 55, HUGE, -HUGE)],
    ("layernorm", {"weight": lambda: f32(C - 1)}),
    ("layernorm", {"bias": lambda: f32(C + 1)}),
    ("rmsnorm", {"weight": lambda: f32(1)}),
    ("rope", {"heads": 5}),
    ("rope", {"heads": -1}),
    ("rope", {"D": 7, "heads": 1}),
    ("rope", {"D": 0}),
    ("rope", {"D": -8}),
    ("rope", {"cos": lambda: f32(8, 4)}),
    ("rope", {"sin": lambda: f32(9, 3)}),
    ("activation", {"which": "swish"}),
    ("topk", {"weight": lambda: read_only(T, 2)}),
    ("topk", {"weight": lambda: f32(T, 3)}),
    ("topk", {"index": lambda: indices(T - 1, 2)}),
    ("topk", {"index": lambda: indices(T, E + 1), "weight": lambda: f32(T, E + 1)}),
    ("topk", {"index": lambda: indices(T, 0), "weight": lambda: f32(T, 0)}),
    ("embed", {"ids": lambda: indices(4, dtype=np.int64)}),
    ("embed", {"table": lambda: mxfp4(5, 1)}),
    ("embed", {"table": lambda: matrix(5, C - 1)}),
    ("embed", {"positions": lambda: mxfp4(9, 1)}),
    ("embed", {"positions": lambda: matrix(9, C + 1)}),
    ("linear", {"y": lambda: read_only(T, N + 2)}),
    ("linear", {"column": -1}),
    ("linear", {"column": 3}),
    ("linear", {"column": HUGE}),
    ("linear", {"w": lambda: matrix(N, C + 1)}),
    ("linear", {"w": lambda: matrix(E, N, C)}),
    ("linear", {"w": lambda: mxfp4(N, 2)}),
    ("moe", {"out": lambda: read_only(T, N)}),
    ("moe", {"out": lambda: f32(T, N + 1)}),
    ("moe", {"index": lambda: indices(T, 2, value=E)}),
    ("moe", {"index": lambda: indices(T, 2, value=-1)}),
    ("moe", {"index": lambda: indices(T - 1, 2)}),
    ("moe", {"index": lambda: indices(T, 0), "weight": lambda: f32(T, 0)}),
    ("moe", {"index": lambda: indices(T, E + 1), "weight": lambda: f32(T, E + 1)}),
    ("moe", {"weight": lambda: f32(T, 3)}),
    ("moe", {"T": 0}),
    ("moe", {"act": lambda: f32(2 * T - 1, 10)}),
    ("moe", {"act": lambda: f32(2 * T, 11)}),
    ("moe", {"act": lambda: f32(2 * T, 10), "act_column": lambda: 1}),
    ("moe", {"act": lambda: f32(2 * T, 10), "act_column": lambda: -1}),
    ("moe", {"act": lambda: f32(2 * T, 10), "column": lambda: 1, "gather": lambda: print}),
    ("moe", {"act_column": lambda: 1}),
    ("moe", {"column": lambda: -1}),
    ("activation", {"column": lambda: 1, "columns": lambda: C}),
    ("activation", {"columns": lambda: -1}),
    ("attention", {"column": lambda: 1}),
    ("moe", {"gate_up": lambda: matrix(E, 22, C)}),
    ("moe", {"gate_up": lambda: matrix(E - 1, 20, C)}),
    ("moe", {"gate_up": lambda: matrix(1025, 20, C), "down": lambda: matrix(1025, N, 10)}),
    ("moe", {"down": lambda: matrix(E, N, 11)}),
    ("attention", {"out": lambda: read_only(T, 16)}),
    ("attention", {"out": lambda: f32(T, 8)}),
    ("attention", {"qkv": lambda: f32(T, 31)}),
    ("attention", {"H": 3}),
    ("attention", {"H": 0}),
    ("attention", {"H": -2}),
    ("attention", {"T": 0}),
    ("attention", {"window": -1}),
    ("attention", {"window": 65, "start": 99}),
    ("attention", {"start": 62}),
    ("attention", {"sinks": lambda: f32(3)}),
    ("attention", {"cache": lambda: cache(0)}),
    ("attention", {"cache": lambda: cache(2, 3), "H": 2, "qkv": lambda: f32(T, 64)}),
    ("attention", {"slices": []}),
    ("attention", {"slices": [None, lambda: (cache(), 4, 0, 1)]}),
    ("attention", {"slices": [None, lambda: (cache(2, 1, 8), 0, 64, 1)]}),
]


def arguments(op, **changed):
    """Keyword arguments of a call of `op`."""
    made = {**GOOD[op], **{name: make for name, make in changed.items() if name != "slices"}}
    made = {name: a() if callable(a) else a for name, a in made.items()}
    if op == "attention":
        one = tuple(made.pop(name) for name in ("cache", "row", "start", "T"))
        made["slices"] = [one if part is None else part() for part in changed.get("slices", [None])]
    return made


@pytest.mark.parametrize("op", GOOD)
def test_a_good_call_works(level, op):
    """Else the refusals below would prove nothing."""
    getattr(_kernels, op)(**arguments(op))


@pytest.mark.parametrize("op, changed", REFUSED, ids=[f"{op}-{'-'.join(c)}" for op, c in REFUSED])
def test_refused(op, changed):
    call = arguments(op, **changed)
    before = {name: a.array.copy() for name, a in call.items() if isinstance(a, _kernels.Tensor)}
    with pytest.raises(KernelError, match=op):
        getattr(_kernels, op)(**call)
    for name, array in before.items():
        assert (call[name].array == array).all(), f"{name} was written by a call that was refused"


@pytest.mark.parametrize("token", [5, -1, HUGE])
def test_a_token_beyond_the_table(token):
    """The first ids are good: nothing may be written before all are known to be."""
    ids = np.array([0, 4, token], np.int64)
    call = arguments("embed", ids=lambda: ids)
    before = call["out"].array.copy()
    with pytest.raises(TokenIdError, match=f"token id {token} is not in the vocabulary"):
        _kernels.embed(**call)
    assert (call["out"].array == before).all()


@pytest.mark.parametrize("op", GOOD)
def test_none_is_no_argument(op):
    for name in GOOD[op]:
        if name not in ("positions", "sinks", "add"):
            with pytest.raises((TypeError, AttributeError, KernelError)):
                getattr(_kernels, op)(**arguments(op, **{name: lambda: None}))


@pytest.mark.parametrize("op, name", [("topk", "index"), ("moe", "index"), ("embed", "ids")])
@pytest.mark.parametrize("wrong", [np.uint8, np.float32, np.int16])
def test_indices_of_another_dtype(op, name, wrong):
    right = arguments(op)[name]
    with pytest.raises(ValueError, match="mismatch"):
        getattr(_kernels, op)(**arguments(op, **{name: lambda: right.astype(wrong)}))
    with pytest.raises(ValueError):
        getattr(_kernels, op)(**arguments(op, **{name: lambda: np.repeat(right, 2, -1)[..., ::2]}))


def test_nothing_to_do_is_no_error():
    for op in ("layernorm", "rmsnorm", "rope", "activation", "topk", "linear"):
        call = arguments(op, T=0)
        before = {name: a.array.copy() for name, a in call.items() if isinstance(a, _kernels.Tensor)}
        getattr(_kernels, op)(**call)
        assert all((call[name].array == array).all() for name, array in before.items())
    _kernels.embed(f32(T, C), matrix(5, C), indices(0, dtype=np.int64))


@pytest.mark.parametrize(
    "array, dtype",
    [
        (np.zeros(3, np.float64), "F32"),
        (np.zeros(3, np.float32), "F16"),
        (np.zeros(3, np.float16), "BF16"),
        (np.zeros(3, np.int8), "U8"),
        (np.zeros(3, ">f4"), "F32"),
        (np.zeros(3, np.float32), "F64"),
        (np.zeros(3, np.uint8), "MXFP4"),
        (np.zeros((), np.float32), "F32"),
        (np.zeros((2, 2, 2), np.float32), "F32"),
        (np.zeros((4, 4), np.float32)[:, ::2], "F32"),
        (np.zeros((4, 4), np.float32).T[:2], "F32"),
        (np.zeros(9, np.uint8)[1:].view(np.float32), "F32"),
    ],
)
def test_tensor_refuses(array, dtype):
    with pytest.raises(KernelError, match="tensor"):
        _kernels.Tensor(array, dtype)


def test_a_tensor_keeps_its_memory():
    """The array cannot be taken away from under the kernels."""
    array = np.ones((T, C), np.float32)
    held = tensor_of(array)
    with pytest.raises(ValueError):
        array.resize((400, 400))
    del array
    _kernels.activation(context(), held, "relu", T)
    assert (held.array == 1).all()


U8, SCALES = np.zeros((4, 2, 16), np.uint8), np.zeros((4, 2), np.uint8)


@pytest.mark.parametrize(
    "dtype, data, scales, bias",
    [
        ("F32", np.zeros(4, np.float32), None, None),
        ("F32", np.zeros((1, 1, 1, 1), np.float32), None, None),
        ("F32", np.zeros((4, 0), np.float32), None, None),
        ("F32", np.zeros((4, 4), np.float64), None, None),
        ("F32", np.zeros((4, 4), np.float32), SCALES, None),
        ("F32", np.zeros((4, 4), np.float32), None, np.zeros(3, np.float32)),
        ("F32", np.zeros((4, 4), np.float32), None, np.zeros(4, np.float64)),
        ("F32", np.zeros((4, 4), np.float32), None, np.zeros((1, 4), np.float32)),
        ("BF16", np.zeros((4, 4), np.float16), None, None),
        ("U8", np.zeros((4, 4), np.uint8), None, None),
        ("F8", np.zeros((4, 4), np.uint8), None, None),
        (None, np.zeros((4, 4), np.uint8), None, None),
        ("MXFP4", U8, None, None),
        ("MXFP4", U8, SCALES[:, :1], None),
        ("MXFP4", U8, SCALES.astype(np.int32), None),
        ("MXFP4", U8[..., :8], SCALES, None),
        ("MXFP4", U8[0, 0], SCALES[0, 0], None),
        ("MXFP4", U8[0], SCALES[0], None),
        ("MXFP4", U8.astype(np.int8), SCALES, None),
        ("MXFP4", U8, SCALES, np.zeros(5, np.float32)),
    ],
)
def test_matrix_refuses(dtype, data, scales, bias):
    with pytest.raises(KernelError):
        _kernels.Matrix(dtype, data, scales, bias)


def test_cache_refuses():
    k, v = (np.zeros(shape, np.float32) for shape in _kernels.kv_shapes(2, 1, 8))
    wrong = [(k[0], v), (k, v[..., :8]), (k[:, :1], v), (k[..., :8], v), (k[:, :, :1], v)]
    wrong += [(k.astype(np.float64), v), (k, v.astype(np.uint16))]
    fixed = k.copy()
    fixed.setflags(write=False)
    for keys, values in (*wrong, (fixed, v), (k, np.zeros((1, 2, 1, 16, 32), np.float32).transpose(0, 1, 2, 4, 3))):
        with pytest.raises(KernelError):
            _kernels.LayerCache(keys, values)
    for dtype in ("F16", "BF16", "MXFP4", "U8", "F8"):
        with pytest.raises(KernelError):
            _kernels.LayerCache(k, v, dtype)
    with pytest.raises(KernelError, match="attention"):  # a head dimension beyond the largest
        D = _kernels.MAX_HEAD_DIM + 1
        big = cache(1, 1, D)
        _kernels.attention(context(), f32(1, D), f32(1, 3 * D), [(big, 0, 0, 1)], 1, scale=1.0)


@pytest.mark.parametrize(
    "blocks, scales",
    [
        (np.zeros((2, 16), np.int8), np.zeros(2, np.uint8)),
        (np.zeros((2, 16), np.uint8), np.zeros(2, np.float32)),
        (np.zeros((2, 15), np.uint8), np.zeros(2, np.uint8)),
        (np.zeros((2, 16), np.uint8), np.zeros(3, np.uint8)),
        (np.zeros(16, np.uint8), np.zeros((), np.uint8)),
        ([[0] * 16], [0]),
    ],
)
def test_dequantize_refuses(blocks, scales):
    with pytest.raises(KernelError, match="mxfp4_dequantize"):
        _kernels.mxfp4_dequantize(blocks, scales)


def test_any_number_of_threads():
    """Fewer than one is one; more than there are tasks is no more than the tasks."""
    x = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
    expected = np.zeros((2, N), np.float32)
    _kernels.linear(context(threads=1), tensor_of(expected), tensor(x), matrix(N, C), 2)
    for threads in (-5, 0, 3, 2**31 - 1):
        out = np.zeros((2, N), np.float32)
        _kernels.linear(context(threads=threads), tensor_of(out), tensor(x), matrix(N, C), 2)
        assert (out == expected).all(), f"{threads} threads"
    with pytest.raises(OverflowError):
        context(threads=2**31)


def test_scratch_that_cannot_be_had():
    """In a process of its own with little address space: the exception, and a kernel that still works after it."""
    program = """
import resource
import numpy as np
from cgpt.kernels import _kernels
from cgpt.errors import OutOfMemoryError

T, N = 2000, 100000
gate_up = _kernels.Matrix("F32", np.zeros((1, 2, 1), np.float32))
down = _kernels.Matrix("F32", np.zeros((1, N, 1), np.float32))
x, index, weight = np.zeros((T, 1), np.float32), np.zeros((T, 1), np.int32), np.zeros((T, 1), np.float32)
out = np.zeros((T, N), np.float32)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**28, resource.RLIM_INFINITY))
ctx = _kernels.Context(1, "exact")
tensors = [_kernels.Tensor(a) for a in (out, x, weight)]
try:
    _kernels.moe(ctx, tensors[0], tensors[1], index, tensors[2], gate_up, down, 1.0, 7.0, T)
except OutOfMemoryError as problem:
    assert "bytes of scratch" in str(problem)
    _kernels.moe(ctx, tensors[0], tensors[1], index, tensors[2], gate_up, down, 1.0, 7.0, 1)
    print("refused, and went on")
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs /proc and RLIMIT_AS")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "refused, and went on", done.stderr[-2000:]
