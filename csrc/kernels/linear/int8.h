/* INT8 and INT4 weights: integers and a bf16 scale per group. */
#pragma once

#include "cgpt.h"

static const int8_t int4_values[16] CG_UNUSED = {CG_INT4_VALUES};

CG_INLINE int64_t int8_groups(int64_t K) { return (K + CG_INT8_GROUP - 1) / CG_INT8_GROUP; }

CG_INLINE float int8_scale(const cg_product *p, int64_t n, int64_t g) {
    uint16_t scale;
    memcpy(&scale, p->scales + (n * int8_groups(p->K) + g) * 2, 2);
    return cg_bf16_to_f32(scale);
}
