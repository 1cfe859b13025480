/* linear_mxfp4_a8: products of many tokens and MXFP4 weights, with the activations of a8.h. A lane is a row: a slice of
   some rows is decoded once, transposed, for all tokens, which are broadcast, so that no lane is idle however few
   tokens an expert has. Integer sums of a group, and float sums over groups, are both in registers. The weights are
   multiplied as twice their values plus an offset, which makes them unsigned where that is needed. */
#include "kernels/linear/a8.h"
#include "kernels/linear/lookup.h"

enum {
    MA_OFFSET = A8_SIGNED ? 0 : 12,
    MA_MIN_TOKENS = 9,                       /* fewer are as fast in 16 bits */
    MA_TOKENS = CG_REGISTERS == 32 ? 6 : 4,  /* of a block; from MA_MIN_TOKENS on blocks have MA_TOKENS - 2 at least */
    MA_VECTORS = CG_REGISTERS == 32 ? 2 : 1, /* of rows that a broadcast activation is multiplied by */
    MA_STEPS = CG_MXFP4_GROUP / 4,           /* of four values, in a group */
    MA_GROUPS = CG_LANES / 4,                /* that are decoded together: a vector of codes of each row */
    MA_SLICE = 16,                           /* groups; a multiple of MA_GROUPS */
    MA_BLOCKS = 64,                          /* of tokens for which rows are decoded once */
};

typedef struct {
    vi weights[MA_VECTORS][MA_SLICE * MA_STEPS];
    vf scales[MA_VECTORS][MA_SLICE];
    vf sums[MA_BLOCKS * MA_TOKENS][MA_VECTORS];
} ma_work;

/* Blocks of nearly equal sizes. Packed, a block has its k-steps, [steps][tokens] times four bytes, then what the offset
   adds to the sums of each group, negated, int32 [groups][tokens], and the scales, float [groups][tokens]. */
typedef struct {
    int64_t blocks, tokens, larger; /* the first `larger` blocks have one token more than `tokens` */
} ma_cut;

CG_INLINE ma_cut ma_cut_of(int64_t T) {
    int64_t blocks = (T + MA_TOKENS - 1) / MA_TOKENS;
    return (ma_cut){blocks, T / blocks, T % blocks};
}
CG_INLINE int64_t ma_first(const ma_cut *cut, int64_t block) {
    return block * cut->tokens + cg_min(block, cut->larger);
}
CG_INLINE int64_t ma_token_bytes(int64_t K) { return K + K / CG_MXFP4_GROUP * 8; }

static int64_t CG_NAME(ma_packed_bytes)(int64_t T, int64_t K) { return cg_round_up(T * ma_token_bytes(K), 64); }

static void CG_NAME(ma_pack)(void *packed, const cg_rows *x, int64_t T, int64_t K, int64_t t0, int64_t t1) {
    ma_cut cut = ma_cut_of(T);
    int64_t groups = K / CG_MXFP4_GROUP;
    for (int64_t t = t0; t < cg_min(t1, T); t++) {
        int64_t of_larger = cut.larger * (cut.tokens + 1), block;
        block = t < of_larger ? t / (cut.tokens + 1) : cut.larger + (t - of_larger) / cut.tokens;
        int64_t first = ma_first(&cut, block), tokens = cut.tokens + (block < cut.larger);
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

#if CG_LANES == 4
CG_INLINE void ma_transpose(vu *rows) { f4_transpose((f4 *)rows); }
#else
#define MA_UNPACK(half, bits, a, b) (vu) CG_MM(unpack##half##_epi##bits)((vmi)(a), (vmi)(b))

/* The transpose of a matrix of 4-byte values. */
CG_INLINE void ma_transpose(vu *rows) {
    vu t[CG_LANES];
    for (int i = 0; i < CG_LANES; i += 2) {
        t[i] = MA_UNPACK(lo, 32, rows[i], rows[i + 1]);
        t[i + 1] = MA_UNPACK(hi, 32, rows[i], rows[i + 1]);
    }
    vu u[CG_LANES]; /* u[4 i + c]: column c of each quarter, of rows 4 i .. 4 i + 3 */
    for (int i = 0; i < CG_LANES; i += 4)
        for (int c = 0; c < 4; c += 2) {
            u[i + c] = MA_UNPACK(lo, 64, t[i + c / 2], t[i + c / 2 + 2]);
            u[i + c + 1] = MA_UNPACK(hi, 64, t[i + c / 2], t[i + c / 2 + 2]);
        }
    for (int c = 0; c < 4; c++) {
#if CG_LANES == 16
        __m512i a = (__m512i)u[c], b = (__m512i)u[4 + c], d = (__m512i)u[8 + c], e = (__m512i)u[12 + c];
        __m512i ab = _mm512_shuffle_i32x4(a, b, 0x44), de = _mm512_shuffle_i32x4(d, e, 0x44);
        rows[c] = (vu)_mm512_shuffle_i32x4(ab, de, 0x88);
        rows[4 + c] = (vu)_mm512_shuffle_i32x4(ab, de, 0xdd);
        ab = _mm512_shuffle_i32x4(a, b, 0xee), de = _mm512_shuffle_i32x4(d, e, 0xee);
        rows[8 + c] = (vu)_mm512_shuffle_i32x4(ab, de, 0x88);
        rows[12 + c] = (vu)_mm512_shuffle_i32x4(ab, de, 0xdd);
#else
        rows[c] = (vu)_mm256_permute2x128_si256((__m256i)u[c], (__m256i)u[4 + c], 0x20);
        rows[4 + c] = (vu)_mm256_permute2x128_si256((__m256i)u[c], (__m256i)u[4 + c], 0x31);
#endif
    }
}
#endif

/* The codes of `some` groups of `count` rows, a row every `stride` bytes, and zeros up to MA_GROUPS groups and CG_LANES
   rows. full: it is all of them. */
CG_INLINE void ma_load(const int full, vu *rows, const uint8_t *from, int64_t stride, int64_t count, int64_t some) {
#pragma GCC unroll 16
    for (int r = 0; r < CG_LANES; r++) {
        if (full) rows[r] = (vu)vi_load(from + r * stride);
        else {
            rows[r] = (vu){0};
            for (int64_t g = 0; g < (r < count ? some : 0); g++)
                memcpy((char *)&rows[r] + g * CG_MXFP4_GROUP_BYTES, from + r * stride + g * CG_MXFP4_GROUP_BYTES,
                       CG_MXFP4_GROUP_BYTES);
        }
    }
}

/* The codes of MA_GROUPS groups, as bytes. */
CG_INLINE void ma_decode_codes(vi *weights, vu *rows) {
    enum { O = MA_OFFSET };
    static const int8_t doubled[16] = {O,     O + 1, O + 2, O + 3, O + 4, O + 6, O + 8, O + 12,
                                       O - 0, O - 1, O - 2, O - 3, O - 4, O - 6, O - 8, O - 12};
    const vu table = vu_repeat(doubled);
    ma_transpose(rows);
#pragma GCC unroll 16
    for (int d = 0; d < CG_LANES; d++) {
        vi *to = weights + d / 4 * MA_STEPS + d % 4;
        to[0] = (vi)vu_lookup(table, rows[d] & 0x0f0f0f0f);
        to[4] = (vi)vu_lookup(table, vu_upper(rows[d]));
    }
}

/* Groups g0 .. g1-1 of the rows from n on, `count` of them; the others of the vector are zero. */
CG_INLINE void ma_decode(vi *weights, vf *scales, const cg_product *p, int64_t n, int64_t count, int64_t g0,
                         int64_t g1) {
    int64_t groups = p->K / CG_MXFP4_GROUP, stride = groups * CG_MXFP4_GROUP_BYTES;
    vu rows[CG_LANES];
    for (int64_t g = g0; g < g1; g += MA_GROUPS, weights += MA_GROUPS * MA_STEPS) {
        const uint8_t *codes = p->w + n * stride + g * CG_MXFP4_GROUP_BYTES;
        int64_t some = cg_min(MA_GROUPS, g1 - g);
        if (count == CG_LANES && some == MA_GROUPS) ma_load(1, rows, codes, stride, 0, 0);
        else ma_load(0, rows, codes, stride, count, some);
        ma_decode_codes(weights, rows);
    }
    for (int64_t g = g0; g < g1; g += CG_LANES, scales += CG_LANES) {
        int whole = count == CG_LANES && g + CG_LANES <= groups;
        for (int r = 0; r < CG_LANES; r++) {
            const uint8_t *from = p->scales + (n + r) * groups + g;
            uint8_t exponents[16] = {0};
            if (whole) memcpy(exponents, from, CG_LANES);
            else if (r < count) memcpy(exponents, from, (size_t)cg_min(CG_LANES, g1 - g));
            vu bits = vu_load_u8(exponents) << 23;
            rows[r] = (vu)((vf)(bits | ((vu)(bits == 0) & 0x00400000)) * .5f); /* as cg_e8m0_to_f32 */
        }
        ma_transpose(rows);
        memcpy(scales, rows, sizeof rows);
    }
}

typedef struct {
    const cg_product *p;
    ma_work *work;
    int64_t n, rows; /* those that are decoded */
    int64_t g0, g1;  /* the slice */
    int64_t groups;  /* of a whole row */
} ma_job;

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
CG_INLINE void ma_block(const int B, const int V, const ma_job *j, int64_t t, vf (*sums)[MA_VECTORS]) {
    const int32_t *x = (const int32_t *)((const char *)j->p->x + t * ma_token_bytes(j->p->K));
    const int32_t *begin = x + j->groups * MA_STEPS * B + j->g0 * B;
    const float *scale = (const float *)(begin - j->g0 * B + j->groups * B) + j->g0 * B;
    x += j->g0 * MA_STEPS * B;
    vf sum[MA_TOKENS][MA_VECTORS];
    for (int b = 0; b < B; b++)
        for (int v = 0; v < V; v++) sum[b][v] = j->g0 ? sums[b][v] : vf_set(0.f);
    for (int64_t g = 0; g < j->g1 - j->g0; g++, begin += B, scale += B) {
        vi dot[MA_TOKENS][MA_VECTORS];
        for (int b = 0; b < B; b++)
            for (int v = 0; v < V; v++) dot[b][v] = (vi){0} + begin[b];
#pragma GCC unroll 2
        for (int s = 0; s < MA_STEPS; s += 4, x += 4 * B) ma_steps(B, V, dot, j->work->weights, g * MA_STEPS + s, x);
        for (int b = 0; b < B; b++)
            for (int v = 0; v < V; v++)
                sum[b][v] = vf_fma(__builtin_convertvector(dot[b][v], vf), j->work->scales[v][g] * scale[b], sum[b][v]);
    }
    for (int b = 0; b < B; b++)
        for (int v = 0; v < V; v++) sums[b][v] = sum[b][v];
}

CG_INLINE void ma_any(const int V, int64_t B, const ma_job *j, int64_t t, vf (*sums)[MA_VECTORS]) {
    if (B == MA_TOKENS) ma_block(MA_TOKENS, V, j, t, sums);
    else if (B == MA_TOKENS - 1) ma_block(MA_TOKENS - 1, V, j, t, sums);
    else ma_block(MA_TOKENS - 2, V, j, t, sums);
}

/* Prefetches a share, block i of n, of what is decoded next: of the same rows, or of those behind them. */
CG_INLINE void ma_fetch(const ma_job *j, int64_t i, int64_t n) {
    int last = j->g1 == j->groups;
    int64_t g = last ? 0 : j->g1, end = cg_min(g + MA_SLICE, j->groups);
    int64_t first = (j->n + (last ? j->rows : 0)) * j->groups + g, bytes = (end - g) * CG_MXFP4_GROUP_BYTES;
    for (int64_t r = j->rows * i / n; r < j->rows * (i + 1) / n; r++) {
        const char *codes = (const char *)j->p->w + (first + r * j->groups) * CG_MXFP4_GROUP_BYTES;
        for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(codes + b, 0, 3);
        __builtin_prefetch(codes + bytes - 1, 0, 3); /* rows may begin within a line */
        __builtin_prefetch(j->p->scales + first + r * j->groups, 0, 3);
    }
}

CG_INLINE void ma_write(const cg_product *p, float *y, int64_t n, vf out, size_t bytes) {
    vf bias = {0}, before = {0};
    if (p->bias) memcpy(&bias, p->bias + n, bytes), out += bias;
    if (p->add) memcpy(&before, y, bytes), out += before;
    memcpy(y, &out, bytes);
}

/* Writes the outputs of a token for `rows` rows from n on. */
CG_INLINE void ma_finish(const cg_product *p, int64_t t, int64_t n, int64_t rows, const vf *sums) {
    float *y = p->y + t * p->y_stride + n;
    int64_t r = 0;
    for (; r + CG_LANES <= rows; r += CG_LANES) ma_write(p, y + r, n + r, *sums++, sizeof *sums);
    if (r < rows) ma_write(p, y + r, n + r, *sums, (size_t)(rows - r) * 4);
}

static void CG_NAME(ma_panel)(const cg_product *p, int64_t n0, int64_t n1) {
    ma_work *work = p->work;
    ma_job j = {.p = p, .work = work, .groups = p->K / CG_MXFP4_GROUP};
    ma_cut cut = ma_cut_of(p->T);
    for (int64_t b0 = 0; b0 < cut.blocks; b0 += MA_BLOCKS)
        for (j.n = n0; j.n < n1; j.n += j.rows) {
            int64_t b1 = cg_min(b0 + MA_BLOCKS, cut.blocks), t0 = ma_first(&cut, b0);
            j.rows = cg_min(MA_VECTORS * CG_LANES, n1 - j.n);
            for (j.g0 = 0; j.g0 < j.groups; j.g0 = j.g1) {
                j.g1 = cg_min(j.g0 + MA_SLICE, j.groups);
                for (int64_t r = 0; r < j.rows; r += CG_LANES)
                    ma_decode(work->weights[r / CG_LANES], work->scales[r / CG_LANES], p, j.n + r,
                              cg_min(CG_LANES, j.rows - r), j.g0, j.g1);
                for (int64_t b = b0; b < b1; b++) {
                    int64_t t = ma_first(&cut, b), B = cut.tokens + (b < cut.larger);
                    ma_fetch(&j, b - b0, b1 - b0);
                    if (j.rows > CG_LANES) ma_any(MA_VECTORS, B, &j, t, work->sums + (t - t0));
                    else ma_any(1, B, &j, t, work->sums + (t - t0));
                }
            }
            for (int64_t t = t0; t < ma_first(&cut, b1); t++) ma_finish(p, t, j.n, j.rows, work->sums[t - t0]);
        }
}

static cg_linear CG_NAME(linear_mxfp4_a8) = {CG_NAME(ma_packed_bytes), CG_NAME(ma_pack), CG_NAME(ma_panel),
                                             .min_tokens = MA_MIN_TOKENS, .work_bytes = sizeof(ma_work)};
