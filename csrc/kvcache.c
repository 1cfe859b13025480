/* kv_append: stores T keys and values of head g at positions start .. start+T-1 of a cache, see cg_kv in cgpt.h.
   k, v: rows of D floats. Keys are transposed inside their block of 32 positions, so that attention gets 32 scores
   from one pass over D without adding across lanes. */
static void CG_NAME(kv_append)(const cg_kv *kv, const float *k, const float *v, int64_t kv_stride, int64_t start,
                               int64_t T, int64_t g, int64_t G, int64_t D) {
    int64_t Dv = cg_round_up(D, CG_V_ALIGN);
    for (int64_t t = 0; t < T; t++) {
        int64_t position = start + t, block = position / CG_KV_BLOCK % kv->blocks, at = position % CG_KV_BLOCK;
        float *keys = kv->k + (block * G + g) * D * CG_KV_BLOCK + at;
        for (int64_t d = 0; d < D; d++) keys[d * CG_KV_BLOCK] = k[t * kv_stride + d];
        memcpy(kv->v + ((block * G + g) * CG_KV_BLOCK + at) * Dv, v + t * kv_stride, (size_t)D * 4);
    }
}
