/* The driver of transpose. GPT-2's Conv1D weights are [in, out], and the kernels read rows of inputs: they are
   transposed once, at load, and rounded to bf16 where the caller wants it. Neither side has to be aligned, as tensors
   of old checkpoints are not. */
#include "core/parallel.h"

typedef struct {
    char *dst;
    const char *src;
    cg_dtype dst_dtype, src_dtype;
    int64_t rows, cols;
} transpose_job;

enum { TRANSPOSE_EDGE = 16, TRANSPOSE_RUN = 65536 };

/* Element i of src as the bits of an element of dst, in the low half where that has 16. */
CG_INLINE uint32_t convert(const char *src, int64_t i, const cg_dtype from, const cg_dtype to) {
    uint32_t bits;
    uint16_t half;
    if (from == CG_F32) {
        memcpy(&bits, src + i * 4, 4);
        return to == CG_F32 ? bits : cg_f32_to_bf16(cg_f32_from_bits(bits));
    }
    memcpy(&half, src + i * 2, 2);
    if (from == to) return half;
    return cg_f32_to_bf16(cg_f16_to_f32(half));
}

CG_INLINE void put(char *dst, int64_t i, int64_t count, const cg_dtype to, const uint32_t *bits) {
    uint16_t halves[TRANSPOSE_EDGE];
    if (to == CG_F32) {
        memcpy(dst + i * 4, bits, (size_t)count * 4);
        return;
    }
    for (int64_t k = 0; k < count; k++) halves[k] = (uint16_t)bits[k];
    memcpy(dst + i * 2, halves, (size_t)count * 2);
}

CG_INLINE void block(const transpose_job *j, int64_t r0, int64_t rows, int64_t c0, int64_t cols, const cg_dtype from,
                     const cg_dtype to) {
    uint32_t values[TRANSPOSE_EDGE][TRANSPOSE_EDGE], column[TRANSPOSE_EDGE];
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) values[r][c] = convert(j->src, (r0 + r) * j->cols + c0 + c, from, to);
    for (int64_t c = 0; c < cols; c++) {
        for (int64_t r = 0; r < rows; r++) column[r] = values[r][c];
        put(j->dst, (c0 + c) * j->rows + r0, rows, to, column);
    }
}

/* A strip of 16 rows in blocks of 16 x 16, one cache line of each f32 row. Rows are read along their pages; a strip of
   columns would read as many pages at once as there are rows. */
CG_INLINE void strip(const transpose_job *j, int64_t r0, const cg_dtype from, const cg_dtype to) {
    int64_t rows = cg_min(TRANSPOSE_EDGE, j->rows - r0);
    for (int64_t c0 = 0; c0 < j->cols; c0 += TRANSPOSE_EDGE) {
        int64_t cols = cg_min(TRANSPOSE_EDGE, j->cols - c0);
        if (rows == TRANSPOSE_EDGE && cols == TRANSPOSE_EDGE)
            block(j, r0, TRANSPOSE_EDGE, c0, TRANSPOSE_EDGE, from, to);
        else block(j, r0, rows, c0, cols, from, to);
    }
}

/* One row becomes one column: a copy. */
CG_INLINE void run(const transpose_job *j, int64_t begin, const cg_dtype from, const cg_dtype to) {
    for (int64_t i = begin; i < cg_min(begin + TRANSPOSE_RUN, j->cols); i++) {
        uint32_t bits = convert(j->src, i, from, to);
        put(j->dst, i, 1, to, &bits);
    }
}

static void transpose_task(void *data, int64_t i, CG_UNUSED int thread) {
    const transpose_job *j = data;
#define CASE(from, to) \
    if (j->src_dtype == from && j->dst_dtype == to) { \
        if (j->rows == 1) run(j, i * TRANSPOSE_RUN, from, to); \
        else strip(j, i * TRANSPOSE_EDGE, from, to); \
    }
    CASE(CG_F32, CG_F32)
    CASE(CG_F32, CG_BF16)
    CASE(CG_F16, CG_F16)
    CASE(CG_F16, CG_BF16)
    CASE(CG_BF16, CG_BF16)
#undef CASE
}

cg_status cg_run_transpose(int threads, void *dst, cg_dtype dst_dtype, const void *src, cg_dtype src_dtype,
                           int64_t rows, int64_t cols) {
    if (src_dtype > CG_BF16 || (dst_dtype != src_dtype && dst_dtype != CG_BF16)) return CG_BAD_DTYPE;
    transpose_job job = {dst, src, dst_dtype, src_dtype, rows, cols};
    int64_t size = rows == 1 ? TRANSPOSE_RUN : TRANSPOSE_EDGE, tasks = ((rows == 1 ? cols : rows) + size - 1) / size;
    cg_parallel(threads, tasks, transpose_task, &job);
    return CG_OK;
}
