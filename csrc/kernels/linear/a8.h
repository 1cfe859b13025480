/* Activations as 8-bit integers with one scale for each group of weights. The sums of a group are exact integers, so
   the error is that of rounding x, 1/254 of the largest magnitude in its group. x86's instructions that multiply four
   bytes of a lane by four of another take one side unsigned: the weights get an offset, and the sums of a group begin
   with what the offset adds to them, negated. Arm's take both signed. */
#pragma once

#include "kernels/linear/round.h"
#include "kernels/linear/int8.h"

/* a8_dot: sum + four products of w, unsigned unless A8_SIGNED, and signed x in each lane. A8_DOT: there is such one. */
#if defined(CG_HAS_DOTPROD)
#define A8_DOT 1
enum { A8_SIGNED = 1 };
CG_INLINE vi a8_dot(vi sum, vi w, vi x) { return (vi)vdotq_s32((int32x4_t)sum, (int8x16_t)w, (int8x16_t)x); }
#else
enum { A8_SIGNED = 0 };
#ifdef CG_HAS_VNNI
#define A8_DOT 1
CG_INLINE vi a8_dot(vi sum, vi w, vi x) { return (vi)CG_MM(dpbusd_epi32)((vmi)sum, (vmi)w, (vmi)x); }
#endif
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
