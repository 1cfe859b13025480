/* AVX-512 and AMX in C, for builds with CGPT_EMULATE: their kernels can then be tested on any machine with AVX2, under
   the sanitizers too. It has the instructions that the kernels use, lane by lane, as Intel's SDM vol. 2 defines them,
   except that bf16 products are not rounded as it says; the bounds of the tests allow for either. Included after
   immintrin.h. */
#pragma once
#ifdef CGPT_EMULATE

#pragma GCC diagnostic ignored "-Wpsabi" /* all of it is inlined */
#include "types.h"
#include "simd/vec.h"
#pragma GCC system_header /* whose macros may replace those of immintrin.h */

typedef int32_t emu_i32 __attribute__((vector_size(64)));
typedef uint32_t emu_u32 __attribute__((vector_size(64)));
typedef uint16_t emu_u16 __attribute__((vector_size(64)));
typedef uint8_t emu_u8 __attribute__((vector_size(64)));
typedef int64_t emu_i64 __attribute__((vector_size(64)));
typedef uint8_t emu_u8x16 __attribute__((vector_size(16)));

/* An instruction whose lane i of `lanes`, of vectors of `type`, is `value`; parameters follow. */
#define EMU(name, lanes, type, value, ...) \
    CG_INLINE __m512i emu_##name(__VA_ARGS__) { \
        type out; \
        for (int i = 0; i < lanes; i++) out[i] = (value); \
        return (__m512i)out; \
    }
#define EMU_LANE(type, v) ((type)(v))[i]

/* ---------------------------------------------------------------------------------------------- loads and stores */

EMU(maskz_loadu_epi32, 16, emu_u32, mask >> i & 1 ? cg_bits_from_f32(((const float *)p)[i]) : 0, uint32_t mask,
    const void *p)
CG_INLINE void emu_mask_storeu_ps(float *p, uint32_t mask, __m512 v) {
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) p[i] = v[i];
}
EMU(i32gather, 16, emu_i32,
    (int32_t)cg_bits_from_f32(*(const float *)((const char *)base + EMU_LANE(emu_i32, index) * (int64_t)scale)),
    __m512i index, const void *base, int scale)
EMU(broadcast_i32x4, 8, emu_i64, v[i % 2], __m128i v)
EMU(mask_broadcast_i32x4, 16, emu_i32, mask >> i & 1 ? ((i4)v)[i % 4] : EMU_LANE(emu_i32, src), __m512i src,
    uint32_t mask, __m128i v)
EMU(broadcast_i64x4, 8, emu_i64, v[i % 4], __m256i v)
EMU(cvtepu8_epi32, 16, emu_i32, ((emu_u8x16)v)[i], __m128i v)

/* --------------------------------------------------------------------------------------------------- arithmetic */

EMU(max_epi32, 16, emu_i32, EMU_LANE(emu_i32, a) > EMU_LANE(emu_i32, b) ? EMU_LANE(emu_i32, a) : EMU_LANE(emu_i32, b),
    __m512i a, __m512i b)
EMU(permutexvar_epi32, 16, emu_i32, ((emu_i32)table)[EMU_LANE(emu_i32, index) & 15], __m512i index, __m512i table)
EMU(permutexvar_epi16, 32, emu_u16, ((emu_u16)table)[EMU_LANE(emu_u16, index) & 31], __m512i index, __m512i table)
EMU(shuffle_epi8, 64, emu_u8,
    EMU_LANE(emu_u8, control) & 0x80 ? 0 : ((emu_u8)v)[i / 16 * 16 + (EMU_LANE(emu_u8, control) & 15)], __m512i v,
    __m512i control)
EMU(permute_epi32, 16, emu_i32, ((emu_i32)v)[i / 4 * 4 + (control >> i % 4 * 2 & 3)], __m512i v, int control)
EMU(unpack_epi32, 16, emu_i32, ((emu_i32)(i % 2 ? b : a))[i / 4 * 4 + i % 4 / 2 + from], __m512i a, __m512i b, int from)
EMU(unpack_epi64, 8, emu_i64, ((emu_i64)(i % 2 ? b : a))[i / 2 * 2 + from], __m512i a, __m512i b, int from)
EMU(shuffle_i32x4, 8, emu_i64, ((emu_i64)(i < 4 ? a : b))[(control >> i / 2 * 2 & 3) * 2 + i % 2], __m512i a, __m512i b,
    int control)
EMU(srlv_epi16, 32, emu_u16, EMU_LANE(emu_u16, by) < 16 ? EMU_LANE(emu_u16, v) >> EMU_LANE(emu_u16, by) : 0, __m512i v,
    __m512i by)
EMU(srlv_epi64, 8, emu_i64, EMU_LANE(emu_i64, by) < 64 ? (int64_t)((uint64_t)v[i] >> by[i]) : 0, __m512i v, __m512i by)
EMU(unpack_epi8, 64, emu_u8, (i % 2 ? (emu_u8)b : (emu_u8)a)[i / 16 * 16 + 8 * high + i % 16 / 2], __m512i a, __m512i b,
    int high)
EMU(subs_epu16, 32, emu_u16,
    EMU_LANE(emu_u16, a) > EMU_LANE(emu_u16, b) ? EMU_LANE(emu_u16, a) - EMU_LANE(emu_u16, b) : 0, __m512i a, __m512i b)
EMU(mask_add_epi16, 32, emu_u16, mask >> i & 1 ? EMU_LANE(emu_u16, a) + EMU_LANE(emu_u16, b) : EMU_LANE(emu_u16, src),
    __m512i src, uint32_t mask, __m512i a, __m512i b)

/* --------------------------------------------------------------------------------------------------------- bf16 */

EMU(cvtne2ps, 32, emu_u16, cg_f32_to_bf16(i < 16 ? low[i] : high[i - 16]), __m512 high, __m512 low)
CG_INLINE __m512 emu_dpbf16_ps(__m512 sum, emu_u16 a, emu_u16 b) {
    for (int i = 0; i < 32; i++) sum[i / 2] += cg_bf16_to_f32(a[i]) * cg_bf16_to_f32(b[i]);
    return sum;
}

/* --------------------------------------------------------------------------------------------------------- bytes */

/* sum[n / 4] += the products of n unsigned bytes of a and signed ones of b. */
CG_INLINE void emu_dot_bytes(int n, void *sum, const void *a, const void *b) {
    int32_t out[16];
    memcpy(out, sum, (size_t)n);
    for (int i = 0; i < n; i++) out[i / 4] += ((const uint8_t *)a)[i] * ((const int8_t *)b)[i];
    memcpy(sum, out, (size_t)n);
}
/* Pairs of products of unsigned and signed bytes, with saturation. */
CG_INLINE __m512i emu_maddubs_epi16(__m512i a, __m512i b) {
    typedef int16_t emu_i16 __attribute__((vector_size(64)));
    emu_i16 out;
    for (int i = 0; i < 32; i++) {
        int sum = 0;
        for (int j = 2 * i; j < 2 * i + 2; j++) sum += ((emu_u8)a)[j] * (int8_t)((emu_u8)b)[j];
        out[i] = (int16_t)(sum < -32768 ? -32768 : sum > 32767 ? 32767 : sum);
    }
    return (__m512i)out;
}
CG_INLINE __m512i emu_dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
    emu_dot_bytes(64, &sum, &a, &b);
    return sum;
}
CG_INLINE __m256i emu_dpbusd_epi32_256(__m256i sum, __m256i a, __m256i b) {
    emu_dot_bytes(32, &sum, &a, &b);
    return sum;
}

/* -------------------------------------------------------------------------------------------------------- tiles */

static __thread union {
    float f32[16][16];
    uint16_t bf16[16][32];
} emu_tiles[8];

static inline void emu_tile_load(int tile, const void *from, int64_t stride_bytes) {
    for (int i = 0; i < 16; i++) memcpy(emu_tiles[tile].f32[i], (const char *)from + i * stride_bytes, 64);
}
static inline void emu_tile_store(int tile, void *to, int64_t stride_bytes) {
    for (int i = 0; i < 16; i++) memcpy((char *)to + i * stride_bytes, emu_tiles[tile].f32[i], 64);
}
static inline void emu_tile_multiply(int c, int a, int b) {
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++)
            for (int k = 0; k < 32; k++)
                emu_tiles[c].f32[i][j] +=
                    cg_bf16_to_f32(emu_tiles[a].bf16[i][k]) * cg_bf16_to_f32(emu_tiles[b].bf16[k / 2][2 * j + k % 2]);
}

/* ------------------------------------------------------------------------------- under the names of the intrinsics */

#define __m512bh emu_u16
#define _mm512_loadu_si512(p) (*(const __m512i_u *)(p))
#define _mm512_storeu_si512(p, v) (*(__m512i_u *)(p) = (v))
#define _mm512_maskz_loadu_epi32 emu_maskz_loadu_epi32
#define _mm512_mask_storeu_ps emu_mask_storeu_ps
#define _mm512_i32gather_ps(index, base, scale) ((__m512)emu_i32gather(index, base, scale))
#define _mm512_broadcast_i32x4 emu_broadcast_i32x4
#define _mm512_mask_broadcast_i32x4 emu_mask_broadcast_i32x4
#define _mm512_broadcast_i64x4 emu_broadcast_i64x4
#define _mm512_cvtepu8_epi32 emu_cvtepu8_epi32
#define _mm512_set1_epi64(n) ((__m512i)((emu_i64){0} + (int64_t)(n)))
#define _mm512_set_epi64(h, g, f, e, d, c, b, a) ((__m512i)(emu_i64){a, b, c, d, e, f, g, h})
#define _mm512_max_epi32 emu_max_epi32
#define _mm512_permutexvar_ps(at, v) ((__m512)emu_permutexvar_epi32(at, (__m512i)(v)))
#define _mm512_permutexvar_epi16 emu_permutexvar_epi16
#define _mm512_shuffle_epi8 emu_shuffle_epi8
#define _mm512_permute_ps(v, control) ((__m512)emu_permute_epi32((__m512i)(v), control))
#define _mm512_srlv_epi16 emu_srlv_epi16
#define _mm512_unpacklo_epi32(a, b) emu_unpack_epi32(a, b, 0)
#define _mm512_unpackhi_epi32(a, b) emu_unpack_epi32(a, b, 2)
#define _mm512_unpacklo_epi64(a, b) emu_unpack_epi64(a, b, 0)
#define _mm512_unpackhi_epi64(a, b) emu_unpack_epi64(a, b, 1)
#define _mm512_shuffle_i32x4 emu_shuffle_i32x4
#define _mm512_srlv_epi64 emu_srlv_epi64
#define _mm512_unpacklo_epi8(a, b) emu_unpack_epi8(a, b, 0)
#define _mm512_unpackhi_epi8(a, b) emu_unpack_epi8(a, b, 1)
#define _mm512_mask_add_epi16 emu_mask_add_epi16
#define _mm512_subs_epu16 emu_subs_epu16
#define _mm512_cvtne2ps_pbh(high, low) ((emu_u16)emu_cvtne2ps(high, low))
#define _mm512_dpbf16_ps emu_dpbf16_ps
#define _mm512_maddubs_epi16 emu_maddubs_epi16
#define _mm512_dpbusd_epi32 emu_dpbusd_epi32
#define _mm256_dpbusd_epi32 emu_dpbusd_epi32_256
#define _tile_loadconfig(config) ((void)(config))
#define _tile_release() ((void)0)
#define _tile_zero(t) memset(&emu_tiles[t], 0, sizeof emu_tiles[t])
#define _tile_loadd emu_tile_load
#define _tile_stored emu_tile_store
#define _tile_dpbf16ps emu_tile_multiply

#endif
