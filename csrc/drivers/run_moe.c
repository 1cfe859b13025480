/* The driver of the mixture of experts: tokens are grouped by expert, each expert's weights are read once.
   A slot is one (token, choice) pair; slots are numbered expert by expert, so a group's rows are contiguous.
   out[t] += sum over its choices j, in order, of weight[t][j] * (down_e(swiglu(gate_up_e(x[t]))) + its bias).
   Reference: gpt_oss/torch/model.py, MLPBlock. */
#include "drivers/products.h"

typedef struct {
    int64_t expert, first, count; /* its slots */
    cg_linear *kernel[2];         /* gate_up, down */
    int64_t packed[2];            /* where its packed activations begin, in bytes */
} moe_group;

typedef struct {
    const cg_matrix *matrix[2];
    moe_group *groups;
    int64_t group_count, rows[2], panels[2];
    int32_t *token_of, *slot_of;  /* [slots]; [T, k] */
    float *hidden, *act, *result; /* [slots, 2I], [slots, I], [slots, C] */
    char *packed[2], *work;
    int64_t work_bytes;
    const float *x, *weight;
    int64_t x_stride, k;
    float *out;
    int64_t out_stride;
    float alpha, limit;
} moe_job;

/* Scratch: groups, token_of, slot_of, hidden, act, result, the packed activations of both products, and what each thread
   works in. */
static int64_t lay_out(moe_job *job, char *base, int threads, int64_t T, int64_t k) {
    const cg_matrix *up = job->matrix[0], *down = job->matrix[1];
    int64_t S = T * k, at = 0, groups = cg_min(S, up->E);
    int64_t packed[2], work[2];
    /* packing may round each group's tokens up, to 16 at most */
    cg_product_bytes(up, S + 16 * groups, &packed[0], &work[0]);
    cg_product_bytes(down, S + 16 * groups, &packed[1], &work[1]);
    job->work_bytes = cg_max(work[0], work[1]);
    int team = cg_team(threads, groups * cg_max(cg_panels(up, T, threads), cg_panels(down, T, threads)));
    int64_t sizes[9] = {groups * (int64_t)sizeof *job->groups,
                        S * 4,
                        S * 4,
                        S * up->N * 4,
                        S * down->K * 4,
                        S * down->N * 4,
                        packed[0],
                        packed[1],
                        team * job->work_bytes};
    void **places[9] = {(void **)&job->groups,    (void **)&job->token_of,  (void **)&job->slot_of,
                        (void **)&job->hidden,    (void **)&job->act,       (void **)&job->result,
                        (void **)&job->packed[0], (void **)&job->packed[1], (void **)&job->work};
    for (int i = 0; i < 9; i++) {
        if (base) *places[i] = base + at;
        at += cg_round_up(sizes[i], 64);
    }
    return at;
}

int64_t cg_moe_scratch(const cg_context *ctx, const cg_matrix *gate_up, const cg_matrix *down, int64_t T, int64_t k) {
    moe_job job = {.matrix = {gate_up, down}};
    return lay_out(&job, NULL, ctx->threads, T, k);
}

/* Counting sort of the T x k choices by expert; every packed group starts at a multiple of 64 bytes. */
static cg_status group_slots(moe_job *job, const int32_t *index, int64_t T, cg_precision precision) {
    int64_t first[CG_MAX_EXPERTS + 1] = {0}, E = job->matrix[0]->E, packed[2] = {0, 0};
    for (int64_t i = 0; i < T * job->k; i++) {
        if (index[i] < 0 || index[i] >= E) return CG_BAD_VALUE;
        first[index[i] + 1]++;
    }
    for (int64_t e = 0; e < E; e++) {
        int64_t count = first[e + 1];
        first[e + 1] += first[e];
        if (!count) continue;
        moe_group *g = &job->groups[job->group_count++];
        *g = (moe_group){.expert = e, .first = first[e], .count = count};
        for (int m = 0; m < 2; m++) {
            const cg_matrix *w = job->matrix[m];
            g->kernel[m] = cg_pick_linear(w, count, precision);
            g->packed[m] = packed[m];
            packed[m] += g->kernel[m]->packed_bytes(count, w->K);
        }
    }
    for (int64_t i = 0; i < T * job->k; i++) {
        int64_t slot = first[index[i]]++;
        job->token_of[slot] = (int32_t)(i / job->k);
        job->slot_of[i] = (int32_t)slot;
    }
    return CG_OK;
}

/* Packs one group's tokens (m = 0) or activated rows (m = 1). */
static void pack_group(moe_job *job, const moe_group *g, int m) {
    int64_t I = job->matrix[1]->K;
    cg_rows tokens = {job->x, job->x_stride, job->token_of + g->first}, activated = {job->act + g->first * I, I, NULL};
    g->kernel[m]->pack(job->packed[m] + g->packed[m], m ? &activated : &tokens, g->count, job->matrix[m]->K, 0,
                       g->count);
}

static void pack_task(void *job, int64_t i, CG_UNUSED int thread) { pack_group(job, &((moe_job *)job)->groups[i], 0); }

static void product_task(const moe_job *job, int64_t task, int m, int thread) {
    const moe_group *g = &job->groups[task / job->panels[m]];
    const cg_matrix *w = job->matrix[m];
    int64_t n0 = task % job->panels[m] * job->rows[m];
    cg_product p = cg_product_of(w, g->expert);
    p.T = g->count;
    p.y = (m ? job->result : job->hidden) + g->first * w->N;
    p.y_stride = w->N;
    p.x = job->packed[m] + g->packed[m];
    p.work = job->work + thread * job->work_bytes;
    g->kernel[m]->panel(&p, n0, cg_min(n0 + job->rows[m], w->N));
}

static void gate_up_task(void *job, int64_t i, int thread) { product_task(job, i, 0, thread); }
static void down_task(void *job, int64_t i, int thread) { product_task(job, i, 1, thread); }

static void swiglu_task(void *data, int64_t i, CG_UNUSED int thread) {
    moe_job *job = data;
    const moe_group *g = &job->groups[i];
    int64_t I = job->matrix[1]->K;
    for (int64_t s = g->first; s < g->first + g->count; s++)
        cg_active->swiglu(job->act + s * I, job->hidden + s * 2 * I, job->alpha, job->limit, I);
    pack_group(job, g, 1);
}

static void combine_task(void *data, int64_t t, CG_UNUSED int thread) {
    moe_job *job = data;
    cg_active->combine(job->out + t * job->out_stride, job->result, job->matrix[1]->N, job->slot_of + t * job->k,
                       job->weight + t * job->k, job->k, job->matrix[1]->N);
}

cg_status cg_run_moe(const cg_context *ctx, float *out, int64_t out_stride, const float *x, int64_t x_stride, int64_t T,
                     const int32_t *index, const float *weight, int64_t k, const cg_matrix *gate_up,
                     const cg_matrix *down, float alpha, float limit) {
    if (cg_check_matrix(gate_up) || cg_check_matrix(down) || gate_up->E != down->E || gate_up->N != 2 * down->K ||
        gate_up->E > CG_MAX_EXPERTS || k < 1 || k > CG_MAX_TOP_K || k > gate_up->E)
        return CG_BAD_SHAPE;
    if (cg_moe_scratch(ctx, gate_up, down, T, k) > ctx->scratch_bytes) return CG_NO_MEMORY;
    moe_job job = {.matrix = {gate_up, down},
                   .x = x,
                   .weight = weight,
                   .x_stride = x_stride,
                   .k = k,
                   .out = out,
                   .out_stride = out_stride,
                   .alpha = alpha,
                   .limit = limit};
    lay_out(&job, ctx->scratch, ctx->threads, T, k);
    cg_status bad = group_slots(&job, index, T, ctx->precision);
    if (bad) return bad;
    for (int m = 0; m < 2; m++) {
        job.rows[m] = cg_panel_rows(job.matrix[m], T, ctx->threads);
        job.panels[m] = cg_panels(job.matrix[m], T, ctx->threads);
    }
    int64_t groups = job.group_count;
    cg_parallel(T == 1 ? 1 : ctx->threads, groups, pack_task, &job);
    cg_parallel(ctx->threads, groups * job.panels[0], gate_up_task, &job);
    cg_parallel(T == 1 ? 1 : ctx->threads, groups, swiglu_task, &job);
    cg_parallel(ctx->threads, groups * job.panels[1], down_task, &job);
    cg_parallel(T == 1 ? 1 : ctx->threads, T, combine_task, &job);
    return CG_OK;
}
