/* attention: softmax(q . k[p] * scale) v[p] over the visible positions p of a partition's KV splits, for its rows.
   Shapes and masks: cg_attention in cgpt.h.
   Online softmax, one step per block of 32 absolute positions. Each KV split of CG_KV_SPLIT positions is summed by
   itself, and the splits are merged in order. So a row's bits depend on its own position and window only, and different
   threads can take the splits of a long cache. f32 throughout. Parallel over (g, rows, KV splits). */
#include "kernels/attention/tile.h"
#include "kernels/attention/tile_int8.h"
#include "kernels/linear/round.h"

/* M rows q, in the order of their positions, over one block of keys and values of `dtype`. q: [D, M], int16 [Dk / 2, M,
   2] where keys are int8. */
CG_INLINE void att_block(const int M, const cg_dtype dtype, const att_row *row, const void *q, const att_kv *kv) {
    const int W = M == 1 ? ATT_ALONE : 2;
    float p[ATT_ROWS][CG_KV_BLOCK], factor[CG_LANES + ATT_ROWS] = {0};
    int64_t base = kv->base;
    if (row[M - 1].last < base || row[0].first >= base + CG_KV_BLOCK) return;
    int whole = row[0].last >= base + CG_KV_BLOCK - 1 && row[M - 1].first <= base;
    if (dtype == CG_INT8) att_scores_int8(M, W, p, row, q, kv);
    else att_scores(M, W, dtype, p, q, kv);
    for (int m = 0; m < M && !whole; m++) att_mask(p[m], row + m, base, -INFINITY);
    att_softmax(M, row, p, factor, kv->Dv);
    if (dtype == CG_INT8) att_all_values_int8(M, whole, row, p, factor, kv);
    else if (whole) att_all_values(M, dtype, row, p, factor, kv, 0, CG_KV_BLOCK);
    else att_masked_values(M, dtype, row, p, factor, kv);
}

/* Functions of their own: where they are inlined into the loop over tiles, the constants of e^x take the registers of
   the sums. Several tiles share keys and values that are widened to f32 first; one tile or row widens as it reads. */
#define ATT_BLOCK(name, rows, dtype) \
    static __attribute__((noinline)) void att_block_##name(const att_row *row, const void *q, const att_kv *kv) { \
        att_block(rows, dtype, row, q, kv); \
    }
ATT_BLOCK(tile_f32, ATT_ROWS, CG_F32)
ATT_BLOCK(tile_f16, ATT_ROWS, CG_F16)
ATT_BLOCK(tile_bf16, ATT_ROWS, CG_BF16)
ATT_BLOCK(tile_int8, ATT_ROWS, CG_INT8)
ATT_BLOCK(f32, 1, CG_F32)
ATT_BLOCK(f16, 1, CG_F16)
ATT_BLOCK(bf16, 1, CG_BF16)
ATT_BLOCK(int8, 1, CG_INT8)
#undef ATT_BLOCK
#define ATT_BLOCK_OF(name, dtype) \
    ((dtype) == CG_F32    ? att_block_##name##f32 \
     : (dtype) == CG_F16  ? att_block_##name##f16 \
     : (dtype) == CG_BF16 ? att_block_##name##bf16 \
                          : att_block_##name##int8)

/* Where the keys and values of a block are. */
static inline void att_locate(const cg_attention *a, int64_t block, int64_t g, const char **k, const char **v) {
    int fresh = block >= a->first_fresh;
    const cg_kv *kv = fresh ? &a->fresh : &a->past;
    int64_t at = g * kv->blocks + (fresh ? block - a->first_fresh : block) % kv->blocks;
    *k = (const char *)kv->k + at * 2 * cg_kv_panel_bytes(kv->dtype, a->D);
    *v = (const char *)kv->v + at * cg_kv_value_bytes(kv->dtype, a->D);
}

/* n values as floats: where they are, or widened to `wide`. */
CG_INLINE const char *att_floats(cg_dtype dtype, const char *from, int64_t n, float *wide) {
    if (dtype == CG_F32) return from;
    for (int64_t i = 0; i < n; i += CG_LANES)
        vf_store(wide + i, dtype == CG_F16 ? vf_load_as(CG_F16, from, i) : vf_load_as(CG_BF16, from, i));
    return (const char *)wide;
}

/* Merges two states of a row, each relative to its own maximum. */
CG_INLINE void att_merge(float *total, const float *part, int64_t Dv) {
    float *top = total + Dv + CG_V_ALIGN, other = part[Dv + CG_V_ALIGN], now = *top > other ? *top : other;
    vf f = vf_exp_negative(vf_set(*top - now)), g = vf_exp_negative(vf_set(other - now));
    for (int64_t d = 0; d < Dv + CG_V_ALIGN; d += CG_LANES)
        vf_store(total + d, vf_fma(vf_load(part + d), g, vf_load(total + d) * f));
    *top = now;
}

/* N rows over one block; `last` is the last one that a row sees. The first two tiles prefetch half of the next block
   each, a single tile all of it. int8 blocks are done sooner, so it is the one after the next. */
static inline void att_step(const cg_attention *a, int64_t g, int64_t block, int64_t last, const att_row *row,
                            const char *q, int64_t N, float *wide) {
    cg_dtype dtype = a->past.dtype;
    int64_t D = a->D, Dv = cg_round_up(D, CG_V_ALIGN), halves = N < 2 || N == ATT_ROWS ? 1 : 2, tile = 0;
    int64_t query_bytes = dtype == CG_INT8 ? cg_round_up(D, 2) * 2 : D * 4;
    int64_t step_bytes = dtype == CG_F32 ? 4 : 2; /* of a vector's lane; int8 in pairs */
    att_kv kv = {.base = block * CG_KV_BLOCK, .D = D, .Dv = Dv, .step = 2 * CG_LANES * step_bytes / halves};
    att_locate(a, block, g, &kv.k, &kv.v);
    att_locate(a, cg_min(block + (dtype == CG_INT8 ? 2 : 1), last), g, &kv.next_k, &kv.next_v);
    if (N > 1 && N != ATT_ROWS && dtype != CG_INT8) {
        kv.k = att_floats(dtype, kv.k, D * CG_KV_BLOCK, wide);
        kv.v = att_floats(dtype, kv.v, Dv * CG_KV_BLOCK, wide + D * CG_KV_BLOCK);
        dtype = CG_F32;
    }
    for (int64_t m = 0; m < N; tile++) {
        if (tile >= halves) kv.step = 0;
        if (m + ATT_ROWS <= N) {
            ATT_BLOCK_OF(tile_, dtype)(row + m, q + m * query_bytes, &kv);
            m += ATT_ROWS;
        } else {
            ATT_BLOCK_OF(, dtype)(row + m, q + m * query_bytes, &kv);
            m++;
        }
        kv.next_k += cg_kv_panel_bytes(a->past.dtype, D);
        kv.next_v += cg_kv_value_bytes(a->past.dtype, D) / 2;
    }
}

CG_INLINE const float *att_query(const cg_attention *a, int64_t g, int64_t row) {
    int64_t rep = a->H / a->G;
    return a->q + row / rep * a->q_stride + (g * rep + row % rep) * a->D;
}

/* The N scaled queries from row0 on: of whole tiles [D, ATT_ROWS], of the rest [D]. */
static inline void att_queries(const cg_attention *a, int64_t g, int64_t row0, int64_t N, float *q) {
    int64_t D = a->D, m = 0;
    for (; m + ATT_ROWS <= N; m += ATT_ROWS)
        for (int i = 0; i < ATT_ROWS; i += 4) {
            const float *from[4];
            float *to = q + m * D + i;
            int64_t d = 0;
            for (int j = 0; j < 4; j++) from[j] = att_query(a, g, row0 + m + i + j);
            for (; d + 4 <= D; d += 4) {
                f4 v[4];
                for (int j = 0; j < 4; j++) memcpy(&v[j], from[j] + d, sizeof v[j]);
                f4_transpose(v);
                for (int j = 0; j < 4; j++) v[j] *= a->scale, memcpy(to + (d + j) * ATT_ROWS, &v[j], sizeof v[j]);
            }
            for (; d < D; d++)
                for (int j = 0; j < 4; j++) to[d * ATT_ROWS + j] = from[j][d] * a->scale;
        }
    for (; m < N; m++)
        for (int64_t d = 0; d < D; d++) q[m * D + d] = att_query(a, g, row0 + m)[d] * a->scale;
}

/* The same as integers: of whole tiles [Dk / 2, ATT_ROWS, 2], of the rest [Dk]. */
static void att_queries_int8(const cg_attention *a, int64_t g, int64_t row0, int64_t N, int16_t *q, att_row *row) {
    float x[CG_MAX_HEAD_DIM];
    int32_t rounded[CG_MAX_HEAD_DIM];
    int64_t D = a->D, Dk = cg_round_up(D, 2), n = cg_round_up(D, CG_V_ALIGN);
    float max = (float)cg_min(32767, INT32_MAX / 127 / Dk); /* sums stay below 2^31 */
    for (int64_t m = 0; m < N; m++) {
        int64_t M = m / ATT_ROWS < N / ATT_ROWS ? ATT_ROWS : 1;
        int16_t *to = q + m / M * M * Dk + m % M * 2;
        for (int64_t d = 0; d < n; d++) x[d] = d < D ? att_query(a, g, row0 + m)[d] * a->scale : 0.f;
        row[m].scale = group_round((int)n, max, rounded, x);
        for (int64_t d = 0; d < Dk; d++) to[d / 2 * 2 * M + d % 2] = (int16_t)rounded[d];
    }
}

static void CG_NAME(attention)(const cg_attention *a, const cg_attention_part *part) {
    float *q = part->work, *partial = q + CG_ATTENTION_FLOATS, *wide = partial + CG_ATTENTION_STATE;
    att_row row[CG_ATTENTION_ROWS];
    int64_t rep = a->H / a->G, D = a->D, Dv = cg_round_up(D, CG_V_ALIGN), N = part->row1 - part->row0;
    int64_t stride = cg_attention_stride(D);
    if (a->past.dtype == CG_INT8) att_queries_int8(a, part->g, part->row0, N, (int16_t *)(void *)q, row);
    else att_queries(a, part->g, part->row0, N, q);
    for (int64_t m = 0; m < N; m++) {
        row[m].last = a->start + (part->row0 + m) / rep;
        row[m].first = a->window ? cg_max(0, row[m].last - a->window + 1) : 0;
    }
    int64_t last = row[N - 1].last / CG_KV_BLOCK;
    for (int64_t split = part->split0; split < part->split1; split++) {
        int64_t step = (split - part->split0) * part->state_step;
        float *to = split == part->split0 || step ? part->state + step : partial;
        for (int64_t m = 0; m < N; m++) {
            row[m].acc = to + m * stride;
            memset(row[m].acc, 0, (size_t)stride * 4);
            row[m].acc[Dv + CG_V_ALIGN] = -1e30f;
        }
        int64_t block = cg_max(split * CG_KV_SPLIT, row[0].first) / CG_KV_BLOCK;
        int64_t end = cg_min((split + 1) * CG_KV_SPLIT - 1, row[N - 1].last) / CG_KV_BLOCK + 1;
        for (; block < end; block++) att_step(a, part->g, block, last, row, (const char *)q, N, wide);
        for (int64_t m = 0; m < N && to == partial; m++) att_merge(part->state + m * stride, partial + m * stride, Dv);
    }
}
