/* The only place that knows OpenMP. Without it, everything runs in the calling thread. */
#ifndef CG_PARALLEL_H
#define CG_PARALLEL_H

#include "cgpt.h"

typedef void cg_task_fn(void *job, int64_t task);

/* Calls fn(job, 0 .. tasks-1), each once, in any order, on up to `threads` threads. */
void cg_parallel(int threads, int64_t tasks, cg_task_fn *fn, void *job);

#endif
