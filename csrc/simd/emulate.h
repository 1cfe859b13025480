/* AVX-512 and AMX in C, for builds with CGPT_EMULATE: their kernels can then be tested on any machine with AVX2, under
   the sanitizers too. It has the instructions that the kernels use, lane by lane, as Intel's SDM vol. 2 defines them,
   except that bf16 products are not rounded as it says; the bounds of the tests allow for either. Included after
   immintrin.h. */
#ifndef CG_EMULATE_H
#define CG_EMULATE_H
#ifdef CGPT_EMULATE

#pragma GCC diagnostic ignored "-Wpsabi" /* all of it is inlined */
#include "types.h"
#include "simd/vec.h"

typedef int32_t emu_i32 __attribute__((vector_size(64)));
typedef uint32_t emu_u32 __attribute__((vector_size(64)));
typedef uint16_t emu_u16 __attribute__((vector_size(64)));
typedef uint8_t emu_u8 __attribute__((vector_size(64)));
typedef int64_t emu_i64 __attribute__((vector_size(64)));

#define EMU(type) CG_INLINE type
#define EMU_LANES(n, out, value) \
    for (int i = 0; i < (n); i++) (out)[i] = (value)

/* ---------------------------------------------------------------------------------------------- loads and stores */

EMU(__m512) emu_loadu_ps(const void *p) {
    __m512 v;
    memcpy(&v, p, 64);
    return v;
}
EMU(__m512i) emu_loadu_si512(const void *p) {
    __m512i v;
    memcpy(&v, p, 64);
    return v;
}
EMU(void) emu_storeu_si512(void *p, __m512i v) { memcpy(p, &v, 64); }
EMU(__m512) emu_maskz_loadu_ps(uint32_t mask, const float *p) {
    __m512 v = {0};
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) v[i] = p[i];
    return v;
}
EMU(__m512i) emu_maskz_loadu_epi32(uint32_t mask, const void *p) {
    return (__m512i)emu_maskz_loadu_ps(mask, (const float *)p);
}
EMU(void) emu_mask_storeu_ps(float *p, uint32_t mask, __m512 v) {
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) p[i] = v[i];
}
EMU(__m512) emu_i32gather_ps(__m512i index, const void *base, int scale) {
    __m512 v;
    EMU_LANES(16, v, *(const float *)((const char *)base + (int64_t)((emu_i32)index)[i] * scale));
    return v;
}
EMU(__m512i) emu_broadcast_i32x4(__m128i v) {
    emu_i32 out, from;
    memcpy(&from, &v, 16);
    EMU_LANES(16, out, from[i % 4]);
    return (__m512i)out;
}
EMU(__m512i) emu_broadcast_i64x4(__m256i v) {
    emu_i64 out, from;
    memcpy(&from, &v, 32);
    EMU_LANES(8, out, from[i % 4]);
    return (__m512i)out;
}
EMU(__m512i) emu_cvtepu8_epi32(__m128i v) {
    uint8_t from[16];
    emu_i32 out;
    memcpy(from, &v, 16);
    EMU_LANES(16, out, from[i]);
    return (__m512i)out;
}
EMU(__m512i) emu_cvtepi8_epi32(__m128i v) {
    int8_t from[16];
    emu_i32 out;
    memcpy(from, &v, 16);
    EMU_LANES(16, out, from[i]);
    return (__m512i)out;
}

/* --------------------------------------------------------------------------------------------------- arithmetic */

EMU(__m512i) emu_max_epi32(__m512i a, __m512i b) {
    emu_i32 x = (emu_i32)a, y = (emu_i32)b;
    EMU_LANES(16, x, x[i] > y[i] ? x[i] : y[i]);
    return (__m512i)x;
}
EMU(__m512i) emu_permutexvar_ps_bits(__m512i index, __m512i table) {
    emu_i32 out, at = (emu_i32)index, from = (emu_i32)table;
    EMU_LANES(16, out, from[at[i] & 15]);
    return (__m512i)out;
}
EMU(__m512i) emu_permutexvar_epi16(__m512i index, __m512i table) {
    emu_u16 out, at = (emu_u16)index, from = (emu_u16)table;
    EMU_LANES(32, out, from[at[i] & 31]);
    return (__m512i)out;
}
EMU(__m512i) emu_shuffle_epi8(__m512i v, __m512i control) {
    emu_u8 out, at = (emu_u8)control, from = (emu_u8)v;
    EMU_LANES(64, out, at[i] & 0x80 ? 0 : from[i / 16 * 16 + (at[i] & 15)]);
    return (__m512i)out;
}
EMU(__m512i) emu_permute_ps_bits(__m512i v, int control) {
    emu_i32 out, from = (emu_i32)v;
    EMU_LANES(16, out, from[i / 4 * 4 + (control >> i % 4 * 2 & 3)]);
    return (__m512i)out;
}
EMU(__m512i) emu_srlv_epi16(__m512i v, __m512i by) {
    emu_u16 x = (emu_u16)v, n = (emu_u16)by;
    EMU_LANES(32, x, n[i] < 16 ? x[i] >> n[i] : 0);
    return (__m512i)x;
}
EMU(__m512i) emu_mask_add_epi16(__m512i src, uint32_t mask, __m512i a, __m512i b) {
    emu_u16 out = (emu_u16)src, sum = (emu_u16)a + (emu_u16)b;
    EMU_LANES(32, out, mask >> i & 1 ? sum[i] : out[i]);
    return (__m512i)out;
}

/* --------------------------------------------------------------------------------------------------------- bf16 */

EMU(emu_u16) emu_cvtne2ps_pbh(__m512 high, __m512 low) {
    emu_u16 out;
    EMU_LANES(32, out, cg_f32_to_bf16(i < 16 ? low[i] : high[i - 16]));
    return out;
}
EMU(__m512) emu_dpbf16_ps(__m512 sum, emu_u16 a, emu_u16 b) {
    for (int i = 0; i < 32; i++) sum[i / 2] += cg_bf16_to_f32(a[i]) * cg_bf16_to_f32(b[i]);
    return sum;
}

/* --------------------------------------------------------------------------------------------------------- bytes */

EMU(__m512i) emu_dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
    emu_i32 out = (emu_i32)sum;
    uint8_t x[64];
    int8_t y[64];
    memcpy(x, &a, 64);
    memcpy(y, &b, 64);
    for (int i = 0; i < 64; i++) out[i / 4] += x[i] * y[i];
    return (__m512i)out;
}

EMU(__m256i) emu_dpbusd_epi32_256(__m256i sum, __m256i a, __m256i b) {
    int32_t out[8];
    uint8_t x[32];
    int8_t y[32];
    memcpy(out, &sum, 32);
    memcpy(x, &a, 32);
    memcpy(y, &b, 32);
    for (int i = 0; i < 32; i++) out[i / 4] += x[i] * y[i];
    memcpy(&sum, out, 32);
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

#undef _mm512_setr_epi32
#undef _mm512_i32gather_ps
#undef _mm512_permute_ps
#undef _mm256_dpbusd_epi32
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_loadconfig
#undef _tile_release
#define __m512bh emu_u16
#define _mm512_loadu_ps emu_loadu_ps
#define _mm512_loadu_si512 emu_loadu_si512
#define _mm512_storeu_si512 emu_storeu_si512
#define _mm512_maskz_loadu_ps emu_maskz_loadu_ps
#define _mm512_maskz_loadu_epi32 emu_maskz_loadu_epi32
#define _mm512_mask_storeu_ps emu_mask_storeu_ps
#define _mm512_i32gather_ps emu_i32gather_ps
#define _mm512_broadcast_i32x4 emu_broadcast_i32x4
#define _mm512_broadcast_i64x4 emu_broadcast_i64x4
#define _mm512_cvtepu8_epi32 emu_cvtepu8_epi32
#define _mm512_cvtepi8_epi32 emu_cvtepi8_epi32
#define _mm512_cvtepi32_ps(v) __builtin_convertvector((emu_i32)(v), __m512)
#define _mm512_set1_ps(f) ((__m512){0} + (float)(f))
#define _mm512_castsi512_ps(v) ((__m512)(v))
#define _mm512_setzero_ps() ((__m512){0})
#define _mm512_set1_epi16(n) ((__m512i)((emu_u16){0} + (uint16_t)(n)))
#define _mm512_set1_epi32(n) ((__m512i)((emu_i32){0} + (int32_t)(n)))
#define _mm512_set1_epi64(n) ((__m512i)((emu_i64){0} + (int64_t)(n)))
#define _mm512_set_epi64(h, g, f, e, d, c, b, a) ((__m512i)(emu_i64){a, b, c, d, e, f, g, h})
#define _mm512_setr_epi32(...) ((__m512i)(emu_i32){__VA_ARGS__})
#define _mm512_add_ps(a, b) ((a) + (b))
#define _mm512_mul_ps(a, b) ((a) * (b))
#define _mm512_fmadd_ps(a, b, c) ((__m512)vf_fma((vf)(a), (vf)(b), (vf)(c)))
#define _mm512_max_epi32 emu_max_epi32
#define _mm512_mullo_epi32(a, b) ((__m512i)((emu_i32)(a) * (emu_i32)(b)))
#define _mm512_slli_epi32(v, n) ((__m512i)((emu_u32)(v) << (n)))
#define _mm512_srli_epi32(v, n) ((__m512i)((emu_u32)(v) >> (n)))
#define _mm512_permutexvar_ps(at, v) ((__m512)emu_permutexvar_ps_bits(at, (__m512i)(v)))
#define _mm512_permutexvar_epi16 emu_permutexvar_epi16
#define _mm512_shuffle_epi8 emu_shuffle_epi8
#define _mm512_permute_ps(v, control) ((__m512)emu_permute_ps_bits((__m512i)(v), control))
#define _mm512_srlv_epi16 emu_srlv_epi16
#define _mm512_mask_add_epi16 emu_mask_add_epi16
#define _mm512_cvtne2ps_pbh emu_cvtne2ps_pbh
#define _mm512_dpbf16_ps emu_dpbf16_ps
#define _mm512_dpbusd_epi32 emu_dpbusd_epi32
#define _mm256_dpbusd_epi32 emu_dpbusd_epi32_256
#define _tile_loadconfig(config) ((void)(config))
#define _tile_release() ((void)0)
#define _tile_zero(t) memset(&emu_tiles[t], 0, sizeof emu_tiles[t])
#define _tile_loadd emu_tile_load
#define _tile_stored emu_tile_store
#define _tile_dpbf16ps emu_tile_multiply

#endif
#endif
