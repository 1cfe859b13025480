/* The amx level: what it adds to avx512 with AVX512_BF16 (Sapphire Rapids and later). */
#include "../arch.h"
#ifdef CGPT_X86
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")
#include <immintrin.h>
#define CG_LANES 16
#include "../linear_tile_amx.c"

extern const cg_kernels cg_kernels__amx;
const cg_kernels cg_kernels__amx = {
    .linear_bf16_tile = &linear_bf16_tile__amx,
    .linear_mxfp4_tile = &linear_mxfp4_tile__amx,
};
#endif
