/* linear_bf16_tile, linear_bf16_packed_tile, linear_mxfp4_tile, linear_int8_tile, and linear_mxfp4_a8, linear_int8_a8,
   for I8MM and BF16. bfmmla and smmla multiply 8 bytes of two rows by those of two tokens: a k-step, four bf16 or eight
   8-bit integers. Rows of weights and of tokens lie in such pairs, [k-steps][2][8 bytes], then [groups][2] scales where
   groups have some; K is padded by zeros to whole groups of 64. The first four round activations to bf16, products and
   sums are f32; the others have a8.h's activations, whose sums are exact within a group. MXFP4 weights become bf16 or
   integers exactly, INT8 weights are rounded to bf16. Parallel over n. */
#include "kernels/linear/a8.h"
#include "kernels/linear/dot.h" /* and bf16_packed.h */
#include "kernels/linear/lookup.h"

enum {
    MM_ROWS = 8,        /* that are decoded together */
    MM_TOKEN_PAIRS = 4, /* that are multiplied in registers */
    MM_MIN_TOKENS = 8,
    MM_MIN_TOKENS_DECODED = 24, /* fewer are as fast with 16-bit integers */
    MM_MIN_TOKENS_A8 = 9,
};

/* The bytes of a row, with values of `size` bytes and a scale for each `group` of them; 0: none. */
CG_INLINE int64_t mm_row_bytes(const int size, const int group, int64_t K) {
    int64_t values = cg_round_up(K, CG_INT8_GROUP);
    return values * size + (group ? values / group * 4 : 0);
}

/* Writes `count` bytes of row i, from byte `at` on. */
CG_INLINE void mm_put(char *pairs, int64_t row_bytes, int64_t i, int64_t at, const void *from, const int count) {
    char *to = pairs + i / 2 * 2 * row_bytes + i % 2 * 8 + at * 2;
    for (int b = 0; b < count; b += 8) memcpy(to + 2 * b, (const char *)from + b, 8);
}

CG_INLINE void mm_put_scale(const int group, char *pairs, int64_t row_bytes, int64_t K, int64_t i, int64_t g, float s) {
    float *to = (float *)(pairs + i / 2 * 2 * row_bytes + cg_round_up(K, CG_INT8_GROUP) * 2) + i % 2;
    to[2 * g] = group ? s : 0.f;
}

/* ------------------------------------------------------------------------------------------------------- activations
 */

CG_INLINE void mm_pack(const int group, void *packed, const cg_rows *x, int64_t T, int64_t K, int64_t t0, int64_t t1) {
    int64_t row_bytes = mm_row_bytes(group ? 1 : 2, group, K);
    for (int64_t t = t0; t < cg_round_up(t1, 2); t++)
        for (int64_t k = 0; k < K; k += CG_INT8_GROUP) {
            float values[CG_INT8_GROUP] = {0};
            if (t < T) memcpy(values, cg_row_of(x, t) + k, (size_t)cg_min(CG_INT8_GROUP, K - k) * 4);
            if (group) {
                int8_t q[CG_INT8_GROUP];
                for (int i = 0; i < CG_INT8_GROUP; i += group) {
                    float scale = a8_quantize(group, 0, q + i, values + i).scale;
                    mm_put_scale(group, packed, row_bytes, K, t, (k + i) / group, scale);
                }
                mm_put(packed, row_bytes, t, k, q, CG_INT8_GROUP);
            } else {
                uint16_t rounded[CG_INT8_GROUP];
                for (int i = 0; i < CG_INT8_GROUP; i += CG_LANES) vf_store_as(CG_BF16, rounded, i, vf_load(values + i));
                mm_put(packed, row_bytes, t, k * 2, rounded, CG_INT8_GROUP * 2);
            }
        }
}

/* ----------------------------------------------------------------------------------------------------------- weights
 */

/* Weights k .. k+63 of row n as integers, zeros beyond K, and the scales of the two halves. */
CG_INLINE void mm_integers(const cg_dtype dtype, int8_t *q, float *scales, const cg_product *p, int64_t n, int64_t k) {
    static const int8_t doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    if (dtype == CG_INT8) {
        memcpy(q, p->w + n * cg_row_bytes(CG_INT8, p->K) + k, CG_INT8_GROUP);
        scales[0] = scales[1] = int8_scale(p, n, k / CG_INT8_GROUP);
        return;
    }
    for (int half = 0; half < 2; half++, k += CG_MXFP4_GROUP, q += CG_MXFP4_GROUP) {
        int64_t group = (n * p->K + k) / CG_MXFP4_GROUP;
        memset(q, 0, CG_MXFP4_GROUP);
        scales[half] = 0.f;
        if (k >= p->K) continue;
        vu codes = (vu)vi_load(p->w + group * CG_MXFP4_GROUP_BYTES), table = vu_repeat(doubled);
        vu even = vu_lookup(table, codes & 0x0f0f0f0f), odd = vu_lookup(table, vu_upper(codes));
        vu in_order[2] = {vu_zip_first(even, odd), vu_zip_last(even, odd)};
        memcpy(q, in_order, sizeof in_order);
        scales[half] = cg_e8m0_to_f32(p->scales[group]) * .5f;
    }
}

/* Weights k .. k+63 of row n as bf16, zeros beyond K. */
CG_INLINE void mm_bf16(const cg_dtype dtype, uint16_t *out, const cg_product *p, int64_t n, int64_t k) {
    int64_t some = cg_min(CG_INT8_GROUP, p->K - k);
    const uint8_t *stored = dtype == CG_BF16_PACKED ? packed_as_stored(p, n) : p->w + n * p->K * 2;
    if (dtype == CG_MXFP4 || dtype == CG_INT8) {
        int8_t q[CG_INT8_GROUP];
        float scales[2];
        mm_integers(dtype, q, scales, p, n, k);
        for (int i = 0; i < CG_INT8_GROUP; i += CG_LANES)
            vf_store_as(CG_BF16, out, i, vf_load_i8(q + i) * scales[i / CG_MXFP4_GROUP]);
    } else {
        memset(out, 0, CG_INT8_GROUP * 2);
        if (dtype == CG_BF16 || stored) memcpy(out, stored + k * 2, (size_t)some * 2);
        else {
            vf values[CG_INT8_GROUP / CG_LANES];
            packed_floats(values, p->w + n * cg_row_bytes(CG_BF16_PACKED, p->K), p->K, k, k + some);
            for (int64_t i = 0; i < some; i++)
                out[i] = (uint16_t)((uint32_t)((vu)values[i / CG_LANES])[i % CG_LANES] >> 16);
        }
    }
}

/* -------------------------------------------------------------------------------------------------------- the product
 */

/* Writes what rows n, n+1 times tokens t, t+1 add up to. */
CG_INLINE void mm_finish(const cg_product *p, int64_t n, int64_t rows, int64_t t, vf sums) {
    for (int r = 0; r < cg_min(2, rows); r++)
        for (int m = 0; m < cg_min(2, p->T - t); m++) {
            float *y = p->y + (t + m) * p->y_stride + n + r;
            *y = sums[2 * r + m] + (p->bias ? p->bias[n + r] : 0.f) + (p->add ? *y : 0.f);
        }
}

/* R pairs of decoded rows times M pairs of tokens. */
CG_INLINE void mm_block(const int R, const int M, const int group, const cg_product *p, const char *w, const char *x,
                        int64_t n, int64_t rows, int64_t t) {
    int64_t values = cg_round_up(p->K, CG_INT8_GROUP), pair = 2 * mm_row_bytes(group ? 1 : 2, group, p->K);
    const int steps = group ? group / 8 : CG_INT8_GROUP / 4;
    vf sum[MM_ROWS / 2][MM_TOKEN_PAIRS];
    for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++) sum[r][m] = vf_set(0.f);
    for (int64_t k = 0, at = 0; k < values; k += group ? group : CG_INT8_GROUP) {
        vi dot[MM_ROWS / 2][MM_TOKEN_PAIRS];
        for (int r = 0; r < R; r++)
            for (int m = 0; m < M; m++) dot[r][m] = (vi){0};
#pragma GCC unroll 4
        for (int s = 0; s < steps; s++, at += 16) {
            vi ws[MM_ROWS / 2], xs[MM_TOKEN_PAIRS];
            for (int r = 0; r < R; r++) ws[r] = vi_load(w + r * pair + at);
            for (int m = 0; m < M; m++) xs[m] = vi_load(x + m * pair + at);
            for (int r = 0; r < R; r++)
                for (int m = 0; m < M; m++) {
                    if (group) dot[r][m] = (vi)vmmlaq_s32((int32x4_t)dot[r][m], (int8x16_t)ws[r], (int8x16_t)xs[m]);
                    else sum[r][m] = (vf)vbfmmlaq_f32((float32x4_t)sum[r][m], (bfloat16x8_t)ws[r], (bfloat16x8_t)xs[m]);
                }
        }
        for (int r = 0; r < R && group; r++)
            for (int m = 0; m < M; m++) {
                const float *a = (const float *)(w + r * pair + 2 * values) + k / group * 2;
                const float *b = (const float *)(x + m * pair + 2 * values) + k / group * 2;
                sum[r][m] = vf_fma(__builtin_convertvector(dot[r][m], vf),
                                   (vf){a[0], a[0], a[1], a[1]} * (vf){b[0], b[1], b[0], b[1]}, sum[r][m]);
            }
    }
    for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++) mm_finish(p, n + 2 * r, rows - 2 * r, t + 2 * m, sum[r][m]);
}

CG_INLINE void mm_panel(const cg_dtype dtype, const int group, const cg_product *p, int64_t n0, int64_t n1) {
    const int R = group ? 2 : 4; /* pairs; integers have two sums each */
    int64_t row_bytes = mm_row_bytes(group ? 1 : 2, group, p->K);
    char *work = p->work;
    for (int64_t n = n0; n < n1; n += MM_ROWS) {
        int64_t rows = cg_min(MM_ROWS, n1 - n), t = 0;
        for (int64_t r = 0; r < rows; r++)
            for (int64_t k = 0; k < p->K; k += CG_INT8_GROUP) {
                uint16_t bf16[CG_INT8_GROUP];
                int8_t q[CG_INT8_GROUP];
                float scales[2];
                if (group) {
                    mm_integers(dtype, q, scales, p, n + r, k);
                    mm_put(work, row_bytes, r, k, q, CG_INT8_GROUP);
                    for (int i = 0; i < CG_INT8_GROUP; i += group)
                        mm_put_scale(group, work, row_bytes, p->K, r, (k + i) / group, scales[i / CG_MXFP4_GROUP]);
                } else {
                    mm_bf16(dtype, bf16, p, n + r, k);
                    mm_put(work, row_bytes, r, k * 2, bf16, CG_INT8_GROUP * 2);
                }
            }
        for (int64_t pairs = (p->T + 1) / 2, done; t < p->T; t += 2 * done, pairs -= done) {
            const char *x = (const char *)p->x + t * row_bytes;
            done = pairs >= MM_TOKEN_PAIRS ? MM_TOKEN_PAIRS : 1;
            for (int r = 0; 2 * r < rows; r += R) {
                const char *w = work + 2 * r * row_bytes;
                if (done == 1) mm_block(R, 1, group, p, w, x, n + 2 * r, rows - 2 * r, t);
                else mm_block(R, MM_TOKEN_PAIRS, group, p, w, x, n + 2 * r, rows - 2 * r, t);
            }
        }
    }
}

#define MM(name, dtype, group, tokens) \
    static int64_t name##_packed_bytes__i8mm(int64_t T, int64_t K) { \
        return cg_round_up(cg_round_up(T, 2) * mm_row_bytes(group ? 1 : 2, group, K), 64); \
    } \
    static void name##_pack__i8mm(void *packed, const cg_rows *x, int64_t T, int64_t K, int64_t t0, int64_t t1) { \
        mm_pack(group, packed, x, T, K, t0, t1); \
    } \
    static void name##_panel__i8mm(const cg_product *p, int64_t n0, int64_t n1) { mm_panel(dtype, group, p, n0, n1); } \
    static cg_linear linear_##name##__i8mm = {name##_packed_bytes__i8mm, name##_pack__i8mm, name##_panel__i8mm, \
                                              .min_tokens = tokens, .work_bytes_per_input = MM_ROWS * 2};
MM(bf16_tile, CG_BF16, 0, MM_MIN_TOKENS)
MM(bf16_packed_tile, CG_BF16_PACKED, 0, MM_MIN_TOKENS)
MM(mxfp4_tile, CG_MXFP4, 0, MM_MIN_TOKENS_DECODED)
MM(int8_tile, CG_INT8, 0, MM_MIN_TOKENS_DECODED)
MM(mxfp4_a8, CG_MXFP4, CG_MXFP4_GROUP, MM_MIN_TOKENS_A8)
MM(int8_a8, CG_INT8, CG_INT8_GROUP, MM_MIN_TOKENS_A8)
#undef MM
