/* Activations as 16-bit fixed point: each group is q * step, step = its largest / 32767. A group below 2^-100 counts as
   zero; one that is not finite has q = 0 and a step of NaN. */
#ifndef CG_FIXED_H
#define CG_FIXED_H

#include "simd/vec.h"
#include "cgpt.h"

/* The largest magnitude of n floats, a multiple of 16; NaN if any is not finite. */
CG_INLINE float fixed_largest(const int n, const float *x) {
    vf most = vf_set(0.f), left = vf_set(0.f); /* left: 0, or NaN */
    for (int i = 0; i < n; i += CG_LANES) {
        vf v = vf_load(x + i);
        left += v - v;
        most = vf_max(most, (vf)((vi)v & 0x7fffffff));
    }
    return vf_max_lane(most) + vf_sum(left);
}

/* q[n] = x * scale, to nearest, |q| < 2^22; zeros where the scale is 0, whatever x. */
CG_INLINE void fixed_scale(const int n, int32_t *q, const float *x, float scale) {
    vf round = vf_set(12582912.f); /* 1.5 * 2^23 */
    for (int i = 0; i < n; i += CG_LANES) {
        vi v = (vi)(vf_load(x + i) * scale + round) - (vi)round;
        if (scale == 0.f) v ^= v;
        memcpy(q + i, &v, sizeof v);
    }
}

/* q[n] of a group of n floats, |q| <= most; returns its step. */
CG_INLINE float fixed_round_to(const int n, const float most, int32_t *q, const float *x) {
    float largest = fixed_largest(n, x);
    int zero = !(largest >= 0x1p-100f);
    fixed_scale(n, q, x, zero ? 0.f : most / largest);
    return zero ? largest - largest : largest / most; /* 0, or NaN */
}

CG_INLINE float fixed_round(const int n, int32_t *q, const float *x) { return fixed_round_to(n, 32767.f, q, x); }

#endif
