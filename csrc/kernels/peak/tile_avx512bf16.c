/* peak_tile for AVX512_BF16: vdpbf16ps on registers. Each lane of each sum adds two products one * x a round, both
   rounded to bf16. */
enum { PAIR_SUMS = 12 };

static float peak_tile_run__avx512bf16(float one, float x, int64_t rounds) {
    __m512bh factor = _mm512_cvtne2ps_pbh(vf_set(one), vf_set(one)), term = _mm512_cvtne2ps_pbh(vf_set(x), vf_set(x));
    volatile float zero = 0.f; /* as in peak.c */
    __m512 sums[PAIR_SUMS];
    for (int i = 0; i < PAIR_SUMS; i++) sums[i] = (__m512)vf_set(zero);
    for (int64_t r = 0; r < rounds; r++)
        for (int i = 0; i < PAIR_SUMS; i++) sums[i] = _mm512_dpbf16_ps(sums[i], factor, term);
    float total = 0.f;
    for (int i = 0; i < PAIR_SUMS; i++) total += vf_sum((vf)sums[i]);
    return total;
}

static cg_peak peak_tile__avx512bf16 = {2 * PAIR_SUMS * 32, peak_tile_run__avx512bf16};
