/* The inner loops of attention.c over int8 keys and values. Products are int16 x int8 and their sums exact in 32 bits,
   so they are the same in any order: queries are rounded to 2^-16 of their largest element, the probabilities of a
   block, times the scales of its values, to 2^-16 of the largest one. Layout: cg_kv in cgpt.h. */
#pragma once

#include "kernels/attention/tile.h"

/* The scales of the keys from position j of the block on; those of their values are CG_KV_PANEL further. */
CG_INLINE const float *att_scales(const att_kv *kv, int64_t j) {
    int64_t P = CG_KV_PANEL, panel = cg_kv_panel_bytes(CG_INT8, kv->D);
    return (const float *)(const void *)(kv->k + j / P * panel + cg_round_up(kv->D, 2) * P) + j % P;
}

/* Where column c of a panel of pairs begins. */
CG_INLINE const char *att_pairs(const char *from, int64_t panel, int64_t c) {
    return from + c / CG_KV_PANEL * panel + c % CG_KV_PANEL * 2;
}

/* s[m][i] = sum over n steps of pairs x[step * x_step + m * x_row] times those of W vectors `at`, for M rows. */
CG_INLINE const char *att_dot(const int M, const int W, vi (*s)[4], const int16_t *x, int64_t x_step, int64_t x_row,
                              const char *const *at, int64_t n, const char *next, int64_t fetch) {
    for (int m = 0; m < M; m++)
        for (int i = 0; i < W; i++) s[m][i] = (vi){0};
#pragma GCC unroll 2
    for (int64_t step = 0; step < n; step++, x += x_step) {
        vs pairs[4];
        for (int i = 0; i < W; i++) pairs[i] = vs_load_i8(at[i] + step * 2 * CG_KV_PANEL);
        for (int i = 0; i < W; i += 2, next += fetch) att_fetch(CG_INT8, next);
        for (int m = 0; m < M; m++) {
            vs xm = vs_set_pair(x + m * x_row);
            for (int i = 0; i < W; i++) s[m][i] = vs_dot_neighbours(s[m][i], xm, pairs[i]);
        }
    }
    return next;
}

/* Scores p[m][32] of M rows q [Dk / 2, M, 2]. */
CG_INLINE void att_scores_int8(const int M, const int W, float (*p)[CG_KV_BLOCK], const att_row *row, const int16_t *q,
                               const att_kv *kv) {
    const char *at[4], *next = kv->next_k;
    for (int c = 0; c < CG_KV_BLOCK; c += W * CG_LANES) {
        vi s[ATT_ROWS][4];
        for (int i = 0; i < W; i++) at[i] = att_pairs(kv->k, cg_kv_panel_bytes(CG_INT8, kv->D), c + i * CG_LANES);
        next = att_dot(M, W, s, q, 2 * M, 2, at, (kv->D + 1) / 2, next, kv->step);
        for (int i = 0; i < W; i++) {
            vf scale = vf_load(att_scales(kv, c + i * CG_LANES));
            for (int m = 0; m < M; m++)
                vf_store(p[m] + c + i * CG_LANES, __builtin_convertvector(s[m][i], vf) * (scale * row[m].scale));
        }
    }
}

/* The probabilities of M rows times the scales of their values, as pairs x[m] of positions j and j + 16; `scale` is
   what the integers of a row have to be multiplied by. */
CG_INLINE void att_weights(const int M, const int whole, int32_t (*x)[CG_KV_PANEL], float *scale,
                           float (*p)[CG_KV_BLOCK], const att_row *row, const att_kv *kv) {
    float top[CG_LANES + ATT_ROWS] = {0};
    vf max[ATT_ROWS], round = vf_set(12582912.f); /* 1.5 * 2^23 */
    for (int m = 0; m < M; m++) {
        for (int j = 0; j < CG_KV_BLOCK; j += CG_LANES)
            vf_store(p[m] + j, vf_load(p[m] + j) * vf_load(att_scales(kv, j) + CG_KV_PANEL));
        if (!whole) att_mask(p[m], row + m, kv->base, 0.f); /* 0 x infinity is not 0 */
        max[m] = vf_load(p[m]);
        for (int j = CG_LANES; j < CG_KV_BLOCK; j += CG_LANES) max[m] = vf_max(vf_load(p[m] + j), max[m]);
    }
    if (M == 1) top[0] = vf_max_lane(max[0]);
    for (int m = 0; m + 4 <= M; m += 4) vf_max4(top + m, max + m);
    for (int m = 0; m < M; m += CG_LANES) {
        vf t = vf_load(top + m);
        vi tiny = t < 0x1p-100f;
        vf_store(scale + m, vf_select(tiny, vf_set(0.f), t / 32767.f));
        vf_store(top + m, vf_select(tiny, vf_set(0.f), 32767.f / t));
    }
    for (int m = 0; m < M; m++)
        for (int j = 0; j < CG_KV_PANEL; j += CG_LANES) {
            vi low = (vi)vf_fma(vf_load(p[m] + j), vf_set(top[m]), round);
            vi high = (vi)vf_fma(vf_load(p[m] + CG_KV_PANEL + j), vf_set(top[m]), round);
            vi both = (low & 0xffff) | high << 16;
            memcpy(x[m] + j, &both, sizeof both);
        }
}

/* acc[m][d ..] = acc[m][d ..] * factor[m] + the values weighted by x, W vectors wide. */
CG_INLINE const char *att_values_int8(const int M, const int W, const att_row *row, int32_t (*x)[CG_KV_PANEL],
                                      const float *scale, const float *factor, const att_kv *kv, int64_t d,
                                      const char *next) {
    const char *at[4];
    vi s[ATT_ROWS][4];
    for (int i = 0; i < W; i++) at[i] = att_pairs(kv->v, CG_KV_PANEL * CG_KV_BLOCK, d + i * CG_LANES);
    next = att_dot(M, W, s, (const int16_t *)x, 2, 2 * CG_KV_PANEL, at, CG_KV_PANEL, next, kv->step);
    for (int m = 0; m < M; m++)
        for (int i = 0; i < W; i++) {
            float *acc = row[m].acc + d + i * CG_LANES;
            vf_store(acc, vf_fma(__builtin_convertvector(s[m][i], vf), vf_set(scale[m]), vf_load(acc) * factor[m]));
        }
    return next;
}

CG_INLINE void att_all_values_int8(const int M, const int whole, const att_row *row, float (*p)[CG_KV_BLOCK],
                                   const float *factor, const att_kv *kv) {
    int32_t x[ATT_ROWS][CG_KV_PANEL];
    float scale[CG_LANES + ATT_ROWS];
    const char *next = kv->next_v;
    int64_t d = 0, Dv = kv->Dv;
    att_weights(M, whole, x, scale, p, row, kv);
    for (; d + 2 * CG_LANES <= Dv; d += 2 * CG_LANES) next = att_values_int8(M, 2, row, x, scale, factor, kv, d, next);
    for (; d < Dv; d += CG_LANES) next = att_values_int8(M, 1, row, x, scale, factor, kv, d, next);
}
