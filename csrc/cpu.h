/* What this CPU and operating system allow. */
#ifndef CG_CPU_H
#define CG_CPU_H

typedef struct {
    int avx2, fma, f16c;
    int avx512f, avx512bw, avx512dq, avx512vl, avx512bf16;
    int amx_tile, amx_bf16, amx_permitted;
} cg_cpu;

/* Each member is 1 only if CPUID has the feature and XCR0 says that the system saves its registers. AMX also needs
   the system's permission, which is asked for here; it holds for all threads of the process. */
cg_cpu cg_detect_cpu(void);

#endif
