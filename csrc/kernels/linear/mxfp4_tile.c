/* linear_mxfp4_tile for AVX512_BF16: activations are rounded to bf16, products and sums are f32, the weights' values
   are exact. A lane is a row (mxfp4_rows.h), of which it has a pair of weights. The first block of tokens decodes codes
   as it multiplies, by ports that are idle otherwise, and keeps the weights for the others. */
#include "kernels/linear/mxfp4_rows.h"

enum {
    MB_MIN_TOKENS = 5, /* fewer are as fast in 16 bits */
    MB_MIN_STEP = 24,
    MB_TOKENS = 8,                 /* of a block; blocks have MB_TOKENS / 2 at least */
    MB_VECTORS = 3,                /* of rows that a broadcast pair of activations is multiplied by */
    MB_STEPS = CG_MXFP4_GROUP / 2, /* pairs of a group */
    MB_WORDS = CG_MXFP4_GROUP / 8, /* of codes of a group */
    MB_SLICE = 8,                  /* groups; it divides MR_SCALES */
    MB_BLOCKS = 48,                /* of tokens for which rows are decoded once */
    MB_SCALE_MIN = 2,              /* beyond these the exponent would leave bf16's normal range */
    MB_SCALE_MAX = 252,
};

typedef struct {
    vu codes[MB_SLICE * MB_WORDS][MB_VECTORS]; /* 8 of each row */
    vu scales[MR_SCALES][MB_VECTORS];          /* what is subtracted from the exponents of a pair */
    vu weights[MB_SLICE * MB_STEPS][MB_VECTORS];
    vf sums[MB_BLOCKS * MB_TOKENS][MB_VECTORS];
    int decoded; /* the slice's weights are there: a scale is beyond the range */
} mb_work;

/* Packed, a block is [k-steps][tokens] pairs: word c of a group has the pairs 8 c + i, 8 c + 4 + i. */
static int64_t mb_packed_bytes(int64_t T, int64_t K) { return cg_round_up(T * K * 2, 64); }

static void mb_pack(void *packed, const cg_rows *x, int64_t T, int64_t K, int64_t t0, int64_t t1) {
    mr_cut cut = mr_cut_of(T, MB_TOKENS);
    uint16_t order[32];
    for (int i = 0; i < 32; i++) order[i] = (uint16_t)(i / 8 * 8 + i % 2 * 4 + i % 8 / 2);
    const __m512i in_order = _mm512_loadu_si512(order);
    for (int64_t t = t0; t < cg_min(t1, T); t++) {
        int64_t block = mr_block(&cut, t), first = mr_first(&cut, block), tokens = mr_tokens(&cut, block);
        uint32_t *to = (uint32_t *)packed + first * (K / 2) + (t - first);
        const float *from = cg_row_of(x, t);
        for (int64_t k = 0; k < K; k += CG_MXFP4_GROUP) {
            uint32_t pairs[MB_STEPS];
            __m512i rounded = bf16_round(vf_load(from + k), vf_load(from + k + 16));
            _mm512_storeu_si512(pairs, _mm512_permutexvar_epi16(in_order, rounded));
            for (int s = 0; s < MB_STEPS; s++, to += tokens) *to = pairs[s];
        }
    }
}

/* The pairs of a whole slice, one group of one row at a time. */
static void mb_decode_rows(const mr_slice *j) {
    mb_work *work = j->p->work;
    memset(work->weights, 0, sizeof work->weights);
    for (int64_t r = 0; r < j->rows; r++)
        for (int64_t g = j->g0; g < j->g1; g++) {
            int64_t at = (j->n + r) * j->groups + g;
            uint16_t w[CG_MXFP4_GROUP];
            _mm512_storeu_si512(w, bf16_from_mxfp4(j->p->w + at * CG_MXFP4_GROUP_BYTES, j->p->scales[at]));
            for (int s = 0; s < MB_STEPS; s++) {
                int k = s / 4 * 8 + s % 4;
                work->weights[(g - j->g0) * MB_STEPS + s][r / CG_LANES][r % CG_LANES] = w[k] | (uint32_t)w[k + 4] << 16;
            }
        }
}

CG_INLINE void mb_decode(const mr_slice *j) {
    mb_work *work = j->p->work;
    int with_scales = j->g0 % MR_SCALES == 0;
    if (with_scales) work->decoded = 0;
    for (int64_t r = 0, v = 0; r < j->rows; r += CG_LANES, v++) {
        for (int64_t g = j->g0; g < j->g1; g++) {
            vu columns[MB_WORDS];
            mr_codes(columns, j, r, g);
            for (int c = 0; c < MB_WORDS; c++) work->codes[(g - j->g0) * MB_WORDS + c][v] = columns[c];
        }
        if (!with_scales) continue;
        vu scales[MR_SCALES], beyond = {0};
        mr_scales(scales, j, r);
        for (int g = 0; g < MR_SCALES; g++) {
            if (g < j->groups - j->g0) beyond |= (vu)(scales[g] - MB_SCALE_MIN > MB_SCALE_MAX - MB_SCALE_MIN);
            work->scales[g][v] = (MB_SCALE_MAX - scales[g]) * 0x00800080;
        }
        for (int64_t i = 0; i < cg_min(CG_LANES, j->rows - r); i++) work->decoded |= beyond[i] != 0;
    }
    if (work->decoded) mb_decode_rows(j);
}

/* The weights of a pair of codes in the low 4 bits of each half of a lane; what is above may be anything. The table has
   the values at the largest scale; a zero stays zero, since the subtraction saturates. */
CG_INLINE vu mb_weights(vu codes, vu scale) {
    static const uint16_t values[16] = {0, 0x7d80, 0x7e00, 0x7e40, 0x7e80, 0x7ec0, 0x7f00, 0x7f40,
                                        0, 0xfd80, 0xfe00, 0xfe40, 0xfe80, 0xfec0, 0xff00, 0xff40};
    const __m512i table = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)values));
    return (vu)_mm512_subs_epu16(_mm512_permutexvar_epi16((__m512i)codes, table), (__m512i)scale);
}

/* B tokens from t on; V vectors of rows. */
CG_INLINE void mb_block(const int B, const int V, const int decode, const mr_slice *j, int64_t t, vf *sums) {
    mb_work *work = j->p->work;
    const uint32_t *x = (const uint32_t *)j->p->x + t * (j->p->K / 2) + j->g0 * MB_STEPS * B;
    vu(*codes)[MB_VECTORS] = work->codes, (*weights)[MB_VECTORS] = work->weights;
    vf sum[MB_TOKENS][MB_VECTORS];
    for (int b = 0; b < B; b++)
        for (int v = 0; v < V; v++) sum[b][v] = j->g0 ? sums[b * MB_VECTORS + v] : vf_set(0.f);
    for (int64_t g = j->g0; g < j->g1; g++) {
        mr_fetch(j, g);
        for (int c = 0; c < MB_WORDS; c++, codes++)
#pragma GCC unroll 4
            for (int s = 0; s < 4; s++, x += B, weights++) {
                vu w[MB_VECTORS];
                for (int v = 0; v < V; v++) {
                    if (decode) weights[0][v] = w[v] = mb_weights(codes[0][v] >> 4 * s, work->scales[g % MR_SCALES][v]);
                    else w[v] = weights[0][v];
                    VF_KEEP(w[v]);
                }
                for (int b = 0; b < B; b++) {
                    vf xs = (vf)((vu){0} + x[b]);
                    VF_KEEP(xs);
                    for (int v = 0; v < V; v++) sum[b][v] = dot_multiply((vf)w[v], xs, sum[b][v]);
                }
            }
    }
    for (int b = 0; b < B; b++)
        for (int v = 0; v < V; v++) sums[b * MB_VECTORS + v] = sum[b][v];
}

CG_INLINE void mb_any(const int V, const int decode, const mr_slice *j, int64_t t, int64_t B, vf *sums) {
    if (B == 8) mb_block(8, V, decode, j, t, sums);
    else if (B == 7) mb_block(7, V, decode, j, t, sums);
    else if (B == 6) mb_block(6, V, decode, j, t, sums);
    else if (B == 5) mb_block(5, V, decode, j, t, sums);
    else mb_block(4, V, decode, j, t, sums);
}

CG_INLINE void mb_multiply(const mr_slice *j, int64_t t, int64_t B, vf *sums) {
    int decode = j->first && !((mb_work *)j->p->work)->decoded;
    if (j->rows > CG_LANES) {
        if (decode) mb_any(MB_VECTORS, 1, j, t, B, sums);
        else mb_any(MB_VECTORS, 0, j, t, B, sums);
    } else {
        if (decode) mb_any(1, 1, j, t, B, sums);
        else mb_any(1, 0, j, t, B, sums);
    }
}

static void panel_mxfp4_tile__avx512bf16(const cg_product *p, int64_t n0, int64_t n1) {
    mr_panel(MB_VECTORS, MB_TOKENS, MB_SLICE, MB_BLOCKS, ((mb_work *)p->work)->sums[0], mb_decode, mb_multiply, p, n0,
             n1);
}

static cg_linear linear_mxfp4_tile__avx512bf16 = {mb_packed_bytes,
                                                  mb_pack,
                                                  panel_mxfp4_tile__avx512bf16,
                                                  .min_tokens = MB_MIN_TOKENS,
                                                  .min_step = MB_MIN_STEP,
                                                  .work_bytes = sizeof(mb_work)};
