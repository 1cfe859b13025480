"""embed: rows of a table, plus learned positions, on every level."""

import numpy as np
import pytest

from cgpt.kernels import _kernels

from support.kernel_cases import FLOATS, Weights, assert_same_bits, check_slots, tensor_of

TABLES = (*FLOATS, "BF16_PACKED")
WIDTHS = (1, 3, 4, 7, 8, 15, 16, 17, 33, 100, 2880)


@pytest.mark.parametrize("dtype", TABLES)
@pytest.mark.parametrize("positions_dtype", [None, *TABLES])
def test_embed(level, dtype, positions_dtype, rng):
    """Exact: a lookup is a conversion, the sum of two float32 values one rounding. Other rows stay as they are."""
    check_slots(level, "embed")
    V, P, T, row, start = 50, 20, 9, 2, 11
    for C in WIDTHS:
        table = Weights(dtype, (V, C))
        ids = np.concatenate([[0, V - 1, V - 1], rng.integers(0, V, T - 3)])
        out = np.full((T + row + 1, C), np.float32(7))
        if positions_dtype is None:
            _kernels.embed(tensor_of(out), table.matrix(), ids, row=row)
            expected = table.values[ids].astype(np.float32)
        else:
            positions = Weights(positions_dtype, (P, C), seed=1)
            _kernels.embed(tensor_of(out), table.matrix(), ids, positions.matrix(), row=row, start=start)
            expected = table.values[ids].astype(np.float32) + positions.values[start : start + T].astype(np.float32)
        assert_same_bits(out[row:-1], expected, f"C = {C}")
        assert (out[:row] == 7).all() and (out[-1] == 7).all(), f"C = {C}: another row was written"


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_half(level, dtype):
    """All 65,536 patterns of a 16-bit dtype, denormals, infinities and NaN among them (float32: the same values)."""
    patterns = np.arange(65536, dtype=np.uint16)
    halves = patterns.view(np.float16)
    data = {"F32": halves.astype(np.float32), "F16": halves, "BF16": patterns}[dtype]
    with np.errstate(invalid="ignore"):
        expected = (patterns.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else data.astype(np.float32)
    out = np.empty((1024, 64), np.float32)
    _kernels.embed(tensor_of(out), _kernels.Matrix(dtype, data.reshape(1024, 64)), np.arange(1024))
    out, nan = out.reshape(-1), np.isnan(expected)
    assert np.isnan(out[nan]).all()
    assert_same_bits(out[~nan], expected[~nan], dtype)
