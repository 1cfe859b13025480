/* Products of many tokens with an order of sums of their own: lanes are tokens, weights are broadcast, and a register
   sums a slice of K. Goto & van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008). A k-step is 4
   bytes of K: one f32, a pair of bf16, or four 8-bit integers. A slice of the tokens stays in the first-level cache
   while the decoded rows of a panel pass over it. Rows are decoded once for TILE_MAX_VECTORS vectors of tokens. */
#pragma once

#include "kernels/linear/dot.h"

enum {
    TILE_ROWS = CG_REGISTERS == 32 ? 8 : 4,
    TILE_VECTORS = 3,                 /* of tokens that a broadcast weight is multiplied by */
    TILE_STEPS = 256,                 /* k-steps of a slice at the most; a multiple of dot.h's groups */
    TILE_STEPS_ALIGN = 32,            /* slices are whole groups of weights */
    TILE_PANEL = 64,                  /* rows that are decoded together */
    TILE_ROW_STEPS = TILE_STEPS + 16, /* a cache line more, so that rows do not meet in the same sets */
    TILE_MAX_VECTORS = 384 / CG_LANES,
};

/* Packed tokens: [T / CG_LANES][k-steps][CG_LANES]. */
CG_INLINE int64_t tile_packed_bytes(int64_t steps, int64_t T) { return cg_round_up(T, CG_LANES) * steps * 4; }

typedef struct {
    uint32_t rows[TILE_PANEL][TILE_ROW_STEPS];
    vf sums[TILE_MAX_VECTORS][TILE_PANEL];
} tile_work;

typedef struct {
    const cg_product *p;
    tile_work *work;
    int64_t v0;          /* the first vector of tokens for which rows are decoded at present */
    int64_t n, rows;     /* the rows that are decoded */
    int64_t from, steps; /* the slice's k-steps */
    int64_t all_steps;   /* those of a whole row */
    int first, last;     /* whether it is the first slice, the last one */
    const char *next;    /* the stored weights of the next slice, a row every row_bytes */
    int64_t row_bytes, next_bytes;
} tile_job;

/* Writes outputs n .. n+3 of the CG_LANES tokens from t on. */
CG_INLINE void tile_finish(const cg_product *p, int64_t t, int64_t n, const vf *sums) {
    f4 bias = {0}, in[4][CG_LANES / 4];
    if (p->bias) memcpy(&bias, p->bias + n, sizeof bias);
    memcpy(in, sums, sizeof in);
    for (int q = 0; q < CG_LANES / 4; q++) {
        f4 out[4] = {in[0][q], in[1][q], in[2][q], in[3][q]};
        f4_transpose(out);
        for (int i = 0; i < cg_min(4, p->T - t - 4 * q); i++) {
            float *y = p->y + (t + 4 * q + i) * p->y_stride + n;
            f4 sum = out[i] + bias, before;
            if (p->add) memcpy(&before, y, sizeof before), sum += before;
            memcpy(y, &sum, sizeof sum);
        }
    }
}

CG_INLINE void tile_finish_row(const cg_product *p, int64_t t, int64_t n, vf sums) {
    for (int i = 0; i < cg_min(CG_LANES, p->T - t); i++) {
        float *y = p->y + (t + i) * p->y_stride + n;
        *y = sums[i] + (p->bias ? p->bias[n] : 0.f) + (p->add ? *y : 0.f);
    }
}

/* Prefetches the next slice of R rows, while the first tokens are multiplied. */
CG_INLINE void tile_fetch(const int R, const tile_job *j, int64_t r0) {
    for (int r = 0; r < R; r++) {
        const char *row = j->next + (r0 + r) * j->row_bytes;
        for (int64_t b = 0; b < j->next_bytes; b += 64) __builtin_prefetch(row + b, 0, 2);
        __builtin_prefetch(row + j->next_bytes - 1, 0, 2); /* rows may begin within a line */
    }
}

/* The sums of R rows from r0 on for vector v + m of tokens become outputs, or are kept for the next slice. */
CG_INLINE void tile_keep(const int R, tile_job *j, int64_t r0, int64_t v, int m, const vf *column) {
    if (!j->last)
        for (int r = 0; r < R; r++) j->work->sums[v - j->v0 + m][r0 + r] = column[r];
    else if (R == 1) tile_finish_row(j->p, (v + m) * CG_LANES, j->n + r0, column[0]);
    else
        for (int r = 0; r < R; r += 4) tile_finish(j->p, (v + m) * CG_LANES, j->n + r0 + r, column + r);
}

/* The R rows from r0 on for the M vectors of tokens from v on. */
CG_INLINE void tile_block(const int R, const int M, tile_job *j, int64_t r0, int64_t v) {
    vf sum[TILE_ROWS][TILE_VECTORS], (*sums)[TILE_PANEL] = j->work->sums + v - j->v0;
    const vf *x = (const vf *)j->p->x + v * j->all_steps + j->from;
    const uint32_t *w = j->work->rows[r0];
    for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++) sum[r][m] = vf_set(0.f);
    if (v == j->v0) tile_fetch(R, j, r0);
#pragma GCC unroll 4
    for (int64_t s = 0; s < j->steps; s++) {
        vf xs[TILE_VECTORS];
        for (int m = 0; m < M; m++) xs[m] = x[m * j->all_steps + s];
        for (int r = 0; r < R; r++) {
            vf ws = (vf)((vu){0} + w[r * TILE_ROW_STEPS + s]);
            VF_KEEP(ws);
            for (int m = 0; m < M; m++) sum[r][m] = dot_multiply(ws, xs[m], sum[r][m]);
        }
    }
    for (int m = 0; m < M; m++) {
        vf column[TILE_ROWS];
        for (int r = 0; r < R; r++) column[r] = j->first ? sum[r][m] : sums[m][r0 + r] + sum[r][m];
        tile_keep(R, j, r0, v, m, column);
    }
}

/* All rows of the panel for the M vectors of tokens from v on. */
typedef void tile_multiply(const int M, tile_job *j, int64_t v);

CG_INLINE void tile_blocks(const int M, tile_job *j, int64_t v) {
    int64_t r = 0;
    for (; r + TILE_ROWS <= j->rows; r += TILE_ROWS) tile_block(TILE_ROWS, M, j, r, v);
    for (; r < j->rows; r++) tile_block(1, M, j, r, v);
}

/* Outputs n0 .. n1-1 of all tokens. `decode` writes k-steps, with zeros up to a whole one. A row has `steps` k-steps of
 * `values` values each; slices up to `max_steps`. */
CG_INLINE void tile_many(int64_t steps, const int64_t values, const int64_t max_steps, const cg_dtype dtype,
                         dot_decode *decode, tile_multiply *multiply, const cg_product *p, int64_t n0, int64_t n1) {
    tile_job j = {.p = p, .work = p->work, .all_steps = steps, .row_bytes = cg_row_bytes(dtype, p->K)};
    int64_t slices = (steps + max_steps - 1) / max_steps;
    int64_t slice = cg_round_up((steps + slices - 1) / slices, TILE_STEPS_ALIGN);
    int64_t vectors = (p->T + CG_LANES - 1) / CG_LANES;
    j.next_bytes = cg_row_bytes(dtype, slice * values);
    for (j.v0 = 0; j.v0 < vectors; j.v0 += TILE_MAX_VECTORS)
        for (j.n = n0; j.n < n1; j.n += TILE_PANEL)
            for (int64_t s = 0; s < steps; s += slice) {
                int64_t end = cg_min(j.v0 + TILE_MAX_VECTORS, vectors), v = j.v0, after = (s + slice) * values;
                j.rows = cg_min(TILE_PANEL, n1 - j.n);
                j.from = s;
                j.steps = cg_min(slice, steps - s);
                j.first = s == 0;
                j.last = s + slice >= steps;
                j.next = (const char *)p->w +
                         (j.last ? (j.n + TILE_PANEL) * j.row_bytes : j.n * j.row_bytes + cg_row_bytes(dtype, after));
                for (int64_t r = 0; r < j.rows; r++)
                    decode(j.work->rows[r], p, j.n + r, s * values, cg_min(after, p->K));
                for (; v + TILE_VECTORS <= end; v += TILE_VECTORS) multiply(TILE_VECTORS, &j, v);
                if (end - v == 2) multiply(2, &j, v);
                if (end - v == 1) multiply(1, &j, v);
            }
}
