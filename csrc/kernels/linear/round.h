/* Groups of floats rounded to integers times a scale: q * scale, scale = the group's largest magnitude / max. A group
   whose largest magnitude is below 2^-100 becomes zero. A group that is not finite gets q = 0 and scale NaN. */
#pragma once

#include "simd/vec.h"
#include "cgpt.h"

/* The largest magnitude of n floats, where n is a multiple of 16; NaN if one of them is not finite. */
CG_INLINE float group_max(const int n, const float *x) {
    vf max = vf_set(0.f), finite = vf_set(0.f); /* finite: 0, or NaN */
    for (int i = 0; i < n; i += CG_LANES) {
        vf v = vf_load(x + i);
        finite += v - v;
        max = vf_max(max, (vf)((vi)v & 0x7fffffff));
    }
    return vf_max_lane(max) + vf_sum(finite);
}

/* Group x[k .. k+n-1] of a row of K floats of any float dtype, which need not be aligned, with zeros behind its end.
   Returns group_max. */
CG_INLINE float group_load(const int n, float *group, cg_dtype dtype, const void *x, int64_t k, int64_t K) {
    int64_t count = cg_min(K - k, n), i = 0;
    if (count < n) memset(group, 0, (size_t)n * sizeof *group);
    for (; i + CG_LANES <= count; i += CG_LANES) vf_store(group + i, vf_load_as(dtype, x, k + i));
    if (i < count) vf_store_n(group + i, vf_load_as_n(dtype, x, k + i, count - i), count - i);
    return group_max(n, group);
}

/* q[n] = x * factor, rounded to nearest, where |q| < 2^22; zeros where the factor is 0, whatever x is. */
CG_INLINE void group_multiply(const int n, int32_t *q, const float *x, float factor) {
    vf round = vf_set(12582912.f); /* 1.5 * 2^23 */
    for (int i = 0; i < n; i += CG_LANES) {
        vi v = (vi)(vf_load(x + i) * factor + round) - (vi)round;
        if (factor == 0.f) v ^= v;
        memcpy(q + i, &v, sizeof v);
    }
}

/* q[n] of a group of n floats, |q| <= max. Returns the scale. */
CG_INLINE float group_round(const int n, const float max, int32_t *q, const float *x) {
    float largest = group_max(n, x);
    int zero = !(largest >= 0x1p-100f);
    group_multiply(n, q, x, zero ? 0.f : max / largest);
    return zero ? largest - largest : largest / max; /* 0, or NaN */
}

/* The same as int16. */
CG_INLINE float group_round_a16(const int n, int16_t *q, const float *x) {
    int32_t wide[CG_INT8_GROUP];
    float scale = group_round(n, 32767.f, wide, x);
    for (int i = 0; i < n; i++) q[i] = (int16_t)wide[i];
    return scale;
}
