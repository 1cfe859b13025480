/* layernorm: out = (x - mean) / sqrt(var + eps) * weight + bias
   x, out, weight, bias [C]; out may be x. Reference: torch.nn.functional.layer_norm, GPT-2's ln_1, ln_2, ln_f.
   The mean first, then the variance of the differences: no cancellation. Sums in CG_LANES f32 lanes. */
static void CG_NAME(layernorm)(float *out, const float *x, const float *weight, const float *bias, float eps,
                               int64_t C) {
    int64_t whole = C / CG_LANES * CG_LANES, tail = C - whole;
    vf sum = tail ? vf_load_n(x + whole, tail) : vf_set(0.f);
    for (int64_t i = 0; i < whole; i += CG_LANES) sum += vf_load(x + i);
    float mean = vf_sum(sum) / (float)C;

    vf squares = vf_set(0.f);
    for (int64_t i = 0; i < whole; i += CG_LANES) {
        vf d = vf_load(x + i) - mean;
        squares = vf_fma(d, d, squares);
    }
    float rest = 0.f;
    for (int64_t i = whole; i < C; i++) rest += (x[i] - mean) * (x[i] - mean);
    float scale = 1.f / sqrtf((vf_sum(squares) + rest) / (float)C + eps);

    for (int64_t i = 0; i < whole; i += CG_LANES)
        vf_store(out + i, (vf_load(x + i) - mean) * scale * vf_load(weight + i) + vf_load(bias + i));
    for (int64_t i = whole; i < C; i++) out[i] = (x[i] - mean) * scale * weight[i] + bias[i];
}
