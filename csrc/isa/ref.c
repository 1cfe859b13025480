/* The reference level: any architecture, the compiler's own baseline (SSE2 on x86-64). */
#define CG_ISA ref
#define CG_LANES 4
#include "isa/portable.inc"
