/* quantize_int4: groups of 64 weights as one of 16 integers (CG_INT4_VALUES, those of llama.cpp's IQ4_NL) times a bf16
   scale. The weight of largest magnitude comes to -100 .. -148 scales, in steps of 8, so the scale may be negative; the
   least sum of squared errors wins. */
#include "kernels/linear/round.h"

enum { INT4_FIRST = 100, INT4_LAST = 148, INT4_STEP = 8 };

/* table[i] of 16 floats. */
CG_INLINE vf lookup(const float *table, vi i) {
#ifdef CG_HAS_MM
#if CG_LANES == 16
    return (vf)_mm512_permutexvar_ps((vmi)i, (__m512)vf_load(table));
#else
    vf lower = (vf)_mm256_permutevar8x32_ps((__m256)vf_load(table), (vmi)i);
    return vf_select(i > 7, (vf)_mm256_permutevar8x32_ps((__m256)vf_load(table + 8), (vmi)i), lower);
#endif
#else
    vf found;
    for (int l = 0; l < CG_LANES; l++) found[l] = table[i[l]];
    return found;
#endif
}

/* The code of the nearest of the 16 values: how many of the middles between two it is above, found bit by bit. */
CG_INLINE vi int4_code(vf x) {
    static const float middles[16] = {-115.5f, -93.5f, -74.f, -57.f, -42.f, -28.5f, -16.f, -4.5f,
                                      7.f,     19.f,   31.5f, 45.5f, 61.f,  79.f,   101.f};
    vi code = {0};
    for (int bit = 8; bit; bit /= 2) code += (x > lookup(middles, code + (bit - 1))) & bit;
    return code;
}

/* The sum of squared errors of a group times `factor`, in an order that the width of vectors does not change. */
CG_INLINE float int4_error(const float *group, float factor) {
    static const float values[16] = {CG_INT4_VALUES};
    vf error[CG_INT8_GROUP / CG_LANES];
    for (int i = 0; i < CG_INT8_GROUP / CG_LANES; i++) {
        vf x = vf_load(group + i * CG_LANES) * factor, off = lookup(values, int4_code(x)) - x;
        error[i] = off * off;
    }
    for (int w = CG_INT8_GROUP / CG_LANES / 2; w; w /= 2)
        for (int i = 0; i < w; i++) error[i] += error[i + w];
    return vf_sum(error[0]);
}

static void CG_NAME(quantize_int4)(uint8_t *out, uint8_t *scales, const void *x, cg_dtype dtype, int64_t K) {
    for (int64_t k = 0; k < K; k += CG_INT8_GROUP, out += CG_INT8_GROUP / 2, scales += 2) {
        float group[CG_INT8_GROUP], factor = 0.f;
        double least = INFINITY; /* the square of a float may be too large, or too small, for a float */
        int32_t codes[CG_INT8_GROUP];
        uint16_t scale = 0;
        float largest = group_load(CG_INT8_GROUP, group, dtype, x, k, K);
        vf most = vf_load(group);
        for (int i = CG_LANES; i < CG_INT8_GROUP; i += CG_LANES) most = vf_max(most, vf_load(group + i));
        float edge = vf_max_lane(most) == largest ? -largest : largest;
        for (int at = INT4_FIRST; largest >= 0x1p-100f && at <= INT4_LAST; at += INT4_STEP) {
            uint16_t tried = cg_f32_to_bf16(edge / (float)at);
            float size = cg_bf16_to_f32(tried);
            double error = (double)int4_error(group, 1.f / size) * size * size;
            if (error < least) least = error, scale = tried, factor = 1.f / size;
        }
        if (largest != largest) scale = 0x7fc0;
        memcpy(scales, &scale, sizeof scale);
        for (int i = 0; i < CG_INT8_GROUP; i += CG_LANES) {
            vi code = int4_code(vf_load(group + i) * factor);
            memcpy(codes + i, &code, sizeof code);
        }
        for (int i = 0; i < CG_INT8_GROUP / 2; i++) out[i] = (uint8_t)(codes[i] | codes[i + CG_INT8_GROUP / 2] << 4);
    }
}
