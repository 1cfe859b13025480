/* The inner loops of attention.c: a tile of M rows (token, head) that share a key/value head, against one block of 32
   positions. A row's arithmetic does not depend on the other rows of its tile. */
#pragma once

#include "cgpt.h"
#include "simd/vec.h"

enum {
    ATT_ROWS = CG_REGISTERS == 32 ? 8 : 4, /* of a full tile; its sums fill the registers */
    ATT_ALONE = CG_LANES == 16 ? 2 : 4, /* vectors that a single row sums at a time, so that no sum waits for another */
};

typedef struct {
    int64_t first, last; /* visible positions */
    float *acc;          /* a row of the state */
    float scale;         /* of an int16 query */
} att_row;

/* A block of keys and values, and what to prefetch meanwhile: `step` bytes of next_k and next_v per step of the loops.
   Without it the processor waits for memory at the start of each block; everything at once would fill its queue, and it
   waits again. */
typedef struct {
    const char *k, *v; /* [2, D, 16], [Dv / 16, 32, 16]; int8: see cg_kv */
    int64_t base;      /* the block's first position */
    int64_t D, Dv;
    const char *next_k, *next_v;
    int64_t step;
} att_kv;

CG_INLINE void att_fetch(const cg_dtype dtype, const char *at) {
    __builtin_prefetch(at);
    if (CG_LANES == 16 && dtype == CG_F32) __builtin_prefetch(at + 64);
}

/* The index of element [0, at] of a block [rows, columns] that is stored as [columns / 16, rows, 16]. */
CG_INLINE int64_t att_panel(int64_t rows, int64_t at) {
    return at / CG_KV_PANEL * CG_KV_PANEL * rows + at % CG_KV_PANEL;
}

/* Scores p[m][32] of M rows q [D, M] and the keys of a block, W vectors of keys at a time. */
CG_INLINE void att_scores(const int M, const int W, const cg_dtype dtype, float (*p)[CG_KV_BLOCK], const float *q,
                          const att_kv *kv) {
    const char *k = kv->k, *next = kv->next_k;
    int64_t D = kv->D, step = kv->step;
    for (int c = 0; c < CG_KV_BLOCK; c += W * CG_LANES) {
        int64_t at[4];
        vf s[ATT_ROWS][4];
        for (int i = 0; i < W; i++) at[i] = att_panel(D, c + i * CG_LANES);
        for (int m = 0; m < M; m++)
            for (int i = 0; i < W; i++) s[m][i] = vf_set(0.f);
#pragma GCC unroll 2
        for (int64_t d = 0; d < D; d++) {
            vf kd[4];
            for (int i = 0; i < W; i++) kd[i] = vf_load_as(dtype, k, at[i] + d * CG_KV_PANEL);
            for (int i = 0; i < W; i += 2, next += step) att_fetch(dtype, next);
            for (int m = 0; m < M; m++) {
                vf qm = vf_set(q[d * M + m]);
                for (int i = 0; i < W; i++) s[m][i] = vf_fma(qm, kd[i], s[m][i]);
            }
        }
        for (int m = 0; m < M; m++)
            for (int i = 0; i < W; i++) vf_store(p[m] + c + i * CG_LANES, s[m][i]);
    }
}

/* What a row does not see of a block becomes `hidden`: scores -infinity, so that their probabilities are 0. */
CG_INLINE void att_mask(float *p, const att_row *row, int64_t base, float hidden) {
    int64_t lo = row->first - base, hi = row->last - base;
    for (int64_t i = 0; i < CG_KV_BLOCK; i++) p[i] = i < lo || i > hi ? hidden : p[i];
}

/* Turns scores into probabilities relative to the running maximum of each row, and computes the factor for what the row
   has summed before. A block that is masked out changes no bit: its probabilities are 0 and its factor is e^0 = 1. */
CG_INLINE void att_softmax(const int M, const att_row *row, float (*p)[CG_KV_BLOCK], float *factor, int64_t Dv) {
    float now[ATT_ROWS];
    vf max[ATT_ROWS], rise = vf_set(0.f);
    for (int m = 0; m < M; m++) {
        now[m] = row[m].acc[Dv + CG_V_ALIGN];
        max[m] = vf_set(now[m]);
        for (int i = 0; i < CG_KV_BLOCK; i += CG_LANES) max[m] = vf_max(vf_load(p[m] + i), max[m]);
        rise = vf_max(max[m] - now[m], rise);
        factor[m] = 1.f;
    }
    if (vf_max_lane(rise) > 0.f) { /* rare after the first blocks */
        for (int m = 0; m < M; m++) factor[m] = now[m];
        if (M == 1) now[0] = vf_max_lane(max[0]);
        for (int m = 0; m + 4 <= M; m += 4) vf_max4(now + m, max + m);
        for (int m = 0; m < M; m++) factor[m] -= now[m], row[m].acc[Dv + CG_V_ALIGN] = now[m];
        for (int m = 0; m < M; m += CG_LANES) vf_store(factor + m, vf_exp_negative(vf_load(factor + m)));
    }
    for (int m = 0; m < M; m++) {
        vf sum = vf_load(row[m].acc + Dv) * factor[m];
        for (int i = 0; i < CG_KV_BLOCK; i += CG_LANES) {
            vf e = vf_exp_negative(vf_load(p[m] + i) - now[m]);
            vf_store(p[m] + i, e);
            sum += e;
        }
        vf_store(row[m].acc + Dv, sum);
    }
}

/* acc[m][d ..] = acc[m][d ..] * factor[m] + sum over j0 <= j < j1 of p[m][j] v[j][d ..], W vectors wide. */
CG_INLINE const char *att_values(const int M, const int W, const cg_dtype dtype, const att_row *row,
                                 float (*p)[CG_KV_BLOCK], const float *factor, const att_kv *kv, int64_t d, int64_t j0,
                                 int64_t j1, const char *next) {
    const char *v = kv->v;
    int64_t step = kv->step;
    vf acc[ATT_ROWS][4];
    int64_t at[4];
    for (int i = 0; i < W; i++) at[i] = att_panel(CG_KV_BLOCK, d + i * CG_LANES);
    for (int m = 0; m < M; m++)
        for (int i = 0; i < W; i++) acc[m][i] = vf_load(row[m].acc + d + i * CG_LANES) * factor[m];
#pragma GCC unroll 2
    for (int64_t j = j0; j < j1; j++) {
        vf vj[4];
        for (int i = 0; i < W; i++) vj[i] = vf_load_as(dtype, v, at[i] + j * CG_KV_PANEL);
        for (int i = 0; i < W; i += 2, next += step) att_fetch(dtype, next);
        for (int m = 0; m < M; m++) {
            vf pm = vf_set(p[m][j]);
            for (int i = 0; i < W; i++) acc[m][i] = vf_fma(pm, vj[i], acc[m][i]);
        }
    }
    for (int m = 0; m < M; m++)
        for (int i = 0; i < W; i++) vf_store(row[m].acc + d + i * CG_LANES, acc[m][i]);
    return next;
}

CG_INLINE void att_all_values(const int M, const cg_dtype dtype, const att_row *row, float (*p)[CG_KV_BLOCK],
                              const float *factor, const att_kv *kv, int64_t j0, int64_t j1) {
    const char *next = kv->next_v;
    int64_t d = 0, Dv = kv->Dv;
    if (M == 1 && ATT_ALONE == 4)
        for (; d + 4 * CG_LANES <= Dv; d += 4 * CG_LANES)
            next = att_values(M, 4, dtype, row, p, factor, kv, d, j0, j1, next);
    for (; d + 2 * CG_LANES <= Dv; d += 2 * CG_LANES)
        next = att_values(M, 2, dtype, row, p, factor, kv, d, j0, j1, next);
    for (; d < Dv; d += CG_LANES) next = att_values(M, 1, dtype, row, p, factor, kv, d, j0, j1, next);
}

/* The same for a block that some row sees only in part. All rows together sum positions j0 .. j1-1, which every row
   sees; each row sums those before and after by itself, in their order. A row skips what it does not see, because 0 x
   NaN is not 0. */
CG_INLINE void att_masked_values(const int M, const cg_dtype dtype, const att_row *row, float (*p)[CG_KV_BLOCK],
                                 float *factor, const att_kv *kv) {
    att_kv fetched = *kv; /* once is enough */
    int64_t base = kv->base, first[ATT_ROWS], end[ATT_ROWS], j0 = 0, j1 = CG_KV_BLOCK;
    fetched.step = 0;
    for (int m = 0; m < M; m++) {
        first[m] = cg_max(row[m].first - base, 0);
        end[m] = cg_min(row[m].last - base + 1, CG_KV_BLOCK);
        j0 = cg_max(j0, first[m]);
        j1 = cg_min(j1, end[m]);
    }
    if (M == 1 || j0 >= j1) j0 = j1 = CG_KV_BLOCK; /* row by row */
    for (int after = 0; after < 2; after++) {
        for (int m = 0; m < M; m++) {
            int64_t from = after ? j1 : first[m], to = after ? end[m] : cg_min(j0, end[m]);
            if (from >= to) continue;
            att_all_values(1, dtype, row + m, p + m, factor + m, M == 1 ? kv : &fetched, from, to);
            factor[m] = 1.f;
        }
        if (after || M == 1) continue;
        att_all_values(M, dtype, row, p, factor, kv, j0, j1);
        for (int m = 0; m < M; m++) factor[m] = 1.f;
    }
}
