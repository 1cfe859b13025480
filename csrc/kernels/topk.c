/* topk: the k largest of E router logits, then softmax over those k alone.
   logits [E]; index, weight [k], largest first, the lower index on a tie. A NaN among the logits, chosen or not, makes
   every weight NaN; the indices stay valid.
   Reference: gpt_oss/torch/model.py, MLPBlock (torch.topk, then softmax of the chosen). */
static void CG_NAME(topk)(int32_t *index, float *weight, const float *logits, int64_t E, int64_t k) {
    int64_t filled = 0;
    int nan = 0;
    for (int64_t e = 0; e < E; e++) { /* insertion into the sorted best k */
        float v = logits[e] == logits[e] ? logits[e] : -INFINITY;
        nan |= logits[e] != logits[e];
        int64_t at = filled;
        while (at > 0 && weight[at - 1] < v) at--;
        if (at == k) continue;
        if (filled < k) filled++;
        for (int64_t j = filled - 1; j > at; j--) {
            weight[j] = weight[j - 1];
            index[j] = index[j - 1];
        }
        weight[at] = v;
        index[at] = (int32_t)e;
    }
    float top = nan ? NAN : weight[0], sum = 0.f;
    for (int64_t j = 0; j < k; j++) sum += weight[j] = expf(weight[j] - top);
    for (int64_t j = 0; j < k; j++) weight[j] /= sum;
}
