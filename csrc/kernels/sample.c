/* sample: the next token from one row of logits [V]: the largest, or one drawn as cg_sampling says.
   Weights are e^((logit - largest) / temperature), f64, so 1 for the likeliest. The token drawn is the first whose
   weight, added to those of all lower ids, exceeds draw * total.
   Without a sort: the candidates of top_k are at least the k-th largest of the blocks' maxima; those of top_p weigh
   more than an even part of what it may leave out; both are then found by radix selection, see logits.h. Holtzman et
   al., arXiv:1904.09751 (top_p); Nguyen et al., arXiv:2407.01082 (min_p); Keskar et al., arXiv:1909.05858
   (repetition_penalty). Parallel over rows. */

static int64_t first_of_value(const logits_row *r, double value) {
    double x[CG_LOGITS_BLOCK];
    int64_t b = 0, i = 0;
    while (r->maxima[b] != value) b++;
    load_logits(r, b, x);
    while (x[i] != value) i++;
    return b * CG_LOGITS_BLOCK + i;
}

/* values[i] = weights of the n candidates, 0 in the rest of the last block. */
static void weigh_candidates(const logits_row *r, int64_t n, double peak, double temperature) {
    for (int64_t i = n; i % CG_LOGITS_BLOCK; i++) r->values[i] = -INFINITY;
    for (int64_t i = 0; i < n; i += CG_LOGITS_BLOCK) weigh(r->values + i, peak, temperature);
}

/* Their sum, and of each block in sums. */
static double sum_of_candidates(const logits_row *r, int64_t n) {
    double total = 0;
    for (int64_t i = n; i % CG_LOGITS_BLOCK; i++) r->values[i] = 0;
    for (int64_t i = 0; i < n; i += CG_LOGITS_BLOCK)
        total += r->sums[i / CG_LOGITS_BLOCK] = sum_of_block(r->values + i);
    return total;
}

/* Takes as candidates what top_k, top_p and min_p leave, and perhaps others, of weight 0; returns how many. */
static int64_t filter(const logits_row *r, const cg_sampling *s, double peak) {
    int64_t n = 0;
    double total = 0, T = s->temperature;
    if (s->top_k < r->V) {
        n = collect(r, bound_of_largest(r, s->top_k));
        drop_candidates(r, n, select_largest(r, r->values, n, (double)s->top_k, 0), -INFINITY);
        weigh_candidates(r, n, peak, T);
        if (s->top_p < 1) total = sum_of_candidates(r, n);
    } else if (s->top_p < 1) {
        total = sum_of_weights(r, peak, T, 1);
        double left_out = (1 - s->top_p) * total / (double)r->V, least = s->min_p > left_out ? s->min_p : left_out;
        for (int64_t b = 0; b < cg_logits_blocks(r->V); b++)
            n = take_candidates(r, n, r->values + b * CG_LOGITS_BLOCK, b, least);
    } else {
        double bound = peak + T * log(s->min_p);
        n = collect(r, bound - 1e-9 * (T + fabs(bound))); /* room for rounding */
        weigh_candidates(r, n, peak, T);
    }
    logits_cut cut = {s->min_p, INT64_MAX};
    if (s->top_p < 1) {
        logits_cut nucleus = select_largest(r, r->values, n, s->top_p * total, 1);
        if (nucleus.bound >= cut.bound) cut = nucleus;
    }
    drop_candidates(r, n, cut, 0);
    return n;
}

static int64_t CG_NAME(sample)(double *largest, const cg_sampling *s, const float *logits, int64_t V, double draw,
                               void *scratch) {
    logits_row r = logits_of(logits, V, s, scratch);
    double peak = *largest = largest_logit(&r), block[CG_LOGITS_BLOCK], *weights = block, total, sum = 0;
    int64_t b = 0, all = s->top_k >= V && s->top_p >= 1 && s->min_p <= 0;
    if (!isfinite(peak)) return -1;
    if (s->temperature == 0) return first_of_value(&r, peak);
    if (all) total = sum_of_weights(&r, peak, s->temperature, 0);
    else total = sum_of_candidates(&r, filter(&r, s, peak));
    double target = draw * total; /* below total, as draw is below 1 */
    while (sum + r.sums[b] <= target) sum += r.sums[b++];
    if (all) {
        load_logits(&r, b, block);
        weigh(block, peak, s->temperature);
    } else {
        weights = r.values + b * CG_LOGITS_BLOCK;
    }
    int64_t found = 0;
    for (int64_t i = 0; i < CG_LOGITS_BLOCK && sum <= target; i++) {
        sum += weights[i]; /* which may end below the block's sum, by rounding; then the last of some weight is it */
        if (weights[i] > 0) found = i;
    }
    found += b * CG_LOGITS_BLOCK;
    return all ? found : r.ids[found];
}
