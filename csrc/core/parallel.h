/* The only place that knows OpenMP, and what is there without it. */
#pragma once

#include "cgpt.h"

/* How many threads work on so many tasks. */
static inline int cg_team(int threads, int64_t tasks) {
    return (int)cg_max(1, cg_min(cg_min(threads, CG_MAX_THREADS), tasks));
}

/* thread: 0 .. cg_team()-1, a number that no other task has meanwhile. */
typedef void cg_task_fn(void *job, int64_t task, int thread);

/* Calls fn(job, 0 .. tasks-1, thread), each task once, in any order, on up to `threads` threads. */
void cg_parallel(int threads, int64_t tasks, cg_task_fn *fn, void *job);
