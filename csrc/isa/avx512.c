/* The avx512 level: AVX-512 F, BW, DQ, VL (Skylake-X and later). avx512vnni.c and avx512bf16.c have what needs more. */
#include "core/arch.h"
#ifdef CGPT_X86
CG_TARGET(CG_FEATURES_AVX512)
#define CG_ISA avx512
#define CG_LANES 16
#include "simd/emulate.h"
#include "kernels/linear/mxfp4_avx512.c"
#include "isa/portable.inc"
CG_TARGET_END
#endif
