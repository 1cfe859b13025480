/* linear_mxfp4_fixed: as linear_mxfp4.c for a few tokens, with activations as 16-bit fixed point (fixed.h). The products
   with E2M1 values and their sums within a group are exact integers, so the error is that of rounding x: 2^-16 of its
   group's largest. Parallel over n. */
#include "dot.h"
#include "fixed.h"

static int64_t CG_NAME(fixed_packed_bytes)(int64_t T, int64_t K) { return cg_round_up(T * fixed_row_bytes(K), 64); }

static void CG_NAME(fixed_pack)(void *packed, const cg_rows *x, int64_t T, int64_t K, int64_t t0, int64_t t1) {
    (void)T;
    for (int64_t t = t0; t < t1; t++) fixed_row((char *)packed + t * fixed_row_bytes(K), cg_row_of(x, t), K);
}

static void CG_NAME(fixed_panel)(const cg_product *p, int64_t n0, int64_t n1) {
    static const int16_t doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    int64_t groups = p->K / CG_MXFP4_GROUP;
    for (int64_t n = n0; n < n1; n++)
        for (int64_t t = 0; t < p->T; t++) {
            vf sum = vf_set(0.f);
            for (int64_t g = 0; g < groups; g++) {
                const char *block = (const char *)p->x + t * fixed_row_bytes(p->K) + g / 2 * FIXED_BLOCK_BYTES;
                const int16_t *q = (const int16_t *)block + g % 2 * 8;
                const uint8_t *w = p->w + (n * groups + g) * CG_MXFP4_GROUP_BYTES;
                float step;
                int32_t dot = 0;
                for (int i = 0; i < CG_MXFP4_GROUP_BYTES; i++) {
                    int at = i / 8 * 16 + i % 8;
                    dot += doubled[w[i] & 15] * q[at] + doubled[w[i] >> 4] * q[at + 32];
                }
                memcpy(&step, block + FIXED_BLOCK * 2 + g % 2 * 16, 4);
                sum[g % CG_LANES] += 256.f * (float)dot * (step * cg_e8m0_to_f32(p->scales[n * groups + g]));
            }
            dot_finish(1, p, t, n, &sum);
        }
}

static cg_linear CG_NAME(linear_mxfp4_fixed) = {CG_NAME(fixed_packed_bytes), CG_NAME(fixed_pack), CG_NAME(fixed_panel)};
