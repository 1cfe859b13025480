/* linear_int8_a16, linear_int4_a16: as int8.c, with activations rounded to 16 bits in groups of 64 (round.h). Codes of
   INT4 become the integers of INT8 in registers; what pads them meets zeros of x. The products and their sums within a
   group are exact integers, so the error is that of rounding x, 2^-16 of the largest magnitude in its group. Parallel
   over n.
   With DotProd an activation is two signed bytes, 256 * high + low, whose products are summed apart; for that the
   largest is 32639, not 32767. There the same code with one byte is linear_int8_a8_few (a8.h). */
#include "kernels/linear/dot.h"
#include "kernels/linear/a8.h"

enum {
    INT8_TOKENS = 4,                    /* that a row is multiplied by in registers */
    INT8_ROWS = 4,                      /* that are read at once for one token */
    INT8_PAIR = CG_LANES == 16 ? 2 : 1, /* rows for which a token is loaded once */
    INT8_AHEAD_BYTES = 2048,
    INT8_BLOCK_BYTES = 24576, /* of packed tokens, which stay in the first-level cache while the rows pass */
};

#ifdef CG_HAS_DOTPROD
enum { INT8_VECTORS = CG_INT8_GROUP / (4 * CG_LANES) };
typedef vi int8_weights;
/* Vector v of the integers of a group. */
CG_INLINE int8_weights int8_load(const cg_dtype dtype, const uint8_t *w, const int v) {
    if (dtype == CG_INT8) return vi_load(w + v * 16);
    const int high = v >= INT8_VECTORS / 2;
    uint8x16_t codes = vld1q_u8(w + (high ? v - INT8_VECTORS / 2 : v) * 16);
    codes = high ? vshrq_n_u8(codes, 4) : vandq_u8(codes, vdupq_n_u8(15));
    return (vi)vqtbl1q_s8(vld1q_s8(int4_values), codes);
}

/* A group of activations of B bytes: their high bytes, then their low ones. */
CG_INLINE float int8_round(const int B, char *to, const float *x) {
    int32_t q[CG_INT8_GROUP];
    float scale = group_round(CG_INT8_GROUP, B == 2 ? 32639.f : 127.f, q, x);
    for (int i = 0; i < CG_INT8_GROUP; i++) to[i] = (char)(B == 2 ? (q[i] + 128) >> 8 : q[i]);
    if (B == 2)
        for (int i = 0; i < CG_INT8_GROUP; i++) to[CG_INT8_GROUP + i] = (char)q[i];
    return scale;
}

/* The lanes' sums of a group of weights times activations, of R rows. */
CG_INLINE void int8_dots(const int B, const int R, vi *dot, int8_weights (*w)[INT8_VECTORS], const char *x) {
    for (int b = 0; b < B; b++) {
        vi part[INT8_PAIR];
        for (int v = 0; v < INT8_VECTORS; v++)
            for (int r = 0; r < R; r++)
                part[r] = a8_dot(v ? part[r] : (vi){0}, w[r][v], vi_load(x + b * CG_INT8_GROUP + v * 16));
        for (int r = 0; r < R; r++) dot[r] = b ? (dot[r] << 8) + part[r] : part[r];
    }
}
#else
enum { INT8_VECTORS = CG_INT8_GROUP / (2 * CG_LANES) };
typedef vs int8_weights;
/* Vector v of the integers of a group, widened. */
CG_INLINE int8_weights int8_load(const cg_dtype dtype, const uint8_t *group, const int v) {
    if (dtype == CG_INT8) return vs_load_i8(group + v * 2 * CG_LANES);
    const int high = v >= INT8_VECTORS / 2;
    const uint8_t *codes = group + (high ? v - INT8_VECTORS / 2 : v) * 2 * CG_LANES;
#if defined(CG_HAS_MM) && CG_LANES == 16
    static const int16_t table[32] = {CG_INT4_VALUES,
                                      CG_INT4_VALUES}; /* the fifth bit of an index counts for nothing */
    __m512i code = _mm512_cvtepu8_epi16(vmh_load(codes));
    return (vs)_mm512_permutexvar_epi16(high ? _mm512_srli_epi16(code, 4) : code, (__m512i)vi_load(table));
#elif defined(CG_HAS_MM)
    vmh code = (vmh_load(codes) >> (high ? 4 : 0)) & 0x0f0f0f0f0f0f0f0f;
    return (vs)_mm256_cvtepi8_epi16(_mm_shuffle_epi8(_mm_setr_epi8(CG_INT4_VALUES), code));
#elif defined(CG_HAS_NEON)
    uint8x8_t code = high ? vshr_n_u8(vld1_u8(codes), 4) : vand_u8(vld1_u8(codes), vdup_n_u8(15));
    return (vs)vmovl_s8(vqtbl1_s8(vld1q_s8(int4_values), code));
#else
    vs q;
    for (int i = 0; i < 2 * CG_LANES; i++) q[i] = int4_values[high ? codes[i] >> 4 : codes[i] & 15];
    return q;
#endif
}

CG_INLINE float int8_round(CG_UNUSED const int B, char *to, const float *x) {
    return group_round_a16(CG_INT8_GROUP, (int16_t *)to, x);
}

CG_INLINE void int8_dots(CG_UNUSED const int B, const int R, vi *dot, int8_weights (*w)[INT8_VECTORS], const char *x) {
    for (int r = 0; r < R; r++) dot[r] = (vi){0};
    for (int v = 0; v < INT8_VECTORS; v++) {
        vs q = (vs)vi_load(x + v * 4 * CG_LANES);
        if (R > 1) VF_KEEP(q);
        for (int r = 0; r < R; r++) dot[r] = vs_dot_pairs(dot[r], w[r][v], q);
    }
}
#endif

/* A packed row: [groups][64] activations of B bytes, then [groups] scales, rounded up to whole vectors. */
CG_INLINE int64_t int8_packed_row(const int B, int64_t K) {
    return int8_groups(K) * CG_INT8_GROUP * B + cg_round_up(int8_groups(K) * 4, 64);
}

CG_INLINE void int8_pack(const int B, void *packed, const cg_rows *x, int64_t K, int64_t t0, int64_t t1) {
    int64_t groups = int8_groups(K);
    for (int64_t t = t0; t < t1; t++) {
        char *to = (char *)packed + t * int8_packed_row(B, K);
        float *scales = (float *)(to + groups * CG_INT8_GROUP * B);
        for (int64_t g = 0; g < groups; g++, to += CG_INT8_GROUP * B) {
            const float *from = cg_row_of(x, t) + g * CG_INT8_GROUP;
            float last[CG_INT8_GROUP] = {0};
            if (K - g * CG_INT8_GROUP < CG_INT8_GROUP) {
                memcpy(last, from, (size_t)(K - g * CG_INT8_GROUP) * 4);
                from = last;
            }
            scales[g] = int8_round(B, to, from);
        }
    }
}

/* Rows n, n + row_stride, .., R of them, for tokens t .. t+M-1. */
CG_INLINE void int8_block(const cg_dtype dtype, const int B, const int R, const int M, const cg_product *p, int64_t n,
                          int64_t row_stride, int64_t t) {
    const int group_bytes = dtype == CG_INT4 ? CG_INT8_GROUP / 2 : CG_INT8_GROUP;
    int64_t groups = int8_groups(p->K), row_bytes = groups * group_bytes;
    const int pair = R < INT8_PAIR ? R : INT8_PAIR;
    const uint8_t *w = p->w + n * row_bytes;
    const char *x[INT8_TOKENS];
    const float *x_scales[INT8_TOKENS];
    vf sum[INT8_ROWS][INT8_TOKENS];
    for (int m = 0; m < M; m++) {
        x[m] = (const char *)p->x + (t + m) * int8_packed_row(B, p->K);
        x_scales[m] = (const float *)(x[m] + groups * CG_INT8_GROUP * B);
        for (int r = 0; r < R; r++) sum[r][m] = vf_set(0.f);
    }
    for (int64_t g0 = 0; g0 < groups; g0 += CG_LANES) {
        int64_t lanes = cg_min(CG_LANES, groups - g0), from = cg_max(0, cg_min(g0, groups - CG_LANES));
        float factor[INT8_ROWS][INT8_TOKENS][CG_LANES]; /* the weights' scale x the activations' */
        for (int r = 0; r < R; r++) {
            const uint16_t *scales = (const uint16_t *)p->scales + (n + r * row_stride) * groups + from;
            vf scale = groups < CG_LANES ? vf_load_as_n(CG_BF16, scales, 0, groups) : vf_load_bf16(scales);
            for (int m = 0; m < M; m++) vf_store(factor[r][m], scale * vf_load(x_scales[m] + from));
        }
        for (int64_t g = 0; g < lanes; g++, w += group_bytes)
            for (int r0 = 0; r0 < R; r0 += pair) {
                int8_weights wide[INT8_PAIR][INT8_VECTORS];
                for (int r = 0; r < pair; r++) {
                    const uint8_t *at = w + (r0 + r) * row_stride * row_bytes;
                    __builtin_prefetch(at + INT8_AHEAD_BYTES, 0, 3);
                    for (int v = 0; v < INT8_VECTORS; v++) wide[r][v] = int8_load(dtype, at, v);
                }
                for (int m = 0; m < M; m++) {
                    vi dot[INT8_PAIR];
                    int8_dots(B, pair, dot, wide, x[m] + (g0 + g) * CG_INT8_GROUP * B);
                    for (int r = 0; r < pair; r++) {
                        vf by = vf_set(factor[r0 + r][m][g0 - from + g]);
                        sum[r0 + r][m] = vf_fma(__builtin_convertvector(dot[r], vf), by, sum[r0 + r][m]);
                    }
                }
            }
    }
    dot_finish(R, M, p, t, n, row_stride, sum[0], INT8_TOKENS);
}

/* Tokens t .. t1-1. */
CG_INLINE void int8_tokens(const cg_dtype dtype, const int B, const int R, const cg_product *p, int64_t n,
                           int64_t row_stride, int64_t t, int64_t t1) {
    for (; t + INT8_TOKENS <= t1; t += INT8_TOKENS) int8_block(dtype, B, R, INT8_TOKENS, p, n, row_stride, t);
    for (; t + 2 <= t1; t += 2) int8_block(dtype, B, R, 2, p, n, row_stride, t);
    for (; t < t1; t++) int8_block(dtype, B, R, 1, p, n, row_stride, t);
}

CG_INLINE void int8_rows(const cg_dtype dtype, const int B, const cg_product *p, int64_t n0, int64_t n1) {
    int64_t block = cg_max(INT8_TOKENS, INT8_BLOCK_BYTES / int8_packed_row(B, p->K) / INT8_TOKENS * INT8_TOKENS),
            n = n0;
    /* four streams give more of the memory's bandwidth than one, and a token is loaded once for four rows */
    if (p->T == 1) {
        int64_t row_stride = (n1 - n0) / INT8_ROWS;
        for (; n < n0 + row_stride; n++) int8_block(dtype, B, INT8_ROWS, 1, p, n, row_stride, 0);
        n = n0 + INT8_ROWS * row_stride;
    }
    for (int64_t t0 = 0, first = n; t0 < p->T; t0 += block) {
        int64_t t1 = cg_min(t0 + block, p->T);
        int64_t row_stride = (n1 - first) / INT8_PAIR;
        for (n = first; n < first + row_stride; n++) int8_tokens(dtype, B, INT8_PAIR, p, n, row_stride, t0, t1);
        for (n = first + INT8_PAIR * row_stride; n < n1; n++) int8_tokens(dtype, B, 1, p, n, 0, t0, t1);
    }
}

#define INT8(name, dtype, B, ...) \
    static int64_t CG_NAME(name##_packed_bytes)(int64_t T, int64_t K) { return T * int8_packed_row(B, K); } \
    static void CG_NAME(name##_pack)(void *packed, const cg_rows *x, CG_UNUSED int64_t T, int64_t K, int64_t t0, \
                                     int64_t t1) { \
        int8_pack(B, packed, x, K, t0, t1); \
    } \
    static void CG_NAME(name##_panel)(const cg_product *p, int64_t n0, int64_t n1) { int8_rows(dtype, B, p, n0, n1); } \
    static cg_linear CG_NAME(linear_##name) = {.packed_bytes = CG_NAME(name##_packed_bytes), \
                                               .pack = CG_NAME(name##_pack), \
                                               .panel = CG_NAME(name##_panel), \
                                               __VA_ARGS__};
INT8(int8_a16, CG_INT8, 2)
INT8(int4_a16, CG_INT4, 2)
#ifdef CG_HAS_DOTPROD
INT8(int8_a8_few, CG_INT8, 1, .min_tokens = 6, .max_tokens = 8)
#endif
#undef INT8
