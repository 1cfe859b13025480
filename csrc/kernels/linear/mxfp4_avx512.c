/* linear_mxfp4 for AVX-512: f32 activations times the weights' exact values, straight from the stored nibbles.

   vpermps uses only the low 4 bits of each 32-bit lane. So with the 16 E2M1 values as its table, v, v >> 4, .., v >> 28
   can be its indices: 7 shifts, 8 lookups and 8 FMAs for 128 weights. Lane l of the n-th lookup is weight 8 l + n of
   the 128, so the activations are transposed from [16, 8] to [8, 16] once for each call. Four lanes belong to one
   group, so one more FMA applies the scales of four groups. Each output keeps its own order, so one token or many
   (dot.h) give the same bits. */
#include "kernels/linear/dot.h"

enum { MX_AHEAD_BYTES = 2048, MX_AHEAD_TOKENS = 4 };

CG_INLINE void mx_order(void *out, const float *x, int64_t count) {
    float *to = out;
    for (int64_t k = 0; k < count; k += 128)
        for (int n = 0; n < 8; n++)
            for (int l = 0; l < 16; l++) to[k + n * 16 + l] = k + 8 * l + n < count ? x[k + 8 * l + n] : 0.f;
}

/* The weights of a block, unscaled, in the order of mx_order, and their scales, each in its group's four lanes. A row's
   last block may have fewer than four groups. Scale 0 is the denormal 2^-127. */
CG_INLINE vf mx_weights(vf *w, const uint8_t *codes, const uint8_t *scales, int64_t groups) {
    static const float values[16] = {CG_E2M1_VALUES};
    const __m128i spread = _mm_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    uint32_t four = 0;
    if (groups == 4) memcpy(&four, scales, sizeof four); /* a copy of variable length is a call */
    else memcpy(&four, scales, (size_t)groups);
    vu v = (vu)(groups == 4 ? _mm512_loadu_si512(codes)
                            : _mm512_maskz_loadu_epi32((__mmask16)((1u << 4 * groups) - 1), codes));
    for (int i = 0; i < 8; i++) w[i] = (vf)_mm512_permutexvar_ps((__m512i)(v >> 4 * i), (__m512)vf_load(values));
    vi exponent = (vi)_mm512_cvtepu8_epi32(_mm_shuffle_epi8(_mm_cvtsi32_si128((int)four), spread));
    return (vf)_mm512_max_epi32((__m512i)(exponent << 23), (__m512i)((vi){0} + 0x00400000));
}
