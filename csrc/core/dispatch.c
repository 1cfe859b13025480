/* Which variant of each kernel runs: the tables of the levels up to the one in use, later ones over earlier ones.
   Levels change only while no kernel runs (at import, and in tests). */
#include "core/arch.h"
#include "cgpt.h"
#include "core/cpu.h"

extern const cg_kernels cg_kernels__ref;
#ifdef CGPT_X86
extern const cg_kernels cg_kernels__avx2, cg_kernels__avx512, cg_kernels__avx512vnni, cg_kernels__avx512vnni256,
    cg_kernels__avx512bf16, cg_kernels__amx;
#elif defined(CGPT_ARM)
extern const cg_kernels cg_kernels__neon, cg_kernels__dotprod, cg_kernels__i8mm;
#endif

static cg_kernels table;
const cg_kernels *cg_active = &table;
static const char *variants[CG_KERNEL_COUNT];
static cg_level current;
static cg_feature masked;

#ifdef __aarch64__
static const char *const level_names[CG_LEVELS] = {"ref", "neon", "dotprod", "i8mm"};
static const char *const feature_names[CG_FEATURES] = {"", "dotprod", "i8mm"};
#else
static const char *const level_names[CG_LEVELS] = {"ref", "avx2", "avx512", "amx"};
static const char *const feature_names[CG_FEATURES] = {"", "avx512_vnni", "avx512_bf16"};
#endif
static const char *const kernel_names[CG_KERNEL_COUNT] = {
#define KERNEL(name, type) #name,
#include "kernels.def"
};

/* A table is an array of pointers; those that are not NULL replace what is there. */
static void overlay(const cg_kernels *from, const char *variant) {
    for (int i = 0; i < CG_KERNEL_COUNT; i++) {
        void *pointer;
        memcpy(&pointer, (const char *)from + i * sizeof pointer, sizeof pointer);
        if (!pointer) continue;
        memcpy((char *)&table + i * sizeof pointer, &pointer, sizeof pointer);
        variants[i] = variant;
    }
}

#if defined(CGPT_X86) || defined(CGPT_ARM)
/* Bits of the CPU's words that a level needs beside those of the levels below. */
static const struct {
    cg_level level;
    int word;
    uint32_t bits;
    const char *name;
} needs[] = {
#ifdef CGPT_ARM
    {CG_DOTPROD, 0, ARM_DOTPROD, "FEAT_DotProd"},
    {CG_I8MM, 0, ARM_I8MM, "FEAT_I8MM"},
    {CG_I8MM, 0, ARM_BF16, "FEAT_BF16"},
};

static int cpu_has(int word, uint32_t bits) {
    uint32_t words[1];
    cg_detect_cpu(words);
    if (masked == CG_MASK_DOTPROD || (masked == CG_MASK_I8MM && bits != ARM_DOTPROD)) return 0;
    return (words[word] & bits) == bits;
}
#else
    {CG_AVX2, LEAF7_EBX, CPU_AVX2, "AVX2"},
    {CG_AVX2, LEAF1_ECX, 1 << 12, "FMA"},
    {CG_AVX2, LEAF1_ECX, 1 << 29, "F16C"},
    {CG_AVX2, XCR0, STATE_YMM, "an operating system that enables AVX"},
    {CG_AVX512, LEAF7_EBX, 1 << 16, "AVX512F"},
    {CG_AVX512, LEAF7_EBX, 1 << 30, "AVX512BW"},
    {CG_AVX512, LEAF7_EBX, 1 << 17, "AVX512DQ"},
    {CG_AVX512, LEAF7_EBX, 1u << 31, "AVX512VL"},
    {CG_AVX512, XCR0, STATE_ZMM, "an operating system that enables AVX-512"},
    {CG_AMX, LEAF7_ECX, CPU_VNNI, "AVX512_VNNI"},
    {CG_AMX, LEAF7_1_EAX, CPU_BF16, "AVX512_BF16"},
    {CG_AMX, LEAF7_EDX, 1 << 24, "AMX-TILE"},
    {CG_AMX, LEAF7_EDX, 1 << 22, "AMX-BF16"},
    {CG_AMX, XCR0, STATE_TILES, "an operating system that enables AMX"},
    {CG_AMX, AMX_PERMITTED, 1, "the system's permission for AMX"},
};

static int cpu_has(int word, uint32_t bits) {
    static uint32_t words[CPU_WORDS];
    if (!words[LEAF1_ECX]) cg_detect_cpu(words);
    if (word == LEAF7_ECX && masked == CG_AVX512_VNNI) return 0;
    if (word == LEAF7_1_EAX && (masked || !cpu_has(LEAF7_ECX, CPU_VNNI))) return 0;
    return (words[word] & bits) == bits;
}
#endif

const char *cg_missing_for(cg_level level) {
    for (size_t i = 0; i < sizeof needs / sizeof *needs; i++)
        if (level >= needs[i].level && !cpu_has(needs[i].word, needs[i].bits)) return needs[i].name;
    return NULL;
}
#elif defined(__aarch64__)
const char *cg_missing_for(cg_level level) { return level == CG_REF ? NULL : "a build that has it"; }
#else
const char *cg_missing_for(cg_level level) { return level == CG_REF ? NULL : "an x86-64 processor"; }
#endif

const char *cg_use_level(cg_level level, cg_feature mask) {
    cg_feature before = masked;
    masked = mask;
    const char *missing = cg_missing_for(level);
    if (missing) {
        masked = before;
        return missing;
    }
    memset(&table, 0, sizeof table);
    for (int i = 0; i < CG_KERNEL_COUNT; i++) variants[i] = "-";
    overlay(&cg_kernels__ref, "ref");
#ifdef CGPT_X86
    if (level >= CG_AVX2) overlay(&cg_kernels__avx2, "avx2");
    if (level >= CG_AVX512) {
        overlay(&cg_kernels__avx512, "avx512");
        if (cpu_has(LEAF7_ECX, CPU_VNNI)) {
            overlay(&cg_kernels__avx512vnni, "avx512vnni");
            overlay(&cg_kernels__avx512vnni256, "avx512vnni256");
        }
        if (cpu_has(LEAF7_1_EAX, CPU_BF16)) overlay(&cg_kernels__avx512bf16, "avx512bf16");
    }
    if (level >= CG_AMX) overlay(&cg_kernels__amx, "amx");
#elif defined(CGPT_ARM)
    if (level >= CG_NEON) overlay(&cg_kernels__neon, "neon");
    if (level >= CG_DOTPROD) overlay(&cg_kernels__dotprod, "dotprod");
    if (level >= CG_I8MM) overlay(&cg_kernels__i8mm, "i8mm");
#endif
    current = level;
    return NULL;
}

cg_level cg_current_level(void) { return current; }
const char *cg_level_name(cg_level level) { return level_names[level]; }
const char *cg_feature_name(cg_feature feature) { return feature_names[feature]; }
const char *cg_kernel_name(int slot) { return kernel_names[slot]; }
const char *cg_kernel_variant(int slot) { return variants[slot]; }
