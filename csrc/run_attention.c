/* The driver of attention: brings the new keys and values into the cache and cuts the queries into shares of 8
   (token, head) rows of one key/value head. */
#include "parallel.h"

typedef struct {
    const cg_attention *a;
    const cg_kv *to;
    const float *k, *v;
    int64_t kv_stride, start, T;
} append_job;

static void append_task(void *data, int64_t g) {
    append_job *j = data;
    int64_t D = j->a->D;
    cg_active->kv_append(j->to, j->k + g * D, j->v + g * D, j->kv_stride, j->start, j->T, g, j->a->G, D);
}

static void attention_task(void *data, int64_t i) {
    const cg_attention *a = data;
    int64_t rows = a->T * (a->H / a->G), row0 = i / a->G * CG_ATTENTION_ROWS;
    cg_active->attention(a, i % a->G, row0, cg_min(row0 + CG_ATTENTION_ROWS, rows));
}

static int64_t key_block(const cg_attention *a) { return a->G * a->D * CG_KV_BLOCK; }
static int64_t value_block(const cg_attention *a) { return a->G * CG_KV_BLOCK * cg_round_up(a->D, CG_V_ALIGN); }

int64_t cg_attention_scratch(int64_t T, int64_t G, int64_t D) {
    cg_attention a = {.G = G, .D = D};
    return (T / CG_KV_BLOCK + 2) * (key_block(&a) + value_block(&a)) * 4;
}

/* Blocks for the chunk's positions, beginning with what the ring holds of the first one. Slots that no token fills
   may hold anything. */
static void lay_out_fresh(const cg_context *ctx, cg_attention *a, const cg_kv *cache) {
    int64_t first = a->start / CG_KV_BLOCK, blocks = (a->start + a->T - 1) / CG_KV_BLOCK - first + 1;
    a->first_fresh = first * CG_KV_BLOCK;
    a->fresh = (cg_kv){ctx->scratch, (float *)ctx->scratch + blocks * key_block(a), blocks};
    if (a->start % CG_KV_BLOCK) {
        memcpy(a->fresh.k, cache->k + first % cache->blocks * key_block(a), (size_t)key_block(a) * 4);
        memcpy(a->fresh.v, cache->v + first % cache->blocks * value_block(a), (size_t)value_block(a) * 4);
    }
}

cg_status cg_run_attention(const cg_context *ctx, cg_attention *a, const cg_kv *cache, const float *k, const float *v,
                           int64_t kv_stride) {
    if (a->G < 1 || a->H < 1 || a->H % a->G || a->D < 1 || a->D > CG_MAX_HEAD_DIM || a->T < 1 || a->start < 0 ||
        a->start > INT64_MAX - a->T || a->window < 0)
        return CG_BAD_SHAPE;
    int64_t slots = cache->blocks * CG_KV_BLOCK, end = a->start + a->T;
    if (slots < (a->window ? cg_min(a->window, end) : end)) return CG_BAD_SHAPE;
    int64_t rows = a->T * (a->H / a->G), shares = (rows + CG_ATTENTION_ROWS - 1) / CG_ATTENTION_ROWS;
    int64_t visible = a->window ? cg_min(a->window, end) : end;
    int threads = rows * a->G * visible * a->D < 65536 ? 1 : ctx->threads;
    append_job append = {a, cache, k, v, kv_stride, a->start, a->T};
    /* One token overwrites only what its window no longer sees; a cache that never wraps overwrites nothing. */
    int direct = a->T == 1 || end <= slots;
    a->past = *cache;
    if (direct) {
        a->first_fresh = INT64_MAX / CG_KV_BLOCK * CG_KV_BLOCK;
    } else {
        if (ctx->scratch_bytes < cg_attention_scratch(a->T, a->G, a->D)) return CG_NO_MEMORY;
        lay_out_fresh(ctx, a, cache);
        append.to = &a->fresh;
        append.start -= a->first_fresh;
    }
    cg_parallel(threads, a->G, append_task, &append);
    cg_parallel(threads, shares * a->G, attention_task, a);
    if (!direct) {
        int64_t kept = cg_min(a->T, slots), skip = a->T - kept;
        append = (append_job){a, cache, k + skip * kv_stride, v + skip * kv_stride, kv_stride, a->start + skip, kept};
        cg_parallel(threads, a->G, append_task, &append);
    }
    return CG_OK;
}
