/* A vector of floats that is as wide as the level's registers. The file in isa/ that includes a kernel sets CG_ISA and
   CG_LANES under the target pragma of its level. The types are GCC's and Clang's, so that one source serves every level
   and every architecture. CG_NAME(f) is f__<isa>. */
#pragma once

#include <math.h>
#include "types.h"

#define CG_JOIN_(name, isa) name##__##isa
#define CG_JOIN(name, isa) CG_JOIN_(name, isa)
#define CG_NAME(name) CG_JOIN(name, CG_ISA)

typedef float vf __attribute__((vector_size(4 * CG_LANES)));
typedef int32_t vi __attribute__((vector_size(4 * CG_LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * CG_LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * CG_LANES)));
typedef int16_t vs __attribute__((vector_size(4 * CG_LANES))); /* two to a lane */

/* The registers there are, and the sums that keep all pipes busy. CG_HAS_NEON: a level of aarch64 above ref. It has
   short vectors, and its largest cores four pipes for them. */
#if CG_LANES == 16 || defined(CG_HAS_NEON)
#define CG_REGISTERS 32
#else
#define CG_REGISTERS 16
#endif
#ifdef CG_HAS_NEON
#define CG_CHAINS 24
#else
#define CG_CHAINS 12
#endif

/* CG_MM(op): the intrinsic for a whole vector; vmi, vmh: what it takes of integers, of half a vector.
   CG_HAS_MM: vec.h may use them; emulate.h has only what the kernels by hand use. */
#if CG_LANES == 16
#define CG_MM(op) _mm512_##op
typedef __m512i vmi;
typedef __m256i vmh;
#elif CG_LANES == 8
#define CG_MM(op) _mm256_##op
typedef __m256i vmi;
typedef __m128i vmh;
#endif
#if CG_LANES == 8 || (CG_LANES == 16 && !defined(CGPT_EMULATE))
#define CG_HAS_MM 1
CG_INLINE vmh vmh_load(const void *p) {
    vmh half;
    memcpy(&half, p, sizeof half);
    return half;
}
#endif

/* Keeps a value in a register. Without this GCC loads it again at each use. */
#if !defined(__x86_64__) || (CG_LANES == 16 && defined(CGPT_EMULATE))
#define VF_KEEP(v) (void)(v)
#else
#define VF_KEEP(v) __asm__("" : "+v"(v))
#endif

CG_INLINE vf vf_set(float f) { return f - (vf){0}; } /* x - 0 is x, but 0 + x is not where x is -0 */

CG_INLINE vf vf_load(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
CG_INLINE void vf_store(float *p, vf v) { memcpy(p, &v, sizeof v); }
CG_INLINE vi vi_load(const void *p) { return (vi)vf_load(p); }

/* a * b + c, rounded once where the level has FMA. From the expression a compiler may make two roundings (at -O1), or
   contract the other product of two. */
CG_INLINE vf vf_fma(vf a, vf b, vf c) {
#if CG_LANES == 16 && defined(CGPT_EMULATE)
    for (int i = 0; i < CG_LANES; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
#elif CG_LANES > 4
    return (vf)CG_MM(fmadd_ps)(a, b, c);
#elif defined(CG_HAS_NEON)
    return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

/* Widens 2 * CG_LANES bytes. __builtin_convertvector becomes five instructions for each half (GCC 12). */
CG_INLINE vs vs_load_i8(const void *p) {
#ifdef CG_HAS_MM
    return (vs)CG_MM(cvtepi8_epi16)(vmh_load(p));
#elif defined(CG_HAS_NEON)
    return (vs)vmovl_s8(vld1_s8(p));
#else
    int8_t q[2 * CG_LANES];
    vs v;
    memcpy(q, p, sizeof q);
    for (int i = 0; i < 2 * CG_LANES; i++) v[i] = q[i];
    return v;
#endif
}

CG_INLINE vf vf_load_i8(const void *p) {
#ifdef CG_HAS_MM
    __m128i q = {0};
    memcpy(&q, p, CG_LANES);
    return (vf)CG_MM(cvtepi32_ps)(CG_MM(cvtepi8_epi32)(q));
#else
    int8_t q[CG_LANES];
    vf v;
    memcpy(q, p, sizeof q);
    for (int i = 0; i < CG_LANES; i++) v[i] = q[i];
    return v;
#endif
}

/* A pair of numbers in every lane. */
CG_INLINE vs vs_set_pair(const int16_t *pair) {
    int32_t both;
    memcpy(&both, pair, sizeof both);
    return (vs)(both + (vi){0});
}

/* a[2i] * b[2i] + a[2i + 1] * b[2i + 1], exact in 32 bits unless all four are -32768. With NEON: a[i] * b[i] + a[i + 4]
 * b[i + 4]. */
CG_INLINE vi vs_multiply_pairs(vs a, vs b) {
#ifdef CG_HAS_MM
    return (vi)CG_MM(madd_epi16)((vmi)a, (vmi)b);
#elif defined(CG_HAS_NEON)
    return (vi)vmlal_high_s16(vmull_s16(vget_low_s16((int16x8_t)a), vget_low_s16((int16x8_t)b)), (int16x8_t)a,
                              (int16x8_t)b);
#else
    vi even = ((vi)((vu)a << 16) >> 16) * ((vi)((vu)b << 16) >> 16), odd = ((vi)a >> 16) * ((vi)b >> 16);
    return even + odd;
#endif
}

/* sum + vs_multiply_pairs(a, b). */
CG_INLINE vi vs_dot_pairs(vi sum, vs a, vs b) {
#if defined(CG_HAS_VNNI) && !defined(CGPT_EMULATE)
    return (vi)CG_MM(dpwssd_epi32)((vmi)sum, (vmi)a, (vmi)b);
#elif defined(CG_HAS_NEON)
    int32x4_t half = vmlal_s16((int32x4_t)sum, vget_low_s16((int16x8_t)a), vget_low_s16((int16x8_t)b));
    return (vi)vmlal_high_s16(half, (int16x8_t)a, (int16x8_t)b);
#else
    return sum + vs_multiply_pairs(a, b);
#endif
}

/* As vs_dot_pairs, of neighbours on NEON too: where a lane is a sum of its own. */
CG_INLINE vi vs_dot_neighbours(vi sum, vs a, vs b) {
#ifdef CG_HAS_NEON
    int32x4_t first = vmull_s16(vget_low_s16((int16x8_t)a), vget_low_s16((int16x8_t)b));
    return sum + (vi)vpaddq_s32(first, vmull_high_s16((int16x8_t)a, (int16x8_t)b));
#else
    return vs_dot_pairs(sum, a, b);
#endif
}

CG_INLINE vf vf_select(vi mask, vf yes, vf no) {
#ifdef CG_HAS_NEON
    return (vf)vbslq_u32((uint32x4_t)mask, (uint32x4_t)yes, (uint32x4_t)no);
#else
    return (vf)((mask & (vi)yes) | (~mask & (vi)no));
#endif
}
/* b where a or b is NaN. GCC does not find the instruction. */
CG_INLINE vf vf_max(vf a, vf b) {
#ifdef CG_HAS_MM
    return (vf)CG_MM(max_ps)(a, b);
#else
    return vf_select(a > b, a, b);
#endif
}
CG_INLINE vf vf_min(vf a, vf b) { return vf_select(a < b, a, b); }

/* Intrinsics, because GCC does not find these instructions either. */
CG_INLINE vf vf_load_bf16(const uint16_t *p) {
#ifdef CG_HAS_MM
    return (vf)((vu)CG_MM(cvtepu16_epi32)(vmh_load(p)) << 16);
#elif defined(CG_HAS_NEON)
    return (vf)vshll_n_u16(vld1_u16(p), 16);
#else
    vh h;
    memcpy(&h, p, sizeof h);
    return (vf)(__builtin_convertvector(h, vu) << 16);
#endif
}

CG_INLINE vf vf_load_f16(const uint16_t *p) {
#ifdef CG_HAS_MM
    return (vf)CG_MM(cvtph_ps)(vmh_load(p));
#elif defined(CG_HAS_NEON)
    return (vf)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
#else
    vh h;
    vf v;
    memcpy(&h, p, sizeof h);
    for (int i = 0; i < CG_LANES; i++) v[i] = cg_f16_to_f32(h[i]);
    return v;
#endif
}

CG_INLINE vf vf_load_as(cg_dtype d, const void *row, int64_t k) {
    return d == CG_F32    ? vf_load((const float *)row + k)
           : d == CG_BF16 ? vf_load_bf16((const uint16_t *)row + k)
                          : vf_load_f16((const uint16_t *)row + k);
}

/* Rounded to nearest even. */
CG_INLINE void vf_store_as(cg_dtype d, void *row, int64_t k, vf v) {
    if (d == CG_F32) {
        vf_store((float *)row + k, v);
    } else if (d == CG_BF16) {
        vu u = (vu)v, rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16, nan = (vu)(v != v);
        vh h = __builtin_convertvector((nan & (u >> 16 | 0x40)) | (~nan & rounded), vh);
        memcpy((uint16_t *)row + k, &h, sizeof h);
    } else {
#ifdef CG_HAS_MM
        vh h = (vh)CG_MM(cvtps_ph)(v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(CG_HAS_NEON)
        vh h = (vh)vcvt_f16_f32((float32x4_t)v);
#else
        vh h;
        for (int i = 0; i < CG_LANES; i++) h[i] = cg_f32_to_f16(v[i]);
#endif
        memcpy((uint16_t *)row + k, &h, sizeof h);
    }
}

/* Loads n < CG_LANES values; the other lanes are zero. */
CG_INLINE vf vf_load_as_n(cg_dtype d, const void *row, int64_t k, int64_t n) {
#if CG_LANES == 16 && !defined(CGPT_EMULATE)
    __mmask16 mask = (__mmask16)((1u << n) - 1);
    if (d == CG_F32) return (vf)_mm512_maskz_loadu_ps(mask, (const float *)row + k);
    __m256i h = _mm256_maskz_loadu_epi16(mask, (const uint16_t *)row + k);
    return d == CG_BF16 ? (vf)((vu)_mm512_cvtepu16_epi32(h) << 16) : (vf)_mm512_cvtph_ps(h);
#endif
    uint16_t tail[2 * CG_LANES] = {0}; /* read as 16-bit values, or copied to floats */
    size_t size = cg_dtype_bytes(d);
    memcpy(tail, (const char *)row + (size_t)k * size, (size_t)n * size);
    return vf_load_as(d, tail, 0);
}

CG_INLINE vf vf_load_n(const float *p, int64_t n) { return vf_load_as_n(CG_F32, p, 0, n); }
CG_INLINE void vf_store_n(float *p, vf v, int64_t n) { memcpy(p, &v, (size_t)n * sizeof(float)); }

typedef float f4 __attribute__((vector_size(16)));
typedef int32_t i4 __attribute__((vector_size(16)));
#if __has_builtin(__builtin_shufflevector)
#define F4_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else /* GCC 11 */
#define F4_SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, (i4){i, j, k, l})
#endif

/* Four rows of four: rows become columns. */
CG_INLINE void f4_transpose(f4 *v) {
    f4 ab_low = F4_SHUFFLE(v[0], v[1], 0, 4, 1, 5), ab_high = F4_SHUFFLE(v[0], v[1], 2, 6, 3, 7);
    f4 cd_low = F4_SHUFFLE(v[2], v[3], 0, 4, 1, 5), cd_high = F4_SHUFFLE(v[2], v[3], 2, 6, 3, 7);
    v[0] = F4_SHUFFLE(ab_low, cd_low, 0, 1, 4, 5);
    v[1] = F4_SHUFFLE(ab_low, cd_low, 2, 3, 6, 7);
    v[2] = F4_SHUFFLE(ab_high, cd_high, 0, 1, 4, 5);
    v[3] = F4_SHUFFLE(ab_high, cd_high, 2, 3, 6, 7);
}

/* Adds the halves of v until four lanes are left. */
CG_INLINE f4 vf_quarter(vf v) {
    f4 q[CG_LANES / 4];
    memcpy(q, &v, sizeof v);
    for (int w = CG_LANES / 8; w; w /= 2)
        for (int i = 0; i < w; i++) q[i] += q[i + w];
    return q[0];
}

/* The sum of all lanes, always in the same order. */
CG_INLINE float vf_sum(vf v) {
    f4 q = vf_quarter(v);
    return (q[0] + q[2]) + (q[1] + q[3]);
}

/* out[0 .. 3] = the sums of four vectors, the same bits as vf_sum gives. */
CG_INLINE void vf_sum4(float *out, vf a, vf b, vf c, vf d) {
    f4 q[4] = {vf_quarter(a), vf_quarter(b), vf_quarter(c), vf_quarter(d)};
    f4_transpose(q);
    q[0] = (q[0] + q[2]) + (q[1] + q[3]);
    memcpy(out, q, sizeof q[0]);
}

/* b where a or b is NaN, as vf_max. */
CG_INLINE f4 f4_max(f4 a, f4 b) {
#if CG_LANES > 4
    return (f4)_mm_max_ps((__m128)a, (__m128)b);
#else
    i4 larger = a > b;
    return (f4)((larger & (i4)a) | (~larger & (i4)b));
#endif
}

CG_INLINE f4 vf_max_quarter(vf v) {
    f4 q[CG_LANES / 4];
    memcpy(q, &v, sizeof v);
    for (int w = CG_LANES / 8; w; w /= 2)
        for (int i = 0; i < w; i++) q[i] = f4_max(q[i], q[i + w]);
    return q[0];
}

CG_INLINE float vf_max_lane(vf v) {
    f4 q = vf_max_quarter(v);
    float a = q[0] > q[1] ? q[0] : q[1], b = q[2] > q[3] ? q[2] : q[3];
    return a > b ? a : b;
}

/* out[0 .. 3] = the largest lanes of four vectors. */
CG_INLINE void vf_max4(float *out, const vf *v) {
    f4 q[4] = {vf_max_quarter(v[0]), vf_max_quarter(v[1]), vf_max_quarter(v[2]), vf_max_quarter(v[3])};
    f4_transpose(q);
    q[0] = f4_max(f4_max(q[0], q[1]), f4_max(q[2], q[3]));
    memcpy(out, q, sizeof q[0]);
}

/* e^x. x = n ln 2 + r with |r| <= ln 2 / 2, a degree-6 polynomial for e^r (Remez on that interval), n added to the
   exponent in two steps so that denormal results are right too. Within 2 ulp; e^0 = 1 exactly; below -104 it is 0. */
CG_INLINE vf vf_exp(vf x) {
    static const float factors[] = {1.98756915e-4f, 1.39819995e-3f, 8.33345205e-3f,
                                    4.16657961e-2f, 1.66666657e-1f, 5.00000000e-1f};
    vf c = vf_max(vf_min(x, vf_set(89.f)), vf_set(-104.f));
    vf n = c * 1.44269504f + 12582912.f; /* 1.5 * 2^23: rounds to the nearest integer */
    n = n - 12582912.f;
    vf r = c - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    vf p = vf_set(factors[0]);
    for (int i = 1; i < 6; i++) p = p * r + factors[i];
    p = p * (r * r) + r + 1.f;
    vi k = __builtin_convertvector(n, vi), half = k >> 1;
    vf y = p * (vf)((half + 127) << 23) * (vf)((k - half + 127) << 23);
    y = vf_select(x < -104.f, vf_set(0.f), y);
    y = vf_select(x > 89.f, vf_set(INFINITY), y);
    return vf_select(x == x, y, x);
}

/* e^x for x <= 0, within 2 ulp, in fewer steps: below -87 it is 0; e^0 = 1 exactly; NaN stays. */
CG_INLINE vf vf_exp_negative(vf x) {
    vf t = vf_fma(x, vf_set(1.44269504f), vf_set(12582912.f)), n = t - 12582912.f; /* as above; n in t's low bits */
    vf r = vf_fma(n, vf_set(-0.693359375f), x);
    r = vf_fma(n, vf_set(2.12194440e-4f), r);
    vf p = vf_fma(r, vf_set(1.98756915e-4f), vf_set(1.39819995e-3f));
    p = vf_fma(p, r, vf_set(8.33345205e-3f));
    p = vf_fma(p, r, vf_set(4.16657961e-2f));
    p = vf_fma(p, r, vf_set(1.66666657e-1f));
    p = vf_fma(p, r, vf_set(5.00000000e-1f));
    p = vf_fma(p, r * r, r) + 1.f;
    vf y = p * (vf)(((vu)t << 23) + 0x3f800000u);
    return (vf)(~(x < -87.f) & (vi)y);
}

CG_INLINE vf vf_sigmoid(vf x) { return 1.f / (1.f + vf_exp(-x)); }

/* 1 - 2 / (e^2x + 1): an absolute error of about 1e-7, which is what the GELU formula needs. */
CG_INLINE vf vf_tanh(vf x) { return 1.f - 2.f / (vf_exp(2.f * x) + 1.f); }
