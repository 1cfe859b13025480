/* CPUID, XGETBV and the system call that permits AMX. Intel SDM vol. 1 ch. 13, vol. 2 CPUID; Linux,
   Documentation/arch/x86/xstate.rst. */
#include "core/arch.h"
#include "core/cpu.h"

#ifdef CGPT_X86
#include <cpuid.h>
#include <stdint.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

static uint64_t enabled_state(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

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

cg_cpu cg_detect_cpu(void) {
    cg_cpu cpu = {0};
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return cpu;
    uint64_t state = c >> 27 & 1 ? enabled_state() : 0; /* without OSXSAVE there is no XGETBV */
    cpu.ymm = (state & 0x6) == 0x6;
    cpu.zmm = cpu.ymm && (state & 0xe0) == 0xe0;
    cpu.tiles = (state & 0x60000) == 0x60000;
    cpu.fma = c >> 12 & 1;
    cpu.f16c = c >> 29 & 1;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        cpu.avx2 = b >> 5 & 1;
        cpu.avx512f = b >> 16 & 1;
        cpu.avx512dq = b >> 17 & 1;
        cpu.avx512bw = b >> 30 & 1;
        cpu.avx512vl = b >> 31 & 1;
        cpu.avx512vnni = c >> 11 & 1;
        cpu.amx_bf16 = d >> 22 & 1;
        cpu.amx_tile = d >> 24 & 1;
        if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) cpu.avx512bf16 = a >> 5 & 1;
    }
#ifdef CGPT_EMULATE
    cpu.avx512f = cpu.avx512bw = cpu.avx512dq = cpu.avx512vl = cpu.avx512vnni = cpu.avx512bf16 = cpu.avx2;
    cpu.amx_tile = cpu.amx_bf16 = cpu.avx2;
    cpu.zmm = cpu.tiles = cpu.ymm;
#endif
    cpu.amx_permitted = cpu.tiles && cpu.amx_tile && cpu.amx_bf16 && ask_for_amx();
    return cpu;
}
#else
cg_cpu cg_detect_cpu(void) { return (cg_cpu){0}; }
#endif
