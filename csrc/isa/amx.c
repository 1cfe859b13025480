/* The amx level: what it adds to avx512 with AVX512_BF16 (Sapphire Rapids and later). */
#include "core/arch.h"
#ifdef CGPT_X86
CG_TARGET(CG_FEATURES_AMX)
#define CG_LANES 16
#define CG_HAS_AVX512BF16 1
#include "simd/emulate.h"
#include "kernels/linear/tile_amx.c"
#include "kernels/peak/tile_amx.c"

const cg_kernels cg_kernels__amx = {
    .linear_bf16_tile = &linear_bf16_tile__amx,
    .linear_bf16_packed_tile = &linear_bf16_packed_tile__amx,
    .linear_mxfp4_tile = &linear_mxfp4_tile__amx,
    .linear_int8_tile = &linear_int8_tile__amx,
    /* faster than 8-bit activations outside the matrix units */
    .linear_mxfp4_a8 = &linear_mxfp4_tile__amx,
    .linear_int8_a8 = &linear_int8_tile__amx,
    .linear_int8_a8_few = &linear_int8_tile__amx,
    .peak_tile = &peak_tile__amx,
};
CG_TARGET_END
#endif
