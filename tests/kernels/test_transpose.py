"""transpose: what the loader does to GPT-2's Conv1D weights. It has no levels."""

import numpy as np
import pytest

from cgpt.errors import KernelError
from cgpt.kernels import _kernels

from support.kernel_cases import FLOATS, THREADS, from_bf16, to_bf16

NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "U8": np.uint8}
UNSUPPORTED = (("F32", "F16"), ("F16", "F32"), ("BF16", "F16"), ("BF16", "F32"), ("F32", "U8"), ("U8", "F32"))
SHAPES = ((1, 1), (1, 70), (70, 1), (31, 33), (32, 64), (100, 257))


def transpose(array, dtype, to, threads=1):
    out = np.empty(array.shape[::-1], NUMPY[to])
    _kernels.transpose(out, to, array, dtype, threads)
    return out


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_same_dtype(dtype, shape, threads, rng):
    """Every pattern survives, NaN's too."""
    width = np.uint32 if dtype == "F32" else np.uint16
    x = rng.integers(0, np.iinfo(width).max, shape, width, endpoint=True)
    out = transpose(x.view(NUMPY[dtype]), dtype, dtype, threads)
    assert (out.view(width) == x.T).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_to_bf16(shape, rng):
    x = rng.standard_normal(shape, np.float32)
    x.flat[0] = np.float32(1 + 2**-8)  # a tie: to even, down
    assert (transpose(x, "F32", "BF16", 2) == to_bf16(x).T).all()
    h = x.astype(np.float16)
    assert (transpose(h, "F16", "BF16", 2) == to_bf16(h.astype(np.float32)).T).all()


def test_rounding_to_bf16():
    """Ties to even, overflow to infinity, NaN stays NaN even when its payload lies in the bits that go."""
    patterns = {
        0x3F808000: 0x3F80,
        0x3F818000: 0x3F82,
        0x3F808001: 0x3F81,
        0x7F7FFFFF: 0x7F80,
        0xFF800000: 0xFF80,
        0x00000001: 0x0000,
        0x80000000: 0x8000,
    }
    x = np.array([list(patterns)], np.uint32).view(np.float32)
    assert (transpose(x, "F32", "BF16", 1)[:, 0] == list(patterns.values())).all()
    nan = np.array([[0x7F800001, 0xFFFFFFFF]], np.uint32).view(np.float32)
    assert np.isnan(from_bf16(transpose(nan, "F32", "BF16", 1))).all()


@pytest.mark.parametrize("dtype, to", UNSUPPORTED)
def test_unsupported(dtype, to):
    with pytest.raises(KernelError, match="transpose"):
        transpose(np.zeros((2, 3), NUMPY[dtype]), dtype, to)
