/* peak_tile for BF16: bfmmla on registers. Each lane of each sum adds four products one * x a round, both rounded to
   bf16. */
enum { BF16_SUMS = CG_CHAINS };

static float peak_tile_run__i8mm(float one, float x, int64_t rounds) {
    bfloat16x8_t factor = vreinterpretq_bf16_u16(vdupq_n_u16(cg_f32_to_bf16(one)));
    bfloat16x8_t term = vreinterpretq_bf16_u16(vdupq_n_u16(cg_f32_to_bf16(x)));
    volatile float zero = 0.f; /* as in peak.c */
    float32x4_t sums[BF16_SUMS];
    for (int i = 0; i < BF16_SUMS; i++) sums[i] = vdupq_n_f32(zero);
    for (int64_t r = 0; r < rounds; r++)
#pragma GCC unroll 24 /* or the sums would be in memory */
        for (int i = 0; i < BF16_SUMS; i++) sums[i] = vbfmmlaq_f32(sums[i], factor, term);
    float total = 0.f;
    for (int i = 0; i < BF16_SUMS; i++) total += vf_sum((vf)sums[i]);
    return total;
}

static cg_peak peak_tile__i8mm = {2 * BF16_SUMS * 16, peak_tile_run__i8mm};
