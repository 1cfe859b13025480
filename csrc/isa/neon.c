/* The neon level: every aarch64. */
#include "core/arch.h"
#ifdef CGPT_ARM
#define CG_ISA neon
#define CG_LANES 4
#define CG_HAS_NEON 1
#include "kernels/linear/mxfp4_pairs.c"
#include "isa/portable.inc"
#endif
