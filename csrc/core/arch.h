/* CGPT_X86, CGPT_ARM: the levels above ref of x86-64, of aarch64 are built. Not on other architectures, with compilers
   that do not know all instructions (GCC before 11; Clang before 12, on aarch64 before 16), or where CGPT_REF_ONLY
   leaves them out.

   CG_TARGET("avx2,fma") .. CG_TARGET_END: the functions between are compiled for a CPU with these features. A file in
   isa/ is one such region and says in CG_HAS_* what its kernels may count on. */
#pragma once

#if defined(__x86_64__) && !defined(CGPT_REF_ONLY)
#if defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11
#define CGPT_X86 1
#include <immintrin.h>
#else
#warning "this compiler is too old for the AVX2, AVX-512 and AMX kernels; only the portable ones are built"
#endif
#elif defined(__AARCH64EL__) && !defined(CGPT_REF_ONLY)
#if defined(__clang__) ? __clang_major__ >= 16 : __GNUC__ >= 11
#define CGPT_ARM 1
#include <arm_neon.h>
#else
#warning "this compiler is too old for the NEON kernels; only the portable ones are built"
#endif
#endif

#define CG_PRAGMA(text) _Pragma(#text)
#ifdef __clang__
#define CG_TARGET(features) CG_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define CG_TARGET_END CG_PRAGMA(clang attribute pop)
#else
#define CG_TARGET(features) CG_PRAGMA(GCC push_options) CG_PRAGMA(GCC target(features))
#define CG_TARGET_END CG_PRAGMA(GCC pop_options)
#endif

#define CG_FEATURES_DOTPROD "arch=armv8.2-a+dotprod"
#define CG_FEATURES_I8MM "arch=armv8.2-a+dotprod+i8mm+bf16"
#define CG_FEATURES_AVX2 "avx2,fma,f16c"
#ifdef CGPT_EMULATE /* emulate.h */
#define CG_FEATURES_AVX512 CG_FEATURES_AVX2
#define CG_FEATURES_AVX512VNNI CG_FEATURES_AVX2
#define CG_FEATURES_AVX512BF16 CG_FEATURES_AVX2
#define CG_FEATURES_AMX CG_FEATURES_AVX2
#else
#define CG_FEATURES_AVX512 "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"
#define CG_FEATURES_AVX512VNNI CG_FEATURES_AVX512 ",avx512vnni"
#define CG_FEATURES_AVX512BF16 CG_FEATURES_AVX512VNNI ",avx512bf16"
#define CG_FEATURES_AMX CG_FEATURES_AVX512BF16 ",amx-tile,amx-bf16"
#endif
