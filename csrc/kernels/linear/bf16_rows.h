/* Rows of bf16 for the tile kernels: decoded MXFP4 and INT8 weights, rounded activations. By AVX-512. */
#pragma once

#include "kernels/linear/dot.h"
#include "kernels/linear/int8.h"

/* 32 floats to bf16, ties to even, NaN kept. */
CG_INLINE __m512i bf16_round(vf low, vf high) { return (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low); }

/* `count` floats of a row to bf16, zeros up to the multiple of 32. */
CG_INLINE void bf16_row(void *out, const float *x, int64_t count) {
    for (int64_t k = 0; k < count; k += 32) {
        int64_t low = cg_min(count - k, 16), high = cg_max(0, cg_min(count - k - 16, 16));
        _mm512_storeu_si512((uint16_t *)out + k, bf16_round(vf_load_n(x + k, low), vf_load_n(x + k + 16, high)));
    }
}

/* Packs tokens as [T / 16][k-steps][16] pairs of bf16, with zeros beyond T and K. */
CG_INLINE void bf16_pack(int64_t steps, void *packed, const cg_rows *x, int64_t T, int64_t K, int64_t t0, int64_t t1) {
    for (int64_t t = t0; t < cg_round_up(t1, 16); t++) {
        uint32_t *to = (uint32_t *)packed + t / 16 * 16 * steps + t % 16, pairs[16] = {0};
        for (int64_t s = 0; s < steps; s += 16) {
            if (t < T) bf16_row(pairs, cg_row_of(x, t) + 2 * s, cg_min(K - 2 * s, 32));
            for (int64_t i = 0; i < cg_min(16, steps - s); i++) to[(s + i) * 16] = pairs[i];
        }
    }
}

/* 32 E2M1 codes times 2^(scale - 127), exact in bf16. vpermw looks up the low 5 bits of a 16-bit lane, so the table
   holds the 16 values twice and bit 4 may be anything. Lane e gets word e/4 of the group, shifted by 4 (e % 4). */
CG_INLINE __m512i bf16_from_mxfp4(const uint8_t *group, uint8_t scale) {
    if ((uint8_t)(scale - 2) > 248) { /* the exponent would leave bf16's normal range */
        uint16_t out[32];
        static const float values[16] = {CG_E2M1_VALUES};
        float s = cg_e8m0_to_f32(scale);
        for (int j = 0; j < 16; j++) {
            out[2 * j] = cg_f32_to_bf16(values[group[j] & 15] * s);
            out[2 * j + 1] = cg_f32_to_bf16(values[group[j] >> 4] * s);
        }
        return _mm512_loadu_si512(out);
    }
    const __m512i words =
        _mm512_set_epi64(0x0f0e0f0e0f0e0f0e, 0x0d0c0d0c0d0c0d0c, 0x0b0a0b0a0b0a0b0a, 0x0908090809080908,
                         0x0706070607060706, 0x0504050405040504, 0x0302030203020302, 0x0100010001000100);
    const __m512i shifts = _mm512_set1_epi64(0x000c000800040000);
    static const uint16_t half[16] = {0,      0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0,
                                      0x8000, 0xbf00, 0xbf80, 0xbfc0, 0xc000, 0xc040, 0xc080, 0xc0c0};
    const __m512i table = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)half));
    __m512i v = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)group));
    const __mmask32 nonzero = 0xfefefefe; /* entries 0 and 8 are zeros */
    __m512i scaled = _mm512_mask_add_epi16(table, nonzero, table, (__m512i)((vs){0} + (int16_t)((scale - 127) * 128)));
    return _mm512_permutexvar_epi16(_mm512_srlv_epi16(_mm512_shuffle_epi8(v, words), shifts), scaled);
}

/* BF16 weights k0 <= k < k1 of row n, with zeros up to the multiple of 32. */
CG_INLINE void bf16_decode_bf16(void *out, const cg_product *p, int64_t n, int64_t k0, int64_t k1) {
    memcpy(out, p->w + (n * p->K + k0) * 2, (size_t)(k1 - k0) * 2);
    if (k1 % 32) memset((uint16_t *)out + k1 - k0, 0, (size_t)(32 - k1 % 32) * 2);
}

/* BF16_PACKED weights k0 <= k < k1 of row n as bf16, up to a whole block; k0 is a multiple of one. */
CG_INLINE void bf16_decode_bf16_packed(void *out, const cg_product *p, int64_t n, int64_t k0, int64_t k1) {
    const uint8_t *row = p->w + n * cg_row_bytes(CG_BF16_PACKED, p->K), *stored = packed_as_stored(p, n);
    if (stored) {
        cg_product plain = packed_row_product(p, n, stored);
        bf16_decode_bf16(out, &plain, 0, k0, k1);
        return;
    }
    uint16_t order[32]; /* weight 16 o + l of half a block is the half o of pair l */
    for (int i = 0; i < 32; i++) order[i] = (uint16_t)(i % 16 * 2 + i / 16);
    const __m512i in_order = _mm512_loadu_si512(order);
    uint16_t *to = out;
    packed_table t = packed_table_of(row, k0);
    for (int64_t k = k0; k < k1; k += CG_PACKED_BLOCK, to += CG_PACKED_BLOCK) {
        vu pairs[PACKED_PAIRS];
        if (k % CG_PACKED_RUN == 0) t = packed_table_of(row, k);
        packed_pairs(pairs, &t, packed_block(row, p->K, k));
        for (int i = 0; i < 2; i++)
            _mm512_storeu_si512(to + 32 * i, _mm512_permutexvar_epi16(in_order, (__m512i)pairs[i]));
    }
}

/* MXFP4 weights k0 <= k < k1 of row n as bf16. */
CG_INLINE void bf16_decode_mxfp4(void *out, const cg_product *p, int64_t n, int64_t k0, int64_t k1) {
    int64_t first = n * (p->K / CG_MXFP4_GROUP) + k0 / CG_MXFP4_GROUP;
    for (int64_t g = 0; g < (k1 - k0) / CG_MXFP4_GROUP; g++)
        _mm512_storeu_si512((uint16_t *)out + g * CG_MXFP4_GROUP,
                            bf16_from_mxfp4(p->w + (first + g) * CG_MXFP4_GROUP_BYTES, p->scales[first + g]));
}

/* INT8 weights k0 <= k < k1 of row n, and the zeros up to a whole group, rounded to bf16. */
CG_INLINE void bf16_decode_int8(void *out, const cg_product *p, int64_t n, int64_t k0, int64_t k1) {
    const uint8_t *row = p->w + n * cg_row_bytes(CG_INT8, p->K);
    uint16_t *to = out;
    for (int64_t k = k0; k < cg_round_up(k1, CG_INT8_GROUP); k += 32, to += 32) {
        float scale = int8_scale(p, n, k / CG_INT8_GROUP);
        _mm512_storeu_si512(to, bf16_round(vf_load_i8(row + k) * scale, vf_load_i8(row + k + 16) * scale));
    }
}
