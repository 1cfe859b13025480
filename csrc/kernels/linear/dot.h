/* Products of weight rows and token rows along K. Every output is one dot product whose partial sums, one for each
   lane, run over k in steps of a vector, so that its bits do not depend on its neighbours. Two loops compute the same
   sums:

   dot_few, for a few tokens, reads the weights once, as they are stored.
   dot_many cuts rows along K into pieces of 2 KB. The pieces of 12 tokens stay in the first-level cache while the
   decoded pieces of 64 weight rows pass over them from the second-level cache. Weights are decoded once for 96 tokens.
   The partial sums of a piece wait in memory, unrounded. Blocks of 8 rows x 3 tokens fill 32 registers, as AVX-512 has,
   4 x 3 the 16 of AVX2 (3 x 4 where each weight is converted as it is read). */
#pragma once

#include "simd/vec.h"
#include "cgpt.h"
#include "kernels/linear/bf16_packed.h"

enum {
    DOT_ROWS = CG_REGISTERS == 32 ? 8 : 4,
    DOT_TOKENS = 3,
    DOT_MAX_FEW_TOKENS = CG_LANES == 16 ? 8 : 4,
    DOT_STEP = 32, /* values of a row between two prefetches: a cache line of 16-bit weights */
    DOT_FEW = 12,  /* tokens up to which rows are best read as they are stored */
    DOT_AHEAD_BYTES = 1024,
    DOT_PIECE_BYTES = 2048,
    DOT_PIECE = DOT_PIECE_BYTES / (4 * CG_LANES), /* in vectors */
    DOT_BATCH = 12,                               /* tokens whose pieces are stored together */
    DOT_MAX_TOKENS = 96,
    DOT_PANEL = 64, /* rows that are decoded together */
    DOT_GROUP = 8,  /* vectors of which rows are made */
};

/* A lane has one activation, or a pair of bf16 in the files of isa/ whose CPUs multiply these. sum + w * x. */
#ifdef CG_HAS_AVX512BF16
enum { DOT_BYTES = 2 };
CG_INLINE vf dot_multiply(vf w, vf x, vf sum) { return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)x); }
#else
enum { DOT_BYTES = 4 };
CG_INLINE vf dot_multiply(vf w, vf x, vf sum) { return vf_fma(w, x, sum); }
#endif

/* Writes the R outputs n, n + row_stride, .. of tokens t .. t+M-1 from their lanes' sums, sums[r * width + m], with the
   bias and what they are added to. */
CG_INLINE void dot_finish(const int R, const int M, const cg_product *p, int64_t t, int64_t n, int64_t row_stride,
                          const vf *sums, const int width) {
    float out[DOT_ROWS * DOT_MAX_FEW_TOKENS];
    int i = 0;
#define SUM(i) sums[(i) % R * width + (i) / R]
    for (; i + 4 <= R * M; i += 4) vf_sum4(out + i, SUM(i), SUM(i + 1), SUM(i + 2), SUM(i + 3));
    for (; i < R * M; i++) out[i] = vf_sum(SUM(i));
#undef SUM
    for (int m = 0; m < M; m++) {
        float *to = out + m * R, *y = p->y + (t + m) * p->y_stride + n;
        if (p->bias)
            for (int r = 0; r < R; r++) to[r] += p->bias[n + r * row_stride];
        if (p->add)
            for (int r = 0; r < R; r++) to[r] += y[r * row_stride];
        for (int r = 0; r < R; r++) y[r * row_stride] = to[r];
    }
}

/* ------------------------------------------------------------------------------------------------------ packing */

enum { DOT_PIECE_VALUES = DOT_PIECE_BYTES / 4 }; /* of x */
CG_INLINE int64_t dot_pieces(int64_t K) { return (K + DOT_PIECE_VALUES - 1) / DOT_PIECE_VALUES; }

/* A few tokens are packed as rows of whole groups of vectors, many tokens in batches: [T / 12][pieces][12][2 KB]. */
CG_INLINE int64_t dot_row_bytes(int64_t K) { return cg_round_up(K * DOT_BYTES, DOT_GROUP * 4 * CG_LANES); }
CG_INLINE int64_t dot_packed_bytes(int few, int64_t T, int64_t K) {
    if (few) return cg_round_up(T * dot_row_bytes(K), 64);
    return cg_round_up(T, DOT_BATCH) * dot_pieces(K) * DOT_PIECE_BYTES;
}

/* Writes `count` values of x in the order that the kernel has for weights, with zeros up to a whole group. */
typedef void dot_order(void *out, const float *x, int64_t count);

CG_INLINE void dot_as_it_is(void *out, const float *x, int64_t count) {
    memcpy(out, x, (size_t)count * 4);
    memset((float *)out + count, 0, (size_t)(cg_round_up(count, DOT_GROUP * CG_LANES) - count) * 4);
}

CG_INLINE void dot_pack(int few, dot_order *order, void *packed, const cg_rows *x, int64_t K, int64_t t0, int64_t t1) {
    int64_t pieces = dot_pieces(K);
    for (int64_t t = t0; t < t1; t++) {
        const float *from = cg_row_of(x, t);
        if (few) order((char *)packed + t * dot_row_bytes(K), from, K);
        else
            for (int64_t s = 0; s < pieces; s++)
                order((char *)packed + ((t / DOT_BATCH * pieces + s) * DOT_BATCH + t % DOT_BATCH) * DOT_PIECE_BYTES,
                      from + s * DOT_PIECE_VALUES, cg_min(DOT_PIECE_VALUES, K - s * DOT_PIECE_VALUES));
    }
}

/* --------------------------------------------------------------------------------------------------- a few tokens */

/* Adds the products of DOT_STEP values of R stored rows, every stride_bytes, and M packed tokens. */
CG_INLINE void dot_step(const int R, const int M, const cg_dtype dtype, const char *w, int64_t stride_bytes,
                        const char *const *x, int64_t k, vf (*sum)[DOT_MAX_FEW_TOKENS]) {
#pragma GCC unroll 8
    for (int i = 0; i < DOT_STEP; i += 4 * CG_LANES / DOT_BYTES) {
        vf wk[DOT_ROWS];
        for (int r = 0; r < R; r++) {
            const char *row = w + r * stride_bytes;
            wk[r] = DOT_BYTES == 2 ? vf_load((const float *)(row + i * 2)) : vf_load_as(dtype, row, i);
            if (M > 1) VF_KEEP(wk[r]);
        }
        for (int m = 0; m < M; m++) {
            vf xk = vf_load((const float *)(x[m] + (k + i) * DOT_BYTES));
            for (int r = 0; r < R; r++) sum[r][m] = dot_multiply(wk[r], xk, sum[r][m]);
        }
    }
}

/* Adds the products of the packed weights k .. of R rows, of which block[r] holds those of row r, and M packed tokens:
   of a block, or of half a block that ends a row. */
CG_INLINE void dot_packed_step(const int R, const int M, const int64_t weights, const packed_table *t,
                               const uint8_t *const *block, const char *const *x, int64_t k,
                               vf (*sum)[DOT_MAX_FEW_TOKENS]) {
    vu pairs[DOT_ROWS][PACKED_PAIRS];
    for (int r = 0; r < R; r++) packed_pairs(pairs[r], &t[r], block[r]);
#pragma GCC unroll 16
    for (int v = 0; v < weights / CG_LANES; v++) {
        vf wv[DOT_ROWS];
        for (int r = 0; r < R; r++) {
            wv[r] = packed_vector(pairs[r], v);
            if (M > 1) VF_KEEP(wv[r]);
        }
        for (int m = 0; m < M; m++) {
            vf xv = vf_load((const float *)x[m] + k + v * CG_LANES);
            for (int r = 0; r < R; r++) sum[r][m] = vf_fma(wv[r], xv, sum[r][m]);
        }
    }
}

/* The same for whole rows of K packed weights, every stride_bytes, in the order of dot_step: the same bits. */
CG_INLINE void dot_packed(const int R, const int M, const uint8_t *w, int64_t stride_bytes, const char *const *x,
                          int64_t K, vf (*sum)[DOT_MAX_FEW_TOKENS]) {
    const uint8_t *block[DOT_ROWS];
    for (int r = 0; r < R; r++) block[r] = packed_block(w + r * stride_bytes, K, 0);
    for (int64_t k = 0; k < K;) {
        packed_table t[DOT_ROWS];
        int64_t end = cg_min(k + CG_PACKED_RUN, K);
        for (int r = 0; r < R; r++) t[r] = packed_table_of(w + r * stride_bytes, k);
        for (; k < end - PACKED_HALF; k += CG_PACKED_BLOCK) {
            for (int r = 0; r < R; r++) {
                __builtin_prefetch(block[r] + DOT_AHEAD_BYTES, 0, 3);
                __builtin_prefetch(block[r] + DOT_AHEAD_BYTES + 64, 0, 3);
            }
            if (CG_LANES == 16 && (R == 2 || R * M <= 8)) dot_packed_step(R, M, CG_PACKED_BLOCK, t, block, x, k, sum);
            else
                for (int r = 0; r < R; r++) dot_packed_step(1, M, CG_PACKED_BLOCK, t + r, block + r, x, k, sum + r);
            for (int r = 0; r < R; r++) block[r] += CG_PACKED_BLOCK_BYTES;
        }
        if (k < end) dot_packed_step(R, M, PACKED_HALF, t, block, x, k, sum), k = end;
    }
}

/* The R rows n, n + row_stride, .. for the M tokens from t on. Each pass over the same rows prefetches a part of what
   comes next. */
CG_INLINE void dot_few_tokens(const int R, const int M, const cg_dtype dtype, const cg_product *p, int64_t n,
                              int64_t row_stride, int64_t t, int64_t passes, int64_t pass) {
    int64_t w_bytes = cg_row_bytes(dtype, p->K), stride_bytes = row_stride * w_bytes, k = 0;
    int64_t size = (int64_t)cg_dtype_bytes(dtype);
    const char *w = (const char *)p->w + n * w_bytes;
    const char *fetch = w + R * pass / passes * stride_bytes + DOT_AHEAD_BYTES;
    const char *fetch_end = w + R * (pass + 1) / passes * stride_bytes + DOT_AHEAD_BYTES;
    const char *x[DOT_MAX_FEW_TOKENS];
    vf sum[DOT_ROWS][DOT_MAX_FEW_TOKENS];
    for (int m = 0; m < M; m++) {
        x[m] = (const char *)p->x + (t + m) * dot_row_bytes(p->K);
        for (int r = 0; r < R; r++) sum[r][m] = vf_set(0.f);
    }
    if (dtype == CG_BF16_PACKED) {
        dot_packed(R, M, (const uint8_t *)w, stride_bytes, x, p->K, sum);
        k = p->K;
    }
    for (; k + DOT_STEP <= p->K; k += DOT_STEP) {
        if (dtype != CG_F32) /* f32 rows keep the memory busy without, and it costs (Zen 3) */
            for (const char *at = fetch + k * size; at < fetch_end + k * size; at += stride_bytes)
                __builtin_prefetch(at, 0, 3);
        dot_step(R, M, dtype, w + k * size, stride_bytes, x, k, sum);
    }
    if (k < p->K) {
        char rest[DOT_ROWS][4 * DOT_STEP] = {0};
        for (int r = 0; r < R; r++) memcpy(rest[r], w + r * stride_bytes + k * size, (size_t)((p->K - k) * size));
        dot_step(R, M, dtype, rest[0], sizeof rest[0], x, k, sum);
    }
    dot_finish(R, M, p, t, n, row_stride, sum[0], DOT_MAX_FEW_TOKENS);
}

CG_INLINE void dot_few_rows(const int R, const int M, const cg_dtype dtype, const cg_product *p, int64_t n,
                            int64_t row_stride) {
    int64_t passes = (p->T + M - 1) / M, t = 0;
    for (; t + M <= p->T; t += M) dot_few_tokens(R, M, dtype, p, n, row_stride, t, passes, t / M);
    if (M > 4 && p->T - t >= 4) dot_few_tokens(R, 4, dtype, p, n, row_stride, t, passes, t / M), t += 4;
    if (M > 3 && p->T - t == 3) dot_few_tokens(R, 3, dtype, p, n, row_stride, t, passes, t / M);
    if (p->T - t == 2) dot_few_tokens(R, 2, dtype, p, n, row_stride, t, passes, t / M);
    if (p->T - t == 1) dot_few_tokens(R, 1, dtype, p, n, row_stride, t, passes, t / M);
}

/* The R rows of a block are far from each other: several streams give more of the memory's bandwidth than one. */
CG_INLINE void dot_few_blocks(const int R, const int M, const cg_dtype dtype, const cg_product *p, int64_t n0,
                              int64_t n1) {
    int64_t row_stride = (n1 - n0) / R, n = n0;
    for (; n < n0 + row_stride; n++) dot_few_rows(R, M, dtype, p, n, row_stride);
    for (n = n0 + R * row_stride; n < n1; n++) dot_few_rows(1, M, dtype, p, n, 0);
}

/* A weight that has to be converted is multiplied by more tokens. */
CG_INLINE void dot_few(const cg_dtype dtype, const cg_product *p, int64_t n0, int64_t n1) {
    if (DOT_BYTES == 2) dot_few_blocks(3, 8, dtype, p, n0, n1);
    else if (p->T > 1 && dtype != CG_F32 && CG_LANES < 16) dot_few_blocks(3, 4, dtype, p, n0, n1);
    else if (p->T == 1) dot_few_blocks(4, 1, dtype, p, n0, n1); /* eight streams are too many (Zen 4) */
    else dot_few_blocks(DOT_ROWS, DOT_TOKENS, dtype, p, n0, n1);
}

/* ---------------------------------------------------------------------------------------------------- many tokens */

/* Writes the weights k0 <= k < k1 of row n in the order of dot_order, with zeros up to a whole group. */
typedef void dot_decode(void *out, const cg_product *p, int64_t n, int64_t k0, int64_t k1);

typedef struct {
    vf pieces[DOT_PANEL * DOT_PIECE];
    vf state[DOT_MAX_TOKENS][DOT_PANEL];
} dot_work;

typedef struct {
    const cg_product *p;
    dot_work *work;
    int64_t t0;      /* the first token for which rows are decoded at present */
    int64_t n;       /* the first row that is decoded */
    int64_t vectors; /* of a piece */
    int first, last; /* whether the pieces are the first, the last of their rows */
} dot_job;

/* The R rows from r0 on for the M tokens from t on, whose pieces are x. grouped: first the products of 8 vectors are
   summed, then these sums, as MXFP4's kernels do. (w * 2^scale is exact, so the scale may be applied before or after.)
 */
CG_INLINE void dot_tokens(const int R, const int M, const int grouped, dot_job *j, const vf *x, int64_t r0, int64_t t) {
    vf(*state)[DOT_PANEL] = j->work->state + t - j->t0;
    const vf *w = j->work->pieces + r0 * DOT_PIECE;
    vf sum[DOT_ROWS][DOT_TOKENS];
    for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++) sum[r][m] = j->first ? vf_set(0.f) : state[m][r0 + r];
    for (int64_t v = 0; v < j->vectors; v += DOT_GROUP) {
        vf part[DOT_ROWS][DOT_TOKENS];
#pragma GCC unroll 8
        for (int i = 0; i < DOT_GROUP; i++) {
            vf xi[DOT_TOKENS];
            for (int m = 0; m < M; m++) xi[m] = x[m * DOT_PIECE + v + i];
            for (int r = 0; r < R; r++) {
                vf wi = w[r * DOT_PIECE + v + i];
                if (M > 1) VF_KEEP(wi);
                for (int m = 0; m < M; m++) {
                    if (!grouped) sum[r][m] = vf_fma(wi, xi[m], sum[r][m]);
                    else part[r][m] = i ? vf_fma(wi, xi[m], part[r][m]) : wi * xi[m];
                }
            }
        }
        if (grouped)
            for (int r = 0; r < R; r++)
                for (int m = 0; m < M; m++) sum[r][m] += part[r][m];
    }
    for (int m = 0; m < M; m++) {
        vf column[DOT_ROWS];
        for (int r = 0; r < R; r++) column[r] = sum[r][m];
        if (j->last) dot_finish(R, 1, j->p, t + m, j->n + r0, 1, column, 1);
        else
            for (int r = 0; r < R; r++) state[m][r0 + r] = column[r];
    }
}

/* The R rows from r0 on for tokens t .. t1-1. */
CG_INLINE void dot_rows(const int R, const int grouped, dot_job *j, const vf *x, int64_t r0, int64_t t, int64_t t1) {
    for (; t + DOT_TOKENS <= t1; t += DOT_TOKENS, x += DOT_TOKENS * DOT_PIECE)
        dot_tokens(R, DOT_TOKENS, grouped, j, x, r0, t);
    if (t1 - t == 2) dot_tokens(R, 2, grouped, j, x, r0, t);
    if (t1 - t == 1) dot_tokens(R, 1, grouped, j, x, r0, t);
}

/* Outputs n0 .. n1-1 of all tokens. */
CG_INLINE void dot_many(const int grouped, dot_decode *decode, const cg_product *p, int64_t n0, int64_t n1) {
    const int R = grouped ? 4 : DOT_ROWS; /* grouped sums take two registers each */
    dot_work *work = p->work;
    dot_job j = {.p = p, .work = work};
    int64_t pieces = dot_pieces(p->K);
    for (int64_t t0 = 0; t0 < p->T; t0 += DOT_MAX_TOKENS)
        for (int64_t n = n0; n < n1; n += DOT_PANEL)
            for (int64_t s = 0; s < pieces; s++) {
                int64_t rows = cg_min(DOT_PANEL, n1 - n), k0 = s * DOT_PIECE_VALUES;
                int64_t k1 = cg_min(k0 + DOT_PIECE_VALUES, p->K);
                for (int64_t r = 0; r < rows; r++) decode(work->pieces + r * DOT_PIECE, p, n + r, k0, k1);
                j.t0 = t0;
                j.n = n;
                j.vectors = cg_round_up((k1 - k0 + CG_LANES - 1) / CG_LANES, DOT_GROUP);
                j.first = s == 0;
                j.last = s == pieces - 1;
                for (int64_t t = t0; t < cg_min(t0 + DOT_MAX_TOKENS, p->T); t += DOT_BATCH) {
                    int64_t end = cg_min(t + DOT_BATCH, p->T), r = 0;
                    const vf *x = (const vf *)p->x + (t / DOT_BATCH * pieces + s) * DOT_BATCH * DOT_PIECE;
                    for (; r + R <= rows; r += R) dot_rows(R, grouped, &j, x, r, t, end);
                    for (; r < rows; r++) dot_rows(1, grouped, &j, x, r, t, end);
                }
            }
}
