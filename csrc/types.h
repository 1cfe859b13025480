/* Types, limits and conversions that every kernel uses. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Storage types of weights. MXFP4: 32 E2M1 nibbles (16 bytes) and one E8M0 scale byte per group. INT8: integers of
   -127 .. 127 and one bf16 scale per group of 64; rows are padded to whole groups by zeros. BF16_PACKED: bf16 in 12
   bits, see kernels/linear/bf16_packed.h. INT4: INT8 whose integers are among CG_INT4_VALUES, as codes of four bits. */
typedef enum { CG_F32, CG_F16, CG_BF16, CG_MXFP4, CG_INT8, CG_BF16_PACKED, CG_INT4, CG_U8 } cg_dtype;

typedef enum { CG_OK, CG_BAD_SHAPE, CG_BAD_DTYPE, CG_NO_MEMORY, CG_BAD_VALUE } cg_status;

enum {
    CG_MXFP4_GROUP = 32,       /* weights that share a scale */
    CG_MXFP4_GROUP_BYTES = 16, /* their nibbles, element 2j in the low half of byte j */
    CG_INT8_GROUP = 64,
    CG_PACKED_BLOCK = 64, /* weights that are packed together */
    CG_PACKED_BLOCK_BYTES = 96,
    CG_PACKED_RUN = 1024, /* weights that share a table of exponents */
    CG_PACKED_EXPONENTS = 16,
    CG_KV_BLOCK = 32,  /* keys per block of the cache, see attention/kv_append.c */
    CG_KV_SPLIT = 512, /* keys of a KV split, which is summed by itself; a multiple of CG_KV_BLOCK */
    CG_KV_PANEL = 16,  /* columns of a block that are stored together: keys, or dimensions of values */
    CG_V_ALIGN = 16,   /* value rows are padded to a multiple of this many floats */
    CG_MAX_HEAD_DIM = 4096,
    CG_MAX_EXPERTS = 1024,
    CG_MAX_TOP_K = 64,
    CG_MAX_THREADS = 1024, /* of one job; more are never started */
};

/* E2M1 in the order of its codes (OCP Microscaling Formats v1.0, section 5.3.3). */
#define CG_E2M1_VALUES 0.f, .5f, 1.f, 1.5f, 2.f, 3.f, 4.f, 6.f, -0.f, -.5f, -1.f, -1.5f, -2.f, -3.f, -4.f, -6.f

/* The integers of INT4 in the order of their codes: closer together where weights are (llama.cpp's kvalues_iq4nl). */
#define CG_INT4_VALUES -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113

/* Always inlined, so that constant arguments become constants of the code. */
#define CG_INLINE static inline __attribute__((always_inline))
/* A parameter that the function does not need. */
#define CG_UNUSED __attribute__((unused))

static inline int64_t cg_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t cg_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t cg_round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

typedef union {
    uint32_t bits;
    float f32;
} cg_word;
static inline float cg_f32_from_bits(uint32_t bits) { return (cg_word){.bits = bits}.f32; }
static inline uint32_t cg_bits_from_f32(float f) { return (cg_word){.f32 = f}.bits; }

static inline float cg_bf16_to_f32(uint16_t h) { return cg_f32_from_bits((uint32_t)h << 16); }

/* Round to nearest, ties to even; NaN stays NaN. */
static inline uint16_t cg_f32_to_bf16(float f) {
    uint32_t u = cg_bits_from_f32(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* Round to nearest, ties to even; NaN stays NaN, 65520 and more becomes infinity. Denormal halves are multiples of
   2^-24: adding 0.5 rounds to them. */
static inline uint16_t cg_f32_to_f16(float f) {
    uint32_t u = cg_bits_from_f32(f), sign = u >> 16 & 0x8000, size = u & 0x7fffffffu;
    if (size > 0x7f800000u) return (uint16_t)(sign | 0x7e00);
    if (size >= 0x477ff000u) return (uint16_t)(sign | 0x7c00);
    if (size < 0x38800000u) return (uint16_t)(sign | (cg_bits_from_f32(cg_f32_from_bits(size) + 0.5f) - 0x3f000000u));
    return (uint16_t)(sign | (size - 0x38000000u + 0xfff + (size >> 13 & 1)) >> 13);
}

/* A float multiplication scales denormal halves: no table and no loop. */
static inline float cg_f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
    if (rest < 0x0400) return cg_f32_from_bits(sign | cg_bits_from_f32((float)rest * 0x1p-24f));
    if (rest >= 0x7c00) return cg_f32_from_bits(sign | 0x7f800000u | (rest & 0x3ff) << 13);
    return cg_f32_from_bits(sign | ((rest << 13) + 0x38000000u));
}

/* 2^(scale - 127). Scale 0 is a denormal; 255 is NaN in the OCP specification, here infinity, which ends as a
   non-finite logit just the same. */
static inline float cg_e8m0_to_f32(uint8_t scale) {
    uint32_t bits = (uint32_t)scale << 23;
    return cg_f32_from_bits(bits ? bits : 0x00400000u);
}

static inline size_t cg_dtype_bytes(cg_dtype d) { return d == CG_F32 ? 4 : d == CG_F16 || d == CG_BF16 ? 2 : 1; }

/* Bytes of a packed row before its blocks. */
static inline int64_t cg_packed_head_bytes(int64_t K) {
    return cg_round_up(16 + (K + CG_PACKED_RUN - 1) / CG_PACKED_RUN * CG_PACKED_EXPONENTS, 32);
}

/* Bytes of one row of K weights. */
static inline int64_t cg_row_bytes(cg_dtype d, int64_t K) {
    if (d == CG_BF16_PACKED)
        return cg_packed_head_bytes(K) + (K + CG_PACKED_BLOCK - 1) / CG_PACKED_BLOCK * CG_PACKED_BLOCK_BYTES;
    if (d == CG_INT8 || d == CG_INT4) return cg_round_up(K, CG_INT8_GROUP) / (d == CG_INT4 ? 2 : 1);
    return d == CG_MXFP4 ? K / 2 : K * (int64_t)cg_dtype_bytes(d);
}

/* Bytes of its scales. */
static inline int64_t cg_scale_bytes(cg_dtype d, int64_t K) {
    if (d == CG_INT8 || d == CG_INT4) return cg_round_up(K, CG_INT8_GROUP) / CG_INT8_GROUP * 2;
    return d == CG_MXFP4 ? K / CG_MXFP4_GROUP : 0;
}
