/* Threads: OpenMP's, with care for fork. */
#include "core/parallel.h"

#ifdef _OPENMP
#include <omp.h>
#include <pthread.h>

/* A child of fork() has none of its parent's threads, and libgomp waits for them for ever. So the pool is given back
   before a fork; both sides start new threads when they next need them. */
static void give_back_threads(void) { omp_pause_resource_all(omp_pause_soft); }

__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(give_back_threads, NULL, NULL); }

int cg_has_openmp(void) { return 1; }

int cg_openmp_places(int *cpus, int most) {
    int found = 0;
    for (int i = 0; i < omp_get_num_places(); i++) {
        int n = omp_get_place_num_procs(i);
        if (n <= most - found) omp_get_place_proc_ids(i, cpus + found), found += n;
    }
    return found;
}

void cg_parallel(int threads, int64_t tasks, cg_task_fn *fn, void *job) {
    if (threads > tasks) threads = (int)tasks;
    if (threads <= 1) {
        for (int64_t i = 0; i < tasks; i++) fn(job, i);
        return;
    }
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t i = 0; i < tasks; i++) fn(job, i);
}
#else
int cg_has_openmp(void) { return 0; }

int cg_openmp_places(int *cpus, int most) {
    (void)cpus;
    (void)most;
    return 0;
}

void cg_parallel(int threads, int64_t tasks, cg_task_fn *fn, void *job) {
    (void)threads;
    for (int64_t i = 0; i < tasks; i++) fn(job, i);
}
#endif
