/* linear_mxfp4: as linear_dense.c, with w [N, K/32, 16] nibbles and scales [N, K/32].
   A few rows are dequantised to f32 on the stack (exact: a weight has two significant bits), then multiplied as f32
   rows are; with one token and with many, in the same order. */
#include "dot.h"

static void CG_NAME(panel_mxfp4)(const cg_product *p, int64_t n0, int64_t n1) {
    float rows[DOT_ROWS * CG_MXFP4_MAX_K];
    int64_t groups = p->K / CG_MXFP4_GROUP, w_bytes = p->K * 4;
    for (int64_t n = n0; n < n1; n += DOT_ROWS) {
        int64_t count = cg_min(DOT_ROWS, n1 - n);
        CG_NAME(mxfp4_dequantize)(rows, p->w + n * groups * CG_MXFP4_GROUP_BYTES, p->scales + n * groups,
                                  count * groups);
        if (count == DOT_ROWS) dot_rows(DOT_ROWS, CG_F32, p, (const char *)rows, w_bytes, n, 0, p->T);
        else
            for (int64_t r = 0; r < count; r++)
                dot_rows(1, CG_F32, p, (const char *)rows + r * w_bytes, w_bytes, n + r, 0, p->T);
    }
}

static cg_linear CG_NAME(linear_mxfp4) = {NULL, NULL, CG_NAME(panel_mxfp4)};
