/* The driver of linear: picks the kernel, packs the activations, cuts the outputs into panels. */
#include "drivers/products.h"

enum {
    PANEL_ROWS = 64, /* several passes over which stay in the second-level cache */
    PANEL_FEW = 15,  /* tokens that read rows once, from memory: it gives more to long streams */
    PANEL_BYTES = 512 * 1024,
};

static cg_linear *tile_of(cg_dtype dtype) {
    switch (dtype) {
    case CG_F32: return cg_active->linear_f32_tile;
    case CG_F16: return cg_active->linear_f16_tile;
    case CG_BF16: return cg_active->linear_bf16_tile;
    case CG_MXFP4: return cg_active->linear_mxfp4_tile;
    case CG_INT8: return cg_active->linear_int8_tile;
    default: return NULL;
    }
}

static cg_linear *a8_of(cg_dtype dtype, int64_t T) {
    const cg_kernels *k = cg_active;
    if (dtype == CG_MXFP4) return k->linear_mxfp4_a8;
    if (dtype != CG_INT8) return NULL;
    return k->linear_int8_a8_few && T <= k->linear_int8_a8_few->most_tokens ? k->linear_int8_a8_few : k->linear_int8_a8;
}

cg_linear *cg_pick_linear(const cg_matrix *w, int64_t T, cg_precision precision) {
    const cg_kernels *k = cg_active;
    cg_linear *tile = tile_of(w->dtype), *a8 = a8_of(w->dtype, T);
    int exact = precision == CG_PRECISION_EXACT;
    if (precision == CG_PRECISION_INT8 && a8 && T >= a8->least_tokens && w->K <= CG_TILE_MAX_K) return a8;
    if (!exact && tile && T >= tile->least_tokens && w->K <= CG_TILE_MAX_K) return tile;
    if (!exact && w->dtype == CG_INT8) return k->linear_int8_fixed;
    if (!exact && w->dtype == CG_MXFP4 && k->linear_mxfp4_fixed) {
        int64_t most = k->linear_mxfp4_fixed->most_tokens;
        if (!most || T <= most) return k->linear_mxfp4_fixed;
    }
    switch (w->dtype) {
    case CG_F32: return k->linear_f32;
    case CG_F16: return k->linear_f16;
    case CG_BF16: return k->linear_bf16;
    case CG_MXFP4: return k->linear_mxfp4;
    case CG_INT8: return k->linear_int8;
    default: return NULL;
    }
}

cg_status cg_check_matrix(const cg_matrix *w) {
    if (w->E < 1 || w->N < 1 || w->K < 1) return CG_BAD_SHAPE;
    if (w->dtype == CG_MXFP4 && (w->K % CG_MXFP4_GROUP || w->K > CG_MXFP4_MAX_K)) return CG_BAD_SHAPE;
    if ((w->dtype == CG_MXFP4 || w->dtype == CG_INT8) && !w->scales) return CG_BAD_SHAPE;
    return w->dtype == CG_U8 ? CG_BAD_DTYPE : CG_OK;
}

cg_product cg_product_of(const cg_matrix *w, int64_t expert) {
    int64_t rows = expert * w->N;
    return (cg_product){
        .w = w->data + rows * cg_row_bytes(w->dtype, w->K),
        .scales = w->scales ? w->scales + rows * cg_scale_bytes(w->dtype, w->K) : NULL,
        .bias = w->bias ? w->bias + rows : NULL,
        .K = w->K,
    };
}

int64_t cg_panel_rows(const cg_matrix *w, int64_t T, int threads) {
    int64_t rows = cg_round_up(w->N / (threads * 8) + 1, 16), most = PANEL_ROWS;
    if (T <= PANEL_FEW) most = cg_max(most, PANEL_BYTES / cg_row_bytes(w->dtype, w->K) / 16 * 16);
    return cg_max(16, cg_min(rows, most));
}

int64_t cg_packed_most(const cg_matrix *w, int64_t T) {
    cg_linear *kernels[] = {cg_pick_linear(w, T, CG_PRECISION_EXACT), cg_pick_linear(w, T, CG_PRECISION_AUTO),
                            cg_pick_linear(w, T, CG_PRECISION_INT8), cg_pick_linear(w, 1, CG_PRECISION_AUTO)};
    int64_t most = 0;
    for (int i = 0; i < 4; i++)
        if (kernels[i]) most = cg_max(most, kernels[i]->packed_bytes(T, w->K));
    return most;
}

/* One kernel gives a row the same bits among any number of rows; the *_tile ones do not, but none is for one token. */
int64_t cg_uniform_tokens(const cg_matrix *w, int64_t most, cg_precision precision) {
    int64_t T = 1;
    while (T < most && cg_pick_linear(w, T + 1, precision) == cg_pick_linear(w, 1, precision)) T++;
    return T;
}

typedef struct {
    cg_linear *kernel;
    cg_product p;
    cg_rows x;
    int64_t N, rows;
    void *packed;
} linear_job;

static void pack_task(void *job, int64_t i) {
    linear_job *j = job;
    j->kernel->pack(j->packed, &j->x, j->p.T, j->p.K, i * 16, cg_min(i * 16 + 16, j->p.T));
}

static void panel_task(void *job, int64_t i) {
    linear_job *j = job;
    j->kernel->panel(&j->p, i * j->rows, cg_min((i + 1) * j->rows, j->N));
}

cg_status cg_run_linear(const cg_context *ctx, float *y, int64_t y_stride, const float *x, int64_t x_stride, int64_t T,
                        const cg_matrix *w, int add) {
    cg_status bad = cg_check_matrix(w);
    if (bad) return bad;
    linear_job job = {.kernel = cg_pick_linear(w, T, ctx->precision),
                      .p = cg_product_of(w, 0),
                      .x = {x, x_stride, NULL},
                      .N = w->N,
                      .packed = ctx->scratch};
    if (job.kernel->packed_bytes(T, w->K) > ctx->scratch_bytes) return CG_NO_MEMORY;
    job.p.y = y;
    job.p.y_stride = y_stride;
    job.p.T = T;
    job.p.add = add;
    job.p.x = ctx->scratch;
    job.rows = cg_panel_rows(w, T, ctx->threads);
    cg_parallel(ctx->threads, (T + 15) / 16, pack_task, &job);
    cg_parallel(ctx->threads, (w->N + job.rows - 1) / job.rows, panel_task, &job);
    return CG_OK;
}
