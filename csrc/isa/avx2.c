/* The avx2 level: AVX2, FMA, F16C. */
#include "core/arch.h"
#ifdef CGPT_X86
CG_TARGET(CG_FEATURES_AVX2)
#define CG_ISA avx2
#define CG_LANES 8
#include "isa/portable.inc"
#include "kernels/linear/mxfp4_avx2.c"
#include "kernels/linear/mxfp4_x86.c"
#include "kernels/linear/mxfp4_a16_x86.c"

const cg_kernels cg_kernels_hand__avx2 = {
    .linear_mxfp4 = &linear_mxfp4_x86__avx2,
    .linear_mxfp4_a16 = &linear_mxfp4_a16_x86__avx2,
};
CG_TARGET_END
#endif
