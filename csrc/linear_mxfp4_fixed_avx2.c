/* linear_mxfp4_fixed for AVX2: vpshufb looks up twice a weight as a byte; the byte at the top of 16 bits is 256 times
   that, a shift brings its neighbour there, and vpmaddwd multiplies with the activations: 21 instructions for 64 weights
   (two groups) and one token, 10 for each further token. A lane sums 8 products of at most 3072 * 32767, which an int32
   holds and a float has exactly. One token or many: the same bits. */
#include "dot.h"
#include "fixed.h"

enum {
    FIXED_TOKENS = 4,          /* that share a row's weights in registers, and stay in the first-level cache */
    FIXED_AHEAD_BYTES = 2048,
    FIXED_EIGHT = 8,           /* groups */
    FIXED_CODES = FIXED_EIGHT * CG_MXFP4_GROUP_BYTES,
};

/* Packed activations of eight groups, steps in the order 0 2 4 6 1 3 5 7: pair p is lane p of both halves. */
typedef struct {
    int16_t q[FIXED_EIGHT / 2][4][16];  /* [pair of groups][element % 4][group][element / 4] */
    float step[FIXED_EIGHT];            /* over 512, which the weights are multiplied by */
} fixed_eight;

CG_INLINE int64_t fixed_eights(int64_t K) { return (K / CG_MXFP4_GROUP + FIXED_EIGHT - 1) / FIXED_EIGHT; }

static int64_t fixed_packed_bytes_hand__avx2(int64_t T, int64_t K) {
    return cg_round_up(T * fixed_eights(K) * (int64_t)sizeof(fixed_eight), 64);
}

static void fixed_pack_hand__avx2(void *packed, const cg_rows *x, int64_t T, int64_t K, int64_t t0, int64_t t1) {
    (void)T;
    int64_t eights = fixed_eights(K);
    for (int64_t t = t0; t < t1; t++)
        for (int64_t e = 0; e < eights; e++) {
            fixed_eight *to = (fixed_eight *)packed + t * eights + e;
            const float *from = cg_row_of(x, t) + e * FIXED_EIGHT * CG_MXFP4_GROUP;
            int groups = (int)cg_min(FIXED_EIGHT, K / CG_MXFP4_GROUP - e * FIXED_EIGHT);
            if (groups < FIXED_EIGHT) memset(to, 0, sizeof *to);
            for (int g = 0; g < groups; g++) {
                int32_t q[CG_MXFP4_GROUP];
                int16_t narrow[CG_MXFP4_GROUP];
                to->step[g % 2 * 4 + g / 2] = fixed_round(CG_MXFP4_GROUP, q, from + g * CG_MXFP4_GROUP) / 512.f;
                for (int i = 0; i < CG_MXFP4_GROUP; i++) narrow[i] = (int16_t)q[i];
                for (int c = 0; c < 4; c++)  /* GCC vectorises this, not the scattering of one i after the other */
                    for (int i = 0; i < 8; i++) to->q[g / 2][c][g % 2 * 8 + i] = narrow[4 * i + c];
            }
        }
}

/* Eight scales as floats, in the order of the steps. Scale 0 is the denormal 2^-127. */
CG_INLINE __m256 fixed_scales(uint64_t scales) {
    const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, -1, -1, -1, -1, -1, -1, -1, -1);
    __m256i exponent = _mm256_cvtepu8_epi32(_mm_shuffle_epi8(_mm_cvtsi64_si128((int64_t)scales), order));
    return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_slli_epi32(exponent, 23), _mm256_set1_epi32(0x00400000)));
}

/* Lane `pair` of both halves, four times each. */
CG_INLINE __m256 fixed_spread(__m256 v, const int pair) {
    switch (pair) {
    case 0: return _mm256_permute_ps(v, 0x00);
    case 1: return _mm256_permute_ps(v, 0x55);
    case 2: return _mm256_permute_ps(v, 0xaa);
    default: return _mm256_permute_ps(v, 0xff);
    }
}

/* sum[m] += two groups times the tokens' activations. */
CG_INLINE void fixed_pair(const int M, const int pair, __m256i codes, const fixed_eight *const *x, const __m256 *steps,
                          __m256 *sum) {
    const __m256i doubled = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12));
    const __m256i nibble = _mm256_set1_epi8(15), top = _mm256_set1_epi16((int16_t)0xff00);
    __m256i low = _mm256_shuffle_epi8(doubled, _mm256_and_si256(codes, nibble));
    __m256i high = _mm256_shuffle_epi8(doubled, _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble));
    __m256i w[4] = {_mm256_slli_epi16(low, 8), _mm256_slli_epi16(high, 8), _mm256_and_si256(low, top),
                    _mm256_and_si256(high, top)};
    for (int m = 0; m < M; m++) {
        __m256i product[4];
        for (int i = 0; i < 4; i++)
            product[i] = _mm256_madd_epi16(w[i], _mm256_loadu_si256((const __m256i *)x[m]->q[pair][i]));
        __m256i dot = _mm256_add_epi32(_mm256_add_epi32(product[0], product[1]),
                                       _mm256_add_epi32(product[2], product[3]));
        sum[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), fixed_spread(steps[m], pair), sum[m]);
    }
}

/* Up to eight groups, of which `scales` has the scales. */
CG_INLINE void fixed_groups(const int M, int64_t groups, const uint8_t *w, uint64_t scales, const fixed_eight *const *x,
                            __m256 *sum) {
    __m256 scale = fixed_scales(scales), steps[FIXED_TOKENS];
    for (int m = 0; m < M; m++) steps[m] = _mm256_mul_ps(scale, _mm256_loadu_ps(x[m]->step));
#pragma GCC unroll 4
    for (int pair = 0; pair < FIXED_EIGHT / 2; pair++) {
        const uint8_t *at = w + pair * 2 * CG_MXFP4_GROUP_BYTES;
        if (2 * pair + 1 < groups) fixed_pair(M, pair, _mm256_loadu_si256((const __m256i *)at), x, steps, sum);
        if (2 * pair + 1 == groups)
            fixed_pair(M, pair, _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *)at)), x, steps, sum);
    }
}

CG_INLINE void fixed_tokens(const int M, const cg_product *p, int64_t n, int64_t t) {
    int64_t groups = p->K / CG_MXFP4_GROUP, left = groups % FIXED_EIGHT;
    const uint8_t *w = p->w + n * groups * CG_MXFP4_GROUP_BYTES;
    const uint8_t *scales = p->scales + n * groups, *end = scales + groups;
    const fixed_eight *x[FIXED_TOKENS];
    __m256 sum[FIXED_TOKENS];
    uint64_t eight;
    for (int m = 0; m < M; m++) {
        x[m] = (const fixed_eight *)p->x + (t + m) * fixed_eights(p->K);
        sum[m] = _mm256_setzero_ps();
    }
    for (; scales + FIXED_EIGHT <= end; scales += FIXED_EIGHT, w += FIXED_CODES) {
        __builtin_prefetch(w + FIXED_AHEAD_BYTES, 0, 3);
        __builtin_prefetch(w + FIXED_AHEAD_BYTES + 64, 0, 3);
        memcpy(&eight, scales, sizeof eight);
        fixed_groups(M, FIXED_EIGHT, w, eight, x, sum);
        for (int m = 0; m < M; m++) x[m]++;
    }
    if (left) {  /* missing scales are 1: multiplying by the least one, a denormal, takes as long as eight groups */
        eight = 0;
        if (groups >= FIXED_EIGHT) memcpy(&eight, end - FIXED_EIGHT, sizeof eight), eight >>= 8 * (FIXED_EIGHT - left);
        else memcpy(&eight, scales, (size_t)left);
        fixed_groups(M, left, w, eight | 0x7f7f7f7f7f7f7f7fu << 8 * left, x, sum);
    }
    for (int m = 0; m < M; m++) dot_finish(1, p, t + m, n, (const vf *)&sum[m]);
}

static void fixed_panel_hand__avx2(const cg_product *p, int64_t n0, int64_t n1) {
    for (int64_t t = 0; t < p->T; t += FIXED_TOKENS)
        for (int64_t n = n0; n < n1; n++) switch (cg_min(p->T - t, FIXED_TOKENS)) {
            case 1: fixed_tokens(1, p, n, t); break;
            case 2: fixed_tokens(2, p, n, t); break;
            case 3: fixed_tokens(3, p, n, t); break;
            default: fixed_tokens(FIXED_TOKENS, p, n, t);
            }
}

static cg_linear fixed_linear__avx2 = {fixed_packed_bytes_hand__avx2, fixed_pack_hand__avx2, fixed_panel_hand__avx2};
