/* BF16_PACKED: bf16 in 12 bits, without loss. The exponents of a trained row spread over few binades: 1024 weights have
   16 different ones at the most nearly always. So a row is

     int32 stored   -1; or the number of the row among those that are stored as they are, since they have more
     (12 bytes)
     tables [K / 1024][16]: the exponents, ascending; unused entries are 0. Zeros up to a multiple of 32 bytes
     blocks [K / 64][96]: 64 bytes of sign and mantissa, 64 nibbles of indices into the table

   in one stream (two would be slower than bf16). Byte 16 q + 8 h + 2 j + o of a block has weight 32 h + 16 o + 4 q + j,
   so that interleaved bytes, shifted, are vectors of weights in their order, at any width. Nibble i is in the low half
   of byte i, nibble 32 + i in its high half. K is padded to whole blocks by values that are finite. */
#pragma once

#include "simd/vec.h"
#include "cgpt.h"

enum {
    PACKED_PAIRS = 32 / CG_LANES, /* vectors of pairs of bf16 of a block */
    PACKED_HALF = 32,             /* weights that may be decoded without the rest of their block */
    PACKED_TABLES = 16,           /* bytes before them */
};

/* The number of the row among those stored as they are, or -1. */
CG_INLINE int64_t packed_stored(const uint8_t *row) {
    int32_t stored;
    memcpy(&stored, row, sizeof stored);
    return stored;
}

CG_INLINE const uint8_t *packed_block(const uint8_t *row, int64_t K, int64_t k) {
    return row + cg_packed_head_bytes(K) + k / CG_PACKED_BLOCK * CG_PACKED_BLOCK_BYTES;
}

/* The product of row n alone, which is not packed but stored as bf16 at w. */
CG_INLINE cg_product packed_row_product(const cg_product *p, int64_t n, const void *w) {
    cg_product row = *p;
    row.w = w;
    if (p->bias) row.bias += n;
    row.y += n;
    return row;
}

/* Where row n is stored as it is, or NULL. */
CG_INLINE const uint8_t *packed_as_stored(const cg_product *p, int64_t n) {
    int64_t stored = packed_stored(p->w + n * cg_row_bytes(CG_BF16_PACKED, p->K));
    return stored < 0 ? NULL : p->scales + stored * p->K * 2;
}

/* Two lookups of an index: the bits of the exponent in the high byte of a bf16, and the one in its low byte. */
#if defined(CG_HAS_NEON)
typedef struct {
    uint8x16_t high, low;
} packed_table;
#elif CG_LANES == 4
typedef struct {
    uint8_t high[CG_PACKED_EXPONENTS], low[CG_PACKED_EXPONENTS];
} packed_table;
#else
typedef struct {
    vmi high, low;
} packed_table;
#endif

/* The table of weights k .. of a row. */
CG_INLINE packed_table packed_table_of(const uint8_t *row, int64_t k) {
    const uint8_t *exponents = row + PACKED_TABLES + k / CG_PACKED_RUN * CG_PACKED_EXPONENTS;
    packed_table t;
#if defined(CG_HAS_NEON)
    t.high = vshrq_n_u8(vld1q_u8(exponents), 1);
    t.low = vshlq_n_u8(vld1q_u8(exponents), 7);
#elif CG_LANES == 4
    for (int i = 0; i < CG_PACKED_EXPONENTS; i++) {
        t.high[i] = exponents[i] >> 1;
        t.low[i] = (uint8_t)(exponents[i] << 7);
    }
#else
    __m128i e = _mm_loadu_si128((const __m128i *)exponents);
#if CG_LANES == 16
    vu all = (vu)_mm512_broadcast_i32x4(e);
#else
    vu all = (vu)_mm256_broadcastsi128_si256(e);
#endif
    t.high = (vmi)(all >> 1 & 0x7f7f7f7f);
    t.low = (vmi)(all << 7 & 0x80808080);
#endif
    return t;
}

/* A block as pairs of bf16: pair l of vector 16 / CG_LANES * h + i has weights 32 h + CG_LANES i + l and, in its high
   half, 16 more. */
CG_INLINE void packed_pairs(vu *pairs, const packed_table *t, const uint8_t *block) {
#if CG_LANES == 16
    const __m512i shifts = _mm512_set_epi64(4, 4, 4, 4, 0, 0, 0, 0);
    vu bytes = (vu)_mm512_loadu_si512(block);
    __m512i nibbles = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(block + CG_PACKED_BLOCK)));
    __m512i index = (__m512i)((vu)_mm512_srlv_epi64(nibbles, shifts) & 0x0f0f0f0f);
    __m512i high = (__m512i)((bytes & 0x80808080) | (vu)_mm512_shuffle_epi8(t->high, index));
    __m512i low = (__m512i)((bytes & 0x7f7f7f7f) | (vu)_mm512_shuffle_epi8(t->low, index));
    pairs[0] = (vu)_mm512_unpacklo_epi8(low, high);
    pairs[1] = (vu)_mm512_unpackhi_epi8(low, high);
#elif CG_LANES == 8
    vu nibbles = (vu)_mm256_loadu_si256((const __m256i *)(block + CG_PACKED_BLOCK));
    for (int i = 0; i < 2; i++) {
        vu bytes = (vu)_mm256_loadu_si256((const __m256i *)(block + 32 * i));
        __m256i index = (__m256i)(nibbles >> 4 * i & 0x0f0f0f0f);
        __m256i high = (__m256i)((bytes & 0x80808080) | (vu)_mm256_shuffle_epi8(t->high, index));
        __m256i low = (__m256i)((bytes & 0x7f7f7f7f) | (vu)_mm256_shuffle_epi8(t->low, index));
        pairs[i] = (vu)_mm256_unpacklo_epi8(low, high);
        pairs[2 + i] = (vu)_mm256_unpackhi_epi8(low, high);
    }
#elif defined(CG_HAS_NEON)
    const uint8x16_t sign = vdupq_n_u8(0x80);
    for (int i = 0; i < 4; i++) {
        uint8x16_t bytes = vld1q_u8(block + 16 * i), nibbles = vld1q_u8(block + CG_PACKED_BLOCK + i % 2 * 16);
        uint8x16_t index = i < 2 ? vandq_u8(nibbles, vdupq_n_u8(15)) : vshrq_n_u8(nibbles, 4);
        uint8x16_t high = vbslq_u8(sign, bytes, vqtbl1q_u8(t->high, index));
        uint8x16_t low = vbslq_u8(sign, vqtbl1q_u8(t->low, index), bytes);
        pairs[i] = (vu)vzip1q_u8(low, high);
        pairs[4 + i] = (vu)vzip2q_u8(low, high);
    }
#else
    for (int i = 0; i < CG_PACKED_BLOCK; i++) {
        int index = block[CG_PACKED_BLOCK + i % 32] >> i / 32 * 4 & 15;
        uint32_t high = (block[i] & 0x80) | t->high[index], low = (block[i] & 0x7f) | t->low[index];
        uint32_t bf16 = high << 8 | low, *pair = (uint32_t *)(pairs + i % 16 / 8 * 4 + i / 16) + i % 8 / 2;
        *pair = i % 2 ? *pair | bf16 << 16 : bf16;
    }
#endif
}

/* Vector v of a block's weights in their order. */
CG_INLINE vf packed_vector(const vu *pairs, const int v) {
    const int each = PACKED_PAIRS / 2;
    vu pair = pairs[v / (2 * each) * each + v % each];
    return (vf)(v / each % 2 ? pair & 0xffff0000 : pair << 16);
}

/* Writes the weights k0 <= k < k1 of a packed row as floats, up to a multiple of 32; k0 is one. Returns the end. */
CG_INLINE vf *packed_floats(vf *to, const uint8_t *row, int64_t K, int64_t k0, int64_t k1) {
    packed_table t = packed_table_of(row, k0);
    for (int64_t k = k0 / CG_PACKED_BLOCK * CG_PACKED_BLOCK; k < k1; k += CG_PACKED_BLOCK) {
        vu pairs[PACKED_PAIRS];
        int64_t first = cg_max(k0 - k, 0) / CG_LANES, end = cg_round_up(k1 - k, PACKED_HALF) / CG_LANES;
        if (k % CG_PACKED_RUN == 0) t = packed_table_of(row, k);
        packed_pairs(pairs, &t, packed_block(row, K, k));
        for (int v = 0; v < 2 * PACKED_PAIRS; v++)
            if (v >= first && v < end) *to++ = packed_vector(pairs, v);
    }
    return to;
}
