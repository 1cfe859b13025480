/* Products of many tokens in an order of their own: lanes are tokens, weights are broadcast, and the sum of a slice of K is
   a register, as in Goto & van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008). A step is 4 bytes of
   K: one f32, or a pair of bf16. A slice of the tokens' steps stays in the first-level cache while the decoded rows of a
   panel pass; TILE_MOST_VECTORS of tokens share a decoding. */
#ifndef CG_TILE_H
#define CG_TILE_H

#include "kernels/linear/dot.h"

enum {
    TILE_ROWS = CG_LANES == 16 ? 8 : 4,
    TILE_VECTORS = 3,                 /* of tokens, that share a broadcast */
    TILE_STEPS = 256,                 /* of a slice, at most */
    TILE_STEPS_ALIGN = 32,            /* whole groups of weights */
    TILE_PANEL = 64,                  /* rows decoded together */
    TILE_ROW_STEPS = TILE_STEPS + 16, /* a line more, so that rows do not meet in the same sets of a cache */
    TILE_MOST_VECTORS = 384 / CG_LANES,
};

/* Packed tokens: [T / CG_LANES][steps][CG_LANES]. */
CG_INLINE int64_t tile_packed_bytes(int64_t steps, int64_t T) { return cg_round_up(T, CG_LANES) * steps * 4; }

/* Writes the values k0 <= k < k1 of row n, as pairs or floats; zeros up to a whole step. */
typedef void tile_decode(void *out, const cg_product *p, int64_t n, int64_t k0, int64_t k1);

typedef struct {
    uint32_t rows[TILE_PANEL][TILE_ROW_STEPS];
    vf sums[TILE_MOST_VECTORS][TILE_PANEL];
} tile_work;

typedef struct {
    tile_work *work;
    const char *next; /* the stored weights of the slice that follows, each row's every row_bytes */
    int64_t row_bytes, next_bytes;
    int64_t from, steps; /* of the slice at hand */
    int first, last;     /* whether it is the first, the last */
} tile_job;

/* Outputs n .. n+3 of the CG_LANES tokens from t on. */
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

/* The next slice of R rows, in the first tokens' turn: later ones give memory time. */
CG_INLINE void tile_fetch(const int R, const tile_job *j, int64_t r0) {
    for (int r = 0; r < R; r++) {
        const char *row = j->next + (r0 + r) * j->row_bytes;
        for (int64_t b = 0; b < j->next_bytes; b += 64) __builtin_prefetch(row + b, 0, 2);
        __builtin_prefetch(row + j->next_bytes - 1, 0, 2); /* rows may begin within a line */
    }
}

/* Rows n0 + r0 .. of the panel and M vectors of tokens: x are their steps, every x_vectors; t the first token, `at` where
   their sums wait. */
CG_INLINE void tile_block(const int R, const int M, const dot_sums how, tile_job *j, const cg_product *p, const vf *x,
                          int64_t x_vectors, int64_t n0, int64_t r0, int64_t t, int64_t at) {
    vf sum[TILE_ROWS][TILE_VECTORS];
    for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++) sum[r][m] = vf_set(0.f);
    const uint32_t *w = j->work->rows[r0];
    if (!at) tile_fetch(R, j, r0);
#pragma GCC unroll 4
    for (int64_t s = 0; s < j->steps; s++) {
        vf xs[TILE_VECTORS];
        for (int m = 0; m < M; m++) xs[m] = x[m * x_vectors + s];
        for (int r = 0; r < R; r++) {
            vf ws = (vf)((vu){0} + w[r * TILE_ROW_STEPS + s]);
            VF_KEEP(ws);
            for (int m = 0; m < M; m++) sum[r][m] = dot_multiply(how, ws, xs[m], sum[r][m]);
        }
    }
    for (int m = 0; m < M; m++) {
        vf column[TILE_ROWS];
        for (int r = 0; r < R; r++) column[r] = j->first ? sum[r][m] : j->work->sums[at + m][r0 + r] + sum[r][m];
        if (!j->last)
            for (int r = 0; r < R; r++) j->work->sums[at + m][r0 + r] = column[r];
        else if (R == 1) tile_finish_row(p, t + m * CG_LANES, n0 + r0, column[0]);
        else
            for (int r = 0; r < R; r += 4) tile_finish(p, t + m * CG_LANES, n0 + r0 + r, column + r);
    }
}

/* All rows of the panel for M vectors of tokens. */
typedef void tile_rows(const int M, tile_job *j, const cg_product *p, const vf *x, int64_t x_vectors, int64_t n0,
                       int64_t rows, int64_t t, int64_t at);

#define TILE_ROWS_OF(name, how) \
    CG_INLINE void name(const int M, tile_job *j, const cg_product *p, const vf *x, int64_t x_vectors, int64_t n0, \
                        int64_t rows, int64_t t, int64_t at) { \
        int64_t r = 0; \
        for (; r + TILE_ROWS <= rows; r += TILE_ROWS) tile_block(TILE_ROWS, M, how, j, p, x, x_vectors, n0, r, t, at); \
        for (; r < rows; r++) tile_block(1, M, how, j, p, x, x_vectors, n0, r, t, at); \
    }
TILE_ROWS_OF(tile_rows_f32, DOT_F32)
TILE_ROWS_OF(tile_rows_pairs, DOT_PAIRS)
#undef TILE_ROWS_OF

/* Outputs n0 .. n1-1 for all tokens, whose rows have `steps` of `values` values each, in slices of `most` at most. */
CG_INLINE void tile_many(int64_t steps, const int64_t values, const int64_t most, const cg_dtype dtype,
                         tile_decode *decode, tile_rows *multiply, const cg_product *p, int64_t n0, int64_t n1) {
    tile_job j = {.work = p->work};
    int64_t slices = (steps + most - 1) / most, slice = cg_round_up((steps + slices - 1) / slices, TILE_STEPS_ALIGN);
    int64_t vectors = (p->T + CG_LANES - 1) / CG_LANES;
    j.row_bytes = cg_row_bytes(dtype, p->K);
    j.next_bytes = cg_row_bytes(dtype, slice * values);
    for (int64_t v0 = 0; v0 < vectors; v0 += TILE_MOST_VECTORS)
        for (int64_t n = n0; n < n1; n += TILE_PANEL)
            for (int64_t s = 0; s < steps; s += slice) {
                int64_t rows = cg_min(TILE_PANEL, n1 - n), end = cg_min(v0 + TILE_MOST_VECTORS, vectors), v = v0;
                const vf *x = (const vf *)p->x + s;
                j.from = s;
                j.steps = cg_min(slice, steps - s);
                j.first = s == 0;
                j.last = s + slice >= steps;
                j.next = (const char *)p->w + (j.last ? (n + TILE_PANEL) * j.row_bytes
                                                      : n * j.row_bytes + cg_row_bytes(dtype, (s + slice) * values));
                for (int64_t r = 0; r < rows; r++)
                    decode(j.work->rows[r], p, n + r, s * values, cg_min((s + slice) * values, p->K));
                for (; v + TILE_VECTORS <= end; v += TILE_VECTORS)
                    multiply(TILE_VECTORS, &j, p, x + v * steps, steps, n, rows, v * CG_LANES, v - v0);
                if (end - v == 2) multiply(2, &j, p, x + v * steps, steps, n, rows, v * CG_LANES, v - v0);
                if (end - v == 1) multiply(1, &j, p, x + v * steps, steps, n, rows, v * CG_LANES, v - v0);
            }
}

#endif
