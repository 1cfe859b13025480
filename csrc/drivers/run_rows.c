/* The driver of the row-wise kernels: blocks of rows, in parallel where that pays. */
#include "core/parallel.h"

enum { FORK_COST = 32768 }; /* float operations that are worth starting threads for */

typedef struct {
    cg_row_fn *fn;
    void *job;
    int64_t rows, block;
} rows_job;

static void rows_task(void *data, int64_t i, int thread) {
    rows_job *job = data;
    for (int64_t r = i * job->block; r < cg_min((i + 1) * job->block, job->rows); r++) job->fn(job->job, r, thread);
}

void cg_for_rows(int threads, int64_t rows, int64_t cost, cg_row_fn *fn, void *data) {
    rows_job job = {fn, data, rows, cg_max(1, FORK_COST / 4 / cg_max(cost, 1))};
    cg_parallel(rows * cost < FORK_COST ? 1 : threads, (rows + job.block - 1) / job.block, rows_task, &job);
}
