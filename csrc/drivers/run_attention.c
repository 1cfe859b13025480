/* The driver of attention: appends the new keys and values to the caches and cuts the queries of each sequence into
   partitions, rows (token, head) of one key/value head. Where a sequence has one partition per head only, as in
   decoding with several threads, runs of KV splits of its cache are partitions too. The threads take the partitions of
   all sequences from one queue. */
#include "core/parallel.h"

enum {
    FORK = 32768, /* multiplications of queries and keys that are worth starting threads for */
    RUNS = 8,     /* of KV splits for a thread: few, so that it reads on where it has prefetched */
};

typedef struct {
    const cg_attention *a;
    int64_t rows, part_rows, parts; /* the rows of a head, those of a partition, the partitions of a head */
    int64_t split, splits, runs;    /* the first KV split that a row sees, how many, and how many runs are tasks */
    int64_t tasks;
    float *states; /* [G, splits, rows, stride], or NULL where a partition goes over all its splits */
    int *done;     /* [G], how many splits are */
} sequence;

typedef struct {
    sequence sequences[CG_MAX_SEQUENCES];
    float *work; /* [threads, work_floats(D)] */
} job;

/* ------------------------------------------------------------------------------------------------------- appending */

/* Whether keys can enter the cache before the queries are computed: one token overwrites only what its window no longer
   sees, and a cache that does not wrap overwrites nothing. */
static int goes_direct(const cg_attention *a) { return a->T == 1 || a->start + a->T <= a->past.blocks * CG_KV_BLOCK; }

static void append(const cg_attention *a, const cg_kv *to, int64_t g, int64_t skip, int64_t start) {
    const float *k = a->k + skip * a->kv_stride + g * a->D, *v = a->v + skip * a->kv_stride + g * a->D;
    cg_active->kv_append(to, k, v, a->kv_stride, start, a->T - skip, g, a->D);
}

/* Where a head has one partition, as in decoding, that appends the head's keys itself: they are then in its cache. */
static int appends_itself(const sequence *s) { return s->parts == 1 && !s->states && goes_direct(s->a); }

static void append_task(void *data, int64_t i, CG_UNUSED int thread) {
    const sequence *all = ((job *)data)->sequences, *s = all + i / all->a->G;
    const cg_attention *a = s->a;
    if (appends_itself(s)) return;
    if (goes_direct(a)) append(a, &a->past, i % a->G, 0, a->start);
    else append(a, &a->fresh, i % a->G, 0, a->start - a->first_fresh * CG_KV_BLOCK);
}

/* Appends what waited in scratch, as much of it as the cache holds. */
static void append_later_task(void *data, int64_t i, CG_UNUSED int thread) {
    const sequence *all = ((job *)data)->sequences;
    const cg_attention *a = all[i / all->a->G].a;
    int64_t skip = cg_max(0, a->T - a->past.blocks * CG_KV_BLOCK);
    if (!goes_direct(a)) append(a, &a->past, i % a->G, skip, a->start + skip);
}

static int64_t fresh_blocks(const cg_attention *a) {
    return (a->start + a->T - 1) / CG_KV_BLOCK - a->start / CG_KV_BLOCK + 1;
}

static int64_t fresh_bytes(const cg_attention *a) {
    cg_dtype dtype = a->past.dtype;
    int64_t block = 2 * cg_kv_panel_bytes(dtype, a->D) + cg_kv_value_bytes(dtype, a->D);
    return cg_round_up(fresh_blocks(a) * a->G * block, 64);
}

/* Blocks for the chunk's positions. The first one begins with what the ring holds of it. Slots that no token fills may
   hold anything. */
static void lay_out_fresh(cg_attention *a, char *scratch) {
    const cg_kv *cache = &a->past;
    int64_t blocks = fresh_blocks(a), keys = 2 * cg_kv_panel_bytes(cache->dtype, a->D);
    int64_t values = cg_kv_value_bytes(cache->dtype, a->D);
    a->first_fresh = a->start / CG_KV_BLOCK;
    a->fresh = (cg_kv){scratch, scratch + a->G * blocks * keys, blocks, cache->dtype};
    for (int64_t g = 0; g < a->G && a->start % CG_KV_BLOCK; g++) {
        int64_t from = g * cache->blocks + a->first_fresh % cache->blocks, to = g * blocks;
        memcpy((char *)a->fresh.k + to * keys, (char *)cache->k + from * keys, (size_t)keys);
        memcpy((char *)a->fresh.v + to * values, (char *)cache->v + from * values, (size_t)values);
    }
}

/* ---------------------------------------------------------------------------------------------------- partitioning */

/* What a thread works in: the state of a partition, and its kernel's work. */
static int64_t work_floats(int64_t D) { return CG_ATTENTION_STATE + cg_attention_work(D); }

/* Partition i of the rows. The later ones see more and are taken first. */
static void rows_task(const sequence *s, int64_t i, float *work) {
    const cg_attention *a = s->a;
    int64_t rep = a->H / a->G;
    cg_attention_part part = {.g = i % a->G, .state = work, .work = work + CG_ATTENTION_STATE};
    part.row0 = (s->parts - 1 - i / a->G) * s->part_rows;
    part.row1 = cg_min(part.row0 + s->part_rows, s->rows);
    int64_t first = a->start + part.row0 / rep, last = a->start + (part.row1 - 1) / rep;
    part.split0 = (a->window ? cg_max(0, first - a->window + 1) : 0) / CG_KV_SPLIT;
    part.split1 = last / CG_KV_SPLIT + 1;
    if (appends_itself(s)) append(a, &a->past, part.g, 0, a->start);
    cg_active->attention(a, &part);
    cg_active->attention_merge(a, &part, 1);
}

/* A run of KV splits of a head. The task that finishes the head's last one merges them, in the order of their
 * positions. */
static void split_task(const sequence *s, int64_t i, float *work) {
    int64_t g = i / s->runs, run = i % s->runs, size = s->rows * cg_attention_stride(s->a->D);
    int64_t first = run * s->splits / s->runs, end = (run + 1) * s->splits / s->runs;
    cg_attention_part part = {.g = g, .row1 = s->rows, .state_step = size, .work = work};
    part.split0 = s->split + first, part.split1 = s->split + end;
    part.state = s->states + (g * s->splits + first) * size;
    cg_active->attention(s->a, &part);
    if (__atomic_add_fetch(&s->done[g], (int)(end - first), __ATOMIC_ACQ_REL) < s->splits) return;
    part.state = s->states + g * s->splits * size;
    cg_active->attention_merge(s->a, &part, s->splits);
}

static void attention_task(void *data, int64_t i, int thread) {
    const sequence *s = ((job *)data)->sequences;
    float *work = ((job *)data)->work + thread * work_floats(s->a->D);
    while (i >= s->tasks) i -= s++->tasks;
    if (s->states) split_task(s, i, work);
    else rows_task(s, i, work);
}

static sequence partition(int threads, const cg_attention *a) {
    int64_t end = a->start + a->T, first = a->window ? cg_max(0, a->start - a->window + 1) : 0;
    sequence s = {.a = a, .rows = a->T * (a->H / a->G), .part_rows = cg_attention_rows(a->D)};
    while (s.part_rows > 8 && (s.rows + s.part_rows - 1) / s.part_rows * a->G < 4 * (int64_t)threads) s.part_rows /= 2;
    s.parts = (s.rows + s.part_rows - 1) / s.part_rows;
    s.split = first / CG_KV_SPLIT;
    s.splits = (end - 1) / CG_KV_SPLIT + 1 - s.split;
    s.runs = cg_min(s.splits, cg_max(1, RUNS * threads / a->G));
    s.tasks = s.parts * a->G;
    return s;
}

/* The bytes of states and counters where KV splits are partitions of their own; 0 where they are not. */
static int64_t state_bytes(int threads, const sequence *s) {
    const cg_attention *a = s->a;
    if (threads < 2 || s->parts > 1 || s->splits < 2 || !goes_direct(a)) return 0;
    return cg_round_up(a->G * (s->splits * s->rows * cg_attention_stride(a->D) * 4 + (int64_t)sizeof *s->done), 64);
}

/* ------------------------------------------------------------------------------------------------------ the driver */

/* The positions that the last query sees. */
static int64_t visible(const cg_attention *a) {
    return a->window ? cg_min(a->window, a->start + a->T) : a->start + a->T;
}

static int fits(const cg_attention *a) {
    return a->G >= 1 && a->H >= 1 && a->H % a->G == 0 && a->D >= 1 && a->D <= CG_MAX_HEAD_DIM && a->T >= 1 &&
           a->start >= 0 && a->start <= INT64_MAX - a->T && a->window >= 0 &&
           a->past.blocks * CG_KV_BLOCK >= visible(a);
}

/* The bytes that the threads work in; they come first in scratch. */
static int64_t work_bytes(int threads, const cg_attention *a, int64_t n) {
    int64_t tasks = 0;
    for (int64_t i = 0; i < n; i++) {
        sequence s = partition(threads, a + i);
        tasks += s.tasks * s.splits;
    }
    return cg_team(threads, tasks) * work_floats(a->D) * 4;
}

int64_t cg_attention_scratch(const cg_context *ctx, const cg_attention *a, int64_t n) {
    if (n < 1 || n > CG_MAX_SEQUENCES) return 0;
    for (int64_t i = 0; i < n; i++)
        if (!fits(a + i)) return 0;
    int64_t bytes = work_bytes(ctx->threads, a, n);
    for (int64_t i = 0; i < n; i++) {
        sequence s = partition(ctx->threads, a + i);
        bytes += goes_direct(a + i) ? state_bytes(ctx->threads, &s) : fresh_bytes(a + i);
    }
    return bytes;
}

cg_status cg_run_attention(const cg_context *ctx, cg_attention *a, int64_t n) {
    job j = {.work = ctx->scratch};
    int64_t work = 0, new = 0, tasks = 0, waiting = 0, needed = cg_attention_scratch(ctx, a, n);
    if (!needed) return CG_BAD_SHAPE;
    if (needed > ctx->scratch_bytes) return CG_NO_MEMORY;
    for (int64_t i = 0; i < n; i++) work += a[i].T * a[i].H * visible(a + i) * a[i].D;
    int threads = work < FORK ? 1 : ctx->threads;
    char *scratch = (char *)ctx->scratch + work_bytes(ctx->threads, a, n);
    for (int64_t i = 0; i < n; i++) {
        sequence *s = j.sequences + i;
        *s = partition(threads, a + i);
        a[i].first_fresh = INT64_MAX;
        if (!goes_direct(a + i)) {
            lay_out_fresh(a + i, scratch);
            scratch += fresh_bytes(a + i);
            waiting = 1;
        } else if (state_bytes(threads, s)) {
            s->states = (float *)scratch;
            s->done = (int *)(s->states + a[i].G * s->splits * s->rows * cg_attention_stride(a[i].D));
            memset(s->done, 0, (size_t)a[i].G * sizeof *s->done);
            scratch += state_bytes(threads, s);
            s->tasks *= s->runs;
        }
        tasks += s->tasks;
        if (!appends_itself(s)) new += a[i].T * a[i].G * a[i].D;
    }
    int appending = new < 16384 ? 1 : threads;
    if (new) cg_parallel(appending, n * a->G, append_task, &j);
    cg_parallel(threads, tasks, attention_task, &j);
    if (waiting) cg_parallel(appending, n * a->G, append_later_task, &j);
    return CG_OK;
}
