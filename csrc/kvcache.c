/* kv_append: stores T keys and values of head g at positions start .. start+T-1 of a cache, see cg_kv in cgpt.h.
   k, v: rows of D floats. Keys are transposed inside their block of 32 positions, so that attention gets 32 scores
   from one pass over D without adding across lanes; panels of 16 let each of its loops read on in one direction, as
   the processor expects. */

/* D floats as the cache stores them: x itself, or rounded in `halves`. */
static inline const void *kv_stored(cg_dtype dtype, const float *x, int64_t D, uint16_t *halves) {
    if (dtype == CG_F32) return x;
    for (int64_t d = 0; d < D; d += CG_LANES)
        vf_store_as(dtype, halves, d, vf_load_n(x + d, cg_min(CG_LANES, D - d)));
    return halves;
}

static inline void kv_put(cg_dtype dtype, void *to, int64_t i, const void *from, int64_t d) {
    if (dtype == CG_F32) ((float *)to)[i] = ((const float *)from)[d];
    else ((uint16_t *)to)[i] = ((const uint16_t *)from)[d];
}

static void CG_NAME(kv_append)(const cg_kv *kv, const float *k, const float *v, int64_t kv_stride, int64_t start,
                               int64_t T, int64_t g, int64_t D) {
    enum { P = CG_KV_PANEL };
    uint16_t halves[CG_MAX_HEAD_DIM + CG_LANES];
    for (int64_t t = 0; t < T; t++) {
        int64_t at = (start + t) % CG_KV_BLOCK;
        int64_t block = (g * kv->blocks + (start + t) / CG_KV_BLOCK % kv->blocks) * CG_KV_BLOCK;
        int64_t key = block * D + at / P * P * D + at % P, value = block * cg_round_up(D, CG_V_ALIGN) + at * P;
        const void *row = kv_stored(kv->dtype, k + t * kv_stride, D, halves);
        for (int64_t d = 0; d < D; d++) kv_put(kv->dtype, kv->k, key + d * P, row, d);
        row = kv_stored(kv->dtype, v + t * kv_stride, D, halves);
        for (int64_t d = 0; d < D; d++) kv_put(kv->dtype, kv->v, value + d / P * P * CG_KV_BLOCK + d % P, row, d);
    }
}
