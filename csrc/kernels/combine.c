/* combine: out[C] += sum over j < k of weight[j] * y[slot[j]][C], in the order of j, added up before out is. */
static void CG_NAME(combine)(float *out, const float *y, int64_t y_stride, const int32_t *slot, const float *weight,
                             int64_t k, int64_t C) {
    for (int64_t i = 0; i < C; i += CG_LANES) {
        int64_t n = cg_min(C - i, CG_LANES);
        vf sum = vf_set(0.f);
        for (int64_t j = 0; j < k; j++) sum = vf_fma(vf_set(weight[j]), vf_load_n(y + slot[j] * y_stride + i, n), sum);
        vf_store_n(out + i, vf_load_n(out + i, n) + sum, n);
    }
}
