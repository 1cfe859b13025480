/* linear_mxfp4_a16: as mxfp4.c, with activations rounded to 16 bits in groups of 32 (round.h). The products with E2M1
   values and their sums within a group are exact integers, so the error is that of rounding x, 2^-16 of the largest
   magnitude in its group. Parallel over n. */
#include "kernels/linear/dot.h"
#include "kernels/linear/round.h"

/* A packed row: [groups][32] int16, then [groups] scales, halved because the lookup gives twice the weights. */
CG_INLINE int64_t a16_row_bytes(int64_t K) { return cg_round_up(K * 2 + K / CG_MXFP4_GROUP * 4, 64); }

static int64_t CG_NAME(a16_packed_bytes)(int64_t T, int64_t K) { return T * a16_row_bytes(K); }

static void CG_NAME(a16_pack)(void *packed, const cg_rows *x, CG_UNUSED int64_t T, int64_t K, int64_t t0, int64_t t1) {
    for (int64_t t = t0; t < t1; t++) {
        int16_t *to = (int16_t *)((char *)packed + t * a16_row_bytes(K));
        float *scales = (float *)(to + K);
        for (int64_t k = 0; k < K; k += CG_MXFP4_GROUP)
            scales[k / CG_MXFP4_GROUP] = group_round_a16(CG_MXFP4_GROUP, to + k, cg_row_of(x, t) + k) * .5f;
    }
}

enum {
    A16_REF_TOKENS = 16
}; /* for which a row is decoded once; the exact kernel multiplies 64 tokens in 0.8 of the time */

/* Row n for M tokens. Lane g % CG_LANES of a sum belongs to group g. */
static void CG_NAME(a16_tokens)(int64_t M, const cg_product *p, int64_t n, int64_t t) {
    static const int16_t doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    int64_t groups = p->K / CG_MXFP4_GROUP;
    const uint8_t *codes = p->w + n * groups * CG_MXFP4_GROUP_BYTES, *scales = p->scales + n * groups;
    vf sum[A16_REF_TOKENS];
    for (int64_t m = 0; m < M; m++) sum[m] = vf_set(0.f);
    for (int64_t g0 = 0; g0 < groups; g0 += CG_LANES) {
        int64_t lanes = cg_min(CG_LANES, groups - g0);
        int16_t w[CG_LANES][CG_MXFP4_GROUP];
        float scale[CG_LANES];
        for (int64_t l = 0; l < lanes; l++, codes += CG_MXFP4_GROUP_BYTES) {
            scale[l] = cg_e8m0_to_f32(scales[g0 + l]);
            for (int i = 0; i < CG_MXFP4_GROUP_BYTES; i++) {
                w[l][2 * i] = doubled[codes[i] & 15];
                w[l][2 * i + 1] = doubled[codes[i] >> 4];
            }
        }
        for (int64_t m = 0; m < M; m++) {
            const int16_t *row = (const int16_t *)((const char *)p->x + (t + m) * a16_row_bytes(p->K));
            const int16_t *q = row + g0 * CG_MXFP4_GROUP;
            const float *x_scales = (const float *)(row + p->K) + g0;
            float part[CG_LANES] = {0.f};
            for (int64_t l = 0; l < lanes; l++, q += CG_MXFP4_GROUP) {
                int32_t dot = 0;
                for (int i = 0; i < CG_MXFP4_GROUP; i++) dot += w[l][i] * q[i];
                part[l] = (float)dot * (scale[l] * x_scales[l]);
            }
            sum[m] += vf_load(part);
        }
    }
    for (int64_t m = 0; m < M; m++) dot_finish(1, 1, p, t + m, n, 1, &sum[m], 1);
}

static void CG_NAME(a16_panel)(const cg_product *p, int64_t n0, int64_t n1) {
    for (int64_t t = 0; t < p->T; t += A16_REF_TOKENS)
        for (int64_t n = n0; n < n1; n++) CG_NAME(a16_tokens)(cg_min(A16_REF_TOKENS, p->T - t), p, n, t);
}

static cg_linear CG_NAME(linear_mxfp4_a16) = {CG_NAME(a16_packed_bytes), CG_NAME(a16_pack), CG_NAME(a16_panel),
                                              .max_tokens = A16_REF_TOKENS};
