/* Sixteen bytes as a table: what nibbles stand for. On vectors of bytes, 16 by 16 of them. */
#pragma once

#include "simd/vec.h"

/* 16 bytes, as often as they fit. */
CG_INLINE vu vu_repeat(const void *bytes) {
#if CG_LANES == 16
    return (vu)_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)bytes));
#elif CG_LANES == 8
    return (vu)_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)bytes));
#else
    return (vu)vi_load(bytes);
#endif
}

/* Widens CG_LANES bytes of 16 that may be read. */
CG_INLINE vu vu_load_u8(const uint8_t *bytes) {
#if CG_LANES == 4
    return (vu)vmovl_u16(vget_low_u16(vmovl_u8(vld1_u8(bytes))));
#else
    return (vu)CG_MM(cvtepu8_epi32)(_mm_loadu_si128((const __m128i *)bytes));
#endif
}

#ifdef CG_HAS_NEON
/* The bytes of the table, from vu_repeat, at the indices 0 .. 15. */
CG_INLINE vu vu_lookup(vu table, vu index) { return (vu)vqtbl1q_u8((uint8x16_t)table, (uint8x16_t)index); }
/* The upper halves of bytes. */
CG_INLINE vu vu_upper(vu bytes) { return (vu)vshrq_n_u8((uint8x16_t)bytes, 4); }
/* The first, the last 8 of 16 bytes of a, each before that of b. */
CG_INLINE vu vu_zip_first(vu a, vu b) { return (vu)vzip1q_u8((uint8x16_t)a, (uint8x16_t)b); }
CG_INLINE vu vu_zip_last(vu a, vu b) { return (vu)vzip2q_u8((uint8x16_t)a, (uint8x16_t)b); }
#else
CG_INLINE vu vu_lookup(vu table, vu index) { return (vu)CG_MM(shuffle_epi8)((vmi)table, (vmi)index); }
CG_INLINE vu vu_upper(vu bytes) { return bytes >> 4 & 0x0f0f0f0f; }
CG_INLINE vu vu_zip_first(vu a, vu b) { return (vu)CG_MM(unpacklo_epi8)((vmi)a, (vmi)b); }
CG_INLINE vu vu_zip_last(vu a, vu b) { return (vu)CG_MM(unpackhi_epi8)((vmi)a, (vmi)b); }
#endif
