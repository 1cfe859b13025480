/* The avx2 level: AVX2, FMA, F16C. */
#include "core/arch.h"
#ifdef CGPT_X86
CG_TARGET(CG_FEATURES_AVX2)
#define CG_ISA avx2
#define CG_LANES 8
#include "kernels/linear/mxfp4_pairs.c"
#include "isa/portable.inc"
CG_TARGET_END
#endif
