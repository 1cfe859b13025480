/* CPUID, XGETBV and the system call that permits AMX. Intel SDM vol. 1 ch. 13, vol. 2 CPUID; Linux,
   Documentation/arch/x86/xstate.rst. On aarch64 the system tells: Linux, Documentation/arch/arm64/elf_hwcaps.rst;
   Apple, "Determining Instruction Set Characteristics". */
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
#elif defined(CGPT_ARM)
#if defined(__linux__)
#include <sys/auxv.h>

void cg_detect_cpu(uint32_t *words) {
    unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
    words[0] =
        (first >> 20 & 1 ? ARM_DOTPROD : 0) | (second >> 13 & 1 ? ARM_I8MM : 0) | (second >> 14 & 1 ? ARM_BF16 : 0);
}
#elif defined(__APPLE__)
#include <sys/sysctl.h>

static uint32_t has(const char *name, uint32_t bit) {
    int found = 0;
    size_t size = sizeof found;
    return sysctlbyname(name, &found, &size, NULL, 0) == 0 && found ? bit : 0;
}

void cg_detect_cpu(uint32_t *words) {
    words[0] = has("hw.optional.arm.FEAT_DotProd", ARM_DOTPROD) | has("hw.optional.arm.FEAT_I8MM", ARM_I8MM) |
               has("hw.optional.arm.FEAT_BF16", ARM_BF16);
}
#else
void cg_detect_cpu(uint32_t *words) { words[0] = 0; }
#endif
#endif
