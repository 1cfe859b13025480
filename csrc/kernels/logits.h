/* One row of logits [V] as a distribution over the vocabulary: what sample.c and logprobs.c share.
   A row is read in blocks of CG_LOGITS_BLOCK tokens, widened to f64 and with its changes applied. All arithmetic is f64
   in one order of sums, so that every level gives the same bits. */
#pragma once

#include "cgpt.h"
#include "simd/vec_f64.h"

enum { LOGITS_SUMS = 16 }; /* lanes of a block's sum */

typedef struct {
    const float *logits;
    int64_t V;
    const cg_sampling *sampling; /* NULL: no changes */
    double *values, *active;     /* [V rounded up to blocks]: the candidates', and scratch of selection */
    int64_t *ids;                /* theirs, ascending */
    double *bins;
    double *maxima, *sums; /* [blocks] */
} logits_row;

/* The row with its arrays in cg_logits_scratch(V) bytes of scratch. */
static inline logits_row logits_of(const float *logits, int64_t V, const cg_sampling *sampling, void *scratch) {
    int64_t blocks = cg_logits_blocks(V), room = blocks * CG_LOGITS_BLOCK;
    double *at = scratch, *bins = at + 3 * room, *maxima = bins + (1 << CG_LOGITS_BINS_LOG2);
    return (logits_row){logits, V, sampling, at, at + room, (int64_t *)(at + 2 * room), bins, maxima, maxima + blocks};
}

/* ---------------------------------------------------------------------------------------------------------- reading */

/* f32 but for the penalties on counts, as the formulas of cg_sampling. Products as f64: no FMA joins them to the bias.
 */
static inline double changed_logit(const cg_sampling *s, const cg_logit_change *change, float logit) {
    if (change->seen)
        logit = (float)(logit < 0 ? (double)logit * s->repetition_penalty : (double)logit / s->repetition_penalty);
    if (s->presence_penalty == 0 && s->frequency_penalty == 0) return (float)(logit + change->bias);
    double value = logit;
    if (change->count > 0) value = value - s->presence_penalty - (double)(s->frequency_penalty * (float)change->count);
    return value + change->bias;
}

/* The changes of a block, to where its next one would be; none: NULL. */
static inline const cg_logit_change *changes_of(const logits_row *r, int64_t block, const cg_logit_change **end) {
    const cg_sampling *s = r->sampling;
    int64_t first = block * CG_LOGITS_BLOCK, low = 0, high = s ? s->n_changes : 0, n = high;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (s->changes[middle].id < first) low = middle + 1;
        else high = middle;
    }
    for (high = low; high < n && s->changes[high].id < first + CG_LOGITS_BLOCK; high++) {}
    *end = low < high ? s->changes + high : NULL;
    return low < high ? s->changes + low : NULL;
}

/* The CG_LOGITS_BLOCK logits of a block, -infinity beyond the end. */
static inline void load_logits(const logits_row *r, int64_t block, double *x) {
    const cg_logit_change *end, *change = changes_of(r, block, &end);
    const float *logits = r->logits + block * CG_LOGITS_BLOCK;
    int64_t first = block * CG_LOGITS_BLOCK, n = r->V - first;
    if (n >= CG_LOGITS_BLOCK) {
        for (int64_t i = 0; i < CG_LOGITS_BLOCK; i++) x[i] = logits[i];
    } else {
        for (int64_t i = 0; i < CG_LOGITS_BLOCK; i++) x[i] = i < n ? logits[i] : -INFINITY;
    }
    for (; change < end; change++)
        x[change->id - first] = changed_logit(r->sampling, change, logits[change->id - first]);
}

/* The largest of a block of f32 as they are; lanes of `nan` become -1 where one is NaN. */
CG_INLINE float largest_of_block(const float *logits, vi *nan) {
    enum { VECTORS = 4 };
    vf top[VECTORS];
    for (int j = 0; j < VECTORS; j++) top[j] = vf_load(logits);
    for (int64_t i = 0; i < CG_LOGITS_BLOCK; i += VECTORS * CG_LANES) {
        for (int j = 0; j < VECTORS; j++) {
            vf v = vf_load(logits + i + j * CG_LANES);
            top[j] = vf_max(top[j], v);
            *nan |= v != v;
        }
    }
    return vf_max_lane(vf_max(vf_max(top[0], top[1]), vf_max(top[2], top[3])));
}

/* The largest logit, and of each block in maxima; NaN if there is one. */
static inline double largest_logit(const logits_row *r) {
    double x[CG_LOGITS_BLOCK], peak = -INFINITY;
    const cg_logit_change *end;
    vi nan = {0};
    for (int64_t b = 0; b < cg_logits_blocks(r->V); b++) {
        double top = -INFINITY;
        if ((b + 1) * CG_LOGITS_BLOCK <= r->V && !changes_of(r, b, &end)) {
            top = largest_of_block(r->logits + b * CG_LOGITS_BLOCK, &nan);
        } else {
            load_logits(r, b, x);
            for (int64_t i = 0; i < CG_LOGITS_BLOCK; i++) {
                if (x[i] != x[i]) return NAN;
                top = x[i] > top ? x[i] : top;
            }
        }
        r->maxima[b] = top;
        peak = top > peak ? top : peak;
    }
    for (int i = 0; i < CG_LANES; i++)
        if (nan[i]) return NAN;
    return peak;
}

/* ---------------------------------------------------------------------------------------------------------- weights */

/* x[i] = e^((x[i] - peak) / temperature) for a block. */
static inline void weigh(double *x, double peak, double temperature) {
    for (int64_t i = 0; i < CG_LOGITS_BLOCK; i += VD_LANES) {
        vd below = vd_load(x + i) - peak;
        if (temperature != 1) below /= temperature;
        vd_store(x + i, vd_exp_negative(below));
    }
}

/* The sum of a block: element i is added to lane i % LOGITS_SUMS, then halves are added. */
static inline double sum_of_block(const double *x) {
    enum { VECTORS = LOGITS_SUMS / VD_LANES };
    vd sums[VECTORS] = {0};
    double lanes[LOGITS_SUMS];
    for (int64_t i = 0; i < CG_LOGITS_BLOCK; i += LOGITS_SUMS)
        for (int j = 0; j < VECTORS; j++) sums[j] += vd_load(x + i + j * VD_LANES);
    memcpy(lanes, sums, sizeof lanes);
    for (int width = LOGITS_SUMS / 2; width; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
}

/* The sum of all weights, and of each block in sums; the weights themselves, if wanted, in values. */
CG_INLINE double sum_of_weights(const logits_row *r, double peak, double temperature, int keep) {
    double one[CG_LOGITS_BLOCK], total = 0;
    for (int64_t b = 0; b < cg_logits_blocks(r->V); b++) {
        double *x = keep ? r->values + b * CG_LOGITS_BLOCK : one;
        load_logits(r, b, x);
        weigh(x, peak, temperature);
        total += r->sums[b] = sum_of_block(x);
    }
    return total;
}

/* -------------------------------------------------------------------------------------------------------- selection */

/* Adds to `found` candidates those of a block that are at least `bound`; returns how many there are then. */
static inline int64_t take_candidates(const logits_row *r, int64_t found, const double *x, int64_t block,
                                      double bound) {
    vl ids = {0};
    for (int i = 0; i < VD_LANES; i++) ids[i] = block * CG_LOGITS_BLOCK + i;
    for (int64_t i = 0; i < CG_LOGITS_BLOCK; i += VD_LANES, ids += VD_LANES) {
        vd v = vd_load(x + i);
        vl mask = v >= bound;
        vd_compress((double *)(r->ids + found), (vd)ids, mask);
        found += vd_compress(r->values + found, v, mask);
    }
    return found;
}

/* Takes as candidates all logits of `bound` or more; returns how many. If it is -infinity, some beyond the end are the
   last of them: -infinity too, and there are at least V before. */
static inline int64_t collect(const logits_row *r, double bound) {
    double x[CG_LOGITS_BLOCK];
    int64_t found = 0;
    for (int64_t b = 0; b < cg_logits_blocks(r->V); b++) {
        if (r->maxima[b] < bound) continue;
        load_logits(r, b, x);
        found = take_candidates(r, found, x, b, bound);
    }
    return found;
}

/* Which candidates stay: those above `bound`, and the first `ties` of those that equal it. */
typedef struct {
    double bound;
    int64_t ties;
} logits_cut;

/* Unsigned integers in the order of the doubles; 0 and -0 are one. */
static inline uint64_t order_of(double x) {
    int64_t bits;
    x += 0.0;
    memcpy(&bits, &x, sizeof bits);
    return (uint64_t)bits ^ ((uint64_t)(bits >> 63) | 1ull << 63);
}

static inline double of_order(uint64_t order) {
    double x;
    order ^= order >> 63 ? 1ull << 63 : UINT64_MAX;
    memcpy(&x, &order, sizeof x);
    return x;
}

static inline void range_of(const double *values, int64_t n, double *least, double *most) {
    vd low = vd_set(values[0]), high = low;
    for (int64_t i = 0; i < n; i += VD_LANES) {
        vd v = vd_select(vl_first(n - i), vd_load(values + i), low);
        low = vd_min(v, low);
        high = vd_max(v, high);
    }
    *least = low[0];
    *most = high[0];
    for (int i = 1; i < VD_LANES; i++) {
        *least = low[i] < *least ? low[i] : *least;
        *most = high[i] > *most ? high[i] : *most;
    }
}

/* The fewest largest of n values whose sum (weighted), or number, is `need` or more; all, if that is out of reach.
   A radix selection: values are added up by the leading bits in which they differ, then those of one bin alone, until
   all that are left are equal. */
CG_INLINE logits_cut select_largest(const logits_row *r, const double *values, int64_t n, double need, int weighted) {
    double *bins = r->bins, sum = 0, least, most;
    int64_t ties = 0;
    for (range_of(values, n, &least, &most); least < most; range_of(values, n, &least, &most)) {
        uint64_t low = order_of(least), range = order_of(most) - low;
        int shift = 64 - __builtin_clzll(range) - CG_LOGITS_BINS_LOG2;
        shift = shift > 0 ? shift : 0;
        memset(bins, 0, sizeof *bins << CG_LOGITS_BINS_LOG2);
        for (int64_t i = 0; i < n; i++) bins[(order_of(values[i]) - low) >> shift] += weighted ? values[i] : 1;
        uint64_t bin = range >> shift;
        for (; bin > 0 && sum + bins[bin] < need; bin--) sum += bins[bin];
        uint64_t end = (bin << shift) + (1ull << shift) - 1;
        double first = of_order(low + (bin << shift)), last = end < range ? of_order(low + end) : most;
        int64_t left = 0;
        for (int64_t i = 0; i < n; i += VD_LANES) {
            vd v = vd_load(values + i);
            left += vd_compress(r->active + left, v, (v >= first) & (v <= last) & vl_first(n - i));
        }
        values = r->active;
        n = left;
    }
    do sum += weighted ? values[0] : 1;
    while (++ties < n && sum < need);
    return (logits_cut){values[0], ties < n ? ties : INT64_MAX};
}

/* The value that the maxima of k blocks reach, and so as many logits at least. */
static inline double bound_of_largest(const logits_row *r, int64_t k) {
    int64_t blocks = cg_logits_blocks(r->V);
    return k > blocks ? -INFINITY : select_largest(r, r->maxima, blocks, (double)k, 0).bound;
}

/* Overwrites the values of the n candidates that a cut leaves out. */
static inline void drop_candidates(const logits_row *r, int64_t n, logits_cut cut, double by) {
    if (cut.ties == INT64_MAX) {
        for (int64_t i = 0; i < n; i++) r->values[i] = r->values[i] >= cut.bound ? r->values[i] : by;
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        int tie = r->values[i] == cut.bound, stays = (r->values[i] > cut.bound) | (tie & (cut.ties > 0));
        cut.ties -= tie;
        r->values[i] = stays ? r->values[i] : by;
    }
}
