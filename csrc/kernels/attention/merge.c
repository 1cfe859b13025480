/* attention_merge: out[t][h] from the states that `attention` left of n runs of KV splits. They are merged in order,
   then the sink is added, a key of score sink[h] and value 0. Contract in cgpt.h. Parallel over (g, rows). f32. */
static void CG_NAME(attention_merge)(const cg_attention *a, const cg_attention_part *part, int64_t n) {
    int64_t rep = a->H / a->G, D = a->D, Dv = cg_round_up(D, CG_V_ALIGN), stride = cg_attention_stride(D);
    int64_t N = part->row1 - part->row0;
    for (int64_t m = 0; m < N; m++) {
        int64_t t = (part->row0 + m) / rep, h = part->g * rep + (part->row0 + m) % rep;
        float *total = part->state + m * stride, *out = a->out + t * a->out_stride + h * D, factor = 1.f;
        for (int64_t i = 1; i < n; i++) att_merge(total, total + i * N * stride, Dv);
        float sum = vf_sum(vf_load(total + Dv));
        if (a->sinks) {
            float sink = a->sinks[h], before = total[Dv + CG_V_ALIGN], top = sink > before ? sink : before;
            factor = vf_exp(vf_set(before - top))[0];
            sum = sum * factor + vf_exp(vf_set(sink - top))[0];
        }
        /* + 0: which zeros are negative depends on the partitions */
        for (int64_t d = 0; d < D; d++) out[d] = total[d] * factor / sum + 0.f;
    }
}
