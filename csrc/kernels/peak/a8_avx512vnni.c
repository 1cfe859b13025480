/* peak_a8 for AVX512_VNNI: vpdpbusd on registers. Each lane of each sum adds four products one * x a round, both cut to
   whole numbers of 8 bits, one without a sign. */
enum { QUAD_SUMS = 12 };

static float peak_a8_run__avx512vnni(float one, float x, int64_t rounds) {
    __m512i factor = (__m512i)((vu){0} + 0x01010101u * (uint8_t)one);
    __m512i term = (__m512i)((vu){0} + 0x01010101u * (uint8_t)(int8_t)x);
    volatile int32_t zero = 0; /* as in peak.c */
    __m512i sums[QUAD_SUMS];
    for (int i = 0; i < QUAD_SUMS; i++) sums[i] = (__m512i)((vi){0} + zero);
    for (int64_t r = 0; r < rounds; r++)
        for (int i = 0; i < QUAD_SUMS; i++) sums[i] = _mm512_dpbusd_epi32(sums[i], factor, term);
    float total = 0.f;
    for (int i = 0; i < QUAD_SUMS; i++) total += vf_sum(__builtin_convertvector((vi)sums[i], vf));
    return total;
}

static cg_peak peak_a8__avx512vnni = {2 * QUAD_SUMS * 64, peak_a8_run__avx512vnni};
