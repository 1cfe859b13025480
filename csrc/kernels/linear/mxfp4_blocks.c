/* linear_mxfp4 by hand: what mxfp4_pairs.c and mxfp4_avx512.c have in common. They give the order of the activations,
   mx_order, and the weights of a block, mx_weights. One FMA applies the scales of a block's groups. Each output keeps
   its own order, so one token or many (dot.h) give the same bits. */
#include "kernels/linear/dot.h"

enum {
    MX_FEW = 5,                                /* tokens up to which rows are read as they are stored */
    MX_TOKENS = 4,                             /* that a decoded block is multiplied by in registers */
    MX_GROUPS = 8 * CG_LANES / CG_MXFP4_GROUP, /* of a block */
};

/* sum[m] += the products of a block of `groups` groups and the activations x[m] from k on. */
CG_INLINE void mx_block(const int M, const uint8_t *codes, const uint8_t *scales, int64_t groups, const float *const *x,
                        int64_t k, vf *sum) {
    vf w[8], scale = mx_weights(w, codes, scales, groups), part[MX_TOKENS];
    for (int v = 0; v < 8; v++)
        for (int m = 0; m < M; m++) {
            vf xv = vf_load(x[m] + k + v * CG_LANES);
            part[m] = v ? vf_fma(w[v], xv, part[m]) : w[v] * xv;
        }
    for (int m = 0; m < M; m++) sum[m] = vf_fma(part[m], scale, sum[m]);
}

/* Row n for M tokens. */
CG_INLINE void mx_row(const int M, const cg_product *p, int64_t n, int64_t t) {
    int64_t groups = p->K / CG_MXFP4_GROUP, g = 0;
    const uint8_t *codes = p->w + n * groups * CG_MXFP4_GROUP_BYTES, *scales = p->scales + n * groups;
    const float *x[MX_TOKENS];
    vf sum[MX_TOKENS];
    for (int m = 0; m < M; m++) {
        x[m] = (const float *)((const char *)p->x + (t + m) * dot_row_bytes(p->K));
        sum[m] = vf_set(0.f);
    }
    for (; g + MX_GROUPS <= groups; g += MX_GROUPS) {
        const uint8_t *at = codes + g * CG_MXFP4_GROUP_BYTES;
        if (M <= MX_AHEAD_TOKENS) __builtin_prefetch(at + MX_AHEAD_BYTES);
        mx_block(M, at, scales + g, MX_GROUPS, x, g * CG_MXFP4_GROUP, sum);
    }
    if (g < groups) mx_block(M, codes + g * CG_MXFP4_GROUP_BYTES, scales + g, groups - g, x, g * CG_MXFP4_GROUP, sum);
    dot_finish(1, M, p, t, n, 1, sum, M);
}

CG_INLINE void mx_decode(void *out, const cg_product *p, int64_t n, int64_t k0, int64_t k1) {
    int64_t first = (n * p->K + k0) / CG_MXFP4_GROUP, end = first + (k1 - k0) / CG_MXFP4_GROUP;
    vf *to = out;
    for (int64_t g = first; g < end; g += MX_GROUPS, to += 8) {
        vf w[8], scale = mx_weights(w, p->w + g * CG_MXFP4_GROUP_BYTES, p->scales + g, cg_min(MX_GROUPS, end - g));
        for (int v = 0; v < 8; v++) to[v] = w[v] * scale;
    }
}

static int64_t CG_NAME(mx_packed_bytes)(int64_t T, int64_t K) { return dot_packed_bytes(T <= MX_FEW, T, K); }

static void CG_NAME(mx_pack)(void *packed, const cg_rows *x, int64_t T, int64_t K, int64_t t0, int64_t t1) {
    dot_pack(T <= MX_FEW, mx_order, packed, x, K, t0, t1);
}

static void CG_NAME(mx_panel)(const cg_product *p, int64_t n0, int64_t n1) {
    if (p->T > MX_FEW) {
        dot_many(1, mx_decode, p, n0, n1);
        return;
    }
    for (int64_t n = n0; n < n1; n++) { /* one row after the other: one stream of memory */
        int64_t t = 0;
        for (; t + MX_TOKENS <= p->T; t += MX_TOKENS) mx_row(MX_TOKENS, p, n, t);
        for (; t + 2 <= p->T; t += 2) mx_row(2, p, n, t);
        for (; t < p->T; t++) mx_row(1, p, n, t);
    }
}

static cg_linear CG_NAME(linear_mxfp4) = {CG_NAME(mx_packed_bytes), CG_NAME(mx_pack), CG_NAME(mx_panel),
                                          .work_bytes = sizeof(dot_work)};
