"""attention and kv_append: against float64, and the same bits however a sequence is cut into calls."""

import functools

import numpy as np
import pytest

from cgpt.kernels import _kernels

from reference.attention import attention as reference
from support.kernel_cases import assert_same_bits, check_slots, context, from_bf16, tensor, tensor_of, to_bf16
from support.tolerance import F32, TINY, assert_close

WINDOWS = (0, 1, 16, 31, 32, 33, 128)
HEADS = ((1, 1), (4, 2), (3, 3), (16, 2))  # query heads, key/value heads
DIMENSIONS = (8, 16, 20, 64, 67, 80)
CHUNKS = ((31, 1, 1, 31, 33, 2, 64), (5, 90, 7, 61), (100, 63), (33, 130), (1, 1, 161), (7,) * 23 + (2,))
TOKENS = 163
assert all(sum(chunks) == TOKENS for chunks in CHUNKS)


def new_cache(positions, G, D, fill=0.0, dtype="F32"):
    """Keys and values for `positions` positions, rounded up to whole blocks."""
    shapes = _kernels.kv_shapes(-(-positions // _kernels.KV_BLOCK), G, D, dtype)
    if dtype == "INT8":  # scales of NaN where all bits are set
        return tuple(np.full(shape, -1 if np.isnan(fill) else 0, np.int8) for shape in shapes)
    return tuple(np.full(shape, stored(np.float32([fill]), dtype)[0]) for shape in shapes)


def stored(x, dtype):
    """float32 as a cache of `dtype` keeps it."""
    with np.errstate(over="ignore"):
        return {"F32": np.float32, "F16": np.float16, "BF16": to_bf16}[dtype](x)


def kept(x, dtype):
    """The values, float32, that a cache of `dtype` keeps of float32 x [.., D]."""
    if dtype == "INT8":
        q, scale = quantized(x)
        return q * scale
    return from_bf16(stored(x, dtype)) if dtype == "BF16" else stored(x, dtype).astype(np.float32)


def quantized(x):
    """float32 integers [.., D] and scales [.., 1] of the rows of x, as csrc/cgpt.h has it."""
    x = np.float32(x)
    largest = np.abs(x).max(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        tiny = largest < 2.0**-100
        q = np.where(tiny, 0, np.rint(x * (np.float32(127) / largest)))
        return np.where(np.isfinite(largest), q, 0), np.where(
            tiny, 0, np.where(np.isfinite(largest), largest / 127, np.inf)
        )


def attention(
    qkv,
    H,
    G,
    chunks=None,
    window=0,
    sinks=None,
    positions=None,
    threads=1,
    scale=None,
    cache=None,
    fill=0.0,
    dtype="F32",
):
    """The kernel's output [T, H * D] for a sequence qkv [T, (H + 2 G) D] cut into chunks, with a cache of
    `positions` positions (all of them where None)."""
    T, D = len(qkv), qkv.shape[1] // (H + 2 * G)
    layer = _kernels.LayerCache(*(cache or new_cache(positions or T, G, D, fill, dtype)), dtype, D)
    out, x, sinks = np.full((T, H * D), np.float32(7)), tensor(qkv), None if sinks is None else tensor(sinks)
    scale, start, ctx = D**-0.5 if scale is None else scale, 0, context(threads=threads)
    for t in chunks or (T,):
        _kernels.attention(
            ctx, tensor_of(out), x, [(layer, start, start, t)], H, scale=scale, window=window, sinks=sinks
        )
        start += t
    return out


def sequence(H, G, D, T=TOKENS, size=1.5):
    rng = np.random.default_rng([H, G, D, T])
    return rng.standard_normal((T, (H + 2 * G) * D), np.float32) * np.float32(size), rng.standard_normal(H, np.float32)


def exact(qkv, H, G, window, sinks, scale=None, dtype="F32"):
    """float64 result, of keys and values as the cache keeps them, and bound [T, H * D]. An error d in every score moves
    each probability by a factor of at most e^(2d), so the result by 2 d of the probabilities' sum of |v|. An int8 cache
    rounds queries, and the weights of a block of 32, to 2^-16 of the largest one."""
    T, D = len(qkv), qkv.shape[1] // (H + 2 * G)
    scale = D**-0.5 if scale is None else scale
    heads = qkv.astype(np.float64).reshape(T, H + 2 * G, D)
    q, k, v = np.split(heads, [H, H + G], 1)
    k, v = (kept(x, dtype).astype(np.float64) for x in (k, v))
    sinks = None if sinks is None else sinks.astype(np.float64)
    out = reference(q, k, v, scale, window=window or None, sinks=sinks)
    size = reference(q, k, np.abs(v), scale, window=window or None, sinks=sinks)
    products = np.abs(q).transpose(1, 0, 2) @ np.abs(np.repeat(k, H // G, 1)).transpose(1, 2, 0)  # [H, T, T]
    age = np.arange(T)[:, None] - np.arange(T)
    seen = np.where((age >= 0) & (age < (window or T)), products, 0).max(2)
    off, weights = 10 * F32 * scale * seen.T[:, :, None], 0
    if dtype == "INT8":
        largest = np.abs(k).sum(2).max(0)  # of the keys of a head
        off = off + np.abs(q).max(2, keepdims=True) * scale / 65534 * np.repeat(largest, H // G)[:, None]
        tops = np.abs(v).max(2, keepdims=True) + 0 * v
        weights = 32 / 65534 * reference(q, k, tops, scale, window=window or None, sinks=sinks)
    return out.reshape(T, -1), ((2 * off + 16 * F32) * size + weights + TINY).reshape(T, -1)


@functools.cache
def case(H, G, D, window, with_sinks):
    qkv, sinks = sequence(H, G, D)
    sinks = sinks if with_sinks else None
    return qkv, sinks, exact(qkv, H, G, window, sinks)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("D", DIMENSIONS)
def test_values(level, window, D):
    check_slots(level, "attention", "kv_append")
    for H, G in HEADS:
        for with_sinks in (False, True):
            qkv, sinks, expected = case(H, G, D, window, with_sinks)
            out = attention(qkv, H, G, window=window, sinks=sinks)
            assert_close(out, *expected, f"H = {H}, G = {G}, sinks {with_sinks}")


@pytest.mark.parametrize("D", [520, 1001, _kernels.MAX_HEAD_DIM])
def test_wide_heads(level, D):
    """Of which a tile has few rows, or one."""
    qkv, sinks, expected = case(2, 1, D, 31, True)
    whole = attention(qkv, 2, 1, window=31, sinks=sinks)
    assert_close(whole, *expected, f"D = {D}")
    assert_same_bits(attention(qkv, 2, 1, CHUNKS[0], 31, sinks, threads=2), whole, f"D = {D}, in chunks")


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("H, G, D", [(1, 1, 20), (4, 2, 64), (16, 2, 8)])
def test_chunks_change_no_bit(level, window, H, G, D):
    """One call, chunks that begin anywhere, one token at a time; with a cache that holds everything and with rings
    from the smallest that the window allows. Slots not written yet may hold anything."""
    qkv, sinks, _ = case(H, G, D, window, True)
    whole = attention(qkv, H, G, window=window, sinks=sinks)
    for positions in sorted({window or TOKENS, window + 31 if window else TOKENS, 160 if window else TOKENS, TOKENS}):
        for chunks in (*CHUNKS, (TOKENS,), (1,) * TOKENS):
            out = attention(qkv, H, G, chunks, window, sinks, positions, fill=np.nan)
            assert_same_bits(out, whole, f"a cache of {positions} positions, chunks {chunks[:7]}")


@pytest.mark.parametrize("window, dtype", [(0, "F32"), (600, "F32"), (0, "F16"), (600, "BF16"), (0, "INT8")])
def test_long_caches_and_threads(level, window, dtype):
    """Several KV splits, one after the other or each for a thread: right, the same bits whatever thread sums them."""
    check_slots(level, "attention", "attention_merge")
    H, G, D, T = 4, 2, 8, 2 * _kernels.KV_SPLIT + 70
    qkv, sinks = sequence(H, G, D, T)
    whole = attention(qkv, H, G, window=window, sinks=sinks, dtype=dtype)
    assert_close(whole, *exact(qkv, H, G, window, sinks, dtype=dtype), "in one call")
    decoded = (T - 40, *(1,) * 40)
    for threads, chunks in ((1, decoded), (2, decoded), (4, decoded), (2, (T,)), (4, (70, T - 70)), (2, (T - 3, 3))):
        out = attention(qkv, H, G, chunks, window, sinks, threads=threads, positions=window or T, dtype=dtype)
        assert_same_bits(out, whole, f"{threads} threads, chunks {chunks[:3]}")


@pytest.mark.parametrize("dtype", ["F16", "BF16", "INT8"])
def test_rounded_caches(level, dtype):
    """A cache of fewer bits: what float64 gives for keys and values rounded to nearest even; and the same bits however
    the sequence is cut."""
    for (H, G), D, window in ((HEADS[1], 64, 0), (HEADS[3], 20, 33), (HEADS[2], 80, 0), (HEADS[0], 8, 1)):
        qkv, sinks = sequence(H, G, D)
        whole = attention(qkv, H, G, window=window, sinks=sinks, dtype=dtype)
        assert_close(whole, *exact(qkv, H, G, window, sinks, dtype=dtype), f"H = {H}, G = {G}, D = {D}")
        for chunks in (*CHUNKS, (1,) * TOKENS):
            out = attention(qkv, H, G, chunks, window, sinks, window or TOKENS, fill=np.nan, dtype=dtype)
            assert_same_bits(out, whole, f"chunks {chunks[:7]}")


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_kv_append_rounds_to_nearest_even(level, dtype):
    """All halves, what lies half-way between two and beside it, NaN, and what is too large for f16."""
    halves = np.arange(0x7C00, dtype=np.uint16)
    exact_values = from_bf16(halves) if dtype == "BF16" else halves.view(np.float16).astype(np.float32)
    middle = (exact_values[1:].astype(np.float64) + exact_values[:-1]) / 2
    middle = middle.astype(np.float32)
    values = np.concatenate([exact_values, middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.inf)])
    values = np.concatenate([values, -values, np.float32([65519, 65520, 1e6, np.inf, -np.inf, np.nan])])
    D = 20
    values = np.resize(values, (-(-len(values) // D), D))
    k, v = new_cache(len(values), 1, D, dtype=dtype)
    qkv = np.concatenate([np.zeros_like(values), values, values[::-1]], 1)
    attention(qkv, 1, 1, window=1, cache=(k, v), dtype=dtype)
    for found, written in ((keys_of(k), values), (values_of(v, D), values[::-1])):
        found = (from_bf16(found) if dtype == "BF16" else found.astype(np.float32))[0, : len(values)]
        expected = kept(written, dtype)
        assert np.array_equal(np.isnan(found), np.isnan(expected))
        known = ~np.isnan(expected)
        assert_same_bits(found[known], expected[known], dtype)


def test_kv_append_int8(level):
    """Integers and scales to the bit, in chunks and one by one; rows of zeros, tiny ones, and what is not finite."""
    for G, D, T in ((2, 20, 70), (1, 67, 40), (1, 64, 33)):
        qkv, _ = sequence(G, G, D, T)
        rows = qkv.reshape(T, 3 * G, D)[:, G:]
        rows[3], rows[5], rows[8, 0, 1], rows[9, G, 2] = 0, 1e-32, np.nan, -np.inf
        rows[11], rows[12] = 3e38, np.arange(D) - 127
        q, scales = quantized(rows)
        for chunks in ((T,), (5, 3, T - 8), (1,) * T):
            k, v = new_cache(T, G, D, np.nan, "INT8")
            attention(qkv, G, G, chunks, cache=(k, v), dtype="INT8")
            blocks, Dk = k.shape[1], D + D % 2
            keys = k[:, :, :, :Dk].reshape(G, blocks, 2, Dk // 2, 16, 2).transpose(0, 1, 2, 4, 3, 5)
            values = v.reshape(G, blocks, -1, 16, 16, 2).transpose(0, 1, 5, 3, 2, 4)
            kept = k[:, :, :, Dk:].reshape(G, blocks, 2, 2, 64).view(np.float32).swapaxes(2, 3)
            for i, found in enumerate((keys, values)):
                found = found.reshape(G, blocks * 32, -1)[:, :T, :D].swapaxes(0, 1)
                assert np.array_equal(found, q[:, i * G : i * G + G]), f"D = {D}, chunks {chunks[:3]}"
                found = kept[:, :, i].reshape(G, -1)[:, :T].T
                assert_same_bits(found, np.float32(scales[:, i * G : i * G + G, 0]), f"scales, chunks {chunks[:3]}")


@pytest.mark.parametrize("special", [np.nan, np.inf])
@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_special_values_in_int8(level, part, special):
    """They spoil all of their head's output, at the positions that see them, and no other bit."""
    H, G, D, T, at = 4, 2, 20, 120, 40
    qkv, sinks = sequence(H, G, D, T)
    clean = attention(qkv, H, G, sinks=sinks, dtype="INT8").reshape(T, H, D)
    bad, seen = qkv.copy(), np.zeros((T, H, D), bool)
    bad[at, {"query": 2, "key": H + 1, "value": H + G + 1}[part] * D + 3] = special
    if part == "query":
        seen[at, 2] = True
    else:
        seen[at:, 2:] = True
    for chunks in ((T,), (35, 50, 35), (1,) * T):
        out = attention(bad, H, G, chunks, 0, sinks, dtype="INT8").reshape(T, H, D)
        assert not np.isfinite(out[seen]).any(), f"chunks {chunks[:3]}"
        assert_same_bits(out[~seen], clean[~seen], f"what cannot see it, chunks {chunks[:3]}")


def keys_of(k):
    """[G, positions, D] of keys [G, blocks, 2, D, 16]."""
    return k.transpose(0, 1, 2, 4, 3).reshape(len(k), -1, k.shape[3])


def values_of(v, D):
    """[G, positions, D] of values [G, blocks, panels, 32, 16]."""
    return v.transpose(0, 1, 3, 2, 4).reshape(len(v), -1, v.shape[2] * 16)[..., :D]


def test_kv_append_layout(level, rng):
    """Keys [G, blocks, 2, D, 16], values [G, blocks, panels, 32, 16]; a ring; padding stays."""
    H, G, D, T = 2, 2, 20, 100
    qkv, _ = sequence(H, G, D, T)
    for positions, chunks in ((128, (100,)), (64, (100,)), (64, (37, 63)), (64, (1,) * T)):
        k, v = new_cache(positions, G, D)
        attention(qkv, H, G, chunks, window=64, cache=(k, v))
        heads = qkv.reshape(T, H + 2 * G, D)
        for t in range(T - 64, T):
            at = t % (32 * k.shape[1])
            assert_same_bits(keys_of(k)[:, at], heads[t, H : H + G], f"the key of position {t}")
            assert_same_bits(values_of(v, D)[:, at], heads[t, H + G :], f"the value of position {t}")
        assert (values_of(v, 32)[..., D:] == 0).all()


def test_rows_of_a_batch(level):
    """A sequence in the middle of a batch of rows gives the bits it gives alone; other rows are not written."""
    H, G, D, T = 4, 2, 16, 37
    qkv, sinks = sequence(H, G, D, T)
    alone = attention(qkv, H, G, sinks=sinks)
    batch, out = np.full((T + 9, qkv.shape[1]), np.float32(np.nan)), np.full((T + 9, H * D), np.float32(7))
    batch[4 : 4 + T] = qkv
    cache = _kernels.LayerCache(*new_cache(64, G, D))
    _kernels.attention(
        context(), tensor_of(out), tensor_of(batch), [(cache, 4, 0, T)], H, scale=D**-0.5, sinks=tensor(sinks)
    )
    assert_same_bits(out[4 : 4 + T], alone, "in a batch")
    assert (np.delete(out, range(4, 4 + T), 0) == 7).all()


@pytest.mark.parametrize("window, dtype", [(0, "F32"), (600, "F16"), (64, "BF16"), (64, "INT8")])
def test_sequences_together(level, window, dtype):
    """Sequences of other lengths, more than one call of C takes, chunks and single tokens among them, with rings that
    wrap and caches of several KV splits: each gets the bits it gets alone."""
    H, G, D, split = 4, 2, 8, _kernels.KV_SPLIT
    lengths = [(1, 1), (37, 1), (70, 2), (100, 33), (64, 64), (split + 1, 1), (2 * split, 3)] * 3
    cases = [sequence(H, G, D, before + new)[0] * np.float32(1 - i / 50) for i, (before, new) in enumerate(lengths)]
    _, sinks = sequence(H, G, D)
    ring = window or None
    alone = [attention(qkv, H, G, lengths[i], window, sinks, ring, dtype=dtype) for i, qkv in enumerate(cases)]
    expected = np.concatenate([out[before:] for out, (before, _) in zip(alone, lengths, strict=True)])
    rows = np.cumsum([0, *(new for _, new in lengths)])
    for threads in (1, 2, 4):
        caches = [new_cache(window or len(qkv), G, D, np.nan, dtype) for qkv in cases]
        for qkv, cache, (before, _) in zip(cases, caches, lengths, strict=True):
            attention(qkv[:before], H, G, None, window, sinks, cache=cache, dtype=dtype)
        layers = [_kernels.LayerCache(*cache, dtype, D) for cache in caches]
        slices = [(c, int(row), before, new) for c, row, (before, new) in zip(layers, rows, lengths, strict=False)]
        batch = np.concatenate([qkv[before:] for qkv, (before, _) in zip(cases, lengths, strict=True)])
        out = np.full((len(batch), H * D), np.float32(7))
        _kernels.attention(
            context(threads=threads),
            tensor_of(out),
            tensor(batch),
            slices,
            H,
            scale=D**-0.5,
            window=window,
            sinks=tensor(sinks),
        )
        assert_same_bits(out, expected, f"{threads} threads")


@pytest.mark.parametrize("size", [30.0, 1e-3])
def test_steep_and_flat_scores(level, size):
    """Scores beyond what e^x can represent, and all but equal ones."""
    qkv, sinks = sequence(4, 2, 64, 70, size)
    for s in (None, sinks):
        assert_close(attention(qkv, 4, 2, sinks=s), *exact(qkv, 4, 2, 0, s), f"sinks {s is not None}")
        out = attention(qkv, 4, 2, sinks=s, scale=0.0)
        assert_close(out, *exact(qkv, 4, 2, 0, s, scale=0.0), f"scale 0, sinks {s is not None}")


def test_sinks_at_their_limits(level):
    """A sink of -infinity is no sink, a huge one leaves nothing, NaN is not hidden; each for its own head."""
    H, G, D, T, window = 4, 2, 20, 75, 30  # the window begins in the middle of a share of rows
    qkv, _ = sequence(H, G, D, T)
    without = attention(qkv, H, G, window=window).reshape(T, H, D)
    out = attention(qkv, H, G, window=window, sinks=np.float32([-np.inf, 200, np.nan, -1e4])).reshape(T, H, D)
    assert_same_bits(out[:, 0], without[:, 0], "a sink of -infinity")
    assert (np.abs(out[:, 1]) < 1e-30).all()
    assert np.isnan(out[:, 2]).all()
    assert_same_bits(out[:, 3], without[:, 3], "a sink of -1e4")


@pytest.mark.parametrize("window", [0, 33])
@pytest.mark.parametrize("special", [np.nan, np.inf])
@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_special_values_reach_those_who_see_them(level, part, special, window):
    """NaN and infinity in a query spoil its own output; in a key or value the outputs of the positions that see it,
    and no other bit, whatever shares a block, a chunk or a call with it."""
    H, G, D, T, at = 4, 2, 20, 120, 40
    qkv, sinks = sequence(H, G, D, T)
    clean = attention(qkv, H, G, window=window, sinks=sinks).reshape(T, H, D)
    bad = qkv.copy()
    column = {"query": 2, "key": H + 1, "value": H + G + 1}[part] * D + 3
    bad[at, column] = special
    seen = np.zeros((T, H, D), bool)
    if part == "query":
        seen[at, 2] = True
    elif part == "key":
        seen[at : at + window if window else T, 2:] = True
    else:
        seen[at : at + window if window else T, 2:, 3] = True
    for chunks in ((T,), (35, 50, 35), (1,) * T):
        out = attention(bad, H, G, chunks, window, sinks, positions=window or T).reshape(T, H, D)
        if special is np.nan or part == "value":
            assert not np.isfinite(out[seen]).any(), f"chunks {chunks[:3]}"
        assert_same_bits(out[~seen], clean[~seen], f"what cannot see it, chunks {chunks[:3]}")
