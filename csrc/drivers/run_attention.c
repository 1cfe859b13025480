/* The driver of attention: brings the new keys and values into the caches and cuts the queries of each sequence into
   shares of (token, head) rows of one key/value head. Where a sequence has but one share per head, as in decoding, the
   spans of its cache are shared out too. All shares of all sequences are dealt to the threads together. */
#include "core/parallel.h"

enum { FORK = 32768 }; /* products of queries and keys that are worth more than starting the threads */

typedef struct {
    const cg_attention *a;
    int64_t rows, share, shares; /* all rows of a head, those of a share, the shares of a head */
    int64_t span, spans;         /* the first that some row sees, and how many */
    int64_t tasks;
    float *states; /* [G, spans, rows, stride], or NULL: a share sees to all its spans */
    int *done;     /* [G], spans */
} part;

typedef struct {
    const cg_attention *a;
    part parts[CG_ATTENTION_MOST];
    float *work; /* [threads, work_floats(D)] */
} job;

/* ------------------------------------------------------------------------------------------------------- appending */

/* One token overwrites only what its window no longer sees; a cache that never wraps overwrites nothing. */
static int goes_direct(const cg_attention *a) { return a->T == 1 || a->start + a->T <= a->past.blocks * CG_KV_BLOCK; }

static void append(const cg_attention *a, const cg_kv *to, int64_t g, int64_t skip, int64_t start) {
    const float *k = a->k + skip * a->kv_stride + g * a->D, *v = a->v + skip * a->kv_stride + g * a->D;
    cg_active->kv_append(to, k, v, a->kv_stride, start, a->T - skip, g, a->D);
}

/* Where one share sees to a head, as in decoding, it brings in what is new there: the processor has it in its cache then. */
static int appends_itself(const part *p) { return p->shares == 1 && !p->states && goes_direct(p->a); }

static void append_task(void *data, int64_t i, CG_UNUSED int thread) {
    const part *p = ((job *)data)->parts + i / ((job *)data)->a->G;
    const cg_attention *a = p->a;
    if (appends_itself(p)) return;
    if (goes_direct(a)) append(a, &a->past, i % a->G, 0, a->start);
    else append(a, &a->fresh, i % a->G, 0, a->start - a->first_fresh * CG_KV_BLOCK);
}

/* What waited in scratch, as much of it as the cache keeps. */
static void keep_task(void *data, int64_t i, CG_UNUSED int thread) {
    const cg_attention *a = ((job *)data)->a + i / ((job *)data)->a->G;
    int64_t skip = cg_max(0, a->T - a->past.blocks * CG_KV_BLOCK);
    if (!goes_direct(a)) append(a, &a->past, i % a->G, skip, a->start + skip);
}

static int64_t fresh_blocks(const cg_attention *a) {
    return (a->start + a->T - 1) / CG_KV_BLOCK - a->start / CG_KV_BLOCK + 1;
}

static int64_t fresh_bytes(const cg_attention *a) {
    int64_t columns = a->D + cg_round_up(a->D, CG_V_ALIGN);
    return fresh_blocks(a) * a->G * CG_KV_BLOCK * columns * (int64_t)cg_dtype_bytes(a->past.dtype);
}

/* Blocks for the chunk's positions, beginning with what the ring holds of the first one. Slots that no token fills
   may hold anything. */
static void lay_out_fresh(cg_attention *a, char *scratch) {
    const cg_kv *cache = &a->past;
    int64_t blocks = fresh_blocks(a), size = (int64_t)cg_dtype_bytes(cache->dtype) * CG_KV_BLOCK;
    int64_t keys = a->D * size, values = cg_round_up(a->D, CG_V_ALIGN) * size;
    a->first_fresh = a->start / CG_KV_BLOCK;
    a->fresh = (cg_kv){scratch, scratch + a->G * blocks * keys, blocks, cache->dtype};
    for (int64_t g = 0; g < a->G && a->start % CG_KV_BLOCK; g++) {
        int64_t from = g * cache->blocks + a->first_fresh % cache->blocks, to = g * blocks;
        memcpy((char *)a->fresh.k + to * keys, (char *)cache->k + from * keys, (size_t)keys);
        memcpy((char *)a->fresh.v + to * values, (char *)cache->v + from * values, (size_t)values);
    }
}

/* --------------------------------------------------------------------------------------------------------- sharing */

/* Of a thread: a share's state, and what its attention works in. */
static int64_t work_floats(int64_t D) { return CG_ATTENTION_STATE + cg_attention_work(D); }

/* The long shares first. */
static void rows_task(const part *p, int64_t i, float *state) {
    const cg_attention *a = p->a;
    int64_t rep = a->H / a->G, g = i % a->G, row0 = (p->shares - 1 - i / a->G) * p->share;
    int64_t row1 = cg_min(row0 + p->share, p->rows), first = a->start + row0 / rep, last = a->start + (row1 - 1) / rep;
    first = a->window ? cg_max(0, first - a->window + 1) : 0;
    if (appends_itself(p)) append(a, &a->past, g, 0, a->start);
    cg_active->attention(a, g, row0, row1, first / CG_KV_SPAN, last / CG_KV_SPAN + 1, state,
                         state + CG_ATTENTION_STATE);
    cg_active->attention_merge(a, g, row0, row1, 1, state);
}

/* One span; who finishes a head's last one puts them together, in their order. */
static void span_task(const part *p, int64_t i, float *work) {
    int64_t g = i / p->spans, size = p->rows * cg_attention_stride(p->a->D), span = p->span + i % p->spans;
    cg_active->attention(p->a, g, 0, p->rows, span, span + 1, p->states + i * size, work);
    if (__atomic_add_fetch(&p->done[g], 1, __ATOMIC_ACQ_REL) == p->spans)
        cg_active->attention_merge(p->a, g, 0, p->rows, p->spans, p->states + g * p->spans * size);
}

static void share_task(void *data, int64_t i, int thread) {
    const part *p = ((job *)data)->parts;
    float *work = ((job *)data)->work + thread * work_floats(p->a->D);
    while (i >= p->tasks) i -= p++->tasks;
    if (p->states) span_task(p, i, work);
    else rows_task(p, i, work);
}

static part share_out(int threads, const cg_attention *a) {
    int64_t end = a->start + a->T, first = a->window ? cg_max(0, a->start - a->window + 1) : 0;
    part p = {.a = a, .rows = a->T * (a->H / a->G), .share = cg_attention_rows(a->D)};
    while (p.share > 8 && (p.rows + p.share - 1) / p.share * a->G < 4 * (int64_t)threads) p.share /= 2;
    p.shares = (p.rows + p.share - 1) / p.share;
    p.span = first / CG_KV_SPAN;
    p.spans = (end - 1) / CG_KV_SPAN + 1 - p.span;
    p.tasks = p.shares * a->G;
    return p;
}

/* The spans are shared out, which takes this much scratch; 0: they are not. */
static int64_t state_bytes(int threads, const part *p) {
    const cg_attention *a = p->a;
    if (threads < 2 || p->shares > 1 || p->spans < 2 || !goes_direct(a)) return 0;
    return cg_round_up(a->G * (p->spans * p->rows * cg_attention_stride(a->D) * 4 + (int64_t)sizeof *p->done), 64);
}

/* ------------------------------------------------------------------------------------------------------ the driver */

static int fits(const cg_attention *a) {
    if (a->G < 1 || a->H < 1 || a->H % a->G || a->D < 1 || a->D > CG_MAX_HEAD_DIM || a->T < 1 || a->start < 0 ||
        a->start > INT64_MAX - a->T || a->window < 0)
        return 0;
    int64_t end = a->start + a->T;
    return a->past.blocks * CG_KV_BLOCK >= (a->window ? cg_min(a->window, end) : end);
}

static int all_fit(const cg_attention *a, int64_t n) {
    int good = n >= 1 && n <= CG_ATTENTION_MOST;
    for (int64_t i = 0; i < n && good; i++) good = fits(a + i);
    return good;
}

/* Bytes that the threads work in, before what the parts need. */
static int64_t work_bytes(int threads, const cg_attention *a, int64_t n) {
    int64_t tasks = 0;
    for (int64_t i = 0; i < n; i++) {
        part p = share_out(threads, a + i);
        tasks += p.tasks * p.spans;
    }
    return cg_team(threads, tasks) * work_floats(a->D) * 4;
}

static int64_t part_bytes(int threads, const cg_attention *a) {
    part p = share_out(threads, a);
    return goes_direct(a) ? state_bytes(threads, &p) : cg_round_up(fresh_bytes(a), 64);
}

int64_t cg_attention_scratch(const cg_context *ctx, const cg_attention *a, int64_t n) {
    if (!all_fit(a, n)) return 0;
    int64_t bytes = work_bytes(ctx->threads, a, n);
    for (int64_t i = 0; i < n; i++) bytes += part_bytes(ctx->threads, a + i);
    return bytes;
}

cg_status cg_run_attention(const cg_context *ctx, cg_attention *a, int64_t n) {
    job j = {.a = a};
    int64_t work = 0, new = 0, tasks = 0, waiting = 0;
    if (!all_fit(a, n)) return CG_BAD_SHAPE;
    if (ctx->scratch_bytes < cg_attention_scratch(ctx, a, n)) return CG_NO_MEMORY;
    for (int64_t i = 0; i < n; i++) {
        int64_t end = a[i].start + a[i].T, visible = a[i].window ? cg_min(a[i].window, end) : end;
        work += a[i].T * a[i].H * visible * a[i].D;
    }
    int threads = work < FORK ? 1 : ctx->threads;
    char *scratch = (char *)ctx->scratch + work_bytes(ctx->threads, a, n);
    j.work = ctx->scratch;
    for (int64_t i = 0; i < n; i++) {
        part *p = j.parts + i;
        *p = share_out(threads, a + i);
        a[i].first_fresh = INT64_MAX;
        if (!goes_direct(a + i)) {
            lay_out_fresh(a + i, scratch);
            scratch += cg_round_up(fresh_bytes(a + i), 64);
            waiting = 1;
        } else if (state_bytes(threads, p)) {
            p->states = (float *)scratch;
            p->done = (int *)(p->states + p->tasks * p->spans * p->rows * cg_attention_stride(a[i].D));
            memset(p->done, 0, (size_t)a[i].G * sizeof *p->done);
            scratch += state_bytes(threads, p);
            p->tasks *= p->spans;
        }
        tasks += p->tasks;
        if (!appends_itself(p)) new += a[i].T * a[i].G * a[i].D;
    }
    int appending = new < 16384 ? 1 : threads;
    if (new) cg_parallel(appending, n * a->G, append_task, &j);
    cg_parallel(threads, tasks, share_task, &j);
    if (waiting) cg_parallel(appending, n * a->G, keep_task, &j);
    return CG_OK;
}
