/* CPUID, XGETBV and the system call that permits AMX. Intel SDM vol. 1 ch. 13, vol. 2 CPUID; Linux,
   Documentation/arch/x86/xstate.rst. */
#include "core/arch.h"
#include "core/cpu.h"

#ifdef CGPT_X86
#include <cpuid.h>
#include <string.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

static int ask_for_amx(void) {
#if defined(CGPT_EMULATE)
    return 1;
#elif defined(__linux__)
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return 0;
#endif
}

void cg_detect_cpu(uint32_t *words) {
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &words[LEAF1_ECX], &d)) return;
    if (words[LEAF1_ECX] >> 27 & 1) /* without OSXSAVE there is no XGETBV */
        __asm__ volatile("xgetbv" : "=a"(words[XCR0]), "=d"(d) : "c"(0));
    if (__get_cpuid_count(7, 0, &a, &words[LEAF7_EBX], &words[LEAF7_ECX], &words[LEAF7_EDX]) && a >= 1)
        __get_cpuid_count(7, 1, &words[LEAF7_1_EAX], &b, &c, &d);
#ifdef CGPT_EMULATE
    if (words[LEAF7_EBX] & CPU_AVX2) memset(words + LEAF7_EBX, -1, (XCR0 - LEAF7_EBX) * sizeof *words);
    if ((words[XCR0] & STATE_YMM) == STATE_YMM) words[XCR0] = UINT32_MAX;
#endif
    words[AMX_PERMITTED] =
        (words[XCR0] & STATE_TILES) == STATE_TILES && (words[LEAF7_EDX] & CPU_AMX) == CPU_AMX && ask_for_amx();
}
#endif
