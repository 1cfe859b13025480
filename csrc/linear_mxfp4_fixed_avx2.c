/* linear_mxfp4_fixed for AVX2: vpshufb looks up twice a weight as a byte, interleaved with zeros it is 512 times the
   weight in 16 bits, vpmaddwd multiplies it with the activations: about 25 instructions for 64 weights (two groups),
   where exact f32 takes 46. A lane sums 8 products of at most 3072 * 32767, which an int32 holds. */
#include "dot.h"
#include "fixed.h"

enum { FIXED_TOKENS = 4, FIXED_AHEAD_BYTES = 2048 };

CG_INLINE void fixed_block(const int M, __m256i codes, __m256 scale, const char *const *x, __m256 *sum) {
    const __m256i doubled = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12));
    const __m256i nibble = _mm256_set1_epi8(15), zero = _mm256_setzero_si256();
    __m256i even = _mm256_shuffle_epi8(doubled, _mm256_and_si256(codes, nibble));
    __m256i odd = _mm256_shuffle_epi8(doubled, _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble));
    __m256i w[4] = {_mm256_unpacklo_epi8(zero, even), _mm256_unpackhi_epi8(zero, even),
                    _mm256_unpacklo_epi8(zero, odd), _mm256_unpackhi_epi8(zero, odd)};
    for (int m = 0; m < M; m++) {
        __m256i dot = zero;
        for (int v = 0; v < 4; v++)
            dot = _mm256_add_epi32(dot, _mm256_madd_epi16(w[v], _mm256_loadu_si256((const __m256i *)(x[m] + 32 * v))));
        __m256 steps = _mm256_mul_ps(scale, _mm256_loadu_ps((const float *)(x[m] + FIXED_BLOCK * 2)));
        sum[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), steps, sum[m]);
    }
}

/* Two groups' scales, each in four lanes, from two bytes. Scale 0 is the denormal 2^-127. */
CG_INLINE __m256 fixed_scales(uint32_t two) {
    const __m256i spread = _mm256_setr_epi8(0, -1, -1, -1, 0, -1, -1, -1, 0, -1, -1, -1, 0, -1, -1, -1,
                                            1, -1, -1, -1, 1, -1, -1, -1, 1, -1, -1, -1, 1, -1, -1, -1);
    __m256i exponent = _mm256_shuffle_epi8(_mm256_set1_epi32((int)two), spread);
    return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_slli_epi32(exponent, 23), _mm256_set1_epi32(0x00400000)));
}

CG_INLINE void fixed_tokens(const int M, const cg_product *p, int64_t n, int64_t t) {
    int64_t groups = p->K / CG_MXFP4_GROUP, row_bytes = fixed_row_bytes(p->K);
    const uint8_t *w = p->w + n * groups * CG_MXFP4_GROUP_BYTES, *scales = p->scales + n * groups;
    const char *x[FIXED_TOKENS];
    __m256 sum[FIXED_TOKENS];
    for (int m = 0; m < M; m++) {
        x[m] = (const char *)p->x + (t + m) * row_bytes;
        sum[m] = _mm256_setzero_ps();
    }
    for (int64_t g = 0; g + 2 <= groups; g += 2, w += 2 * CG_MXFP4_GROUP_BYTES) {
        uint16_t two;
        __builtin_prefetch(w + FIXED_AHEAD_BYTES, 0, 3);
        memcpy(&two, scales + g, 2);
        fixed_block(M, _mm256_loadu_si256((const __m256i *)w), fixed_scales(two), x, sum);
        for (int m = 0; m < M; m++) x[m] += FIXED_BLOCK_BYTES;
    }
    if (groups % 2)
        fixed_block(M, _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *)w)), fixed_scales(scales[groups - 1]), x,
                    sum);
    for (int m = 0; m < M; m++) dot_finish(1, p, t + m, n, (const vf *)&sum[m]);
}

static void fixed_panel_hand__avx2(const cg_product *p, int64_t n0, int64_t n1) {
    for (int64_t n = n0; n < n1; n++) {
        int64_t t = 0;
        for (; t + FIXED_TOKENS <= p->T; t += FIXED_TOKENS) fixed_tokens(FIXED_TOKENS, p, n, t);
        for (; t + 2 <= p->T; t += 2) fixed_tokens(2, p, n, t);
        for (; t < p->T; t++) fixed_tokens(1, p, n, t);
    }
}

static cg_linear fixed_linear__avx2 = {fixed_packed_bytes__avx2, fixed_pack__avx2, fixed_panel_hand__avx2};
