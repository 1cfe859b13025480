/* The part of the avx512 level that needs AVX512_BF16 (Cooper Lake, Sapphire Rapids, Zen 4 and later). */
#include "core/arch.h"
#ifdef CGPT_X86
CG_TARGET(CG_FEATURES_AVX512BF16)
#define CG_LANES 16
#define CG_HAS_AVX512BF16 1
#include "simd/emulate.h"
#include "kernels/linear/tile_avx512bf16.c"
#include "kernels/linear/mxfp4_tile.c"
#include "kernels/peak/tile_avx512bf16.c"

const cg_kernels cg_kernels__avx512bf16 = {
    .linear_bf16_tile = &linear_bf16_tile__avx512bf16,
    .linear_bf16_packed_tile = &linear_bf16_packed_tile__avx512bf16,
    .linear_mxfp4_tile = &linear_mxfp4_tile__avx512bf16,
    .linear_int8_tile = &linear_int8_tile__avx512bf16,
    .peak_tile = &peak_tile__avx512bf16,
};
CG_TARGET_END
#endif
