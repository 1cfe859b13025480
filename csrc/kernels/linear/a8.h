/* Activations as 8-bit integers with one scale for each group of weights. The sums of a group are exact integers, so
   the error is that of rounding x, 1/254 of the largest magnitude in its group. The instructions that multiply four
   bytes of a lane by four of another take one side unsigned: the weights get an offset, and the sums of a group begin
   with what the offset adds to them, negated. */
#pragma once

#include "kernels/linear/round.h"
#include "kernels/linear/int8.h"

#ifdef CG_HAS_VNNI
/* sum + four products of unsigned w and signed x in each lane. */
CG_INLINE vi a8_dot(vi sum, vi w, vi x) { return (vi)CG_MM(dpbusd_epi32)((vmi)sum, (vmi)w, (vmi)x); }
#endif

typedef struct {
    int32_t begin; /* the sum of -offset * q */
    float scale;
} a8_group;

/* q[n], a group of one token. */
CG_INLINE a8_group a8_quantize(const int n, const int offset, int8_t *q, const float *x) {
    int32_t wide[CG_INT8_GROUP], sum = 0;
    float scale = group_round(n, 127.f, wide, x);
    for (int i = 0; i < n; i++) sum += wide[i];
    for (int i = 0; i < n; i++) q[i] = (int8_t)wide[i];
    return (a8_group){-offset * sum, scale};
}
