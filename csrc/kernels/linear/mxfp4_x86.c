/* linear_mxfp4 by hand: what mxfp4_avx2.c and mxfp4_avx512.c have in common. They give the order of the activations,
   mx_order, and the loops over a row, mx_row for a few tokens and mx_decode for many. */
#include "kernels/linear/dot.h"

enum { MX_FEW = 5 }; /* tokens up to which rows are read as they are stored */

static int64_t CG_NAME(mx_packed_bytes)(int64_t T, int64_t K) {
    return dot_packed_bytes(DOT_GROUPED, T <= MX_FEW, T, K);
}

static void CG_NAME(mx_pack)(void *packed, const cg_rows *x, int64_t T, int64_t K, int64_t t0, int64_t t1) {
    dot_pack(DOT_GROUPED, T <= MX_FEW, mx_order, packed, x, K, t0, t1);
}

static void CG_NAME(mx_panel)(const cg_product *p, int64_t n0, int64_t n1) {
    if (p->T > MX_FEW) {
        dot_many(DOT_GROUPED, mx_decode, p, n0, n1);
        return;
    }
    for (int64_t n = n0; n < n1; n++) { /* one row after the other: one stream of memory */
        int64_t t = 0;
        for (; t + MX_TOKENS <= p->T; t += MX_TOKENS) mx_row(MX_TOKENS, p, n, t);
        for (; t + 2 <= p->T; t += 2) mx_row(2, p, n, t);
        for (; t < p->T; t++) mx_row(1, p, n, t);
    }
}

static cg_linear CG_NAME(linear_mxfp4_x86) = {CG_NAME(mx_packed_bytes), CG_NAME(mx_pack), CG_NAME(mx_panel),
                                              .work_bytes = sizeof(dot_work)};
