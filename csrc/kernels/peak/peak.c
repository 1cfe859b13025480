/* peak: how many f32 operations a core can do, as multiply-adds that stay in registers.
   Each of the sums is a = a * one + x, `rounds` times from 0; the result is their total. Two pipes with a latency of 4
   to 5 cycles need 12 independent sums, which fit 16 registers, and four pipes 24. */
enum { CG_NAME(PEAK_SUMS) = CG_CHAINS };

static float CG_NAME(peak_run)(float one, float x, int64_t rounds) {
    volatile float zero = 0.f; /* volatile, or the compiler computes one sum and uses it for all */
    vf a[CG_NAME(PEAK_SUMS)], factor = vf_set(one), term = vf_set(x);
    for (int i = 0; i < CG_NAME(PEAK_SUMS); i++) a[i] = vf_set(zero);
    for (int64_t r = 0; r < rounds; r++)
#pragma GCC unroll 24 /* or the sums would be in memory */
        for (int i = 0; i < CG_NAME(PEAK_SUMS); i++) a[i] = vf_fma(a[i], factor, term);
    float total = 0.f;
    for (int i = 0; i < CG_NAME(PEAK_SUMS); i++) total += vf_sum(a[i]);
    return total;
}

static cg_peak CG_NAME(peak) = {2 * CG_NAME(PEAK_SUMS) * CG_LANES, CG_NAME(peak_run)};
