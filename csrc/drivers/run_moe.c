/* The driver of the mixture of experts. A slot is one (token, choice) pair. Slots are sorted by expert, so that each
   expert's weights are read once and the rows of its group are contiguous.
   out[t] += sum over the choices j, in order, of weight[t][j] * (down_e(swiglu(gate_up_e(x[t]))) + bias of down_e).
   Reference: gpt_oss/torch/model.py, MLPBlock. */
#include "drivers/products.h"

typedef struct {
    int64_t expert, first, count; /* its slots */
    int done;                     /* the phases it has been through */
    cg_linear *kernel[2];         /* gate_up, down */
    int64_t packed[2];            /* where its packed activations begin, in bytes */
} moe_group;

typedef struct {
    cg_moe m;
    const cg_matrix *matrix[2]; /* gate_up, down */
    moe_group *groups;          /* [min(slots, E)] */
    moe_group **run;            /* those that are multiplied now */
    int64_t group_count, run_count, rows[2], panels[2];
    int32_t *group_of;           /* [E]; -1: nobody chose it */
    int32_t *token_of, *slot_of; /* [slots]; [T, k] */
    float *result;               /* [slots, C] */
    float *hidden, *act;         /* [slots, rows of gate_up], [slots, I]: in the context's scratch, as what follows */
    char *packed[2], *work;      /* work: [threads, work_bytes] */
    int64_t work_bytes;
} moe_job;

/* The next `bytes` of memory, from `at` on, which moves behind them. */
static void *carve(uintptr_t *at, int64_t bytes) {
    void *begin = (void *)*at;
    *at += (uintptr_t)cg_round_up(bytes, 64);
    return begin;
}

static int64_t max_groups(const cg_moe *m) { return cg_min(m->T * m->k, m->gate_up->E); }

/* Cuts memory from `base` on, where the job itself lies, into its arrays. Returns the bytes they take. */
static int64_t lay_out_job(moe_job *job, const cg_moe *m, void *base) {
    int64_t S = m->T * m->k;
    uintptr_t at = (uintptr_t)base;
    carve(&at, (int64_t)sizeof *job);
    job->groups = carve(&at, max_groups(m) * (int64_t)sizeof *job->groups);
    job->run = carve(&at, max_groups(m) * (int64_t)sizeof *job->run);
    job->group_of = carve(&at, m->gate_up->E * 4);
    job->token_of = carve(&at, S * 4);
    job->slot_of = carve(&at, S * 4);
    job->result = carve(&at, S * m->down->N * 4);
    return (int64_t)(at - (uintptr_t)base);
}

/* The same for what a call of cg_moe_experts needs for itself. */
static int64_t lay_out_scratch(moe_job *job, const cg_moe *m, void *base, int threads) {
    const cg_matrix *up = m->gate_up, *down = m->down;
    int64_t S = m->T * m->k, groups = max_groups(m), packed[2], work[2];
    /* packing rounds the tokens of each group up, by 16 at the most */
    cg_product_bytes(up, S + 16 * groups, &packed[0], &work[0]);
    cg_product_bytes(down, S + 16 * groups, &packed[1], &work[1]);
    job->work_bytes = cg_max(work[0], work[1]);
    int64_t tasks = groups * cg_max(cg_panels(up, m->T, threads), cg_panels(down, m->T, threads));
    uintptr_t at = (uintptr_t)base;
    job->hidden = carve(&at, S * up->N * 4);
    job->act = m->act ? m->act : carve(&at, S * down->K * 4);
    for (int i = 0; i < 2; i++) job->packed[i] = carve(&at, packed[i]);
    job->work = carve(&at, cg_team(threads, tasks) * job->work_bytes);
    return (int64_t)(at - (uintptr_t)base);
}

int64_t cg_moe_job_bytes(const cg_moe *m) { return lay_out_job(&(moe_job){0}, m, NULL); }

int64_t cg_moe_scratch(const cg_context *ctx, const cg_moe *m) {
    return lay_out_scratch(&(moe_job){0}, m, NULL, ctx->threads);
}

/* Counting sort of the T x k choices by expert. The packed activations of a group begin at a multiple of 64 bytes. */
static cg_status group_slots(moe_job *job, cg_precision precision) {
    const cg_moe *m = &job->m;
    int64_t first[CG_MAX_EXPERTS + 1] = {0}, E = m->gate_up->E, packed[2] = {0, 0};
    for (int64_t i = 0; i < m->T * m->k; i++) {
        if (m->index[i] < 0 || m->index[i] >= E) return CG_BAD_VALUE;
        first[m->index[i] + 1]++;
    }
    for (int64_t e = 0; e < E; e++) {
        int64_t count = first[e + 1];
        first[e + 1] += first[e];
        job->group_of[e] = count ? (int32_t)job->group_count : -1;
        if (!count) continue;
        moe_group *g = &job->groups[job->group_count++];
        *g = (moe_group){.expert = e, .first = first[e], .count = count};
        for (int i = 0; i < 2; i++) {
            const cg_matrix *w = job->matrix[i];
            g->kernel[i] = cg_pick_linear(w, count, m->T, precision);
            g->packed[i] = packed[i];
            packed[i] += g->kernel[i]->packed_bytes(count, w->K);
        }
    }
    for (int64_t i = 0; i < m->T * m->k; i++) {
        int64_t slot = first[m->index[i]]++;
        job->token_of[slot] = (int32_t)(i / m->k);
        job->slot_of[i] = (int32_t)slot;
    }
    return CG_OK;
}

/* Packs the tokens of a group for gate_up (i = 0), or its activated rows for down (i = 1). */
static void pack_group(moe_job *job, const moe_group *g, int i) {
    int64_t I = job->m.down->K;
    cg_rows tokens = {job->m.x, job->m.x_stride, job->token_of + g->first};
    cg_rows activated = {job->act + g->first * I, I, NULL};
    g->kernel[i]->pack(job->packed[i] + g->packed[i], i ? &activated : &tokens, g->count, job->matrix[i]->K, 0,
                       g->count);
}

static void pack_tokens_task(void *job, int64_t i, CG_UNUSED int thread) {
    pack_group(job, ((moe_job *)job)->run[i], 0);
}
static void pack_act_task(void *job, int64_t i, CG_UNUSED int thread) { pack_group(job, ((moe_job *)job)->run[i], 1); }

static void product_task(const moe_job *job, int64_t task, int i, int thread) {
    const moe_group *g = job->run[task / job->panels[i]];
    const cg_matrix *w = job->matrix[i];
    int64_t n0 = task % job->panels[i] * job->rows[i];
    cg_product p = cg_product_of(w, g->expert);
    p.T = g->count;
    p.y = (i ? job->result : job->hidden) + g->first * w->N;
    p.y_stride = w->N;
    p.x = job->packed[i] + g->packed[i];
    p.work = job->work + thread * job->work_bytes;
    cg_run_panel(g->kernel[i], w->dtype, &p, n0, cg_min(n0 + job->rows[i], w->N));
}

static void gate_up_task(void *job, int64_t i, int thread) { product_task(job, i, 0, thread); }
static void down_task(void *job, int64_t i, int thread) { product_task(job, i, 1, thread); }

static void swiglu_task(void *data, int64_t i, CG_UNUSED int thread) {
    moe_job *job = data;
    const moe_group *g = job->run[i];
    int64_t I = job->m.down->K, mine = job->m.gate_up->N / 2;
    float *act = job->act + job->m.act_column;
    for (int64_t s = g->first; s < g->first + g->count; s++)
        cg_active->swiglu(act + s * I, job->hidden + s * 2 * mine, job->m.alpha, job->m.limit, mine);
}

static void swiglu_pack_task(void *job, int64_t i, int thread) {
    swiglu_task(job, i, thread);
    pack_act_task(job, i, thread);
}

static void combine_task(void *data, int64_t t, CG_UNUSED int thread) {
    const moe_job *job = data;
    const cg_moe *m = &job->m;
    int64_t C = m->down->N, at = t * m->k;
    cg_active->combine(m->out + t * m->out_stride, job->result, C, job->slot_of + at, m->weight + at, m->k, C);
}

cg_status cg_moe_begin(const cg_context *ctx, const cg_moe *m, void *memory) {
    const cg_matrix *up = m->gate_up, *down = m->down;
    if (cg_check_matrix(up) || cg_check_matrix(down) || up->E != down->E || up->N % 2 || up->E > CG_MAX_EXPERTS ||
        m->k < 1 || m->k > CG_MAX_TOP_K || m->k > up->E)
        return CG_BAD_SHAPE;
    if (m->act ? m->act_column < 0 || m->act_column > down->K - up->N / 2 : m->act_column || up->N / 2 != down->K)
        return CG_BAD_SHAPE;
    moe_job *job = memory;
    *job = (moe_job){.m = *m, .matrix = {up, down}};
    lay_out_job(job, m, memory);
    for (int i = 0; i < 2; i++) {
        job->rows[i] = cg_panel_rows(job->matrix[i], m->T, ctx->threads);
        job->panels[i] = cg_panels(job->matrix[i], m->T, ctx->threads);
    }
    return group_slots(job, ctx->precision);
}

static int in_memory(const cg_matrix *w, int64_t expert) { return !w->experts || w->experts[expert].data; }

int cg_moe_complete(const void *memory, int phases) {
    const moe_job *job = memory;
    for (int64_t i = 0; i < job->group_count; i++)
        if ((job->groups[i].done & phases) != phases) return 0;
    return 1;
}

cg_status cg_moe_experts(const cg_context *ctx, void *memory, const int32_t *experts, int64_t n, int phases) {
    moe_job *job = memory;
    const cg_moe *m = &job->m;
    job->run_count = 0;
    for (int64_t i = 0; i < (experts ? n : m->gate_up->E); i++) {
        int64_t e = experts ? experts[i] : i;
        if (e < 0 || e >= m->gate_up->E) return CG_BAD_VALUE;
        if (job->group_of[e] < 0) continue; /* nobody chose it */
        moe_group *g = &job->groups[job->group_of[e]];
        if (g->done & phases) continue; /* it was multiplied already */
        if (!in_memory(m->gate_up, e) || !in_memory(m->down, e)) return CG_BAD_VALUE;
        if (!(phases & CG_MOE_GATE_UP) && !(g->done & CG_MOE_GATE_UP)) return CG_BAD_VALUE;
        job->run[job->run_count++] = g;
        g->done |= phases;
    }
    if (phases != CG_MOE_BOTH && !m->act) return CG_BAD_VALUE;
    if (lay_out_scratch(job, m, ctx->scratch, ctx->threads) > ctx->scratch_bytes) return CG_NO_MEMORY;
    int few = m->T == 1 ? 1 : ctx->threads; /* one token is packed before other threads would have started */
    if (phases & CG_MOE_GATE_UP) {
        cg_parallel(few, job->run_count, pack_tokens_task, job);
        cg_parallel(ctx->threads, job->run_count * job->panels[0], gate_up_task, job);
        cg_parallel(few, job->run_count, phases & CG_MOE_DOWN ? swiglu_pack_task : swiglu_task, job);
    }
    if (phases & CG_MOE_DOWN) {
        if (phases != CG_MOE_BOTH) cg_parallel(few, job->run_count, pack_act_task, job);
        cg_parallel(ctx->threads, job->run_count * job->panels[1], down_task, job);
    }
    return CG_OK;
}

cg_status cg_moe_end(const cg_context *ctx, void *memory) {
    moe_job *job = memory;
    if (!cg_moe_complete(memory, CG_MOE_BOTH)) return CG_BAD_VALUE;
    cg_parallel(job->m.T == 1 ? 1 : ctx->threads, job->m.T, combine_task, job);
    return CG_OK;
}
