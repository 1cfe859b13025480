/* The driver of linear: picks the kernel, packs the activations, cuts the outputs into panels. */
#include "drivers/products.h"

enum {
    PANEL_ROWS = 64, /* they stay in the second-level cache for several passes */
    PANEL_FEW = 15,  /* tokens up to which rows are read once, from memory, which gives more to long streams */
    PANEL_BYTES = 512 * 1024,
    INT4_FEW_ROWS = 8,     /* that are decoded together for PANEL_FEW tokens: they stay in the first-level cache */
    PANEL_MXFP4_STEP = 96, /* rows: kernels take them by 32 or 48 */
};

/* The kinds of kernels, the first that is allowed and suits before the others. EXACT takes f32 activations. */
enum { A8_FEW, A8, TILE, A16, EXACT, KINDS };

static cg_linear *kernel_of(int kind, cg_dtype dtype) {
    if (dtype == CG_INT4 && kind != A16) dtype = CG_INT8; /* cg_run_panel decodes the weights */
    const cg_kernels *k = cg_active;
    cg_linear *kernels[KINDS][CG_U8 + 1] = {
        [A8_FEW] = {[CG_INT8] = k->linear_int8_a8_few},
        [A8] = {[CG_MXFP4] = k->linear_mxfp4_a8, [CG_INT8] = k->linear_int8_a8},
        [TILE] = {k->linear_f32_tile, k->linear_f16_tile, k->linear_bf16_tile, k->linear_mxfp4_tile,
                  k->linear_int8_tile, k->linear_bf16_packed_tile},
        [A16] = {[CG_MXFP4] = k->linear_mxfp4_a16, [CG_INT8] = k->linear_int8_a16, [CG_INT4] = k->linear_int4_a16},
        [EXACT] = {k->linear_f32, k->linear_f16, k->linear_bf16, k->linear_mxfp4, k->linear_int8,
                   k->linear_bf16_packed},
    };
    return kernels[kind][dtype];
}

/* There is such a kernel, and it is meant for T tokens of a step. */
static int suits(cg_linear *kernel, int64_t T, int64_t step) {
    return kernel && T >= kernel->min_tokens && step >= kernel->min_step &&
           (!kernel->max_tokens || T <= kernel->max_tokens);
}

cg_linear *cg_pick_linear(const cg_matrix *w, int64_t T, int64_t step, cg_precision precision) {
    int kind = precision == CG_PRECISION_EXACT ? EXACT : precision == CG_PRECISION_INT8 ? A8_FEW : TILE;
    while (kind < EXACT && !suits(kernel_of(kind, w->dtype), T, step)) kind++;
    return kernel_of(kind, w->dtype);
}

/* The memory that each thread works in: a kernel's, behind decoded rows. */
static int64_t work_bytes(cg_linear *kernel, const cg_matrix *w) {
    return cg_work_bytes(kernel, w->K) + (w->dtype == CG_INT4 ? PANEL_ROWS * cg_row_bytes(CG_INT8, w->K) : 0);
}

void cg_product_bytes(const cg_matrix *w, int64_t T, int64_t *packed, int64_t *work) {
    *packed = *work = 0;
    for (int kind = 0; kind < KINDS; kind++) {
        cg_linear *kernel = kernel_of(kind, w->dtype);
        if (!kernel) continue;
        *packed = cg_max(*packed, kernel->packed_bytes(T, w->K));
        *work = cg_max(*work, work_bytes(kernel, w));
    }
}

cg_status cg_check_matrix(const cg_matrix *w) {
    if (w->E < 1 || w->N < 1 || w->K < 1) return CG_BAD_SHAPE;
    if (w->dtype == CG_MXFP4 && w->K % CG_MXFP4_GROUP) return CG_BAD_SHAPE;
    if ((w->dtype == CG_MXFP4 || w->dtype == CG_INT8 || w->dtype == CG_INT4) && !w->scales && !w->experts)
        return CG_BAD_SHAPE;
    return w->dtype == CG_U8 ? CG_BAD_DTYPE : CG_OK;
}

cg_product cg_product_of(const cg_matrix *w, int64_t expert) {
    int64_t rows = expert * w->N;
    cg_product p = {.bias = w->bias ? w->bias + rows : NULL, .K = w->K};
    p.w = w->experts ? w->experts[expert].data : w->data + rows * cg_row_bytes(w->dtype, w->K);
    p.scales = w->experts  ? w->experts[expert].scales
               : w->scales ? w->scales + rows * cg_scale_bytes(w->dtype, w->K)
                           : NULL;
    return p;
}

void cg_run_panel(const cg_linear *kernel, cg_dtype dtype, const cg_product *p, int64_t n0, int64_t n1) {
    if (dtype != CG_INT4 || kernel == cg_active->linear_int4_a16) {
        kernel->panel(p, n0, n1);
        return;
    }
    int64_t bytes = cg_row_bytes(CG_INT8, p->K), step = p->T <= PANEL_FEW ? INT4_FEW_ROWS : PANEL_ROWS;
    for (int64_t n = n0; n < n1; n += step) {
        int64_t rows = cg_min(step, n1 - n);
        cg_product part = *p;
        uint8_t *decoded = p->work;
        cg_active->int4_decode(decoded, p->w + n * bytes / 2, rows * bytes / CG_INT8_GROUP);
        for (int64_t r = 0; r < rows && p->K < bytes; r++)
            memset(decoded + r * bytes + p->K, 0, (size_t)(bytes - p->K));
        part.w = decoded;
        part.work = decoded + PANEL_ROWS * bytes;
        part.scales = p->scales + n * cg_scale_bytes(CG_INT8, p->K);
        part.bias = p->bias ? p->bias + n : NULL;
        part.y = p->y + n;
        kernel->panel(&part, 0, rows);
    }
}

int64_t cg_panel_rows(const cg_matrix *w, int64_t T, int threads) {
    /* MXFP4 rows of an expert are read once, too, and the first ones of a task are waited for. */
    int mxfp4 = w->dtype == CG_MXFP4;
    int64_t step = mxfp4 ? PANEL_MXFP4_STEP : 16, rows = cg_round_up(w->N / ((int64_t)threads * 8) + 1, step);
    int64_t max = T <= PANEL_FEW || mxfp4 ? cg_round_up(PANEL_BYTES / cg_row_bytes(w->dtype, w->K), step) : 0;
    return cg_max(16, cg_min(rows, cg_max(max, PANEL_ROWS)));
}

int64_t cg_panels(const cg_matrix *w, int64_t T, int threads) {
    int64_t rows = cg_panel_rows(w, T, threads);
    return (w->N + rows - 1) / rows;
}

int64_t cg_linear_scratch(const cg_context *ctx, const cg_matrix *w, int64_t T) {
    cg_linear *kernel = cg_pick_linear(w, T, T, ctx->precision);
    if (!kernel) return 0;
    int team = cg_team(ctx->threads, cg_panels(w, T, ctx->threads));
    return kernel->packed_bytes(T, w->K) + team * work_bytes(kernel, w);
}

/* A kernel gives a row the same bits among any number of rows. The *_tile kernels do not, but none takes one token. */
int64_t cg_uniform_tokens(const cg_matrix *w, int64_t limit, cg_precision precision) {
    int64_t T = 1;
    while (T < limit && cg_pick_linear(w, T + 1, T + 1, precision) == cg_pick_linear(w, 1, 1, precision)) T++;
    return T;
}

typedef struct {
    cg_linear *kernel;
    cg_dtype dtype;
    cg_product p;
    cg_rows x;
    int64_t N, rows;
    char *packed, *work;
    int64_t work_bytes;
} linear_job;

static void pack_task(void *job, int64_t i, CG_UNUSED int thread) {
    linear_job *j = job;
    j->kernel->pack(j->packed, &j->x, j->p.T, j->p.K, i * 16, cg_min(i * 16 + 16, j->p.T));
}

static void panel_task(void *job, int64_t i, int thread) {
    linear_job *j = job;
    cg_product p = j->p;
    p.work = j->work + thread * j->work_bytes;
    cg_run_panel(j->kernel, j->dtype, &p, i * j->rows, cg_min((i + 1) * j->rows, j->N));
}

cg_status cg_run_linear(const cg_context *ctx, float *y, int64_t y_stride, const float *x, int64_t x_stride, int64_t T,
                        const cg_matrix *w, int add) {
    cg_status bad = cg_check_matrix(w);
    if (bad) return bad;
    if (cg_linear_scratch(ctx, w, T) > ctx->scratch_bytes) return CG_NO_MEMORY;
    linear_job job = {
        cg_pick_linear(w, T, T, ctx->precision), w->dtype, cg_product_of(w, 0), {x, x_stride, NULL}, .N = w->N};
    job.packed = ctx->scratch;
    job.work = job.packed + job.kernel->packed_bytes(T, w->K);
    job.work_bytes = work_bytes(job.kernel, w);
    job.p.y = y;
    job.p.y_stride = y_stride;
    job.p.T = T;
    job.p.add = add;
    job.p.x = ctx->scratch;
    job.rows = cg_panel_rows(w, T, ctx->threads);
    cg_parallel(ctx->threads, (T + 15) / 16, pack_task, &job);
    cg_parallel(ctx->threads, cg_panels(w, T, ctx->threads), panel_task, &job);
    return CG_OK;
}
