"""What the kernel tests share: the levels, which variant each must run, operands, and bits."""

import functools
import math
import os

import numpy as np

from cgpt.kernels import _kernels

from reference.mxfp4 import dequantise
from support.tolerance import dot_tolerance

# The variants that each level must run: of row-wise and exact kernels, of tile kernels ("-": none), of the a16 kernels
# for MXFP4 and for INT8, of the a8 kernels for INT8 and for MXFP4. A kernel that silently falls back to a lower level's
# fails the test.
VARIANTS = {
    "ref": ("ref", "-", "ref", "ref", "-", "-"),
    "avx2": ("avx2", "-", "avx2", "avx2", "-", "avx2"),
    "avx512": ("avx512", "avx512bf16", "avx512vnni", "avx512vnni", "avx512vnni", "avx512vnni"),
    "avx512-nobf16": ("avx512", "-", "avx512vnni", "avx512vnni", "avx512vnni", "avx512vnni"),
    "avx512-novnni": ("avx512", "-", "avx512", "avx512", "-", "avx512"),
    "amx": ("avx512", "amx", "avx512vnni", "avx512vnni", "amx", "amx"),
    "neon": ("neon", "-", "neon", "neon", "-", "-"),
    "dotprod": ("neon", "-", "neon", "dotprod", "dotprod", "dotprod"),
    "i8mm": ("neon", "i8mm", "neon", "dotprod", "i8mm", "i8mm"),
}
AVX512_VARIANTS = ("avx512-novnni", "avx512-nobf16", "avx512")  # each has what those before it have
MASKS = {"nobf16": "avx512_bf16", "novnni": "avx512_vnni"}
FLOATS = ("F32", "F16", "BF16")
TOKENS = (1, 2, 3, 5, 6, 7, 8, 13, 15, 16, 17, 23, 24, 31, 33, 48, 49, 100)
# `auto` uses tile kernels from here on
TILE_TOKENS = {
    "avx512bf16": {"BF16": 8, "BF16_PACKED": 8, "MXFP4": 24, "INT8": 24},
    "i8mm": {"BF16": 8, "BF16_PACKED": 8, "MXFP4": 24, "INT8": 24},
    "amx": {"BF16": 8, "BF16_PACKED": 8, "MXFP4": 8, "INT8": 8},
}
TILE_EXPERT = 5  # and avx512bf16's for MXFP4, in steps of so many, for experts of fewer
A16_MAX = {"ref": 16}  # and the portable linear_mxfp4_a16 up to here
A8_TOKENS = {"INT8": 6, "MXFP4": 9}  # precision int8 uses its own kernels from here on
TILE_FLOATS = 48  # and those of f32, f16 and, where no CPU multiplies them, bf16
THREADS = (1, 2, 4)


def avx512_variant():
    """The highest of AVX512_VARIANTS that this CPU has."""
    lacks = _kernels.levels().get("amx")
    return AVX512_VARIANTS[{"AVX512_VNNI": 0, "AVX512_BF16": 1}.get(lacks, 2)]


def missing(level):
    """Why `level` cannot be tested here, or None."""
    name, mask, names = level.partition("-")[0], os.environ.get("CGPT_MASK"), list(_kernels.levels())
    ceiling = os.environ.get("CGPT_ISA") or names[-1]
    if name not in names:
        return "another architecture's"
    if names.index(name) > names.index(ceiling):
        return f"CGPT_ISA={ceiling}"
    use_level("ref")  # lifts a mask that would show in levels()
    if lacks := _kernels.levels()[name]:
        return f"needs {lacks}"
    has = AVX512_VARIANTS.index(level) if level in AVX512_VARIANTS else 0
    if has > AVX512_VARIANTS.index(avx512_variant()):
        return f"needs {_kernels.levels()['amx']}"
    if mask and (level in ("amx", "i8mm", mask) or has >= _kernels.FEATURES.index(mask)):
        return f"CGPT_MASK={mask}"
    return None


def use_level(level):
    name, _, masked = level.partition("-")
    _kernels.use_level(name, mask=MASKS.get(masked, ""))


def expected_variant(level, slot):
    """The variant that `level` promises for a slot."""
    common, tile, mxfp4_a16, int8_a16, a8, mxfp4_a8 = VARIANTS[level]
    special = {"linear_mxfp4_a16": mxfp4_a16, "linear_int8_a16": int8_a16, "linear_int4_a16": int8_a16}
    special["attention"] = common if common == "neon" else int8_a16
    special |= dict.fromkeys(("linear_mxfp4_tile", "linear_int8_tile", "peak_tile"), tile)
    special |= {"linear_int8_a8": a8, "linear_mxfp4_a8": mxfp4_a8}
    special["linear_int8_a8_few"] = "dotprod" if a8 == "i8mm" else a8.replace("vnni", "vnni256")
    special["peak_a8"] = {"amx": "avx512vnni", "i8mm": "dotprod"}.get(a8, a8)
    if tile != "-":
        special |= dict.fromkeys(("linear_bf16_tile", "linear_bf16_packed_tile"), tile)
    return special.get(slot, common)


def check_slots(level, *slots):
    """Asserts that each slot holds the variant that `level` promises."""
    for slot in slots:
        found, expected = _kernels.kernels()[slot], expected_variant(level, slot)
        assert found == expected, f"{slot} at level {level}: the variant is {found}, expected {expected}"


def tiled(level, dtype, T, exact=False, step=None):
    """Whether a product with T tokens, of a step of `step` or of T, is a tile kernel's, which sums in its own order."""
    variant = expected_variant(level, f"linear_{dtype.lower()}_tile")
    first = TILE_TOKENS.get(variant, {}).get(dtype, TILE_FLOATS if variant != "-" else math.inf)
    if variant == "avx512bf16" and dtype == "MXFP4" and step is not None:
        return exact is not True and T >= TILE_EXPERT and step >= first
    return exact is not True and T >= first


def has_a8(level, dtype):
    """Whether precision int8 has kernels of its own for these weights; AMX multiplies bf16 instead."""
    return VARIANTS[level][5 if dtype == "MXFP4" else 4] not in ("-", "amx")


def rounding(level, dtype, T, exact=False, step=None):
    """How a product with T tokens, of a step of `step` or of T, rounds its activations: "bf16", "a16 32" (16 bits per
    group of 32), "a16 64", "a8 32", "a8 64" or None, not at all. exact: True, False for auto, or "int8"."""
    if exact == "int8":
        if has_a8(level, dtype) and T >= A8_TOKENS.get(dtype, math.inf):
            return "a8 32" if dtype == "MXFP4" else "a8 64"
        exact = False
    if exact:
        return None
    if dtype not in ("F32", "F16") and VARIANTS[level][1] != "-" and tiled(level, dtype, T, step=step):
        return "bf16"
    if dtype == "INT8":
        return "a16 64"
    return "a16 32" if dtype == "MXFP4" and T <= A16_MAX.get(VARIANTS[level][2], math.inf) else None


def in_a8(x, size):
    """x rounded to multiples of each group's scale, the largest / 127, and how far off a value between two may be."""
    K = x.shape[-1]
    padded = np.pad(x.astype(np.float32), [(0, 0)] * (x.ndim - 1) + [(0, -K % size)])
    groups = padded.reshape(*x.shape[:-1], -1, size)
    largest = np.abs(groups).max(-1, keepdims=True)
    scale = (largest / np.float32(127)).astype(np.float64)
    q = groups.astype(np.float64) * (np.float32(127) / np.where(largest > 0, largest, 1))
    between = np.abs(q - np.floor(q) - 0.5) < 1e-4
    return tuple(v.reshape(padded.shape)[..., :K] for v in (np.rint(q) * scale, between * scale))


def operand(x, how):
    """x as a kernel that rounds so multiplies it, and how far off each value may be yet."""
    if how and how.startswith("a8"):
        return in_a8(x, int(how.split()[1]))
    if how and how.startswith("a16"):
        size, K = int(how.split()[1]), x.shape[-1]
        padded = np.pad(np.abs(x), [(0, 0)] * (x.ndim - 1) + [(0, -K % size)])
        groups = padded.reshape(*x.shape[:-1], -1, size)
        scale = groups.max(-1, keepdims=True) / 32767.0
        return x, np.broadcast_to(0.501 * scale, groups.shape).reshape(padded.shape)[..., :K]
    return (round_bf16(x) if how == "bf16" else x), np.zeros(x.shape)


def multiplied(w, how):
    """The values of Weights as a kernel multiplies them that rounds activations so: the tile kernels round INT8's."""
    return round_bf16(w.values).astype(np.float64) if w.dtype == "INT8" and how == "bf16" else w.values


def true_product(x, w, how):
    """x @ w.T in float64, with activations (and weights) rounded as a kernel of that kind does, and its bound."""
    values = multiplied(w, how)
    x, off = operand(x, how)
    return x.astype(np.float64) @ values.T, dot_tolerance(x, values) + off @ np.abs(values).T


def context(exact=True, threads=1):
    """exact: True, False for auto, or a precision by name."""
    return _kernels.Context(threads, {True: "exact", False: "auto"}.get(exact, exact))


def tensor(array):
    return _kernels.Tensor(np.ascontiguousarray(array, np.float32))


def to_bf16(x):
    """float32 -> uint16, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bf16(h):
    return (h.astype(np.uint32) << 16).view(np.float32)


def round_bf16(x):
    """float32 values rounded to bf16, as float32."""
    return from_bf16(to_bf16(x))


def bits(x):
    return np.ascontiguousarray(x, np.float32).view(np.uint32)


def assert_same_bits(actual, expected, what):
    differ = np.argwhere(bits(actual) != bits(expected))
    assert actual.shape == expected.shape and not len(differ), (
        f"{what}: {len(differ)} of {actual.size} values differ in their bits, the first at {differ[0]}: "
        f"{actual[tuple(differ[0])]!r}, expected {expected[tuple(differ[0])]!r}"
    )


class Weights:
    """Random weights of one dtype, [.., N, K]: what a Matrix is made of, and `values`, float64, exactly what it
    stores."""

    def __init__(self, dtype, shape, seed=0):
        rng = np.random.default_rng([seed, *shape])
        self.dtype, self.scales, self.columns = dtype, None, None
        if dtype == "MXFP4":
            groups = (*shape[:-1], shape[-1] // 32)
            self.data = rng.integers(0, 256, (*groups, 16), np.uint8)
            self.scales = rng.integers(120, 127, groups, np.uint8)
            self.values = dequantise(self.data, self.scales)
        elif dtype == "INT8":
            K = shape[-1]
            q = rng.integers(-127, 128, shape, np.int8)
            self.data = np.pad(q, [(0, 0)] * (len(shape) - 1) + [(0, -K % 64)])
            self.scales = to_bf16(np.exp2(rng.uniform(-9, -5, (*shape[:-1], -(-K // 64)))))
            self.values = q * np.repeat(from_bf16(self.scales), 64, -1)[..., :K].astype(np.float64)
            self.columns = K
        elif dtype == "BF16_PACKED":
            self.columns, plain = shape[-1], Weights("BF16", shape, seed)
            plain.data[..., -1, :] = to_bf16(np.exp2(rng.uniform(-24, 4, shape[-1])))  # too many exponents, if long
            data, self.scales = _kernels.pack_bf16(plain.data.reshape(-1, shape[-1]), "BF16", 1)
            self.data, self.values = data.reshape(*shape[:-1], -1), from_bf16(plain.data).astype(np.float64)
        else:
            w = rng.standard_normal(shape, np.float32)
            w[rng.random(shape) < 0.02] *= 2.0**-14  # denormal halves among them
            self.data = {"F32": np.float32, "F16": np.float16, "BF16": to_bf16}[dtype](w)
            self.values = (from_bf16(self.data) if dtype == "BF16" else self.data).astype(np.float64)

    def matrix(self, N=None, bias=None):
        """Its first N rows as a Matrix."""
        of_rows = self.scales is None or self.dtype == "BF16_PACKED"
        return _kernels.Matrix(
            self.dtype, self.data[:N], self.scales if of_rows else self.scales[:N], bias, self.columns
        )


@functools.cache
def activations(T, K, seed=0):
    """float32 [T, K], rows of very different size."""
    rng = np.random.default_rng([seed, T, K])
    return rng.standard_normal((T, K), np.float32) * np.exp2(rng.integers(-6, 7, (T, 1))).astype(np.float32)


def linear(matrix, x, T, *, exact=True, threads=1, start=None, column=0, row=0):
    """x[row : row + T] @ matrix.T by the kernel, [T, N], in the middle of a larger array of which it asserts that
    nothing else is written. start [T, N]: what the product is added to."""
    N, guard = matrix.shape[0], np.float32(math.pi)
    y = np.full((T + 1, column + N + 3), guard)
    if start is not None:
        y[:T, column : column + N] = start[:T]
    _kernels.linear(
        context(exact, threads), tensor_of(y), tensor_of(x), matrix, T, column=column, row=row, add=start is not None
    )
    assert (y[T] == guard).all() and (y[:, :column] == guard).all() and (y[:, column + N :] == guard).all()
    return y[:T, column : column + N]


def tensor_of(array):
    """A Tensor over `array` itself, never a copy."""
    return _kernels.Tensor(array)
