/* The i8mm level: FEAT_I8MM and FEAT_BF16 (Neoverse V1 and N2, Apple M2 and later). */
#include "core/arch.h"
#ifdef CGPT_ARM
CG_TARGET(CG_FEATURES_I8MM)
#define CG_ISA i8mm
#define CG_LANES 4
#define CG_HAS_NEON 1
#define CG_HAS_DOTPROD 1
#include "kernels/linear/tile_i8mm.c"
#include "kernels/peak/tile_i8mm.c"

const cg_kernels cg_kernels__i8mm = {
    .linear_bf16_tile = &linear_bf16_tile__i8mm,
    .linear_bf16_packed_tile = &linear_bf16_packed_tile__i8mm,
    .linear_mxfp4_tile = &linear_mxfp4_tile__i8mm,
    .linear_int8_tile = &linear_int8_tile__i8mm,
    .linear_mxfp4_a8 = &linear_mxfp4_a8__i8mm,
    .linear_int8_a8 = &linear_int8_a8__i8mm,
    .peak_tile = &peak_tile__i8mm,
};
CG_TARGET_END
#endif
