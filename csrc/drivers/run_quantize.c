/* The driver of quantize_int8 and quantize_int4, for weights at load: rows [N, K] as they are stored,
   or the columns of GPT-2's Conv1D [in, out], of which 16 are transposed at a time, so that the matrix is never copied
   as f32. The source may be unaligned. */
#include "core/parallel.h"

enum { QUANTIZE_COLUMNS = 16 };

typedef struct {
    cg_quantize_fn *quantize;
    cg_dtype to;
    uint8_t *out, *scales;
    const char *src;
    cg_dtype dtype;
    int64_t N, K, bytes; /* bytes of an element of src */
} quantize_job;

/* Quantises `count` weights of row n of the result, from its column k on, a multiple of 64. */
CG_INLINE void quantize_part(const quantize_job *j, int64_t n, int64_t k, const char *from, int64_t count) {
    j->quantize(j->out + n * cg_row_bytes(j->to, j->K) + cg_row_bytes(j->to, k),
                j->scales + n * cg_scale_bytes(j->to, j->K) + cg_scale_bytes(j->to, k), from, j->dtype, count);
}

static void quantize_row(void *data, int64_t n, CG_UNUSED int thread) {
    const quantize_job *j = data;
    quantize_part(j, n, 0, j->src + n * j->K * j->bytes, j->K);
}

/* Transposes `rows` weights of `cols` columns of [K, N] into rows of a tile. */
CG_INLINE void transpose_tile(const quantize_job *j, char *tile, int64_t k0, int64_t n0, int64_t rows, int64_t cols,
                              const int bytes) {
    for (int64_t k = 0; k < rows; k++) {
        const char *from = j->src + ((k0 + k) * j->N + n0) * bytes;
        __builtin_prefetch(from + 2 * QUANTIZE_COLUMNS * bytes);
        for (int64_t c = 0; c < cols; c++)
            memcpy(tile + (c * CG_INT8_GROUP + k) * bytes, from + c * bytes, (size_t)bytes);
    }
}

/* Quantises 64 weights of every row of the result. */
static void columns_task(void *data, int64_t group, CG_UNUSED int thread) {
    const quantize_job *j = data;
    char tile[QUANTIZE_COLUMNS * CG_INT8_GROUP * 4];
    int64_t k = group * CG_INT8_GROUP, rows = cg_min(CG_INT8_GROUP, j->K - k);
    for (int64_t n = 0; n < j->N; n += QUANTIZE_COLUMNS) {
        int64_t cols = cg_min(QUANTIZE_COLUMNS, j->N - n);
        int whole = rows == CG_INT8_GROUP && cols == QUANTIZE_COLUMNS;
        if (whole && j->bytes == 4) transpose_tile(j, tile, k, n, CG_INT8_GROUP, QUANTIZE_COLUMNS, 4);
        else if (whole) transpose_tile(j, tile, k, n, CG_INT8_GROUP, QUANTIZE_COLUMNS, 2);
        else if (j->bytes == 4) transpose_tile(j, tile, k, n, rows, cols, 4);
        else transpose_tile(j, tile, k, n, rows, cols, 2);
        for (int64_t c = 0; c < cols; c++) quantize_part(j, n + c, k, tile + c * CG_INT8_GROUP * j->bytes, rows);
    }
}

cg_status cg_run_quantize(int threads, cg_dtype to, uint8_t *out, uint8_t *scales, const void *src, cg_dtype dtype,
                          int64_t N, int64_t K, int transposed) {
    if (dtype > CG_BF16) return CG_BAD_DTYPE;
    cg_quantize_fn *quantize = to == CG_INT4 ? cg_active->quantize_int4 : cg_active->quantize_int8;
    quantize_job job = {quantize, to, out, scales, src, dtype, N, K, (int64_t)cg_dtype_bytes(dtype)};
    if (transposed) cg_parallel(threads, (K + CG_INT8_GROUP - 1) / CG_INT8_GROUP, columns_task, &job);
    else cg_for_rows(threads, N, K * 4, quantize_row, &job);
    return CG_OK;
}
