/* linear_f32, linear_f16, linear_bf16: y[t][n] = sum over k of x[t][k] w[n][k] + bias[n] (+ y[t][n])
   x [T, K] f32 rows, w [N, K] row-major as stored, y [T, N]. The weights have their exact values, products and sums are
   f32. Each output has its own order of summation (dot.h), so its bits are the same in any batch. Parallel over n. */
#include "kernels/linear/dot.h"

CG_INLINE void dense_decode(const cg_dtype dtype, void *out, const cg_product *p, int64_t n, int64_t k0, int64_t k1) {
    const uint8_t *row = p->w + n * cg_row_bytes(dtype, p->K);
    vf *to = out;
    int64_t k = k0;
    for (; k + CG_LANES <= k1; k += CG_LANES) *to++ = vf_load_as(dtype, row, k);
    if (k < k1) *to++ = vf_load_as_n(dtype, row, k, k1 - k);
    while ((to - (vf *)out) % DOT_GROUP) *to++ = vf_set(0.f);
}

static int64_t CG_NAME(dense_packed_bytes)(int64_t T, int64_t K) { return dot_packed_bytes(T <= DOT_FEW, T, K); }

static void CG_NAME(dense_pack)(void *packed, const cg_rows *x, int64_t T, int64_t K, int64_t t0, int64_t t1) {
    dot_pack(T <= DOT_FEW, dot_as_it_is, packed, x, K, t0, t1);
}

CG_INLINE void dense_panel(const cg_dtype dtype, dot_decode *decode, const cg_product *p, int64_t n0, int64_t n1) {
    if (p->T <= DOT_FEW) dot_few(dtype, p, n0, n1);
    else dot_many(0, decode, p, n0, n1);
}

#define DENSE(name, dtype) \
    CG_INLINE void decode_##name(void *out, const cg_product *p, int64_t n, int64_t k0, int64_t k1) { \
        dense_decode(dtype, out, p, n, k0, k1); \
    } \
    static void CG_NAME(panel_##name)(const cg_product *p, int64_t n0, int64_t n1) { \
        dense_panel(dtype, decode_##name, p, n0, n1); \
    } \
    static cg_linear CG_NAME(linear_##name) = {CG_NAME(dense_packed_bytes), CG_NAME(dense_pack), \
                                               CG_NAME(panel_##name), .work_bytes = sizeof(dot_work)};
DENSE(f32, CG_F32)
DENSE(f16, CG_F16)
DENSE(bf16, CG_BF16)
#undef DENSE
