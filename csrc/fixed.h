/* Activations as 16-bit fixed point: each group is q * step, step = its largest / 32767. A group below 2^-100 counts as
   zero; one that is not finite has q = 0 and a step of NaN. */
#ifndef CG_FIXED_H
#define CG_FIXED_H

#include "vec.h"
#include "cgpt.h"

/* The largest magnitude of n floats, a multiple of 16; NaN if any is not finite. */
CG_INLINE float fixed_largest(const int n, const float *x) {
    vf most = vf_set(0.f), left = vf_set(0.f);  /* left: 0, or NaN */
    for (int i = 0; i < n; i += CG_LANES) {
        vf v = vf_load(x + i);
        left += v - v;
        most = vf_max(most, (vf)((vi)v & 0x7fffffff));
    }
    return vf_max_lane(most) + vf_sum(left);
}

/* q[n] = x * scale, to nearest, |q| < 2^22; zeros where the scale is 0, whatever x. */
CG_INLINE void fixed_scale(const int n, int32_t *q, const float *x, float scale) {
    vf round = vf_set(12582912.f);  /* 1.5 * 2^23 */
    for (int i = 0; i < n; i += CG_LANES) {
        vi v = (vi)(vf_load(x + i) * scale + round) - (vi)round;
        if (scale == 0.f) v ^= v;
        memcpy(q + i, &v, sizeof v);
    }
}

/* q[n] of a group of n floats; returns its step. */
CG_INLINE float fixed_round(const int n, int32_t *q, const float *x) {
    float largest = fixed_largest(n, x);
    int zero = !(largest >= 0x1p-100f);
    fixed_scale(n, q, x, zero ? 0.f : 32767.f / largest);
    return zero ? largest - largest : largest / 32767.f;  /* 0, or NaN */
}

/* For MXFP4, groups of 32: a packed row is, for every 64 values (two groups), 64 int16 in the order [even, odd
   elements][first, last 8][group][8], then 8 floats: each group's step / 512 four times. 512 is what
   linear_mxfp4_fixed multiplies E2M1 values by. */
enum { FIXED_BLOCK = 64, FIXED_BLOCK_BYTES = 64 * 2 + 8 * 4 };

CG_INLINE int64_t fixed_row_bytes(int64_t K) { return (K + FIXED_BLOCK - 1) / FIXED_BLOCK * FIXED_BLOCK_BYTES; }

/* Group `lane` (0, 1) of a block, from 32 floats. */
CG_INLINE void fixed_group(int16_t *block, int lane, const float *x) {
    int32_t q[CG_MXFP4_GROUP];
    float step[4], one = fixed_round(CG_MXFP4_GROUP, q, x) / 512.f;
    for (int i = 0; i < CG_MXFP4_GROUP; i++) block[i % 2 * 32 + i / 16 * 16 + lane * 8 + i / 2 % 8] = (int16_t)q[i];
    for (int i = 0; i < 4; i++) step[i] = one;
    memcpy((char *)block + FIXED_BLOCK * 2 + lane * 16, step, 16);
}

CG_INLINE void fixed_row(char *out, const float *x, int64_t K) {
    static const float zeros[CG_MXFP4_GROUP];
    for (int64_t k = 0; k < K; k += FIXED_BLOCK, out += FIXED_BLOCK_BYTES)
        for (int lane = 0; lane < 2; lane++)
            fixed_group((int16_t *)out, lane, k + 32 * lane < K ? x + k + 32 * lane : zeros);
}

#endif
