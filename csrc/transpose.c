/* GPT-2's Conv1D weights are [in, out]; the kernels read rows of inputs. One transpose at load, and with it the
   rounding to bf16 where it is asked for. */
#include "parallel.h"

typedef struct {
    char *dst;
    const char *src;
    cg_dtype dst_dtype, src_dtype;
    int64_t rows, cols;
} transpose_job;

enum { TRANSPOSE_EDGE = 32 };

static void convert(void *dst, cg_dtype to, const void *src, cg_dtype from) {
    if (to == from) {
        memcpy(dst, src, cg_dtype_bytes(to));
        return;
    }
    float f;
    uint16_t h;
    if (from == CG_F32) memcpy(&f, src, 4);
    else {
        memcpy(&h, src, 2);
        f = from == CG_BF16 ? cg_bf16_to_f32(h) : cg_f16_to_f32(h);
    }
    if (to == CG_F32) memcpy(dst, &f, 4);
    else {
        h = cg_f32_to_bf16(f);
        memcpy(dst, &h, 2);
    }
}

/* A strip of 32 columns, in blocks of 32 x 32 that stay in the first-level cache. */
static void transpose_task(void *data, int64_t strip) {
    transpose_job *j = data;
    size_t to = cg_dtype_bytes(j->dst_dtype), from = cg_dtype_bytes(j->src_dtype);
    int64_t c0 = strip * TRANSPOSE_EDGE, c1 = cg_min(c0 + TRANSPOSE_EDGE, j->cols);
    for (int64_t r0 = 0; r0 < j->rows; r0 += TRANSPOSE_EDGE)
        for (int64_t c = c0; c < c1; c++)
            for (int64_t r = r0; r < cg_min(r0 + TRANSPOSE_EDGE, j->rows); r++)
                convert(j->dst + (size_t)(c * j->rows + r) * to, j->dst_dtype,
                        j->src + (size_t)(r * j->cols + c) * from, j->src_dtype);
}

cg_status cg_run_transpose(int threads, void *dst, cg_dtype dst_dtype, const void *src, cg_dtype src_dtype,
                           int64_t rows, int64_t cols) {
    if (dst_dtype > CG_BF16 || src_dtype > CG_BF16 || (dst_dtype == CG_F16 && src_dtype != CG_F16)) return CG_BAD_DTYPE;
    transpose_job job = {dst, src, dst_dtype, src_dtype, rows, cols};
    cg_parallel(threads, (cols + TRANSPOSE_EDGE - 1) / TRANSPOSE_EDGE, transpose_task, &job);
    return CG_OK;
}
