/* logprobs: what the log-probabilities of one row of logits [V] are made of, and the k largest.
   log p[i] = (logits[i] - largest) - log_sum, log_sum = log(sum over i of e^(logits[i] - largest)). f64; ties by the
   lower id. If the largest is not finite, both and all k are NaN. Parallel over rows. */
static void CG_NAME(logprobs)(double *largest, double *log_sum, int32_t *ids, double *top, const float *logits,
                              int64_t V, int64_t k, void *scratch) {
    logits_row r = logits_of(logits, V, NULL, scratch);
    double peak = largest_logit(&r);
    int finite = isfinite(peak);
    *largest = finite ? peak : NAN;
    *log_sum = finite ? log(sum_of_weights(&r, peak, 1, 0)) : NAN;
    if (!finite || k < 1) {
        for (int64_t j = 0; j < k; j++) ids[j] = (int32_t)j, top[j] = NAN;
        return;
    }
    double bound = bound_of_largest(&r, k), room = 1e-12 * (fabs(peak) + fabs(bound) + *log_sum);
    int64_t n = collect(&r, bound > -INFINITY ? bound - room : bound); /* equal log p may come of different logits */
    for (int64_t i = 0; i < n; i++) r.values[i] = r.values[i] - peak - *log_sum;
    logits_cut cut = select_largest(&r, r.values, n, (double)k, 0);
    for (int64_t i = 0, found = 0; found < k; i++) {
        int tie = r.values[i] == cut.bound;
        if (r.values[i] < cut.bound || (tie && cut.ties < 1)) continue;
        cut.ties -= tie;
        ids[found] = (int32_t)r.ids[i];
        top[found++] = r.values[i];
    }
}
