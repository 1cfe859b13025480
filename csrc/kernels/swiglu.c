/* swiglu: out[i] = g sigmoid(alpha g) (u + 1), g = min(gate_up[2i], limit), u = clip(gate_up[2i+1], -limit, limit)
   out [I], gate_up [2I]. The gate has no lower clamp. Reference: gpt_oss/torch/model.py, swiglu. */
static void CG_NAME(swiglu)(float *out, const float *gate_up, float alpha, float limit, int64_t I) {
    for (int64_t i = 0; i < I; i += CG_LANES) {
        int64_t n = cg_min(I - i, CG_LANES);
        float gates[CG_LANES] = {0}, ups[CG_LANES] = {0};
        for (int64_t j = 0; j < n; j++) {
            gates[j] = gate_up[2 * (i + j)];
            ups[j] = gate_up[2 * (i + j) + 1];
        }
        vf g = vf_load(gates), u = vf_load(ups);
        g = vf_select(g > limit, vf_set(limit), g); /* comparisons that let NaN through */
        u = vf_select(u > limit, vf_set(limit), u);
        u = vf_select(u < -limit, vf_set(-limit), u);
        vf_store_n(out + i, g * vf_sigmoid(alpha * g) * (u + 1.f), n);
    }
}
