/* linear_mxfp4 for AVX2: f32 activations times the weights' exact values, straight from the stored nibbles.

   vpshufb looks up the high and the low byte of each value as bf16. Interleaved and shifted they are floats: about 27
   instructions for 64 weights (two groups), 8 of them FMAs. Lane 4 g + i of vector v = 4 h + q of a block has weight
   32 g + 16 h + 4 i + q; the activations are packed in that order once for each call. One FMA applies both scales.
   One row is multiplied by 4 tokens. Each output keeps its own order, so one token or many give the same bits. */
#include "kernels/linear/dot.h"

enum { MX_BLOCK = 64, MX_BLOCK_BYTES = 32, MX_AHEAD_BYTES = 1024, MX_TOKENS = 4 };

CG_INLINE void mx_order(void *out, const float *x, int64_t count) {
    float *to = out;
    for (int64_t k = 0; k < count; k += MX_BLOCK)
        for (int v = 0; v < 8; v++)
            for (int lane = 0; lane < 8; lane++) {
                int64_t at = k + 32 * (lane / 4) + 16 * (v / 4) + 4 * (lane % 4) + v % 4;
                to[k + v * 8 + lane] = at < count ? x[at] : 0.f;
            }
}

/* Two groups' scales, each in four lanes. Scale 0 is the denormal 2^-127. */
CG_INLINE __m256 mx_scales(uint8_t first, uint8_t second) {
    __m256i exponent = _mm256_setr_m128i(_mm_set1_epi32(first), _mm_set1_epi32(second));
    return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_slli_epi32(exponent, 23), _mm256_set1_epi32(0x00400000)));
}

/* The even (odd = 0) or the odd words of u as floats, eight weights. */
CG_INLINE __m256 mx_floats(__m256i u, const int odd) {
    return _mm256_castsi256_ps(odd ? _mm256_and_si256(u, _mm256_set1_epi32((int)0xffff0000))
                                   : _mm256_slli_epi32(u, 16));
}

/* The 64 weights of a block, unscaled, in the order of mx_order. */
CG_INLINE void mx_weights(__m256 *w, __m256i codes) {
    const __m256i high = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0x3f, 0x3f, 0x3f, 0x40, 0x40, 0x40, 0x40,
                                                                   (char)0x80, (char)0xbf, (char)0xbf, (char)0xbf,
                                                                   (char)0xc0, (char)0xc0, (char)0xc0, (char)0xc0));
    const __m256i low =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, (char)0x80, (char)0xc0, 0, 0x40, (char)0x80, (char)0xc0, 0, 0,
                                                  (char)0x80, (char)0xc0, 0, 0x40, (char)0x80, (char)0xc0));
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i n[2] = {_mm256_and_si256(codes, nibble), _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble)};
    __m256i bf16[2][2]; /* [half of the group][low or high nibble] */
    for (int i = 0; i < 2; i++) {
        __m256i top = _mm256_shuffle_epi8(high, n[i]), bottom = _mm256_shuffle_epi8(low, n[i]);
        bf16[0][i] = _mm256_unpacklo_epi8(bottom, top);
        bf16[1][i] = _mm256_unpackhi_epi8(bottom, top);
    }
    for (int v = 0; v < 8; v++) w[v] = mx_floats(bf16[v / 4][v % 2], v % 4 / 2);
}

/* sum[m] += the block of 64 weights `codes` times the tokens' activations at k. */
CG_INLINE void mx_block(const int M, __m256i codes, __m256 scale, const float *const *x, int64_t k, __m256 *sum) {
    __m256 w[8], part[MX_TOKENS];
    mx_weights(w, codes);
    for (int v = 0; v < 8; v++)
        for (int m = 0; m < M; m++) {
            __m256 xv = _mm256_loadu_ps(x[m] + k + 8 * v);
            part[m] = v ? _mm256_fmadd_ps(w[v], xv, part[m]) : _mm256_mul_ps(w[v], xv);
        }
    for (int m = 0; m < M; m++) sum[m] = _mm256_fmadd_ps(part[m], scale, sum[m]);
}

CG_INLINE void mx_decode(void *out, const cg_product *p, int64_t n, int64_t k0, int64_t k1) {
    int64_t groups = p->K / CG_MXFP4_GROUP;
    const uint8_t *blocks = p->w + n * groups * CG_MXFP4_GROUP_BYTES, *scales = p->scales + n * groups;
    for (int64_t k = k0; k < k1; k += MX_BLOCK) {
        int64_t g = k / CG_MXFP4_GROUP;
        int whole = k + MX_BLOCK <= k1;
        __m256i codes = whole ? _mm256_loadu_si256((const __m256i *)(blocks + k / 2))
                              : _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *)(blocks + k / 2)));
        __m256 scale = mx_scales(scales[g], whole ? scales[g + 1] : 0), w[8];
        mx_weights(w, codes);
        for (int v = 0; v < 8; v++) _mm256_store_ps((float *)out + (k - k0) + 8 * v, _mm256_mul_ps(w[v], scale));
    }
}

CG_INLINE void mx_row(const int M, const cg_product *p, int64_t n, int64_t t) {
    int64_t groups = p->K / CG_MXFP4_GROUP, whole = p->K / MX_BLOCK * MX_BLOCK;
    const uint8_t *blocks = p->w + n * groups * CG_MXFP4_GROUP_BYTES, *scales = p->scales + n * groups;
    const float *x[MX_TOKENS];
    __m256 sum[MX_TOKENS];
    for (int m = 0; m < M; m++) {
        x[m] = (const float *)((const char *)p->x + (t + m) * dot_row_bytes(DOT_GROUPED, p->K));
        sum[m] = _mm256_setzero_ps();
    }
    for (int64_t k = 0; k < whole; k += MX_BLOCK) {
        const uint8_t *s = scales + k / CG_MXFP4_GROUP;
        if (M == 1) _mm_prefetch((const char *)blocks + k / 2 + MX_AHEAD_BYTES, _MM_HINT_T0);
        mx_block(M, _mm256_loadu_si256((const __m256i *)(blocks + k / 2)), mx_scales(s[0], s[1]), x, k, sum);
    }
    if (whole < p->K) {
        __m256i codes = _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *)(blocks + whole / 2)));
        mx_block(M, codes, mx_scales(scales[groups - 1], 0), x, whole, sum);
    }
    for (int m = 0; m < M; m++) dot_finish(1, p, t + m, n, (const vf *)&sum[m]);
}
