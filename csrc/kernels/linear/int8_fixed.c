/* linear_int8_fixed: as int8.c, with activations as 16-bit fixed point (fixed.h): the products and their sums within
   a group are exact integers, so the error is that of rounding x: 2^-16 of its group's largest. Parallel over n. */
#include "kernels/linear/dot.h"
#include "kernels/linear/fixed.h"
#include "kernels/linear/int8.h"

enum {
    INT8_TOKENS = 4,                     /* that share a row's weights in registers */
    INT8_ROWS = 4,                       /* of one token that are read at once */
    INT8_SHARE = CG_LANES == 16 ? 2 : 1, /* rows that share the tokens' loads */
    INT8_AHEAD_BYTES = 2048,
    INT8_BLOCK_BYTES = 24576, /* of tokens, which stay in the first-level cache while the rows pass */
    INT8_VECTORS = CG_INT8_GROUP / (2 * CG_LANES),
};

/* A packed row: [groups][64] int16, then [groups] steps, up to whole vectors. */
CG_INLINE int64_t int8_fixed_bytes(int64_t K) {
    return int8_groups(K) * CG_INT8_GROUP * 2 + cg_round_up(int8_groups(K) * 4, 64);
}

static int64_t CG_NAME(int8_fixed_packed_bytes)(int64_t T, int64_t K) { return T * int8_fixed_bytes(K); }

static void CG_NAME(int8_fixed_pack)(void *packed, const cg_rows *x, int64_t T, int64_t K, int64_t t0, int64_t t1) {
    (void)T;
    int64_t groups = int8_groups(K);
    for (int64_t t = t0; t < t1; t++) {
        int16_t *to = (int16_t *)((char *)packed + t * int8_fixed_bytes(K));
        float *steps = (float *)(to + groups * CG_INT8_GROUP);
        for (int64_t g = 0; g < groups; g++, to += CG_INT8_GROUP) {
            const float *from = cg_row_of(x, t) + g * CG_INT8_GROUP;
            float last[CG_INT8_GROUP] = {0};
            int32_t q[CG_INT8_GROUP];
            if (K - g * CG_INT8_GROUP < CG_INT8_GROUP) {
                memcpy(last, from, (size_t)(K - g * CG_INT8_GROUP) * 4);
                from = last;
            }
            steps[g] = fixed_round(CG_INT8_GROUP, q, from);
            for (int i = 0; i < CG_INT8_GROUP; i++) to[i] = (int16_t)q[i];
        }
    }
}

/* R rows, every `apart`, for M tokens from t on. */
CG_INLINE void int8_fixed_block(const int R, const int M, const cg_product *p, int64_t n, int64_t apart, int64_t t) {
    int64_t groups = int8_groups(p->K), row_bytes = groups * CG_INT8_GROUP;
    const int share = R < INT8_SHARE ? R : INT8_SHARE;
    const uint8_t *w = p->w + n * row_bytes;
    const int16_t *x[INT8_TOKENS];
    const float *steps[INT8_TOKENS];
    vf sum[INT8_ROWS][INT8_TOKENS];
    for (int m = 0; m < M; m++) {
        x[m] = (const int16_t *)((const char *)p->x + (t + m) * int8_fixed_bytes(p->K));
        steps[m] = (const float *)(x[m] + groups * CG_INT8_GROUP);
        for (int r = 0; r < R; r++) sum[r][m] = vf_set(0.f);
    }
    for (int64_t g0 = 0; g0 < groups; g0 += CG_LANES) {
        int64_t lanes = cg_min(CG_LANES, groups - g0), from = cg_max(0, cg_min(g0, groups - CG_LANES));
        float factor[INT8_ROWS][INT8_TOKENS][CG_LANES]; /* scale x step */
        for (int r = 0; r < R; r++) {
            const uint16_t *scales = (const uint16_t *)p->scales + (n + r * apart) * groups + from;
            vf scale = groups < CG_LANES ? vf_load_as_n(CG_BF16, scales, 0, groups) : vf_load_bf16(scales);
            for (int m = 0; m < M; m++) vf_store(factor[r][m], scale * vf_load(steps[m] + from));
        }
        for (int64_t g = 0; g < lanes; g++, w += CG_INT8_GROUP)
            for (int r0 = 0; r0 < R; r0 += share) {
                vs wide[INT8_SHARE][INT8_VECTORS];
                for (int r = 0; r < share; r++) {
                    const uint8_t *at = w + (r0 + r) * apart * row_bytes;
                    __builtin_prefetch(at + INT8_AHEAD_BYTES, 0, 3);
                    for (int v = 0; v < INT8_VECTORS; v++) wide[r][v] = vs_load_i8(at + v * 2 * CG_LANES);
                }
                for (int m = 0; m < M; m++) {
                    vi dot[INT8_SHARE];
                    for (int r = 0; r < share; r++) dot[r] = (vi){0};
                    for (int v = 0; v < INT8_VECTORS; v++) {
                        vs q;
                        memcpy(&q, x[m] + (g0 + g) * CG_INT8_GROUP + v * 2 * CG_LANES, sizeof q);
                        if (share > 1) VF_KEEP(q);
                        for (int r = 0; r < share; r++) dot[r] = vs_dot_pairs(dot[r], wide[r][v], q);
                    }
                    for (int r = 0; r < share; r++) {
                        vf by = vf_set(factor[r0 + r][m][g0 - from + g]);
                        sum[r0 + r][m] = vf_fma(__builtin_convertvector(dot[r], vf), by, sum[r0 + r][m]);
                    }
                }
            }
    }
    dot_finish_block(R, M, p, t, n, apart, sum[0], INT8_TOKENS);
}

/* Tokens t .. t1-1. */
CG_INLINE void int8_fixed_tokens(const int R, const cg_product *p, int64_t n, int64_t apart, int64_t t, int64_t t1) {
    for (; t + INT8_TOKENS <= t1; t += INT8_TOKENS) int8_fixed_block(R, INT8_TOKENS, p, n, apart, t);
    for (; t + 2 <= t1; t += 2) int8_fixed_block(R, 2, p, n, apart, t);
    for (; t < t1; t++) int8_fixed_block(R, 1, p, n, apart, t);
}

static void CG_NAME(int8_fixed_panel)(const cg_product *p, int64_t n0, int64_t n1) {
    int64_t block = cg_max(INT8_TOKENS, INT8_BLOCK_BYTES / int8_fixed_bytes(p->K) / INT8_TOKENS * INT8_TOKENS), n = n0;
    if (p->T == 1) { /* memory gives more from four places at once, and they share the token's loads */
        int64_t apart = (n1 - n0) / INT8_ROWS;
        for (; n < n0 + apart; n++) int8_fixed_block(INT8_ROWS, 1, p, n, apart, 0);
        n = n0 + INT8_ROWS * apart;
    }
    for (int64_t t0 = 0, first = n; t0 < p->T; t0 += block) {
        int64_t t1 = cg_min(t0 + block, p->T);
        int64_t apart = (n1 - first) / INT8_SHARE;
        for (n = first; n < first + apart; n++) int8_fixed_tokens(INT8_SHARE, p, n, apart, t0, t1);
        for (n = first + INT8_SHARE * apart; n < n1; n++) int8_fixed_tokens(1, p, n, 0, t0, t1);
    }
}

static cg_linear CG_NAME(linear_int8_fixed) = {.packed_bytes = CG_NAME(int8_fixed_packed_bytes),
                                               .pack = CG_NAME(int8_fixed_pack),
                                               .panel = CG_NAME(int8_fixed_panel)};
