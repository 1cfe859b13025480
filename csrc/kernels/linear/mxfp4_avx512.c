/* linear_mxfp4 for AVX-512: f32 activations times the weights' exact values, straight from the stored nibbles.

   vpermps uses only the low 4 bits of each 32-bit lane. So with the 16 E2M1 values as its table, v, v >> 4, .., v >> 28
   can be its indices: 7 shifts, 8 lookups and 8 FMAs for 128 weights. Lane l of the n-th lookup is weight 8 l + n of
   the 128, so the activations are transposed from [16, 8] to [8, 16] once for each call. Four lanes belong to one
   group, so one more FMA applies the scales of four groups. Each output keeps its own order, so one token or many
   (dot.h) give the same bits. */
#include "kernels/linear/dot.h"

enum { MX_BLOCK = 128, MX_AHEAD_BYTES = 2048, MX_TOKENS = 4 };

CG_INLINE void mx_order(void *out, const float *x, int64_t count) {
    float *to = out;
    for (int64_t k = 0; k < count; k += MX_BLOCK)
        for (int n = 0; n < 8; n++)
            for (int l = 0; l < 16; l++) to[k + n * 16 + l] = k + 8 * l + n < count ? x[k + 8 * l + n] : 0.f;
}

/* The scales of four groups, each in its group's four lanes; `groups` < 4 in a row's last block. */
CG_INLINE __m512 mx_scales(const uint8_t *scales, int64_t groups) {
    uint32_t four = 0;
    if (groups == 4) memcpy(&four, scales, sizeof four); /* a copy of variable length is a call */
    else memcpy(&four, scales, (size_t)groups);
    const __m128i spread = _mm_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    __m512i exponent = _mm512_cvtepu8_epi32(_mm_shuffle_epi8(_mm_cvtsi32_si128((int)four), spread));
    /* scale 0 is the denormal 2^-127 */
    return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_slli_epi32(exponent, 23), _mm512_set1_epi32(0x00400000)));
}

/* The block of weights k .. k+127 of row n, unscaled, in the order of mx_order, and its scales; a row's last block may
   have fewer groups. */
CG_INLINE __m512 mx_weights(__m512 *w, const cg_product *p, int64_t n, int64_t k) {
    static const float e2m1[16] = {CG_E2M1_VALUES};
    const __m512 values = _mm512_loadu_ps(e2m1);
    int64_t groups = p->K / CG_MXFP4_GROUP, g = k / CG_MXFP4_GROUP, left = cg_min(groups - g, 4);
    const uint8_t *at = p->w + (n * groups + g) * CG_MXFP4_GROUP_BYTES;
    __m512i codes =
        left == 4 ? _mm512_loadu_si512(at) : _mm512_maskz_loadu_epi32((__mmask16)((1u << 4 * left) - 1), at);
    for (int i = 0; i < 8; i++) w[i] = _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4 * i), values);
    return mx_scales(p->scales + n * groups + g, left);
}

CG_INLINE void mx_decode(void *out, const cg_product *p, int64_t n, int64_t k0, int64_t k1) {
    for (int64_t k = k0; k < k1; k += MX_BLOCK) {
        __m512 w[8], scale = mx_weights(w, p, n, k);
        for (int i = 0; i < 8; i++) ((vf *)out)[(k - k0) / 16 + i] = (vf)_mm512_mul_ps(w[i], scale);
    }
}

/* One row for M tokens. */
CG_INLINE void mx_row(const int M, const cg_product *p, int64_t n, int64_t t) {
    const uint8_t *blocks = p->w + n * (p->K / 2);
    const float *x[MX_TOKENS];
    __m512 sum[MX_TOKENS];
    for (int m = 0; m < M; m++) {
        x[m] = (const float *)((const char *)p->x + (t + m) * dot_row_bytes(DOT_GROUPED, p->K));
        sum[m] = _mm512_setzero_ps();
    }
    for (int64_t k = 0; k < p->K; k += MX_BLOCK) {
        __m512 w[8], scale = mx_weights(w, p, n, k), part[MX_TOKENS];
        _mm_prefetch((const char *)blocks + k / 2 + MX_AHEAD_BYTES, _MM_HINT_T0);
        for (int m = 0; m < M; m++) part[m] = _mm512_mul_ps(w[0], _mm512_loadu_ps(x[m] + k));
        for (int i = 1; i < 8; i++)
            for (int m = 0; m < M; m++) part[m] = _mm512_fmadd_ps(w[i], _mm512_loadu_ps(x[m] + k + 16 * i), part[m]);
        for (int m = 0; m < M; m++) sum[m] = _mm512_fmadd_ps(part[m], scale, sum[m]);
    }
    for (int m = 0; m < M; m++) dot_finish(1, p, t + m, n, (const vf *)&sum[m]);
}
