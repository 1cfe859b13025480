/* The dotprod level: FEAT_DotProd (Cortex-A76, Neoverse N1, Apple M1 and later). */
#include "core/arch.h"
#ifdef CGPT_ARM
CG_TARGET(CG_FEATURES_DOTPROD)
#define CG_ISA dotprod
#define CG_LANES 4
#define CG_HAS_NEON 1
#define CG_HAS_DOTPROD 1
#include "kernels/linear/int8_a16.c"
#include "kernels/linear/int8_a8.c"
#include "kernels/linear/mxfp4_a8.c"
#include "kernels/peak/a8.c"

const cg_kernels cg_kernels__dotprod = {
    .linear_int8_a16 = &linear_int8_a16__dotprod,
    .linear_int4_a16 = &linear_int4_a16__dotprod,
    .linear_int8_a8 = &linear_int8_a8__dotprod,
    .linear_int8_a8_few = &linear_int8_a8_few__dotprod,
    .linear_mxfp4_a8 = &linear_mxfp4_a8__dotprod,
    .peak_a8 = &peak_a8__dotprod,
};
CG_TARGET_END
#endif
