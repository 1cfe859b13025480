/* linear_f32, linear_f16, linear_bf16: y[t][n] = sum over k of x[t][k] w[n][k] + bias[n] (+ y[t][n])
   x [T, K] f32 rows, w [N, K] row-major as stored, y [T, N]. The weights' exact values, f32 products and sums; each
   output's order of summation is its own (dot.h), so the bits are the same in any batch. Parallel over n. */
#include "dot.h"

static void CG_NAME(panel_f32)(const cg_product *p, int64_t n0, int64_t n1) { dot_panel(DOT_F32, p, n0, n1); }
static void CG_NAME(panel_f16)(const cg_product *p, int64_t n0, int64_t n1) { dot_panel(DOT_F16, p, n0, n1); }
static void CG_NAME(panel_bf16)(const cg_product *p, int64_t n0, int64_t n1) { dot_panel(DOT_BF16, p, n0, n1); }

static cg_linear CG_NAME(linear_f32) = {NULL, NULL, CG_NAME(panel_f32)};
static cg_linear CG_NAME(linear_f16) = {NULL, NULL, CG_NAME(panel_f16)};
static cg_linear CG_NAME(linear_bf16) = {NULL, NULL, CG_NAME(panel_bf16)};
