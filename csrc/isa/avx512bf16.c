/* The part of the avx512 level that needs AVX512_BF16 (Cooper Lake, Sapphire Rapids, Zen 4 and later). */
#include "../arch.h"
#ifdef CGPT_X86
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#include <immintrin.h>
#define CG_LANES 16
#include "../linear_tile_avx512bf16.c"

extern const cg_kernels cg_kernels__avx512bf16;
const cg_kernels cg_kernels__avx512bf16 = {
    .linear_bf16_tile = &linear_bf16_tile__avx512bf16,
    .linear_mxfp4_tile = &linear_mxfp4_tile__avx512bf16,
};
#endif
