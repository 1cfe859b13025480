/* quantize_int8: groups of 64 weights as integers of -127 .. 127 and a bf16 scale. The scale is rounded first, and up,
   so that the largest weight is at most 127 scales and the only error is that of the integers, half a scale at the
   most. */
#include "kernels/linear/round.h"

static void CG_NAME(quantize_int8)(uint8_t *out, uint8_t *scales, const void *x, cg_dtype dtype, int64_t K) {
    for (int64_t k = 0; k < K; k += CG_INT8_GROUP) {
        float group[CG_INT8_GROUP];
        int32_t q[CG_INT8_GROUP];
        float largest = group_load(CG_INT8_GROUP, group, dtype, x, k, K);
        uint16_t scale = largest >= 0x1p-100f ? (uint16_t)((cg_bits_from_f32(largest / 127.f) + 0xffff) >> 16) : 0;
        group_multiply(CG_INT8_GROUP, q, group, scale ? 1.f / cg_bf16_to_f32(scale) : 0.f);
        if (largest != largest) scale = 0x7fc0;
        memcpy(scales + k / CG_INT8_GROUP * 2, &scale, sizeof scale);
        for (int i = 0; i < CG_INT8_GROUP; i++) out[k + i] = (uint8_t)q[i];
    }
}
