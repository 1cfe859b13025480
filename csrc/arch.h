/* CGPT_X86: the levels above ref are built. Not on other architectures, with compilers that do not know AMX (GCC before
   11, Clang before 12), or where CGPT_REF_ONLY leaves them out. */
#ifndef CG_ARCH_H
#define CG_ARCH_H
#if defined(__x86_64__) && !defined(CGPT_REF_ONLY)
#if defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11
#define CGPT_X86 1
#else
#warning "this compiler is too old for the AVX2, AVX-512 and AMX kernels; only the portable ones are built"
#endif
#endif
#endif
