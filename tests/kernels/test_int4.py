"""quantize_int4 and int4_decode; products with INT4 weights have the bits of INT8 weights of the same values."""

import numpy as np
import pytest

from cgpt.errors import KernelError
from cgpt.kernels import _kernels
from cgpt.kernels._kernels import PRECISIONS

from support.kernel_cases import (
    FLOATS,
    THREADS,
    activations,
    assert_same_bits,
    check_slots,
    from_bf16,
    linear,
    to_bf16,
)

VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])  # llama.cpp's IQ4_NL
TOKENS = (1, 2, 5, 8, 15, 16, 40)


def stored(x, dtype):
    return np.ascontiguousarray({"F32": np.float32, "F16": np.float16, "BF16": to_bf16}[dtype](x))


def quantize(x, dtype="F32", threads=1, transposed=False):
    return _kernels.quantize_int4(stored(x.T if transposed else x, dtype), dtype, threads, transposed=transposed)


def groups_of(x):
    """float64 [N, groups, 64], with zeros behind the end of a row."""
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, -x.shape[1] % 64)])
    return padded.reshape(len(x), -1, 64)


def errors_of(x, scale):
    """The squared errors of groups, each with the best value for each weight, searched one by one."""
    return (np.abs(x[..., None] - VALUES * scale[..., None, None]).min(-1) ** 2).sum(-1)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("K", [1, 63, 64, 130, 256])
def test_each_scale_is_the_best_that_is_tried(level, dtype, K, rng):
    """And each code that of the nearest value, as a search in float64 finds them."""
    check_slots(level, "quantize_int4")
    x = rng.standard_normal((20, K)) * np.exp2(rng.integers(-12, 12, (20, 1)))
    if dtype != "F16":  # weights whose squares are no floats
        x[:2] *= np.array([[2.0**100], [2.0**-75]])
    codes, scales = quantize(x, dtype)
    x = stored(x, dtype)
    x = groups_of(from_bf16(x) if dtype == "BF16" else x)
    values, scale = _kernels.int4_decode(codes).reshape(x.shape), from_bf16(scales).astype(np.float64)
    most = np.take_along_axis(x, np.abs(x).argmax(-1)[..., None], -1)[..., 0]  # comes to the longer side of the values
    tried = [errors_of(x, from_bf16(to_bf16(-most / at)).astype(np.float64)) for at in range(100, 149, 8)]
    found = ((x - values * scale[..., None]) ** 2).sum(-1)
    assert (found <= np.min(tried, axis=0) * (1 + 1e-5)).all()
    assert (found <= errors_of(x, scale) * (1 + 1e-5)).all()


def test_special_values(level):
    x = np.ones((5, 128), np.float32)
    x[0, 3], x[1, 100], x[2, 70], x[3, :64], x[4, :64] = np.nan, np.inf, -np.inf, 0, 2.0**-110
    scales = from_bf16(quantize(x)[1])
    assert np.argwhere(np.isnan(scales)).tolist() == [[0, 0], [1, 1], [2, 1]]
    assert (scales[3:, 0] == 0).all() and (scales[3:, 1] != 0).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("N, K", [(1, 1), (16, 64), (37, 130)])
def test_what_is_stored_by_columns_gives_the_same_on_every_level(level, dtype, N, K, rng):
    x = rng.standard_normal((N, K), np.float32)
    found = [quantize(x, dtype, threads, transposed=by_columns) for threads in THREADS for by_columns in (False, True)]
    _kernels.use_level("ref")
    for codes, scales in found:
        for one, other in zip((codes, scales), quantize(x, dtype), strict=True):
            assert (one == other).all()


def test_decode(level):
    """Weight i of a group is the low half of byte i, weight 32 + i the high half."""
    check_slots(level, "int4_decode")
    codes = np.arange(256, dtype=np.uint8).reshape(2, 4, 32)
    decoded = _kernels.int4_decode(codes)
    assert decoded.dtype == np.int8 and decoded.shape == (2, 4, 64)
    assert (decoded[..., :32] == VALUES[codes & 15]).all() and (decoded[..., 32:] == VALUES[codes >> 4]).all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("K", [1, 64, 130, 640])
def test_products_have_the_bits_of_int8(level, precision, K, rng):
    """Of the same integers and scales, for any number of tokens and threads: padding counts for nothing."""
    check_slots(level, "linear_int4_a16")
    N = 85
    codes, scales = quantize(rng.standard_normal((N, K), np.float32))
    integers, bias = _kernels.int4_decode(codes), rng.standard_normal(N, np.float32)
    integers[:, K:] = 0
    four = _kernels.Matrix("INT4", codes, scales, bias, columns=K)
    eight = _kernels.Matrix("INT8", integers, scales, bias, columns=K)
    assert four.shape == eight.shape == (N, K)
    for T in TOKENS:
        x, start = activations(T, K), rng.standard_normal((T, N), np.float32)
        for threads in (1, 2):
            found, expected = (linear(w, x, T, exact=precision, threads=threads, start=start) for w in (four, eight))
            assert_same_bits(found, expected, f"{T} tokens, {threads} threads")


def test_what_is_refused(rng):
    codes, scales = quantize(rng.standard_normal((4, 128), np.float32))
    for array, dtype in ((np.zeros(64, np.float32), "F32"), (np.zeros((2, 64), np.uint8), "U8")):
        with pytest.raises(KernelError, match="quantize_int4"):
            _kernels.quantize_int4(array, dtype, 1)
    for wrong in (codes.view(np.int8), codes[:, :31]):
        with pytest.raises(KernelError, match="int4_decode"):
            _kernels.int4_decode(wrong)
    for data, beside, columns in ((codes, None, 128), (codes, scales, 129), (codes, scales[:, :1], 128)):
        with pytest.raises(KernelError, match="INT4"):
            _kernels.Matrix("INT4", data, beside, columns=columns)
    with pytest.raises(KernelError, match="no kernel for INT4"):
        _kernels.embed(
            _kernels.Tensor(np.zeros((1, 128), np.float32)), _kernels.Matrix("INT4", codes, scales), np.zeros(1, int)
        )
