/* One product by one thread, for bench/instructions.py, which counts the instructions: level dtype precision T N K.
   Memory is prepared for ROWS rows, so that this takes as many instructions for any N. */
#include <stdio.h>
#include <stdlib.h>
#include "core/parallel.h"

void cg_parallel(int threads, int64_t tasks, cg_task_fn *fn, void *job) {
    for (int64_t i = 0; i < tasks && threads; i++) fn(job, i, 0);
}

enum { ROWS = 48 };

static void *zeros(int64_t bytes) {
    void *p = aligned_alloc(64, (size_t)cg_round_up(bytes, 64) + 4096); /* kernels prefetch, and nothing more, beyond */
    return p ? memset(p, 0, (size_t)bytes) : exit(1), p;
}

int main(int argc, char **argv) {
    if (argc < 7) return 2;
    int level = 0;
    while (level < CG_LEVELS && strcmp(cg_level_name(level), argv[1])) level++;
    if (level == CG_LEVELS || cg_use_level(level, CG_NO_FEATURE)) return 3;
    int64_t T = atoll(argv[4]), N = atoll(argv[5]), K = atoll(argv[6]);
    cg_matrix w = {.dtype = atoi(argv[2]), .E = 1, .N = N, .K = K};
    int64_t bytes = cg_row_bytes(w.dtype, K);
    char *data = zeros(ROWS * bytes);
    for (int64_t n = 0; n < ROWS && w.dtype == CG_BF16_PACKED; n++) memset(data + n * bytes, -1, 4); /* packed rows */
    w.data = (void *)data;
    w.scales = zeros(ROWS * cg_scale_bytes(w.dtype, K));
    memset((void *)w.scales, 0x3f, (size_t)(ROWS * cg_scale_bytes(w.dtype, K)));
    cg_context ctx = {.threads = 1, .precision = atoi(argv[3])};
    ctx.scratch_bytes = cg_linear_scratch(&ctx, &w, T);
    ctx.scratch = zeros(ctx.scratch_bytes);
    float *x = zeros(T * K * 4), *y = zeros(T * ROWS * 4);
    for (int64_t i = 0; i < T * K; i++) x[i] = (float)(i % 7 - 3);
    return cg_run_linear(&ctx, y, N, x, K, T, &w, 0);
}
