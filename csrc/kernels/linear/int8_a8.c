/* linear_int8_a8 for AVX512_VNNI and DotProd: products of many tokens in the order of tile.h, with the activations of
   int8_a8.h. A k-step is four values. The integer sums of a group and the float sums of a slice are both in registers.
 */
#include "kernels/linear/int8_a8.h"
#include "kernels/linear/tile.h"

enum {
    A8_MIN_TOKENS = 9, /* fewer tokens are as fast in 16 bits; linear_int8_a8_few is for them */
    A8_ROWS = 4,       /* by 3 vectors of tokens */
    A8_ROWS_ALONE = 8, /* by one */
    A8_STEPS = 192,    /* k-steps of a slice at the most */
};

/* The R rows from r0 on for the M vectors of tokens from v on. The scales of a row are behind its k-steps. */
CG_INLINE void a8_block(const int R, const int M, tile_job *j, const a8_head *heads, int64_t r0, int64_t v) {
    vf sum[A8_ROWS_ALONE][TILE_VECTORS];
    const vi *x = (const vi *)j->p->x + v * j->all_steps + j->from;
    const uint32_t *w = j->work->rows[r0];
    int64_t groups = j->all_steps / A8_INT8_STEPS;
    for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++) sum[r][m] = j->first ? vf_set(0.f) : j->work->sums[v - j->v0 + m][r0 + r];
    if (v == j->v0) tile_fetch(R, j, r0);
    for (int64_t g = 0; g < j->steps / A8_INT8_STEPS; g++, w += A8_INT8_STEPS, x += A8_INT8_STEPS) {
        vi dot[A8_ROWS_ALONE][TILE_VECTORS];
        for (int r = 0; r < R; r++)
            for (int m = 0; m < M; m++) dot[r][m] = vi_load(heads[m * groups + g].begin);
#pragma GCC unroll 4
        for (int s = 0; s < A8_INT8_STEPS; s++) {
            vi xs[TILE_VECTORS];
            for (int m = 0; m < M; m++) xs[m] = x[m * j->all_steps + s];
            for (int r = 0; r < R; r++) {
                vi ws = (vi)((vu){0} + w[r * TILE_ROW_STEPS + s]);
                VF_KEEP(ws);
                for (int m = 0; m < M; m++) dot[r][m] = a8_dot(dot[r][m], ws, xs[m]);
            }
        }
        for (int r = 0; r < R; r++) {
            float scale;
            memcpy(&scale, j->work->rows[r0 + r] + A8_STEPS + g, 4);
            for (int m = 0; m < M; m++)
                sum[r][m] = vf_fma(__builtin_convertvector(dot[r][m], vf), vf_load(heads[m * groups + g].scale) * scale,
                                   sum[r][m]);
        }
    }
    for (int m = 0; m < M; m++) {
        vf column[A8_ROWS_ALONE];
        for (int r = 0; r < R; r++) column[r] = sum[r][m];
        tile_keep(R, j, r0, v, m, column);
    }
}

CG_INLINE void a8_multiply(const int M, tile_job *j, int64_t v) {
    const a8_head *heads =
        a8_heads(j->p->x, j->p->T, j->p->K) + v * (j->all_steps / A8_INT8_STEPS) + j->from / A8_INT8_STEPS;
    const int R = M == 1 ? A8_ROWS_ALONE : A8_ROWS;
    int64_t r = 0;
    for (; r + R <= j->rows; r += R) a8_block(R, M, j, heads, r, v);
    for (; r < j->rows; r++) a8_block(1, M, j, heads, r, v);
}

CG_INLINE void a8_decode_int8(void *out, const cg_product *p, int64_t n, int64_t k0, int64_t k1) {
    const uint8_t *row = p->w + n * cg_row_bytes(CG_INT8, p->K);
    int64_t g0 = k0 / CG_INT8_GROUP, groups = (k1 - k0 + CG_INT8_GROUP - 1) / CG_INT8_GROUP;
    for (int64_t g = 0; g < groups; g++) {
        float scale = int8_scale(p, n, g0 + g);
        for (int i = 0; i < CG_INT8_GROUP; i += (int)sizeof(vi)) {
            vi w = vi_load(row + (g0 + g) * CG_INT8_GROUP + i) ^ (int32_t)(A8_INT8 * 0x01010101u);
            memcpy((uint8_t *)out + g * CG_INT8_GROUP + i, &w, sizeof w);
        }
        memcpy((uint32_t *)out + A8_STEPS + g, &scale, 4);
    }
}

static void a8_panel_int8(const cg_product *p, int64_t n0, int64_t n1) {
    tile_many(a8_steps(p->K), 4, A8_STEPS, CG_INT8, a8_decode_int8, a8_multiply, p, n0, n1);
}

static cg_linear CG_NAME(linear_int8_a8) = {a8_packed_bytes, a8_pack, a8_panel_int8, .min_tokens = A8_MIN_TOKENS,
                                            .work_bytes = sizeof(tile_work)};
