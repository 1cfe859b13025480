/* The driver of attention: brings the new keys and values into the cache and cuts the queries into shares of (token,
   head) rows of one key/value head. Where there is but one share per head, as in decoding, the spans of the cache are
   shared out too. */
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
    cg_active->kv_append(j->to, j->k + g * D, j->v + g * D, j->kv_stride, j->start, j->T, g, D);
}

static void append(int threads, append_job *j) {
    cg_parallel(j->T * j->a->G * j->a->D < 16384 ? 1 : threads, j->a->G, append_task, j);
}

typedef struct {
    const cg_attention *a;
    int64_t rows, share, shares;  /* all rows of a head, those of a share, the shares of a head */
    int64_t span, spans;          /* the first that some row sees, and how many */
    float *states;                /* [G, spans, rows, stride], or NULL: a share sees to all its spans */
    int *done;                    /* [G], spans */
} rows_job;

/* The long shares first. */
static void rows_task(void *data, int64_t i) {
    rows_job *j = data;
    const cg_attention *a = j->a;
    float state[CG_ATTENTION_STATE];
    int64_t rep = a->H / a->G, g = i % a->G, row0 = (j->shares - 1 - i / a->G) * j->share;
    int64_t row1 = cg_min(row0 + j->share, j->rows), first = a->start + row0 / rep, last = a->start + (row1 - 1) / rep;
    first = a->window ? cg_max(0, first - a->window + 1) : 0;
    cg_active->attention(a, g, row0, row1, first / CG_KV_SPAN, last / CG_KV_SPAN + 1, state);
    cg_active->attention_merge(a, g, row0, row1, 1, state);
}

/* One span; who finishes a head's last one puts them together, in their order. */
static void span_task(void *data, int64_t i) {
    rows_job *j = data;
    int64_t g = i / j->spans, size = j->rows * cg_attention_stride(j->a->D), span = j->span + i % j->spans;
    cg_active->attention(j->a, g, 0, j->rows, span, span + 1, j->states + i * size);
    if (__atomic_add_fetch(&j->done[g], 1, __ATOMIC_ACQ_REL) == j->spans)
        cg_active->attention_merge(j->a, g, 0, j->rows, j->spans, j->states + g * j->spans * size);
}

static rows_job share_out(int threads, const cg_attention *a) {
    int64_t end = a->start + a->T, first = a->window ? cg_max(0, a->start - a->window + 1) : 0;
    rows_job j = {.a = a, .rows = a->T * (a->H / a->G), .share = cg_attention_rows(a->D)};
    while (j.share > 8 && (j.rows + j.share - 1) / j.share * a->G < 4 * threads) j.share /= 2;
    j.shares = (j.rows + j.share - 1) / j.share;
    j.span = first / CG_KV_SPAN;
    j.spans = (end - 1) / CG_KV_SPAN + 1 - j.span;
    return j;
}

static int64_t state_bytes(const rows_job *j) {
    return j->shares > 1 ? 0 : cg_round_up(j->a->G * j->spans * j->rows * cg_attention_stride(j->a->D) * 4, 64);
}

static int64_t fresh_blocks(const cg_attention *a) {
    return (a->start + a->T - 1) / CG_KV_BLOCK - a->start / CG_KV_BLOCK + 1;
}

static int64_t fresh_bytes(const cg_attention *a, const cg_kv *cache) {
    int64_t columns = a->D + cg_round_up(a->D, CG_V_ALIGN);
    return fresh_blocks(a) * a->G * CG_KV_BLOCK * columns * (int64_t)cg_dtype_bytes(cache->dtype);
}

/* One token overwrites only what its window no longer sees; a cache that never wraps overwrites nothing. */
static int goes_direct(const cg_attention *a, const cg_kv *cache) {
    return a->T == 1 || a->start + a->T <= cache->blocks * CG_KV_BLOCK;
}

static int fits(const cg_attention *a, const cg_kv *cache) {
    if (a->G < 1 || a->H < 1 || a->H % a->G || a->D < 1 || a->D > CG_MAX_HEAD_DIM || a->T < 1 || a->start < 0 ||
        a->start > INT64_MAX - a->T || a->window < 0)
        return 0;
    int64_t end = a->start + a->T;
    return cache->blocks * CG_KV_BLOCK >= (a->window ? cg_min(a->window, end) : end);
}

int64_t cg_attention_scratch(const cg_context *ctx, const cg_attention *a, const cg_kv *cache) {
    if (!fits(a, cache)) return 0;
    rows_job j = share_out(ctx->threads, a);
    return goes_direct(a, cache) ? state_bytes(&j) + a->G * 4 : fresh_bytes(a, cache);
}

/* Blocks for the chunk's positions, beginning with what the ring holds of the first one. Slots that no token fills
   may hold anything. */
static void lay_out_fresh(const cg_context *ctx, cg_attention *a, const cg_kv *cache) {
    int64_t blocks = fresh_blocks(a), size = (int64_t)cg_dtype_bytes(cache->dtype) * CG_KV_BLOCK;
    int64_t keys = a->D * size, values = cg_round_up(a->D, CG_V_ALIGN) * size;
    a->first_fresh = a->start / CG_KV_BLOCK;
    a->fresh = (cg_kv){ctx->scratch, (char *)ctx->scratch + a->G * blocks * keys, blocks, cache->dtype};
    for (int64_t g = 0; g < a->G && a->start % CG_KV_BLOCK; g++) {
        int64_t from = g * cache->blocks + a->first_fresh % cache->blocks, to = g * blocks;
        memcpy((char *)a->fresh.k + to * keys, (char *)cache->k + from * keys, (size_t)keys);
        memcpy((char *)a->fresh.v + to * values, (char *)cache->v + from * values, (size_t)values);
    }
}

cg_status cg_run_attention(const cg_context *ctx, cg_attention *a, const cg_kv *cache, const float *k, const float *v,
                           int64_t kv_stride) {
    if (!fits(a, cache)) return CG_BAD_SHAPE;
    int64_t slots = cache->blocks * CG_KV_BLOCK, end = a->start + a->T, visible = a->window ? cg_min(a->window, end) : end;
    int threads = a->T * a->H * visible * a->D < 65536 ? 1 : ctx->threads, direct = goes_direct(a, cache);
    append_job new = {a, cache, k, v, kv_stride, a->start, a->T};
    if (ctx->scratch_bytes < cg_attention_scratch(ctx, a, cache)) return CG_NO_MEMORY;
    a->past = *cache;
    a->first_fresh = INT64_MAX;
    if (!direct) {
        lay_out_fresh(ctx, a, cache);
        new.to = &a->fresh;
        new.start -= a->first_fresh * CG_KV_BLOCK;
    }
    append(threads, &new);
    rows_job j = share_out(threads, a);
    if (direct && threads > 1 && j.shares == 1 && j.spans > 1) {
        j.states = ctx->scratch;
        j.done = memset((char *)ctx->scratch + state_bytes(&j), 0, (size_t)a->G * 4);
        cg_parallel(threads, a->G * j.spans, span_task, &j);
    } else {
        cg_parallel(threads, j.shares * a->G, rows_task, &j);
    }
    if (!direct) {
        int64_t kept = cg_min(a->T, slots), skip = a->T - kept;
        new = (append_job){a, cache, k + skip * kv_stride, v + skip * kv_stride, kv_stride, a->start + skip, kept};
        append(threads, &new);
    }
    return CG_OK;
}
