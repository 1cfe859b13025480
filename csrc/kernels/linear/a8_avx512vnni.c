/* linear_int8_a8, linear_mxfp4_a8 for AVX512_VNNI: products of many tokens in the order of tile.h, with the activations
   of a8.h. A k-step is four values. The integer sums of a group and the float sums of a slice are both in registers. */
#include "kernels/linear/a8.h"
#include "kernels/linear/tile.h"

enum {
    A8_MIN_TOKENS = 9, /* fewer tokens are as fast in 16 bits; INT8 has linear_int8_a8_few for them */
    A8_ROWS = 4,       /* by 3 vectors of tokens */
    A8_ROWS_ALONE = 8, /* by one */
    A8_STEPS = 192,    /* k-steps of a slice at the most */
    A8_MXFP4 = 12,     /* the offset of MXFP4 weights, which are multiplied as twice their values */
    A8_MXFP4_STEPS = CG_MXFP4_GROUP / 4,
};

/* The R rows from r0 on for the M vectors of tokens from v on. The scales of a row are behind its k-steps. */
CG_INLINE void a8_block(const int R, const int M, const int group, tile_job *j, const a8_head *heads, int64_t r0,
                        int64_t v) {
    vf sum[A8_ROWS_ALONE][TILE_VECTORS];
    const vi *x = (const vi *)j->p->x + v * j->all_steps + j->from;
    const uint32_t *w = j->work->rows[r0];
    int64_t groups = j->all_steps / group;
    for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++) sum[r][m] = j->first ? vf_set(0.f) : j->work->sums[v - j->v0 + m][r0 + r];
    if (v == j->v0) tile_fetch(R, j, r0);
    for (int64_t g = 0; g < j->steps / group; g++, w += group, x += group) {
        vi dot[A8_ROWS_ALONE][TILE_VECTORS];
        for (int r = 0; r < R; r++)
            for (int m = 0; m < M; m++) dot[r][m] = vi_load(heads[m * groups + g].begin);
#pragma GCC unroll 4
        for (int s = 0; s < group; s++) {
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

CG_INLINE void a8_multiply(const int M, const int group, tile_job *j, int64_t v) {
    const a8_head *heads = a8_heads(group, j->p->x, j->p->T, j->p->K) + v * (j->all_steps / group) + j->from / group;
    const int R = M == 1 ? A8_ROWS_ALONE : A8_ROWS;
    int64_t r = 0;
    for (; r + R <= j->rows; r += R) a8_block(R, M, group, j, heads, r, v);
    for (; r < j->rows; r++) a8_block(1, M, group, j, heads, r, v);
}

CG_INLINE void a8_decode_int8(void *out, const cg_product *p, int64_t n, int64_t k0, int64_t k1) {
    const uint8_t *row = p->w + n * cg_row_bytes(CG_INT8, p->K);
    int64_t g0 = k0 / CG_INT8_GROUP, groups = (k1 - k0 + CG_INT8_GROUP - 1) / CG_INT8_GROUP;
    for (int64_t g = 0; g < groups; g++) {
        float scale = int8_scale(p, n, g0 + g);
        for (int i = 0; i < CG_INT8_GROUP; i += (int)sizeof(vi)) {
            vi w = vi_load(row + (g0 + g) * CG_INT8_GROUP + i) ^ (int32_t)0x80808080;
            memcpy((uint8_t *)out + g * CG_INT8_GROUP + i, &w, sizeof w);
        }
        memcpy((uint32_t *)out + A8_STEPS + g, &scale, 4);
    }
}

CG_INLINE void a8_decode_mxfp4(void *out, const cg_product *p, int64_t n, int64_t k0, int64_t k1) {
    const __m128i table = _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0),
                  low = _mm_set1_epi8(15);
    int64_t first = n * (p->K / CG_MXFP4_GROUP) + k0 / CG_MXFP4_GROUP;
    for (int64_t g = 0; g < (k1 - k0) / CG_MXFP4_GROUP; g++) {
        __m128i codes = _mm_loadu_si128((const __m128i *)(p->w + (first + g) * CG_MXFP4_GROUP_BYTES));
        __m128i *to = (__m128i *)((uint8_t *)out + g * CG_MXFP4_GROUP);
        float scale = .5f * cg_e8m0_to_f32(p->scales[first + g]);
        _mm_storeu_si128(to, _mm_shuffle_epi8(table, _mm_and_si128(codes, low)));
        _mm_storeu_si128(to + 1, _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16(codes, 4), low)));
        memcpy((uint32_t *)out + A8_STEPS + g, &scale, 4);
    }
}

#define A8(name, dtype, group, offset) \
    static int64_t a8_packed_bytes_##name(int64_t T, int64_t K) { return a8_packed_bytes(group, T, K); } \
    static void a8_pack_##name(void *packed, const cg_rows *x, int64_t T, int64_t K, int64_t t0, int64_t t1) { \
        a8_pack(group, offset, packed, x, T, K, t0, t1); \
    } \
    CG_INLINE void a8_multiply_##name(const int M, tile_job *j, int64_t v) { a8_multiply(M, group, j, v); } \
    static void a8_panel_##name(const cg_product *p, int64_t n0, int64_t n1) { \
        tile_many(a8_steps(group, p->K), 4, A8_STEPS, dtype, a8_decode_##name, a8_multiply_##name, p, n0, n1); \
    } \
    static cg_linear CG_NAME(linear_##name##_a8) = {a8_packed_bytes_##name, a8_pack_##name, a8_panel_##name, \
                                                    .min_tokens = A8_MIN_TOKENS, .work_bytes = sizeof(tile_work)};
A8(int8, CG_INT8, A8_INT8_STEPS, A8_INT8)
A8(mxfp4, CG_MXFP4, A8_MXFP4_STEPS, A8_MXFP4)
#undef A8
