/* What this CPU and operating system allow. */
#pragma once

#include <stdint.h>

/* x86-64: registers of CPUID (leaf 7 has two subleaves); XCR0, the registers that the system saves: without that a
   feature cannot be used; and whether the system permits AMX, which is asked for here and holds for all threads of the
   process. */
enum { LEAF1_ECX, LEAF7_EBX, LEAF7_ECX, LEAF7_EDX, LEAF7_1_EAX, XCR0, AMX_PERMITTED, CPU_WORDS };
enum { CPU_AVX2 = 1 << 5, CPU_VNNI = 1 << 11, CPU_BF16 = 1 << 5, CPU_AMX = 1 << 22 | 1 << 24 };
enum { STATE_YMM = 0x6, STATE_ZMM = 0xe6, STATE_TILES = 0x60000 };
/* aarch64: what there is beside NEON, in words[0]. */
enum { ARM_DOTPROD = 1, ARM_I8MM = 2, ARM_BF16 = 4 };

/* Fills words[CPU_WORDS]; what there is not is 0. */
void cg_detect_cpu(uint32_t *words);
