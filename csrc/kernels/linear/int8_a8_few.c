/* linear_int8_a8_few for AVX512_VNNI, up to 8 tokens, in vectors of 8 lanes: the weights are read once, as they are stored,
   four at a time into all lanes; R rows from places apart, which memory likes. Activations and sums: a8.h. */
#include "kernels/linear/a8.h"

enum {
    A8_FEW_LEAST = 6, /* fewer tokens are as fast in 16 bits */
    A8_FEW_MOST = CG_LANES,
    A8_FEW_ROWS = 8,
    A8_FEW_AHEAD_BYTES = 2048,
};

static int64_t a8_few_packed_bytes(int64_t T, int64_t K) { return a8_packed_bytes(A8_INT8_STEPS, T, K); }

static void a8_few_pack(void *packed, const cg_rows *x, int64_t T, int64_t K, int64_t t0, int64_t t1) {
    a8_pack(A8_INT8_STEPS, A8_INT8, packed, x, T, K, t0, t1);
}

/* Outputs n, n + apart, .. of all tokens. */
CG_INLINE void a8_few_rows(const int R, const cg_product *p, int64_t n, int64_t apart) {
    int64_t groups = int8_groups(p->K), row_bytes = groups * CG_INT8_GROUP;
    const uint8_t *w = p->w + n * row_bytes;
    const vi *x = p->x;
    const a8_head *head = a8_heads(A8_INT8_STEPS, p->x, p->T, p->K);
    vf sum[A8_FEW_ROWS] = {{0}};
    for (int64_t g = 0; g < groups; g++, w += CG_INT8_GROUP, head++) {
        vi dot[A8_FEW_ROWS];
        vf step = vf_load(head->step);
        for (int r = 0; r < R; r++) {
            memcpy(&dot[r], head->begin, sizeof dot[r]);
            __builtin_prefetch(w + r * apart * row_bytes + A8_FEW_AHEAD_BYTES, 0, 3);
        }
#pragma GCC unroll 4
        for (int s = 0; s < A8_INT8_STEPS; s++, x++)
            for (int r = 0; r < R; r++) {
                int32_t four;
                memcpy(&four, w + r * apart * row_bytes + 4 * s, sizeof four);
                vi ws = (vi){0} + four;
                VF_KEEP(ws); /* else GCC makes them unsigned before it broadcasts, which takes longer */
                dot[r] = a8_dot(dot[r], ws ^ (int32_t)0x80808080, *x);
            }
        for (int r = 0; r < R; r++)
            sum[r] = vf_fma(__builtin_convertvector(dot[r], vf), step * int8_scale(p, n + r * apart, g), sum[r]);
    }
    for (int r = 0; r < R; r++) {
        float bias = p->bias ? p->bias[n + r * apart] : 0.f, *y = p->y + n + r * apart;
        for (int64_t t = 0; t < p->T; t++, y += p->y_stride) *y = sum[r][t] + bias + (p->add ? *y : 0.f);
    }
}

static void a8_few_panel(const cg_product *p, int64_t n0, int64_t n1) {
    int64_t apart = (n1 - n0) / A8_FEW_ROWS, n = n0;
    if (apart > 1 && apart * int8_groups(p->K) * CG_INT8_GROUP % 4096 == 0)
        apart--; /* they would share sets of a cache */
    for (; n < n0 + apart; n++) a8_few_rows(A8_FEW_ROWS, p, n, apart);
    for (n = n0 + A8_FEW_ROWS * apart; n + A8_FEW_ROWS <= n1; n += A8_FEW_ROWS) a8_few_rows(A8_FEW_ROWS, p, n, 1);
    for (; n < n1; n++) a8_few_rows(1, p, n, 0);
}

static cg_linear CG_NAME(linear_int8_a8_few) = {a8_few_packed_bytes, a8_few_pack, a8_few_panel,
                                                .most_tokens = A8_FEW_MOST, .least_tokens = A8_FEW_LEAST};
