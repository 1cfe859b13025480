/* The product of a few weight rows with a few tokens, both row-major along K: every output is one dot product whose
   CG_LANES partial sums run over k in steps of CG_LANES, so its bits do not depend on its neighbours. */
#ifndef CG_DOT_H
#define CG_DOT_H

#include "vec.h"
#include "cgpt.h"

/* Blocks of 4 rows x 6 tokens fill AVX-512's 32 registers, 2 x 6 the 16 of AVX2 and SSE. */
enum { DOT_ROWS = CG_LANES == 16 ? 4 : 2, DOT_TOKENS = 6 };

/* What linear does with a dot product: bias, residual, store. */
CG_INLINE void cg_finish(const cg_product *p, int64_t t, int64_t n, float sum) {
    float *y = p->y + t * p->y_stride + n;
    if (p->bias) sum += p->bias[n];
    *y = p->add ? *y + sum : sum;
}

/* Rows w, w + w_bytes, ..; outputs n .. n+R-1 of tokens t .. t+M-1. R, M and dtype are constants after inlining. */
CG_INLINE void dot_block(const int R, const int M, const cg_dtype dtype, const cg_product *p, const char *w,
                         int64_t w_bytes, int64_t n, const float *const *x, int64_t t) {
    vf sum[DOT_ROWS][DOT_TOKENS];
    for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++) sum[r][m] = vf_set(0.f);
    int64_t K = p->K, whole = K / CG_LANES * CG_LANES;
    for (int64_t k = 0; k < whole; k += CG_LANES) {
        vf wk[DOT_ROWS];
        for (int r = 0; r < R; r++) wk[r] = vf_load_as(dtype, w + r * w_bytes, k);
        for (int m = 0; m < M; m++) {
            vf xk = vf_load(x[m] + k);
            for (int r = 0; r < R; r++) sum[r][m] = vf_fma(wk[r], xk, sum[r][m]);
        }
    }
    if (whole < K) {
        for (int m = 0; m < M; m++) {
            vf xk = vf_load_n(x[m] + whole, K - whole);
            for (int r = 0; r < R; r++)
                sum[r][m] = vf_fma(vf_load_as_n(dtype, w + r * w_bytes, whole, K - whole), xk, sum[r][m]);
        }
    }
    for (int m = 0; m < M; m++)
        for (int r = 0; r < R; r++) cg_finish(p, t + m, n + r, vf_sum(sum[r][m]));
}

/* R rows for all tokens t0 <= t < t1. */
CG_INLINE void dot_rows(const int R, const cg_dtype dtype, const cg_product *p, const char *w, int64_t w_bytes,
                        int64_t n, int64_t t0, int64_t t1) {
    const float *x[DOT_TOKENS];
    for (int64_t t = t0; t < t1;) {
        int m = t1 - t >= DOT_TOKENS ? DOT_TOKENS : t1 - t >= 2 ? 2 : 1;
        for (int i = 0; i < m; i++) x[i] = (const float *)p->x + (p->rows ? p->rows[t + i] : t + i) * p->x_stride;
        if (m == DOT_TOKENS) dot_block(R, DOT_TOKENS, dtype, p, w, w_bytes, n, x, t);
        else if (m == 2) dot_block(R, 2, dtype, p, w, w_bytes, n, x, t);
        else dot_block(R, 1, dtype, p, w, w_bytes, n, x, t);
        t += m;
    }
}

/* Tokens whose activations stay in the second-level cache while a panel's rows pass over them. */
CG_INLINE int64_t cg_token_block(int64_t K, int64_t bytes) {
    return cg_max(48, 393216 / (K * bytes) / 48 * 48);
}

#endif
