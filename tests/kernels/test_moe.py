"""moe and combine: tokens grouped by expert, against float64, on every level."""

import functools

import numpy as np
import pytest

from cgpt.kernels import _kernels

from support.kernel_cases import (
    FLOATS,
    THREADS,
    Weights,
    assert_same_bits,
    check_slots,
    context,
    multiplied,
    operand,
    rounding,
    tensor,
    tensor_of,
)
from support.tolerance import BF16, F32, TINY, assert_close, dot_tolerance

DTYPES = (*FLOATS, "BF16_PACKED", "MXFP4", "INT8")
EXPERTS, K, WIDTH, N = 6, 96, 64, 50  # inputs, intermediate width, outputs
TOKENS = (1, 2, 5, 8, 13, 33, 60)
ALPHA, LIMIT = 1.702, 7.0


class Experts:
    def __init__(self, dtype, experts=EXPERTS, k=K, width=WIDTH, n=N):
        rng = np.random.default_rng([experts, k, width, n])
        self.dtype = dtype
        self.gate_up, self.down = Weights(dtype, (experts, 2 * width, k)), Weights(dtype, (experts, n, width), 1)
        self.biases = [rng.standard_normal(shape, np.float32) for shape in ((experts, 2 * width), (experts, n))]
        self.matrices = [w.matrix(bias=b) for w, b in zip((self.gate_up, self.down), self.biases, strict=True)]


@functools.cache
def experts(dtype):
    return Experts(dtype)


@functools.cache
def routed(T, k, favourite):
    """x, index, weight, out for T tokens; `favourite`: every token's first choice is expert 4, so that one group is
    large, some are small and one (expert 2) is empty."""
    rng = np.random.default_rng([T, k])
    x = rng.standard_normal((T, K), np.float32) * np.float32(0.3)
    index = np.stack([rng.permutation([0, 1, 3, 4, 5])[:k] for _ in range(T)]).astype(np.int32)
    if favourite:
        index[:, 0] = 4
        index[:, 1:][index[:, 1:] == 4] = 2 if k > 1 and T > 40 else 0
    weight = rng.random((T, k), np.float32)
    return x, index, weight, rng.standard_normal((T, N), np.float32)


def moe(model, x, index, weight, out, exact=True, threads=1):
    """out + the experts' answer; asserts that rows beyond T stay."""
    T = len(x)
    y = np.concatenate([out, np.full((1, out.shape[1]), np.float32(7))])
    _kernels.moe(
        context(exact, threads),
        tensor_of(y),
        tensor(x),
        np.ascontiguousarray(index),
        tensor(weight),
        *model.matrices,
        ALPHA,
        LIMIT,
        T,
    )
    assert (y[T] == 7).all()
    return y[:T]


def exact_moe(model, x, index, weight, out, level=None):
    """float64 result and bound, carried through each stage. With a level, groups of tokens round their activations as
    `auto` does there, and may be off in those of the second product by that rounding."""
    total, bound = out.astype(np.float64), F32 * np.abs(out.astype(np.float64))
    for e in np.unique(index):
        tokens, choice = np.nonzero(index == e)
        how = rounding(level, model.dtype, len(tokens), step=len(x)) if level else None
        rows, off = operand(x[tokens], how)
        up, down = multiplied(model.gate_up, how)[e], multiplied(model.down, how)[e]
        hidden = rows.astype(np.float64) @ up.T + model.biases[0][e]
        off_hidden = dot_tolerance(rows, up) + off @ np.abs(up).T + 2 * F32 * np.abs(hidden)
        g, u = np.minimum(hidden[:, 0::2], LIMIT), np.clip(hidden[:, 1::2], -LIMIT, LIMIT)
        sigmoid = 1 / (1 + np.exp(-ALPHA * g))
        act = g * sigmoid * (u + 1)
        slope = np.abs(sigmoid * (1 + ALPHA * g * (1 - sigmoid)) * (u + 1)) + 0.1  # of the gate; 0.1 for its curve
        off_act = 1.1 * slope * off_hidden[:, 0::2] + np.abs(g * sigmoid) * off_hidden[:, 1::2]
        off_act += (8 + 2 * np.abs(ALPHA * g)) * F32 * np.abs(act) + TINY
        if how == "bf16":
            off_act += BF16 * (np.abs(act) + off_act)
        if how and how.startswith("fixed"):
            off_act += operand(np.abs(act) + off_act, how)[1]
        y = act @ down.T + model.biases[1][e]
        off_y = off_act @ np.abs(down).T + dot_tolerance(act, down) + 2 * F32 * np.abs(y)
        w = weight[tokens, choice, None].astype(np.float64)
        np.add.at(total, tokens, w * y)
        np.add.at(bound, tokens, w * (off_y + 4 * F32 * np.abs(y)))
    return total, bound + F32 * np.abs(total)


@functools.cache
def expected(dtype, T, k, favourite, level):
    return exact_moe(experts(dtype), *routed(T, k, favourite), level)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "auto"])
@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("favourite", [False, True])
def test_moe(level, dtype, exact, k, favourite):
    check_slots(level, "combine", "swiglu", f"linear_{dtype.lower()}")
    model = experts(dtype)
    for T in TOKENS:
        case = routed(T, k, favourite)
        y = moe(model, *case, exact=exact)
        assert_close(y, *expected(dtype, T, k, favourite, None if exact else level), f"{T} tokens, {k} experts each")
        if favourite and rounding(level, dtype, T, exact):
            assert (y != moe(model, *case)).any(), f"{T} tokens: the activations were not rounded"


@pytest.mark.parametrize("dtype", DTYPES)
def test_companions_change_no_bit_in_exact(level, dtype):
    model = experts(dtype)
    x, index, weight, out = routed(60, 3, True)
    whole = moe(model, x, index, weight, out)
    for rows in (slice(0, 1), slice(30, 31), slice(7, 16), slice(20, 60)):
        part = moe(model, x[rows], index[rows], weight[rows], out[rows])
        assert_same_bits(part, whole[rows], f"tokens {rows.start} to {rows.stop}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "auto"])
def test_threads_change_no_bit(level, dtype, exact):
    for T in (1, 13, 60):
        case = routed(T, 3, False)
        one = moe(experts(dtype), *case, exact=exact)
        for threads in THREADS[1:]:
            assert_same_bits(moe(experts(dtype), *case, exact=exact, threads=threads), one, f"{T}, {threads} threads")


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "auto"])
def test_as_many_experts_as_tokens(level, exact, rng):
    """64 groups of one or a few tokens each: every group's packed activations keep to their place in scratch."""
    model = Experts("MXFP4", 64, 32, 32, 7)
    x = rng.standard_normal((70, 32), np.float32)
    index = np.stack([rng.permutation(64)[:4] for _ in range(70)]).astype(np.int32)
    index[:9, 0] = 63
    index[:9, 1:][index[:9, 1:] == 63] = 0
    weight, out = rng.random((70, 4), np.float32), np.zeros((70, 7), np.float32)
    y = moe(model, x, index, weight, out, exact, 2)
    assert_close(y, *exact_moe(model, x, index, weight, out, None if exact else level), "64 experts")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "auto"])
@pytest.mark.parametrize("where", ["x", "weight", "expert"])
def test_nan_reaches_its_tokens_only(level, dtype, exact, where):
    """NaN in a token's activations or router weights spoils that token, NaN in an expert's weights the tokens that
    chose it. No other bit changes."""
    x, index, weight, out = (a.copy() for a in routed(60, 3, False))
    model = Experts(dtype)
    clean = moe(model, x, index, weight, out, exact)
    spoiled = np.zeros(60, bool)
    if where == "x":
        x[17, 95] = np.nan
        spoiled[17] = True
    elif where == "weight":
        weight[17, 1] = np.nan
        spoiled[17] = True
    else:
        if dtype == "MXFP4":
            model.down.scales[3, :, 1] = 255
        elif dtype == "INT8":
            model.down.scales[3, :, 0] = 0x7FC0
        elif dtype == "BF16_PACKED":
            model.down.data[3, :, :4] = model.down.data[3, :, 16:32] = 255  # all packed, of infinities and NaN
        else:
            model.down.data[3, :, 40] = 0x7FC0 if dtype == "BF16" else np.nan
        spoiled = (index == 3).any(1)
    y = moe(model, x, index, weight, out, exact)
    assert not np.isfinite(y[spoiled]).any() and 0 < spoiled.sum() < 60
    assert_same_bits(y[~spoiled], clean[~spoiled], "the other tokens")


def rows_of(matrix, rows):
    """Rows of each expert of a matrix."""
    data, *scales, bias = matrix.arrays
    if matrix.dtype != "BF16_PACKED":  # whose rows have the numbers of those that are stored as they are
        scales = [np.ascontiguousarray(one[:, rows]) for one in scales]
    data, bias = (np.ascontiguousarray(one[:, rows]) for one in (data, bias))
    columns = matrix.shape[2] if matrix.dtype in ("INT8", "BF16_PACKED") else None
    return _kernels.Matrix(matrix.dtype, data, scales[0] if scales else None, bias, columns=columns)


@pytest.mark.parametrize("arrivals", [None, [[4, 0], [], [1, 3, 2, 5]]])
@pytest.mark.parametrize("T, part", [(1, 0), (9, 0), (33, 16)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_some_columns_with_the_activations_of_others(level, dtype, T, part, arrivals):
    """Two calls, each with some rows of both matrices, give the bits of one that has all."""
    model, (x, index, weight, out) = experts(dtype), routed(T, 2, False)
    arrivals = arrivals and [np.array(some, np.int32) for some in arrivals]
    index, k = np.ascontiguousarray(index), 2
    inner, outer = [(0, 16), (16, WIDTH)], [(0, 32), (32, N)]
    act = np.full((T * k, WIDTH), np.nan, np.float32)

    def run(y, mine, columns, gather):
        matrices = [
            rows_of(model.matrices[0], slice(2 * mine[0], 2 * mine[1])),
            rows_of(model.matrices[1], slice(*columns)),
        ]
        how = dict(
            part=part, arrivals=arrivals, column=columns[0], act=tensor_of(act), act_column=mine[0], gather=gather
        )
        arguments = (tensor(x), index, tensor(weight), *matrices, ALPHA, LIMIT, T)
        _kernels.moe(context(True, 2), tensor_of(y), *arguments, **how)

    whole = out[:T].copy()
    args = (tensor_of(whole), tensor(x), index, tensor(weight), *model.matrices, ALPHA, LIMIT, T)
    _kernels.moe(context(True, 1), *args, part=part)
    kept = {}
    run(out[:T].copy(), inner[1], outer[1], lambda: kept.update(act=act[:, 16:].copy()))
    found = out[:T].copy()
    for mine, columns in zip(inner, outer, strict=True):
        before = found.copy()
        if not mine[0]:  # the other's columns come from its own call
            run(found, mine, columns, lambda: act.__setitem__((slice(None), slice(16, None)), kept["act"]))
        else:
            first = act[:, :16].copy()
            run(found, mine, columns, lambda first=first: act.__setitem__((slice(None), slice(16)), first))
        others = np.delete(np.arange(N), np.arange(*columns))
        assert_same_bits(found[:, others], before[:, others], "columns of nobody")
    assert_same_bits(found, whole, "columns")
