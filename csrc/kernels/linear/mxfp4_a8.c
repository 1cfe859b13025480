/* linear_mxfp4_a8: products of many tokens and MXFP4 weights, with the activations of a8.h. A lane is a row
   (mxfp4_rows.h). Integer sums of a group, and float sums over groups, are both in registers. The weights are
   multiplied as twice their values plus an offset, which makes them unsigned where that is needed. */
#include "kernels/linear/a8.h"
#include "kernels/linear/lookup.h"
#include "kernels/linear/mxfp4_rows.h"

enum {
    MA_OFFSET = A8_SIGNED ? 0 : 12,
    MA_MIN_TOKENS = 9,                       /* fewer are as fast in 16 bits */
    MA_TOKENS = CG_REGISTERS == 32 ? 6 : 4,  /* of a block; from MA_MIN_TOKENS on blocks have MA_TOKENS - 2 at least */
    MA_VECTORS = CG_REGISTERS == 32 ? 2 : 1, /* of rows that a broadcast activation is multiplied by */
    MA_STEPS = CG_MXFP4_GROUP / 4,           /* of four values, in a group */
    MA_SLICE = MR_SCALES,                    /* groups */
    MA_BLOCKS = 64,                          /* of tokens for which rows are decoded once */
};

typedef struct {
    vi weights[MA_VECTORS][MA_SLICE * MA_STEPS];
    vf scales[MA_VECTORS][MA_SLICE];
    vf sums[MA_BLOCKS * MA_TOKENS][MA_VECTORS];
} ma_work;

/* Packed, a block has its k-steps, [steps][tokens] times four bytes, then what the offset adds to the sums of each
   group, negated, int32 [groups][tokens], and the scales, float [groups][tokens]. */
CG_INLINE int64_t ma_token_bytes(int64_t K) { return K + K / CG_MXFP4_GROUP * 8; }

static int64_t CG_NAME(ma_packed_bytes)(int64_t T, int64_t K) { return cg_round_up(T * ma_token_bytes(K), 64); }

static void CG_NAME(ma_pack)(void *packed, const cg_rows *x, int64_t T, int64_t K, int64_t t0, int64_t t1) {
    mr_cut cut = mr_cut_of(T, MA_TOKENS);
    int64_t groups = K / CG_MXFP4_GROUP;
    for (int64_t t = t0; t < cg_min(t1, T); t++) {
        int64_t block = mr_block(&cut, t), first = mr_first(&cut, block), tokens = mr_tokens(&cut, block);
        uint32_t *to = (uint32_t *)((char *)packed + first * ma_token_bytes(K)) + (t - first);
        int32_t *begin = (int32_t *)to + groups * MA_STEPS * tokens;
        float *scale = (float *)(begin + groups * tokens);
        for (int64_t g = 0; g < groups; g++) {
            int8_t q[CG_MXFP4_GROUP], in_order[CG_MXFP4_GROUP];
            uint32_t steps[MA_STEPS];
            a8_group head = a8_quantize(CG_MXFP4_GROUP, MA_OFFSET, q, cg_row_of(x, t) + g * CG_MXFP4_GROUP);
            for (int i = 0; i < CG_MXFP4_GROUP; i++) in_order[i % 2 * (CG_MXFP4_GROUP / 2) + i / 2] = q[i];
            memcpy(steps, in_order, sizeof steps);
            for (int s = 0; s < MA_STEPS; s++) to[(g * MA_STEPS + s) * tokens] = steps[s];
            begin[g * tokens] = head.begin;
            scale[g * tokens] = head.scale;
        }
    }
}

CG_INLINE void ma_decode(const mr_slice *j) {
    enum { O = MA_OFFSET };
    static const int8_t doubled[16] = {O,     O + 1, O + 2, O + 3, O + 4, O + 6, O + 8, O + 12,
                                       O - 0, O - 1, O - 2, O - 3, O - 4, O - 6, O - 8, O - 12};
    const vu table = vu_repeat(doubled);
    ma_work *work = j->p->work;
    for (int64_t r = 0, v = 0; r < j->rows; r += CG_LANES, v++) {
        vi *weights = work->weights[v];
        for (int64_t g = j->g0; g < j->g1; g++, weights += MA_STEPS) {
            vu columns[4];
            mr_codes(columns, j, r, g);
            for (int c = 0; c < 4; c++) {
                weights[c] = (vi)vu_lookup(table, columns[c] & 0x0f0f0f0f);
                weights[c + 4] = (vi)vu_lookup(table, vu_upper(columns[c]));
            }
        }
        vu scales[MR_SCALES];
        mr_scales(scales, j, r);
        for (int g = 0; g < MR_SCALES; g++) {
            vu bits = scales[g] << 23;
            work->scales[v][g] = (vf)(bits | ((vu)(bits == 0) & 0x00400000)) * .5f; /* as cg_e8m0_to_f32 */
        }
    }
}

/* dot += the products of four k-steps, from step s on and from x on. */
CG_INLINE void ma_steps(const int B, const int V, vi (*dot)[MA_VECTORS], vi (*weights)[MA_SLICE * MA_STEPS], int64_t s,
                        const int32_t *x) {
#ifndef A8_DOT
    vs pairs[MA_TOKENS][MA_VECTORS]; /* four times two products of 24 * 127 at the most: they fit into 16 bits */
#endif
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        for (int b = 0; b < B; b++) {
            vi xs = (vi){0} + x[i * B + b];
            VF_KEEP(xs);
            for (int v = 0; v < V; v++) {
                vi w = weights[v][s + i];
#ifdef A8_DOT
                dot[b][v] = a8_dot(dot[b][v], w, xs);
#else
                vs two = (vs)CG_MM(maddubs_epi16)((vmi)w, (vmi)xs);
                pairs[b][v] = i ? pairs[b][v] + two : two;
#endif
            }
        }
#ifndef A8_DOT
    for (int b = 0; b < B; b++)
        for (int v = 0; v < V; v++) dot[b][v] += vs_multiply_pairs(pairs[b][v], (vs)((vi){0} + 0x00010001));
#endif
}

/* B tokens from t on, whose sums are `sums`; V vectors of rows. */
CG_INLINE void ma_block(const int B, const int V, const mr_slice *j, int64_t t, vf *sums) {
    ma_work *work = j->p->work;
    const int32_t *x = (const int32_t *)((const char *)j->p->x + t * ma_token_bytes(j->p->K));
    const int32_t *begin = x + j->groups * MA_STEPS * B + j->g0 * B;
    const float *scale = (const float *)(begin - j->g0 * B + j->groups * B) + j->g0 * B;
    x += j->g0 * MA_STEPS * B;
    vf sum[MA_TOKENS][MA_VECTORS];
    for (int b = 0; b < B; b++)
        for (int v = 0; v < V; v++) sum[b][v] = j->g0 ? sums[b * MA_VECTORS + v] : vf_set(0.f);
    for (int64_t g = 0; g < j->g1 - j->g0; g++, begin += B, scale += B) {
        vi dot[MA_TOKENS][MA_VECTORS];
        mr_fetch(j, j->g0 + g);
        for (int b = 0; b < B; b++)
            for (int v = 0; v < V; v++) dot[b][v] = (vi){0} + begin[b];
#pragma GCC unroll 2
        for (int s = 0; s < MA_STEPS; s += 4, x += 4 * B) ma_steps(B, V, dot, work->weights, g * MA_STEPS + s, x);
        for (int b = 0; b < B; b++)
            for (int v = 0; v < V; v++)
                sum[b][v] = vf_fma(__builtin_convertvector(dot[b][v], vf), work->scales[v][g] * scale[b], sum[b][v]);
    }
    for (int b = 0; b < B; b++)
        for (int v = 0; v < V; v++) sums[b * MA_VECTORS + v] = sum[b][v];
}

CG_INLINE void ma_any(const int V, const mr_slice *j, int64_t t, int64_t B, vf *sums) {
    if (B == MA_TOKENS) ma_block(MA_TOKENS, V, j, t, sums);
    else if (B == MA_TOKENS - 1) ma_block(MA_TOKENS - 1, V, j, t, sums);
    else ma_block(MA_TOKENS - 2, V, j, t, sums);
}

CG_INLINE void ma_multiply(const mr_slice *j, int64_t t, int64_t B, vf *sums) {
    if (j->rows > CG_LANES) ma_any(MA_VECTORS, j, t, B, sums);
    else ma_any(1, j, t, B, sums);
}

static void CG_NAME(ma_panel)(const cg_product *p, int64_t n0, int64_t n1) {
    mr_panel(MA_VECTORS, MA_TOKENS, MA_SLICE, MA_BLOCKS, ((ma_work *)p->work)->sums[0], ma_decode, ma_multiply, p, n0,
             n1);
}

static cg_linear CG_NAME(linear_mxfp4_a8) = {CG_NAME(ma_packed_bytes), CG_NAME(ma_pack), CG_NAME(ma_panel),
                                             .min_tokens = MA_MIN_TOKENS, .work_bytes = sizeof(ma_work)};
