/* Which variant of each kernel runs: the tables of the levels up to the one in use, later ones over earlier ones.
   Levels change only while no kernel runs (at import, and in tests). */
#include "core/arch.h"
#include "cgpt.h"
#include "core/cpu.h"

extern const cg_kernels cg_kernels__ref;
#ifdef CGPT_X86
extern const cg_kernels cg_kernels__avx2, cg_kernels_hand__avx2, cg_kernels__avx512, cg_kernels_hand__avx512,
    cg_kernels__avx512vnni, cg_kernels__avx512vnni256, cg_kernels__avx512bf16, cg_kernels__amx;
#endif

static cg_kernels table;
const cg_kernels *cg_active = &table;
static const char *variants[CG_KERNEL_COUNT];
static cg_level current;
static cg_feature masked;

static const char *const level_names[CG_LEVELS] = {"ref", "avx2", "avx512", "amx"};
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

#ifdef CGPT_X86
static const cg_cpu *cpu(void) {
    static cg_cpu found;
    static int known;
    if (!known) {
        found = cg_detect_cpu();
        known = 1;
    }
    return &found;
}

static int has_vnni(void) { return cpu()->avx512vnni && masked != CG_AVX512_VNNI; }
static int has_bf16(void) { return has_vnni() && cpu()->avx512bf16 && masked != CG_AVX512_BF16; }
#endif

const char *cg_missing_for(cg_level level) {
#ifdef CGPT_X86
    const cg_cpu *c = cpu();
    if (level >= CG_AVX2) {
        if (!c->avx2) return "AVX2";
        if (!c->fma) return "FMA";
        if (!c->f16c) return "F16C";
        if (!c->ymm) return "an operating system that enables AVX";
    }
    if (level >= CG_AVX512) {
        if (!c->avx512f) return "AVX512F";
        if (!c->avx512bw) return "AVX512BW";
        if (!c->avx512dq) return "AVX512DQ";
        if (!c->avx512vl) return "AVX512VL";
        if (!c->zmm) return "an operating system that enables AVX-512";
    }
    if (level >= CG_AMX) {
        if (!has_vnni()) return "AVX512_VNNI";
        if (!has_bf16()) return "AVX512_BF16";
        if (!c->amx_tile) return "AMX-TILE";
        if (!c->amx_bf16) return "AMX-BF16";
        if (!c->tiles) return "an operating system that enables AMX";
        if (!c->amx_permitted) return "the system's permission for AMX";
    }
    return NULL;
#else
    return level == CG_REF ? NULL : "an x86-64 processor";
#endif
}

cg_level cg_highest_level(void) {
    cg_level level = CG_AMX;
    while (cg_missing_for(level)) level--;
    return level;
}

cg_status cg_use_level(cg_level level) {
    if (level < 0 || level >= CG_LEVELS || cg_missing_for(level)) return CG_BAD_VALUE;
    memset(&table, 0, sizeof table);
    for (int i = 0; i < CG_KERNEL_COUNT; i++) variants[i] = "-";
    overlay(&cg_kernels__ref, "ref");
#ifdef CGPT_X86
    if (level >= CG_AVX2) {
        overlay(&cg_kernels__avx2, "avx2");
        overlay(&cg_kernels_hand__avx2, "avx2");
    }
    if (level >= CG_AVX512) {
        overlay(&cg_kernels__avx512, "avx512");
        overlay(&cg_kernels_hand__avx512, "avx512");
        if (has_vnni()) {
            overlay(&cg_kernels__avx512vnni, "avx512vnni");
            overlay(&cg_kernels__avx512vnni256, "avx512vnni256");
        }
        if (has_bf16()) overlay(&cg_kernels__avx512bf16, "avx512bf16");
    }
    if (level >= CG_AMX) overlay(&cg_kernels__amx, "amx");
#endif
    current = level;
    return CG_OK;
}

void cg_mask_feature(cg_feature feature) { masked = feature; }
cg_level cg_current_level(void) { return current; }
const char *cg_level_name(cg_level level) { return level_names[level]; }
const char *cg_kernel_name(int slot) { return kernel_names[slot]; }
const char *cg_kernel_variant(int slot) { return variants[slot]; }
