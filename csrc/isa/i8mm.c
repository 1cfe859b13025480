/* The i8mm level: FEAT_I8MM and FEAT_BF16 (Neoverse V1 and N2, Apple M2 and later). */
#include "core/arch.h"
#ifdef CGPT_ARM
#include "cgpt.h"
const cg_kernels cg_kernels__i8mm = {0};
#endif
