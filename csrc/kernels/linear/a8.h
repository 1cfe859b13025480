/* Activations as 8-bit integers with one scale for each group of weights, for vpdpbusd, which multiplies four of them
   by four weights in a lane. A lane is a token. The sums of a group are exact integers, so the error is that of
   rounding x, 1/254 of the largest magnitude in its group. vpdpbusd takes one side unsigned: the weights get an offset,
   and the sums of a group begin with what the offset adds to them, negated. */
#pragma once

#include "kernels/linear/round.h"
#include "kernels/linear/int8.h"

enum {
    A8_INT8 = 128,                     /* the offset of INT8 weights */
    A8_INT8_STEPS = CG_INT8_GROUP / 4, /* k-steps, of four values, in a group */
};

/* sum + four products of unsigned w and signed x in each lane. */
CG_INLINE vi a8_dot(vi sum, vi w, vi x) { return (vi)CG_MM(dpbusd_epi32)((vmi)sum, (vmi)w, (vmi)x); }

/* Packed tokens: [T / CG_LANES][k-steps][CG_LANES] times four bytes, then heads, [T / CG_LANES][groups]. */
typedef struct {
    int32_t begin[CG_LANES]; /* the sum of -offset * q */
    float scale[CG_LANES];
} a8_head;

CG_INLINE int64_t a8_steps(const int group, int64_t K) { return cg_round_up(K, 4 * group) / 4; }

CG_INLINE int64_t a8_packed_bytes(const int group, int64_t T, int64_t K) {
    int64_t steps = a8_steps(group, K);
    return cg_round_up(T, CG_LANES) * steps * 4 +
           (T + CG_LANES - 1) / CG_LANES * (steps / group) * (int64_t)sizeof(a8_head);
}

CG_INLINE const a8_head *a8_heads(const int group, const void *packed, int64_t T, int64_t K) {
    return (const a8_head *)((const char *)packed + cg_round_up(T, CG_LANES) * a8_steps(group, K) * 4);
}

/* Packs a group of one token. For MXFP4 the values are in the order of its codes: even ones first, then odd ones. */
CG_INLINE void a8_pack_group(const int group, const int offset, uint32_t *to, a8_head *head, int64_t t,
                             const float *x) {
    int32_t q[CG_INT8_GROUP], sum = 0;
    int8_t narrow[CG_INT8_GROUP];
    uint32_t steps[A8_INT8_STEPS];
    head->scale[t] = group_round(4 * group, 127.f, q, x);
    for (int i = 0; i < 4 * group; i++) sum += q[i];
    head->begin[t] = -offset * sum;
    for (int i = 0; i < 4 * group; i++) {
        int from = offset == A8_INT8 ? i : i < 2 * group ? 2 * i : 2 * i - 4 * group + 1;
        narrow[i] = (int8_t)q[from];
    }
    memcpy(steps, narrow, (size_t)group * 4);
    for (int s = 0; s < group; s++) to[s * CG_LANES + t] = steps[s];
}

CG_INLINE void a8_pack(const int group, const int offset, void *packed, const cg_rows *x, int64_t T, int64_t K,
                       int64_t t0, int64_t t1) {
    int64_t steps = a8_steps(group, K), groups = steps / group;
    a8_head *heads = (a8_head *)a8_heads(group, packed, T, K);
    for (int64_t t = t0; t < cg_round_up(t1, CG_LANES); t++)
        for (int64_t g = 0; g < groups; g++) {
            const float *from = t < T ? cg_row_of(x, t) + g * group * 4 : NULL;
            float some[CG_INT8_GROUP] = {0};
            int64_t left = K - g * group * 4;
            if (from && left < 4 * group) memcpy(some, from, (size_t)left * 4);
            if (!from || left < 4 * group) from = some;
            a8_pack_group(group, offset, (uint32_t *)packed + (t / CG_LANES * steps + g * group) * CG_LANES,
                          heads + t / CG_LANES * groups + g, t % CG_LANES, from);
        }
}
