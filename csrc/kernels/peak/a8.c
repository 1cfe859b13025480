/* peak_a8: vpdpbusd, sdot or smmla on registers. Each sum adds products one * x a round, both cut to whole numbers of 8
   bits, the first without a sign on x86 and up to 127 elsewhere. */
#include "kernels/linear/a8.h"

enum { QUAD_SUMS = CG_CHAINS };

static float CG_NAME(peak_a8_run)(float one, float x, int64_t rounds) {
    vi factor = (vi)((vu){0} + 0x01010101u * (uint8_t)one), term = (vi)((vu){0} + 0x01010101u * (uint8_t)(int8_t)x);
    volatile int32_t zero = 0; /* as in peak.c */
    vi sums[QUAD_SUMS];
    for (int i = 0; i < QUAD_SUMS; i++) sums[i] = (vi){0} + zero;
    for (int64_t r = 0; r < rounds; r++)
#pragma GCC unroll 24 /* or the sums would be in memory */
        for (int i = 0; i < QUAD_SUMS; i++) sums[i] = a8_dot(sums[i], factor, term);
    float total = 0.f;
    for (int i = 0; i < QUAD_SUMS; i++) total += vf_sum(__builtin_convertvector(sums[i], vf));
    return total;
}

static cg_peak CG_NAME(peak_a8) = {2 * QUAD_SUMS * 4 * CG_LANES, CG_NAME(peak_a8_run)};
