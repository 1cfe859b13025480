/* linear_mxfp4 for AVX2 and NEON: f32 activations times the weights' exact values, straight from the stored nibbles.

   vpshufb or tbl looks up the high and the low byte of each value as bf16. Interleaved and shifted they are floats:
   about 27 instructions for a block of 64 weights with AVX2 (two groups), of 32 with NEON (one), 8 of them FMAs. Lane
   4 g + i of vector v = 4 h + q of a block has weight 32 g + 16 h + 4 i + q; the activations are packed in that order
   once for each call. One FMA applies the scales. One row is multiplied by 4 tokens. Each output keeps its own order,
   so one token or many give the same bits. */
#include "kernels/linear/dot.h"
#include "kernels/linear/lookup.h"

enum { MX_AHEAD_BYTES = 1024, MX_AHEAD_TOKENS = 1 };

CG_INLINE void mx_order(void *out, const float *x, int64_t count) {
    float *to = out;
    for (int64_t k = 0; k < count; k += 8 * CG_LANES)
        for (int v = 0; v < 8; v++)
            for (int lane = 0; lane < CG_LANES; lane++) {
                int64_t at = k + 32 * (lane / 4) + 16 * (v / 4) + 4 * (lane % 4) + v % 4;
                to[k + v * CG_LANES + lane] = at < count ? x[at] : 0.f;
            }
}

/* The weights of a block, unscaled, in the order of mx_order, and their scales, each in its group's four lanes. A row's
   last block may have one group. Scale 0 is the denormal 2^-127. */
CG_INLINE vf mx_weights(vf *w, const uint8_t *codes, const uint8_t *scales, CG_UNUSED int64_t groups) {
    static const uint8_t tops[16] = {0,    0x3f, 0x3f, 0x3f, 0x40, 0x40, 0x40, 0x40,
                                     0x80, 0xbf, 0xbf, 0xbf, 0xc0, 0xc0, 0xc0, 0xc0};
    static const uint8_t bottoms[16] = {0, 0, 0x80, 0xc0, 0, 0x40, 0x80, 0xc0, 0, 0, 0x80, 0xc0, 0, 0x40, 0x80, 0xc0};
    const vu high = vu_repeat(tops), low = vu_repeat(bottoms);
#if CG_LANES == 8
    vu both = (vu)(groups == 2 ? vi_load(codes) : (vi)_mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *)codes)));
    vi exponent = (vi)_mm256_setr_m128i(_mm_set1_epi32(scales[0]), _mm_set1_epi32(groups == 2 ? scales[1] : 0));
    vf scale = (vf)_mm256_max_epi32((__m256i)(exponent << 23), _mm256_set1_epi32(0x00400000));
#else
    vu both = (vu)vi_load(codes);
    vf scale = vf_set(cg_e8m0_to_f32(*scales));
#endif
    vu nibbles[2] = {both & 0x0f0f0f0f, vu_upper(both)};
    vu bf16[2][2]; /* [half of the group][low or high nibble] */
    for (int i = 0; i < 2; i++) {
        vu top = vu_lookup(high, nibbles[i]), bottom = vu_lookup(low, nibbles[i]);
        bf16[0][i] = vu_zip_first(bottom, top);
        bf16[1][i] = vu_zip_last(bottom, top);
    }
    for (int v = 0; v < 8; v++) {
        vu pairs = bf16[v / 4][v % 2];
        w[v] = (vf)(v % 4 < 2 ? pairs << 16 : pairs & 0xffff0000);
    }
    return scale;
}
