/* rmsnorm: out = x / sqrt(mean(x^2) + eps) * weight
   x, out, weight [C]; out may be x. Reference: gpt_oss/torch/model.py, RMSNorm. Sums in CG_LANES f32 lanes. */
static void CG_NAME(rmsnorm)(float *out, const float *x, const float *weight, float eps, int64_t C) {
    int64_t whole = C / CG_LANES * CG_LANES;
    vf squares = vf_set(0.f);
    for (int64_t i = 0; i < whole; i += CG_LANES) {
        vf v = vf_load(x + i);
        squares = vf_fma(v, v, squares);
    }
    float rest = 0.f;
    for (int64_t i = whole; i < C; i++) rest += x[i] * x[i];
    float scale = 1.f / sqrtf((vf_sum(squares) + rest) / (float)C + eps);

    for (int64_t i = 0; i < whole; i += CG_LANES) vf_store(out + i, vf_load(x + i) * scale * vf_load(weight + i));
    for (int64_t i = whole; i < C; i++) out[i] = x[i] * scale * weight[i];
}
