/* linear_int8_a8_few for AVX512_VNNI, up to 8 tokens, in vectors of 8 lanes. The weights are read once, as they are
   stored, and broadcast four at a time. R rows far from each other are read together, which gives more of the memory's
   bandwidth. Activations and sums: int8_a8.h. */
#include "kernels/linear/int8_a8.h"

enum {
    A8_FEW_MIN_TOKENS = 6, /* fewer tokens are as fast in 16 bits */
    A8_FEW_MAX_TOKENS = CG_LANES,
    A8_FEW_ROWS = 8,
    A8_FEW_AHEAD_BYTES = 2048,
};

/* Outputs n, n + row_stride, .., R of them, of all tokens. */
CG_INLINE void a8_few_rows(const int R, const cg_product *p, int64_t n, int64_t row_stride) {
    int64_t groups = int8_groups(p->K), row_bytes = groups * CG_INT8_GROUP;
    const uint8_t *w = p->w + n * row_bytes;
    const vi *x = p->x;
    const a8_head *head = a8_heads(p->x, p->T, p->K);
    vf sum[A8_FEW_ROWS] = {{0}};
    for (int64_t g = 0; g < groups; g++, w += CG_INT8_GROUP, head++) {
        vi dot[A8_FEW_ROWS];
        vf scale = vf_load(head->scale);
        for (int r = 0; r < R; r++) {
            dot[r] = vi_load(head->begin);
            __builtin_prefetch(w + r * row_stride * row_bytes + A8_FEW_AHEAD_BYTES, 0, 3);
        }
#pragma GCC unroll 4
        for (int s = 0; s < A8_INT8_STEPS; s++, x++)
            for (int r = 0; r < R; r++) {
                int32_t four;
                memcpy(&four, w + r * row_stride * row_bytes + 4 * s, sizeof four);
                vi ws = (vi){0} + four;
                VF_KEEP(ws); /* else GCC adds the offset before it broadcasts, which takes longer */
                dot[r] = a8_dot(dot[r], ws ^ (int32_t)0x80808080, *x);
            }
        for (int r = 0; r < R; r++)
            sum[r] = vf_fma(__builtin_convertvector(dot[r], vf), scale * int8_scale(p, n + r * row_stride, g), sum[r]);
    }
    for (int r = 0; r < R; r++) {
        float bias = p->bias ? p->bias[n + r * row_stride] : 0.f, *y = p->y + n + r * row_stride;
        for (int64_t t = 0; t < p->T; t++, y += p->y_stride) *y = sum[r][t] + bias + (p->add ? *y : 0.f);
    }
}

static void a8_few_panel(const cg_product *p, int64_t n0, int64_t n1) {
    int64_t row_stride = (n1 - n0) / A8_FEW_ROWS, n = n0;
    if (row_stride > 1 && row_stride * int8_groups(p->K) * CG_INT8_GROUP % 4096 == 0)
        row_stride--; /* or the rows would meet in the same sets of a cache */
    for (; n < n0 + row_stride; n++) a8_few_rows(A8_FEW_ROWS, p, n, row_stride);
    for (n = n0 + A8_FEW_ROWS * row_stride; n + A8_FEW_ROWS <= n1; n += A8_FEW_ROWS) a8_few_rows(A8_FEW_ROWS, p, n, 1);
    for (; n < n1; n++) a8_few_rows(1, p, n, 0);
}

static cg_linear CG_NAME(linear_int8_a8_few) = {a8_packed_bytes, a8_pack, a8_few_panel, .max_tokens = A8_FEW_MAX_TOKENS,
                                                .min_tokens = A8_FEW_MIN_TOKENS};
