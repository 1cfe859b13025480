/* The part of the avx512 level that needs AVX512_VNNI (Cascade Lake, Ice Lake, Zen 4 and later). */
#include "core/arch.h"
#ifdef CGPT_X86
CG_TARGET(CG_FEATURES_AVX512VNNI)
#define CG_ISA avx512vnni
#define CG_LANES 16
#define CG_HAS_VNNI 1
#include "simd/emulate.h"
#include "kernels/attention/attention.c"
#include "kernels/linear/mxfp4_a16_blocks.c"
#include "kernels/linear/int8_a16.c"
#include "kernels/linear/int8_a8.c"
#include "kernels/linear/mxfp4_a8.c"
#include "kernels/peak/a8.c"

const cg_kernels cg_kernels__avx512vnni = {
    .attention = &attention__avx512vnni,
    .linear_mxfp4_a16 = &linear_mxfp4_a16__avx512vnni,
    .linear_int8_a16 = &linear_int8_a16__avx512vnni,
    .linear_int4_a16 = &linear_int4_a16__avx512vnni,
    .linear_mxfp4_a8 = &linear_mxfp4_a8__avx512vnni,
    .linear_int8_a8 = &linear_int8_a8__avx512vnni,
    .peak_a8 = &peak_a8__avx512vnni,
};
CG_TARGET_END
#endif
