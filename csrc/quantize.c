/* quantize_int8: groups of 64 weights as integers of -127 .. 127 and a bf16 scale. The scale is rounded up, so that the
   largest stays within 127, before the integers are: no error but theirs, at most half a scale. */
static void CG_NAME(quantize_int8)(int8_t *out, uint16_t *scales, const void *x, cg_dtype dtype, int64_t K) {
    for (int64_t k = 0; k < K; k += CG_INT8_GROUP) {
        float group[CG_INT8_GROUP];
        vf most = vf_set(0.f), left = vf_set(0.f);  /* left: 0, or NaN if any value is not finite */
        for (int i = 0; i < CG_INT8_GROUP; i += CG_LANES) {
            int64_t n = cg_max(0, cg_min(K - k - i, CG_LANES));
            vf v = n == CG_LANES ? vf_load_as(dtype, x, k + i) : n ? vf_load_as_n(dtype, x, k + i, n) : vf_set(0.f);
            vf_store(group + i, v);
            left += v - v;
            most = vf_max(most, (vf)((vi)v & 0x7fffffff));
        }
        float top = vf_max_lane(most), nan = vf_sum(left);
        int empty = top < 0x1p-100f || nan != 0.f;
        uint16_t scale = empty ? 0 : (uint16_t)((cg_bits_from_f32(top / 127.f) + 0xffff) >> 16);
        float per_scale = empty ? 0.f : 1.f / cg_bf16_to_f32(scale);
        scales[k / CG_INT8_GROUP] = nan == 0.f ? scale : 0x7fc0;
        for (int i = 0; i < CG_INT8_GROUP; i += CG_LANES) {
            vi q = (vi)(vf_load(group + i) * per_scale + 12582912.f) - 0x4b400000;  /* 1.5 * 2^23: rounds to nearest */
            if (empty) q ^= q;
            vb bytes = __builtin_convertvector(q, vb);
            memcpy(out + k + i, &bytes, sizeof bytes);
        }
    }
}
