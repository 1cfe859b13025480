/* CGPT_X86: the levels above ref are built. CGPT_REF_ONLY leaves them out, as on every other architecture. */
#ifndef CG_ARCH_H
#define CG_ARCH_H
#if defined(__x86_64__) && !defined(CGPT_REF_ONLY)
#define CGPT_X86 1
#endif
#endif
