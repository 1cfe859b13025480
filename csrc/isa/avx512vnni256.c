/* The part of avx512vnni.c with vectors of 256 bits. */
#include "core/arch.h"
#ifdef CGPT_X86
CG_TARGET(CG_FEATURES_AVX512VNNI)
#define CG_ISA avx512vnni256
#define CG_LANES 8
#define CG_HAS_VNNI 1
#include "simd/emulate.h"
#include "kernels/linear/int8_a8_few.c"

const cg_kernels cg_kernels__avx512vnni256 = {.linear_int8_a8_few = &linear_int8_a8_few__avx512vnni256};
CG_TARGET_END
#endif
