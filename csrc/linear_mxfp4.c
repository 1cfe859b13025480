/* linear_mxfp4: as linear_dense.c, with w [N, K/32, 16] nibbles and scales [N, K/32].
   A few rows are dequantised to f32 on the stack (exact: a weight has two significant bits), then multiplied as f32
   rows are; with one token and with many, in the same order. */
#include "dot.h"

static void CG_NAME(panel_mxfp4)(const cg_product *p, int64_t n0, int64_t n1) {
    float rows[DOT_ROWS * CG_MXFP4_MAX_K];
    int64_t groups = p->K / CG_MXFP4_GROUP, w_bytes = p->K * 4, block = dot_token_block(DOT_F32, p->K);
    for (int64_t n = n0; n < n1; n += DOT_ROWS) {
        int64_t count = cg_min(DOT_ROWS, n1 - n);
        CG_NAME(mxfp4_dequantize)(rows, p->w + n * groups * CG_MXFP4_GROUP_BYTES, p->scales + n * groups,
                                  count * groups);
        for (int64_t t0 = 0; t0 < p->T; t0 += block) {
            int64_t t1 = cg_min(t0 + block, p->T);
            dot_some_rows(DOT_F32, p, (const char *)rows, w_bytes, n, count, t0, t1, (dot_fetch){NULL, 0, 0});
        }
    }
}

static cg_linear CG_NAME(linear_mxfp4) = {NULL, NULL, CG_NAME(panel_mxfp4)};
