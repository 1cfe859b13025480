/* attention_merge: out[t][h] from what `attention` left of n runs of spans: folded in their order, then the sink, a key
   of score sink[h] and value 0. Contract in cgpt.h. Parallel over (g, rows). f32. */
static void CG_NAME(attention_merge)(const cg_attention *a, int64_t g, int64_t row0, int64_t row1, int64_t n,
                                     float *states) {
    int64_t rep = a->H / a->G, D = a->D, Dv = cg_round_up(D, CG_V_ALIGN), stride = cg_attention_stride(D);
    int64_t N = row1 - row0;
    for (int64_t m = 0; m < N; m++) {
        int64_t t = (row0 + m) / rep, h = g * rep + (row0 + m) % rep;
        float *total = states + m * stride, *out = a->out + t * a->out_stride + h * D, factor = 1.f;
        for (int64_t i = 1; i < n; i++) att_fold(total, total + i * N * stride, Dv);
        float sum = vf_sum(vf_load(total + Dv));
        if (a->sinks) {
            float sink = a->sinks[h], was = total[Dv + CG_V_ALIGN], top = sink > was ? sink : was;
            factor = vf_exp(vf_set(was - top))[0];
            sum = sum * factor + vf_exp(vf_set(sink - top))[0];
        }
        /* + 0: which zeros are negative depends on how the spans were shared out */
        for (int64_t d = 0; d < D; d++) out[d] = total[d] * factor / sum + 0.f;
    }
}
