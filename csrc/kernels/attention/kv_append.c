/* kv_append: stores T keys and values of head g at positions start .. start+T-1 of a cache, see cg_kv in cgpt.h.
   k, v: rows of D floats. Keys are transposed inside their block of 32 positions, so that attention computes 32 scores
   in one pass over D and adds nothing across lanes. Panels of 16 keys let each of its loops read in one direction, as
   the processor's prefetcher expects. */
#include "kernels/linear/round.h"

/* Stores n <= CG_LANES floats, rounded to the cache's type. */
CG_INLINE void kv_store(const cg_dtype dtype, char *to, const float *x, int64_t n) {
    char last[4 * CG_LANES];
    vf_store_as(dtype, n < CG_LANES ? last : to, 0, n < CG_LANES ? vf_load_n(x, n) : vf_load(x));
    if (n < CG_LANES) memcpy(to, last, (size_t)n * cg_dtype_bytes(dtype));
}

/* Stores the keys of a whole panel, D floats each, every `stride`, as its columns. */
CG_INLINE void kv_put_panel(const cg_dtype dtype, char *to, const float *k, int64_t stride, int64_t D) {
    enum { P = CG_KV_PANEL, MAX = 64 };
    float columns[MAX][P];
    for (int64_t d0 = 0; d0 < D; d0 += MAX) {
        int64_t some = cg_min(MAX, D - d0), d = 0;
        for (; d + 4 <= some; d += 4)
            for (int i = 0; i < P; i += 4) {
                f4 v[4];
                for (int j = 0; j < 4; j++) memcpy(&v[j], k + (i + j) * stride + d0 + d, sizeof v[j]);
                f4_transpose(v);
                for (int j = 0; j < 4; j++) memcpy(columns[d + j] + i, &v[j], sizeof v[j]);
            }
        for (; d < some; d++)
            for (int i = 0; i < P; i++) columns[d][i] = k[i * stride + d0 + d];
        for (int64_t i = 0; i < some * P; i += CG_LANES) vf_store_as(dtype, to, d0 * P + i, vf_load(columns[0] + i));
    }
}

/* Stores one key as a column. */
CG_INLINE void kv_put_key(const cg_dtype dtype, char *to, const float *k, int64_t D) {
    int64_t size = (int64_t)cg_dtype_bytes(dtype);
    char row[4 * CG_LANES];
    for (int64_t d = 0; d < D; d += CG_LANES) {
        int64_t n = cg_min(CG_LANES, D - d);
        kv_store(dtype, row, k + d, n);
        for (int64_t i = 0; i < n; i++) memcpy(to + (d + i) * CG_KV_PANEL * size, row + i * size, (size_t)size);
    }
}

CG_INLINE void kv_append(const cg_dtype dtype, const cg_kv *kv, const float *k, const float *v, int64_t kv_stride,
                         int64_t start, int64_t T, int64_t g, int64_t D) {
    enum { P = CG_KV_PANEL };
    int64_t size = (int64_t)cg_dtype_bytes(dtype), stored = 0; /* keys before this one are stored */
    for (int64_t t = 0; t < T; t++, k += kv_stride, v += kv_stride) {
        int64_t at = (start + t) % CG_KV_BLOCK;
        int64_t block = (g * kv->blocks + (start + t) / CG_KV_BLOCK % kv->blocks) * CG_KV_BLOCK;
        char *keys = (char *)kv->k + (block * D + at / P * P * D + at % P) * size;
        char *values = (char *)kv->v + (block * cg_round_up(D, CG_V_ALIGN) + at * P) * size;
        if (at % P == 0 && t + P <= T) {
            kv_put_panel(dtype, keys, k, kv_stride, D);
            stored = t + P;
        } else if (t >= stored) {
            kv_put_key(dtype, keys, k, D);
        }
        for (int64_t d = 0; d < D; d += CG_LANES)
            kv_store(dtype, values + (d / P * P * CG_KV_BLOCK + d % P) * size, v + d, cg_min(CG_LANES, D - d));
    }
}

/* Rounds a row of D floats to integers q[D]; returns the scale. */
CG_INLINE float kv_quantize(int32_t *q, const float *x, int64_t D) {
    float row[CG_MAX_HEAD_DIM];
    int64_t n = cg_round_up(D, CG_V_ALIGN);
    memcpy(row, x, (size_t)D * 4);
    memset(row + D, 0, (size_t)(n - D) * 4);
    float scale = group_round((int)n, 127.f, q, row);
    return scale == scale ? scale : INFINITY;
}

static void CG_NAME(kv_append_int8)(const cg_kv *kv, const float *k, const float *v, int64_t kv_stride, int64_t start,
                                    int64_t T, int64_t g, int64_t D) {
    enum { P = CG_KV_PANEL };
    int32_t q[CG_MAX_HEAD_DIM];
    int64_t panel = cg_kv_panel_bytes(CG_INT8, D), Dk = cg_round_up(D, 2);
    for (int64_t t = 0; t < T; t++, k += kv_stride, v += kv_stride) {
        int64_t at = (start + t) % CG_KV_BLOCK, block = g * kv->blocks + (start + t) / CG_KV_BLOCK % kv->blocks;
        int8_t *keys = (int8_t *)kv->k + (2 * block + at / P) * panel;
        int8_t *values = (int8_t *)kv->v + block * cg_kv_value_bytes(CG_INT8, D) + at % P * 2 * P + at / P;
        float *scales = (float *)(void *)(keys + Dk * P) + at % P;
        scales[0] = kv_quantize(q, k, D);
        for (int64_t d = 0; d < D; d++) keys[d / 2 * 2 * P + at % P * 2 + d % 2] = (int8_t)q[d];
        scales[P] = kv_quantize(q, v, D);
        for (int64_t d = 0; d < D; d++) values[d / P * P * CG_KV_BLOCK + d % P * 2] = (int8_t)q[d];
    }
}

static void CG_NAME(kv_append)(const cg_kv *kv, const float *k, const float *v, int64_t kv_stride, int64_t start,
                               int64_t T, int64_t g, int64_t D) {
    if (kv->dtype == CG_INT8) CG_NAME(kv_append_int8)(kv, k, v, kv_stride, start, T, g, D);
    else if (kv->dtype == CG_F32) kv_append(CG_F32, kv, k, v, kv_stride, start, T, g, D);
    else if (kv->dtype == CG_F16) kv_append(CG_F16, kv, k, v, kv_stride, start, T, g, D);
    else kv_append(CG_BF16, kv, k, v, kv_stride, start, T, g, D);
}
