/* linear_f32, linear_f16, linear_bf16: y[t][n] = sum over k of x[t][k] w[n][k] + bias[n] (+ y[t][n])
   x [T, K] f32 rows, w [N, K] row-major as stored, y [T, N]. The weights' exact values, f32 products and sums; each
   output's order of summation is its own (dot.h), so the bits are the same in any batch. Parallel over n. */
#include "dot.h"

CG_INLINE void dense_panel(const cg_dtype dtype, const cg_product *p, int64_t n0, int64_t n1) {
    int64_t w_bytes = cg_row_bytes(dtype, p->K), block = cg_token_block(p->K, 4);
    for (int64_t t0 = 0; t0 < p->T; t0 += block) {
        int64_t t1 = cg_min(t0 + block, p->T), n = n0;
        for (; n + DOT_ROWS <= n1; n += DOT_ROWS)
            dot_rows(DOT_ROWS, dtype, p, (const char *)p->w + n * w_bytes, w_bytes, n, t0, t1);
        for (; n < n1; n++) dot_rows(1, dtype, p, (const char *)p->w + n * w_bytes, w_bytes, n, t0, t1);
    }
}

static void CG_NAME(panel_f32)(const cg_product *p, int64_t n0, int64_t n1) { dense_panel(CG_F32, p, n0, n1); }
static void CG_NAME(panel_f16)(const cg_product *p, int64_t n0, int64_t n1) { dense_panel(CG_F16, p, n0, n1); }
static void CG_NAME(panel_bf16)(const cg_product *p, int64_t n0, int64_t n1) { dense_panel(CG_BF16, p, n0, n1); }

static cg_linear CG_NAME(linear_f32) = {NULL, NULL, CG_NAME(panel_f32)};
static cg_linear CG_NAME(linear_f16) = {NULL, NULL, CG_NAME(panel_f16)};
static cg_linear CG_NAME(linear_bf16) = {NULL, NULL, CG_NAME(panel_bf16)};
