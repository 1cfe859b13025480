"""pack_bf16; linear_bf16_packed and linear_bf16_packed_tile against the bits of BF16, on every level.
test_linear.py has them against float64."""

import numpy as np
import pytest

from cgpt.errors import KernelError
from cgpt.kernels import _kernels

from support.kernel_cases import (
    FLOATS,
    THREADS,
    TOKENS,
    activations,
    assert_same_bits,
    check_slots,
    from_bf16,
    linear,
    tensor_of,
    to_bf16,
)

INPUTS = (1, 31, 32, 33, 63, 64, 65, 95, 96, 97, 128, 160, 1000, 1023, 1024, 1025, 1056, 1057, 1120, 2048, 2880)
OUTPUTS = (1, 2, 3, 4, 5, 7, 16, 21, 70)
RUN = 1024  # weights that share a table


def packed(weights, bias=None, threads=1):
    """uint16 [N, K] as a Matrix."""
    data, stored = _kernels.pack_bf16(weights, "BF16", threads)
    return _kernels.Matrix("BF16_PACKED", data, stored, bias, weights.shape[1])


def unpacked(matrix):
    """The rows of a Matrix, float32."""
    out = np.empty(matrix.shape, np.float32)
    _kernels.embed(tensor_of(out), matrix, np.arange(len(out)))
    return out


def of_exponents(rng, counts, K):
    """uint16 [len(counts), K]: row n has counts[n] different exponents in each run, signs and mantissas at random."""
    rows = np.empty((len(counts), K), np.uint16)
    for row, count in zip(rows, counts, strict=True):
        for k in range(0, K, RUN):
            n = min(RUN, K - k)
            kinds = rng.choice(np.arange(100, 150), min(count, n), replace=False)
            row[k : k + n] = rng.permutation(np.resize(kinds, n)) << 7
    return rows | rng.integers(0, 2, rows.shape, np.uint16) << 15 | rng.integers(0, 128, rows.shape, np.uint16)


def mixed(rng, N, K):
    """uint16 [N, K] like those of a model: zeros among them, rows of different size, and some that are not packed."""
    weights = to_bf16(rng.standard_normal((N, K), np.float32) * np.exp2(rng.integers(-9, 3, (N, 1))))
    weights[rng.random((N, K)) < 0.01] = 0
    weights[rng.random((N, K)) < 0.01] = 0x8003  # a denormal
    wide = rng.random(N) < 0.2
    weights[wide] = of_exponents(rng, [40] * wide.sum(), K)
    return weights


# -------------------------------------------------------------------------------------------------------- packing


def test_every_bf16_comes_back(level):
    """All 65,536, NaN with their payloads, in runs of 16 exponents each, and in rows of more, which are not packed."""
    patterns = np.arange(65536, dtype=np.uint16)
    exponent = patterns >> 7 & 0xFF
    by_exponent = patterns[np.lexsort((patterns, exponent))]  # 256 of each
    few = by_exponent.reshape(16, 4, RUN).reshape(16, 4 * RUN)
    shuffled = np.random.default_rng(1).permutation(few.T).T  # 16 exponents a row, so 16 in each run
    for rows, stored in ((few, 0), (shuffled, 0), (patterns.reshape(64, RUN), 0), (patterns.reshape(RUN, 64).T, 64)):
        rows = np.ascontiguousarray(rows)
        assert (_kernels.stored_rows(_kernels.pack_bf16(rows, "BF16", 1)[0]) >= 0).sum() == stored
        assert_same_bits(unpacked(packed(rows)), from_bf16(rows), f"{stored} rows as they are")


@pytest.mark.parametrize("K", [16, 17, 63, 1024, 1040, 2880])
def test_rows_of_more_than_16_exponents_are_stored_as_they_are(level, K, rng):
    counts = rng.permutation(np.arange(1, 18).repeat(3))
    rows = of_exponents(rng, counts, K)
    data, stored = _kernels.pack_bf16(rows, "BF16", 1)
    as_they_are = np.flatnonzero(counts > 16) if K > 16 else []
    assert np.flatnonzero(_kernels.stored_rows(data) >= 0).tolist() == list(as_they_are)
    assert (stored == rows[as_they_are]).all() if K > 16 else stored is None
    assert_same_bits(unpacked(packed(rows)), from_bf16(rows), "unpacked")


def test_one_run_of_many_exponents_is_enough(rng):
    """A later table that is too small, too."""
    rows = of_exponents(rng, [3] * 4, 2500)
    rows[2, 2300:2320] = np.arange(20) << 7
    assert _kernels.stored_rows(_kernels.pack_bf16(rows, "BF16", 1)[0]).tolist() == [-1, -1, 0, -1]
    assert_same_bits(unpacked(packed(rows)), from_bf16(rows), "unpacked")


@pytest.mark.parametrize("dtype", FLOATS)
def test_packing_rounds_floats_to_bf16_from_any_address(dtype, rng):
    """As dense="bf16" does; tensors of a file may begin anywhere, which the sanitizers see."""
    x = rng.standard_normal((37, 1100), np.float32)
    x[[5, 20]] *= np.exp2(rng.uniform(-20, 5, (2, 1100))).astype(np.float32)
    x[3, :7] = np.nan, np.inf, -np.inf, 0, -0.0, 1e-7, 60000
    x = to_bf16(x) if dtype == "BF16" else x.astype({"F32": np.float32, "F16": np.float16}[dtype])
    odd = np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    odd[...] = x
    expected = np.empty((1, x.size), np.uint16)
    _kernels.transpose(expected.reshape(-1, 1), "BF16", x.reshape(1, -1), dtype, 1)
    data, stored = _kernels.pack_bf16(odd, dtype, 1)
    assert stored is not None
    matrix = _kernels.Matrix("BF16_PACKED", data, stored, columns=1100)
    assert_same_bits(unpacked(matrix), from_bf16(expected.reshape(x.shape)), dtype)


def test_packing_is_the_same_on_any_number_of_threads(rng):
    weights = mixed(rng, 500, 300)
    one, stored = _kernels.pack_bf16(weights, "BF16", 1, np.zeros)
    for threads in THREADS[1:]:
        found = _kernels.pack_bf16(weights, "BF16", threads, np.zeros)
        assert (found[0] == one).all() and (found[1] == stored).all()


def test_twelve_bits(rng):
    """A row of 2,880 has 45 blocks of 96 bytes and 64 bytes of tables; rows stored as they are come on top."""
    data, stored = _kernels.pack_bf16(to_bf16(rng.standard_normal((4, 2880), np.float32)), "BF16", 1)
    assert data.shape == (4, 45 * 96 + 64) and stored is None
    assert data.shape[1] == _kernels.packed_row_bytes(2880) < 0.762 * 2880 * 2


# ------------------------------------------------------------------------------------------------------- products


@pytest.mark.parametrize("exact", [True, False, "int8"], ids=["exact", "auto", "int8"])
def test_the_bits_of_bf16(level, exact, rng):
    """Whatever the precision, the number of tokens, of outputs and of inputs."""
    check_slots(level, "linear_bf16_packed", "linear_bf16_packed_tile")
    for K in INPUTS:
        weights, x = mixed(rng, max(OUTPUTS), K), activations(max(TOKENS), K)
        for N in OUTPUTS if K in (97, 160) else (3, 21):
            one, other = packed(weights[:N]), _kernels.Matrix("BF16", weights[:N])
            for T in TOKENS if N in (3, 70) and K in (97, 160, 1057) else (1, 4, 12, 33):
                expected = linear(other, x, T, exact=exact)
                assert_same_bits(linear(one, x, T, exact=exact), expected, f"K = {K}, N = {N}, T = {T}")


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "auto"])
def test_the_bits_of_bf16_with_bias_threads_and_columns(level, exact, rng):
    N, K = 100, 1120
    weights, bias = mixed(rng, N, K), rng.standard_normal(N, np.float32)
    one, other = packed(weights, bias, threads=2), _kernels.Matrix("BF16", weights, bias=bias)
    start = rng.standard_normal((40, N), np.float32)
    for T in (1, 3, 8, 13, 40):
        for threads, options in zip(THREADS, ({}, {"start": start, "row": 7}, {"column": 5}), strict=True):
            x = activations(47, K)
            expected = linear(other, x, T, exact=exact, **options)
            found = linear(one, x, T, exact=exact, threads=threads, **options)
            assert_same_bits(found, expected, f"T = {T}, {threads} threads, {options.keys()}")


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "auto"])
def test_all_rows_stored_as_they_are_and_none(level, exact, rng):
    for count in (40, 8):
        weights, x = of_exponents(rng, [count] * 37, 200), activations(60, 200)
        for T in (1, 2, 9, 12, 17, 60):
            expected = linear(_kernels.Matrix("BF16", weights), x, T, exact=exact)
            assert_same_bits(linear(packed(weights), x, T, exact=exact), expected, f"{count} exponents, T = {T}")


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "auto"])
@pytest.mark.parametrize("special", [0x7FC0, 0x7F80, 0xFF80])
def test_special_weights_stay_in_their_output(level, exact, special, rng):
    """Also in the tails of K, whose padding must not become infinite, and where nothing else is in the row."""
    for K, at in ((1, 0), (33, 32), (65, 64), (100, 3), (1025, 1024)):
        weights = to_bf16(rng.standard_normal((21, K), np.float32))
        for T in (1, 3, 9, 17, 50):
            x = activations(T, K)
            clean = linear(packed(weights), x, T, exact=exact)
            spoiled = weights.copy()
            spoiled[20, at] = special
            y = linear(packed(spoiled), x, T, exact=exact)
            expected = linear(_kernels.Matrix("BF16", spoiled), x, T, exact=exact)
            assert not np.isfinite(y[:, 20]).any() and np.array_equal(y[:, 20], expected[:, 20], equal_nan=True)
            assert_same_bits(y[:, :20], clean[:, :20], f"the outputs beside w[20, {at}] of K = {K}")


# ------------------------------------------------------------------------------------------------------- refusals


def test_what_cannot_be_packed_is_refused():
    for array, dtype in ((np.zeros(64, np.float32), "F32"), (np.zeros((2, 64), np.uint8), "U8")):
        with pytest.raises(KernelError, match="pack_bf16"):
            _kernels.pack_bf16(array, dtype, 1)


def test_matrix_refuses_what_pack_bf16_does_not_give(rng):
    data, stored = _kernels.pack_bf16(of_exponents(rng, [40, 5, 40], 100), "BF16", 1)
    _kernels.Matrix("BF16_PACKED", data, stored, columns=100)
    for rows, others, columns in (
        (data, stored, None),
        (data, stored, 129),
        (data, stored[:, :99], 100),
        (data, stored[0], 100),
        (data.view(np.int8), stored, 100),
        (data[:, :-1], stored, 100),
    ):
        with pytest.raises(KernelError, match="BF16_PACKED"):
            _kernels.Matrix("BF16_PACKED", rows, others, columns=columns)
    with pytest.raises(KernelError, match="names row 1 of 0 that are stored"):
        _kernels.Matrix("BF16_PACKED", data, None, columns=100)
    with pytest.raises(KernelError, match="names row 1 of 1 that are stored"):
        _kernels.Matrix("BF16_PACKED", data, stored[:1], columns=100)
