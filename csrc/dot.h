/* The product of a few weight rows with a few tokens, both row-major along K: every output is one dot product whose
   partial sums, one per lane, run over k in steps of a vector, so its bits do not depend on its neighbours.

   Blocks of 8 rows x 3 tokens fill AVX-512's 32 registers (4 x 3 those of AVX2). Rows are cut along K so that they stay
   in the first-level cache while tokens stream from the second: the partial sums of a cut wait in memory, unrounded. */
#ifndef CG_DOT_H
#define CG_DOT_H

#include "vec.h"
#include "cgpt.h"

enum {
    DOT_ROWS = CG_LANES == 16 ? 8 : 4,
    DOT_TOKENS = 3,
    DOT_SPAN_BYTES = 3072,          /* of a row at a time: 8 of them are 24 KB */
    DOT_MOST_TOKENS = 96,
    DOT_TOKEN_BYTES = 524288,       /* activations that share the second-level cache with a panel's rows */
};

/* What is multiplied: weights of a dtype with f32 activations, or pairs of bf16 with bf16 activations. */
typedef enum { DOT_F32 = CG_F32, DOT_F16 = CG_F16, DOT_BF16 = CG_BF16, DOT_PAIRS } dot_kind;

CG_INLINE int64_t dot_step(const dot_kind kind) { return kind == DOT_PAIRS ? 2 * CG_LANES : CG_LANES; }
CG_INLINE int64_t dot_w_bytes(const dot_kind kind) { return kind == DOT_F32 ? 4 : 2; }
CG_INLINE int64_t dot_x_bytes(const dot_kind kind) { return kind == DOT_PAIRS ? 2 : 4; }

CG_INLINE vf dot_load_w(const dot_kind kind, const char *w, int64_t k) {
    return kind == DOT_PAIRS ? vf_load((const float *)(w + 2 * k)) : vf_load_as((cg_dtype)kind, w, k);
}

/* The last n < dot_step weights of a row; lanes beyond them are 0. */
CG_INLINE vf dot_load_w_n(const dot_kind kind, const char *w, int64_t k, int64_t n) {
    if (kind != DOT_PAIRS) return vf_load_as_n((cg_dtype)kind, w, k, n);
    uint16_t tail[2 * CG_LANES] = {0};
    memcpy(tail, w + 2 * k, (size_t)n * 2);
    return vf_load((const float *)tail);
}

CG_INLINE vf dot_multiply(const dot_kind kind, vf w, vf x, vf sum) {
#ifdef CG_HAS_AVX512BF16
    if (kind == DOT_PAIRS) return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)x);
#endif
    (void)kind;
    return vf_fma(w, x, sum);
}

/* sum[r][m] += rows w, w + w_bytes, .. times tokens x[m], over k0 <= k < k1. R, M and kind are constants. */
CG_INLINE void dot_block(const int R, const int M, const dot_kind kind, const char *w, int64_t w_bytes,
                         const char *const *x, int64_t k0, int64_t k1, vf (*sum)[DOT_TOKENS]) {
    int64_t step = dot_step(kind), x_bytes = dot_x_bytes(kind), whole = k0 + (k1 - k0) / step * step;
    for (int64_t k = k0; k < whole; k += step) {
        vf xk[DOT_TOKENS];
        for (int m = 0; m < M; m++) xk[m] = vf_load((const float *)(x[m] + k * x_bytes));
        for (int r = 0; r < R; r++) {
            vf wk = dot_load_w(kind, w + r * w_bytes, k);
            if (M > 1) VF_KEEP(wk);
            for (int m = 0; m < M; m++) sum[r][m] = dot_multiply(kind, wk, xk[m], sum[r][m]);
        }
    }
    if (whole < k1) {
        for (int m = 0; m < M; m++) {
            /* packed bf16 activations are padded with zeros, float rows are not */
            vf xk = kind == DOT_PAIRS ? vf_load((const float *)(x[m] + whole * 2))
                                      : vf_load_n((const float *)x[m] + whole, k1 - whole);
            for (int r = 0; r < R; r++)
                sum[r][m] = dot_multiply(kind, dot_load_w_n(kind, w + r * w_bytes, whole, k1 - whole), xk, sum[r][m]);
        }
    }
}

/* What linear does with finished dot products: outputs n .. n+R-1 of token t get the bias, are added or stored. */
CG_INLINE void dot_finish(const int R, const cg_product *p, int64_t t, int64_t n, const vf *sums) {
    float out[DOT_ROWS], *y = p->y + t * p->y_stride + n;
    for (int r = 0; r + 4 <= R; r += 4) vf_sum4(out + r, sums[r], sums[r + 1], sums[r + 2], sums[r + 3]);
    for (int r = R / 4 * 4; r < R; r++) out[r] = vf_sum(sums[r]);
    if (p->bias)
        for (int r = 0; r < R; r++) out[r] += p->bias[n + r];
    if (p->add)
        for (int r = 0; r < R; r++) out[r] += y[r];
    for (int r = 0; r < R; r++) y[r] = out[r];
}

typedef struct {
    const cg_product *p;
    const char *w;
    int64_t w_bytes, n, k0, k1;
    vf (*state)[DOT_ROWS];
} dot_job;

/* Tokens t .. t+M-1 over one cut k0 .. k1 of the rows; `at` is where the block's state is kept between cuts. */
CG_INLINE void dot_tokens(const int R, const int M, const dot_kind kind, const dot_job *j, int64_t t, int64_t at) {
    const cg_product *p = j->p;
    const char *x[DOT_TOKENS];
    vf sum[DOT_ROWS][DOT_TOKENS];
    for (int m = 0; m < M; m++) {
        x[m] = (const char *)p->x + (p->rows ? p->rows[t + m] : t + m) * p->x_stride * dot_x_bytes(kind);
        for (int r = 0; r < R; r++) sum[r][m] = j->k0 ? j->state[at + m][r] : vf_set(0.f);
    }
    dot_block(R, M, kind, j->w, j->w_bytes, x, j->k0, j->k1, sum);
    for (int m = 0; m < M; m++) {
        vf column[DOT_ROWS];
        for (int r = 0; r < R; r++) column[r] = sum[r][m];
        if (j->k1 == p->K) dot_finish(R, p, t + m, j->n, column);
        else
            for (int r = 0; r < R; r++) j->state[at + m][r] = column[r];
    }
}

/* Memory that will be wanted soon, and how much of it one call fetches. Addresses beyond the weights do no harm: a
   prefetch never faults. */
typedef struct {
    const char *at;
    int64_t bytes, share;
} dot_fetch;

CG_INLINE void dot_fetch_some(dot_fetch *f) {
    int64_t n = cg_min(f->share, f->bytes);
    for (int64_t b = 0; b < n; b += 64) __builtin_prefetch((const void *)((uintptr_t)f->at + (uintptr_t)b), 0, 2);
    f->at = (const char *)((uintptr_t)f->at + (uintptr_t)n);
    f->bytes -= n;
}

/* R rows w for the tokens t0 <= t < t1, at most DOT_MOST_TOKENS. Meanwhile fetches `next`, the weights after these. */
CG_INLINE void dot_rows(const int R, const dot_kind kind, const cg_product *p, const char *w, int64_t w_bytes,
                        int64_t n, int64_t t0, int64_t t1, dot_fetch next) {
    vf state[DOT_MOST_TOKENS][DOT_ROWS];
    int64_t groups = (t1 - t0) / DOT_TOKENS, span = groups > 1 ? DOT_SPAN_BYTES / dot_w_bytes(kind) : p->K;
    dot_job j = {p, w, w_bytes, n, 0, 0, state};
    if (groups) next.share = cg_round_up(next.bytes / (groups * cg_max(1, p->K / span)) + 1, 64);
    for (; j.k0 < p->K; j.k0 = j.k1) {
        j.k1 = p->K - j.k0 < span * 3 / 2 ? p->K : j.k0 + span;
        int64_t t = t0;
        for (; t + DOT_TOKENS <= t1; t += DOT_TOKENS) {
            dot_fetch_some(&next);
            dot_tokens(R, DOT_TOKENS, kind, &j, t, t - t0);
        }
        if (t1 - t == 2) dot_tokens(R, 2, kind, &j, t, t - t0);
        if (t1 - t == 1) dot_tokens(R, 1, kind, &j, t, t - t0);
    }
}

/* `count` <= DOT_ROWS rows that begin at w: together, or one by one at the end of a matrix. */
CG_INLINE void dot_some_rows(const dot_kind kind, const cg_product *p, const char *w, int64_t w_bytes, int64_t n,
                             int64_t count, int64_t t0, int64_t t1, dot_fetch next) {
    if (count == DOT_ROWS) dot_rows(DOT_ROWS, kind, p, w, w_bytes, n, t0, t1, next);
    else
        for (int64_t r = 0; r < count; r++)
            dot_rows(1, kind, p, w + r * w_bytes, w_bytes, n + r, t0, t1, (dot_fetch){NULL, 0, 0});
}

/* Tokens of a block: their activations stay in the second-level cache while a panel's rows pass over them. */
CG_INLINE int64_t dot_token_block(const dot_kind kind, int64_t K) {
    int64_t fit = DOT_TOKEN_BYTES / (K * dot_x_bytes(kind)) / DOT_TOKENS * DOT_TOKENS;
    return cg_max(8 * DOT_TOKENS, cg_min(fit, DOT_MOST_TOKENS));
}

/* Outputs n0 .. n1-1 of a matrix of stored rows, for all tokens. */
CG_INLINE void dot_panel(const dot_kind kind, const cg_product *p, int64_t n0, int64_t n1) {
    int64_t w_bytes = p->K * dot_w_bytes(kind), block = dot_token_block(kind, p->K);
    for (int64_t t0 = 0; t0 < p->T; t0 += block)
        for (int64_t n = n0; n < n1; n += DOT_ROWS) {
            const char *w = (const char *)p->w + n * w_bytes;
            dot_fetch next = {w + DOT_ROWS * w_bytes, DOT_ROWS * w_bytes, 0};
            dot_some_rows(kind, p, w, w_bytes, n, cg_min(DOT_ROWS, n1 - n), t0, cg_min(t0 + block, p->T), next);
        }
}

#endif
