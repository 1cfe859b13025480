/* One vector of doubles, as wide as the level's registers; see vec.h. Products are rounded by themselves here, so that
   every level gives the same bits, those without FMA too. */
#pragma once

#include "simd/vec.h"

enum { VD_LANES = CG_LANES / 2 };
typedef double vd __attribute__((vector_size(4 * CG_LANES)));
typedef int64_t vl __attribute__((vector_size(4 * CG_LANES)));
typedef double vd_stored __attribute__((vector_size(4 * CG_LANES), aligned(1), may_alias));

/* The compiler must not fuse the product v with a sum. */
#if defined(__x86_64__) && !(CG_LANES == 16 && defined(CGPT_EMULATE))
#define VD_ROUND(v) VF_KEEP(v)
#elif defined(__aarch64__)
#define VD_ROUND(v) __asm__("" : "+w"(v))
#else
#define VD_ROUND(v) __asm__("" : "+m"(v))
#endif

CG_INLINE vd vd_set(double d) { return d - (vd){0}; }

CG_INLINE vd vd_load(const double *p) { return *(const vd_stored *)p; }
CG_INLINE void vd_store(double *p, vd v) { *(vd_stored *)p = v; }

CG_INLINE vd vd_multiply(vd a, vd b) {
    vd product = a * b;
    VD_ROUND(product);
    return product;
}

CG_INLINE vd vd_select(vl mask, vd yes, vd no) { return (vd)((mask & (vl)yes) | (~mask & (vl)no)); }

/* b where a or b is NaN. */
CG_INLINE vd vd_max(vd a, vd b) { return vd_select(a > b, a, b); }
CG_INLINE vd vd_min(vd a, vd b) { return vd_select(a < b, a, b); }

/* -1 in the first n lanes. */
CG_INLINE vl vl_first(int64_t n) {
    vl lane;
    for (int i = 0; i < VD_LANES; i++) lane[i] = i;
    return lane < n;
}

/* Stores the lanes where mask is -1 one after the other; returns how many. Other lanes may be stored behind them. */
CG_INLINE int64_t vd_compress(double *to, vd v, vl mask) {
#if CG_LANES == 16 && !defined(CGPT_EMULATE)
    __mmask8 bits = _mm512_movepi64_mask((__m512i)mask);
    _mm512_storeu_pd(to, _mm512_maskz_compress_pd(bits, (__m512d)v));
    return __builtin_popcount(bits);
#else
    int64_t n = 0;
    for (int i = 0; i < VD_LANES; i++) {
        to[n] = v[i];
        n -= mask[i];
    }
    return n;
#endif
}

/* e^x for x <= 0, within 1 ulp. x = n ln 2 + r with |r| <= ln 2 / 2; e^r by a polynomial of degree 11 (interpolated at
   Chebyshev's points of that interval, error 1.7e-17); n added to the exponent. e^0 = 1 exactly; below -708 it is 0. */
CG_INLINE vd vd_exp_negative(vd x) {
    static const double factors[] = {0x1.af38d53857513p-26, 0x1.2891a8c1d838dp-22, 0x1.71de0d9c145d0p-19,
                                     0x1.a019b8ef67c6cp-16, 0x1.a01a01a7c8d47p-13, 0x1.6c16c17893833p-10,
                                     0x1.11111111109adp-7,  0x1.5555555553d4fp-5,  0x1.5555555555556p-3,
                                     0x1.0000000000001p-1};
    const double round = 0x1.8p52; /* adding it rounds to an integer, which the low bits of the sum then hold */
    vd t = vd_multiply(x, vd_set(0x1.71547652b82fep0)) + round, n = t - round;
    vd r = x - vd_multiply(n, vd_set(0x1.62e42fefa0000p-1)); /* an exact product: 37 bits and 11 */
    r = r - vd_multiply(n, vd_set(0x1.cf79abc9e3b3ap-40));
    vd p = vd_set(factors[0]);
#pragma GCC unroll 9
    for (int i = 1; i < 10; i++) p = vd_multiply(p, r) + factors[i];
    p = vd_multiply(p, vd_multiply(r, r)) + r + 1.0;
    vd y = (vd)((vl)p + ((vl)t << 52));
    return (vd)((x >= -708.0) & (vl)y);
}
