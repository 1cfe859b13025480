/* What this CPU and operating system allow. */
#ifndef CG_CPU_H
#define CG_CPU_H

typedef struct {
    int avx2, fma, f16c;
    int avx512f, avx512bw, avx512dq, avx512vl, avx512vnni, avx512bf16;
    int amx_tile, amx_bf16;
    int ymm, zmm, tiles, amx_permitted;
} cg_cpu;

/* The features are what CPUID has; ymm, zmm and tiles say whether the system saves such registers (XCR0): without
   that a feature cannot be used. AMX also needs the system's permission, which is asked for here; it holds for all
   threads of the process. */
cg_cpu cg_detect_cpu(void);

#endif
