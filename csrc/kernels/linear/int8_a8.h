/* Tokens packed for products with INT8 weights. A lane is a token; a k-step is four values. */
#pragma once

#include "kernels/linear/a8.h"

enum {
    A8_INT8 = A8_SIGNED ? 0 : 128,     /* the offset of the weights */
    A8_INT8_STEPS = CG_INT8_GROUP / 4, /* in a group */
};

/* Packed: [T / CG_LANES][k-steps][CG_LANES] times four bytes, then heads, [T / CG_LANES][groups]. */
typedef struct {
    int32_t begin[CG_LANES];
    float scale[CG_LANES];
} a8_head;

CG_INLINE int64_t a8_steps(int64_t K) { return int8_groups(K) * A8_INT8_STEPS; }

CG_INLINE int64_t a8_packed_bytes(int64_t T, int64_t K) {
    int64_t vectors = (T + CG_LANES - 1) / CG_LANES;
    return vectors * (CG_LANES * a8_steps(K) * 4 + int8_groups(K) * (int64_t)sizeof(a8_head));
}

CG_INLINE const a8_head *a8_heads(const void *packed, int64_t T, int64_t K) {
    return (const a8_head *)((const char *)packed + cg_round_up(T, CG_LANES) * a8_steps(K) * 4);
}

CG_INLINE void a8_pack(void *packed, const cg_rows *x, int64_t T, int64_t K, int64_t t0, int64_t t1) {
    int64_t steps = a8_steps(K), groups = int8_groups(K);
    a8_head *heads = (a8_head *)a8_heads(packed, T, K);
    for (int64_t t = t0; t < cg_round_up(t1, CG_LANES); t++)
        for (int64_t g = 0; g < groups; g++) {
            const float *from = t < T ? cg_row_of(x, t) + g * CG_INT8_GROUP : NULL;
            float some[CG_INT8_GROUP] = {0};
            int64_t left = K - g * CG_INT8_GROUP;
            if (from && left < CG_INT8_GROUP) memcpy(some, from, (size_t)left * 4);
            if (!from || left < CG_INT8_GROUP) from = some;
            int8_t q[CG_INT8_GROUP];
            uint32_t values[A8_INT8_STEPS];
            uint32_t *to = (uint32_t *)packed + (t / CG_LANES * steps + g * A8_INT8_STEPS) * CG_LANES + t % CG_LANES;
            a8_group head = a8_quantize(CG_INT8_GROUP, A8_INT8, q, from);
            memcpy(values, q, sizeof q);
            for (int s = 0; s < A8_INT8_STEPS; s++) to[s * CG_LANES] = values[s];
            heads[t / CG_LANES * groups + g].begin[t % CG_LANES] = head.begin;
            heads[t / CG_LANES * groups + g].scale[t % CG_LANES] = head.scale;
        }
}
