/* Products of many tokens and MXFP4 weights of which a lane is a row: a slice of some rows is decoded once, transposed,
   for all tokens, which are broadcast, so that no lane is idle however few tokens an expert has. Tokens are multiplied
   in blocks, whose sums over groups are in registers. */
#pragma once

#include "simd/vec.h"
#include "cgpt.h"

enum { MR_SCALES = 16 /* groups whose scales are transposed together */ };

/* Blocks of nearly equal sizes, up to `max` tokens. */
typedef struct {
    int64_t blocks, tokens, larger; /* the first `larger` blocks have one token more than `tokens` */
} mr_cut;

CG_INLINE mr_cut mr_cut_of(int64_t T, int64_t max) {
    int64_t blocks = (T + max - 1) / max;
    return (mr_cut){blocks, T / blocks, T % blocks};
}
CG_INLINE int64_t mr_first(const mr_cut *cut, int64_t block) {
    return block * cut->tokens + cg_min(block, cut->larger);
}
CG_INLINE int64_t mr_tokens(const mr_cut *cut, int64_t block) { return cut->tokens + (block < cut->larger); }
/* The block of token t. */
CG_INLINE int64_t mr_block(const mr_cut *cut, int64_t t) {
    int64_t of_larger = cut->larger * (cut->tokens + 1);
    return t < of_larger ? t / (cut->tokens + 1) : cut->larger + (t - of_larger) / cut->tokens;
}

/* ------------------------------------------------------------------------------------------------------ transposing */

/* Four rows of four words, in each quarter: rows become columns. */
CG_INLINE void mr_transpose_quarters(vu *rows) {
#if CG_LANES == 4
    f4 f[4];
    memcpy(f, rows, sizeof f);
    f4_transpose(f);
    memcpy(rows, f, sizeof f);
#else
#define MR_UNPACK(half, bits, a, b) (vu) CG_MM(unpack##half##_epi##bits)((vmi)(a), (vmi)(b))
    vu t[4];
    for (int i = 0; i < 4; i += 2) {
        t[i] = MR_UNPACK(lo, 32, rows[i], rows[i + 1]);
        t[i + 1] = MR_UNPACK(hi, 32, rows[i], rows[i + 1]);
    }
    for (int c = 0; c < 4; c += 2) {
        rows[c] = MR_UNPACK(lo, 64, t[c / 2], t[c / 2 + 2]);
        rows[c + 1] = MR_UNPACK(hi, 64, t[c / 2], t[c / 2 + 2]);
    }
#undef MR_UNPACK
#endif
}

/* columns[c] = bytes 4 c .. 4 c + 3 of 16 bytes of each row; a row every `stride` bytes, and zeros from row `count` on,
   unless it is CG_LANES. Rows i, 4 + i, .. are put together as they are loaded. */
CG_INLINE void mr_transpose(vu *columns, const uint8_t *from, int64_t stride, int64_t count) {
    static const uint8_t none[16] = {0};
    for (int i = 0; i < 4; i++) {
        i4 part[CG_LANES / 4];
        for (int q = 0; q < CG_LANES / 4; q++)
            memcpy(&part[q], 4 * q + i < count ? from + (4 * q + i) * stride : none, sizeof part[q]);
#if CG_LANES == 16
        __m512i all = _mm512_broadcast_i32x4((__m128i)part[0]);
        all = _mm512_mask_broadcast_i32x4(all, 0x00f0, (__m128i)part[1]);
        all = _mm512_mask_broadcast_i32x4(all, 0x0f00, (__m128i)part[2]);
        columns[i] = (vu)_mm512_mask_broadcast_i32x4(all, 0xf000, (__m128i)part[3]);
#elif CG_LANES == 8
        columns[i] = (vu)_mm256_inserti128_si256(_mm256_castsi128_si256((__m128i)part[0]), (__m128i)part[1], 1);
#else
        columns[i] = (vu)part[0];
#endif
    }
    mr_transpose_quarters(columns);
}

/* A slice, groups g0 .. g1-1 of `rows` rows from n on, which a block of tokens is multiplied by. */
typedef struct {
    const cg_product *p;
    int64_t n, rows, g0, g1;
    int64_t groups;   /* of a whole row */
    int first;        /* whether the block is the first one */
    int64_t fetch[2]; /* the bytes of each group's share of the next rows that the block prefetches, from .. to */
} mr_slice;

/* The codes of group g of the rows from r on: 8 of each in a column. */
CG_INLINE void mr_codes(vu *columns, const mr_slice *j, int64_t r, int64_t g) {
    int64_t stride = j->groups * CG_MXFP4_GROUP_BYTES, count = j->rows - r;
    const uint8_t *codes = j->p->w + (j->n + r) * stride + g * CG_MXFP4_GROUP_BYTES;
    if (count >= CG_LANES) mr_transpose(columns, codes, stride, CG_LANES);
    else mr_transpose(columns, codes, stride, count);
}

/* The scales of MR_SCALES groups from g0 on, those of group g at g % MR_SCALES. */
CG_INLINE void mr_scales(vu *scales, const mr_slice *j, int64_t r) {
    int64_t first = cg_max(0, cg_min(j->g0, j->groups - MR_SCALES)), count = cg_min(CG_LANES, j->rows - r);
    const uint8_t *from = j->p->scales + (j->n + r) * j->groups + first;
    vu columns[4];
    if (j->groups < MR_SCALES) {
        uint8_t rows[CG_LANES][MR_SCALES] = {{0}};
        for (int64_t i = 0; i < count; i++) memcpy(rows[i], from + i * j->groups, (size_t)j->groups);
        mr_transpose(columns, rows[0], MR_SCALES, CG_LANES);
    } else if (count == CG_LANES) mr_transpose(columns, from, j->groups, CG_LANES);
    else mr_transpose(columns, from, j->groups, count);
    for (int i = 0; i < MR_SCALES; i++) scales[(first + i) % MR_SCALES] = columns[i / 4] >> i % 4 * 8 & 0xff;
}

/* Prefetches what group g and the block have to of the rows behind the slice's, which are as many bytes for each group.
 */
CG_INLINE void mr_fetch(const mr_slice *j, int64_t g) {
    const char *codes = (const char *)j->p->w + ((j->n + j->rows) * j->groups + g * j->rows) * CG_MXFP4_GROUP_BYTES;
    for (int64_t b = j->fetch[0]; b < j->fetch[1]; b += 64) __builtin_prefetch(codes + b, 0, 3);
    if (j->first) __builtin_prefetch(j->p->scales + (j->n + j->rows) * j->groups + g * j->rows, 0, 3);
}

/* --------------------------------------------------------------------------------------------------------- a panel */

CG_INLINE void mr_write(const cg_product *p, float *y, int64_t n, vf out, size_t bytes) {
    vf bias = {0}, before = {0};
    if (p->bias) memcpy(&bias, p->bias + n, bytes), out += bias;
    if (p->add) memcpy(&before, y, bytes), out += before;
    memcpy(y, &out, bytes);
}

/* Writes the outputs of a token for `rows` rows from n on. */
CG_INLINE void mr_finish(const cg_product *p, int64_t t, int64_t n, int64_t rows, const vf *sums) {
    float *y = p->y + t * p->y_stride + n;
    int64_t r = 0;
    for (; r + CG_LANES <= rows; r += CG_LANES) mr_write(p, y + r, n + r, *sums++, sizeof *sums);
    if (r < rows) mr_write(p, y + r, n + r, *sums, (size_t)(rows - r) * 4);
}

/* Decodes a slice into p->work. */
typedef void mr_decode(const mr_slice *j);
/* sums[B][vectors] = (g0 > 0: +) the products of a slice and B tokens from t on. */
typedef void mr_multiply(const mr_slice *j, int64_t t, int64_t B, vf *sums);

/* Outputs n0 .. n1-1 of all tokens. Rows are decoded once for `blocks` blocks of up to `tokens` tokens, whose sums are
   `sums`, slices of `size` groups of `vectors` vectors of rows. */
CG_INLINE void mr_panel(const int vectors, const int tokens, const int size, const int blocks, vf *sums,
                        mr_decode *decode, mr_multiply *multiply, const cg_product *p, int64_t n0, int64_t n1) {
    mr_slice j = {.p = p, .groups = p->K / CG_MXFP4_GROUP};
    mr_cut cut = mr_cut_of(p->T, tokens);
    for (int64_t b0 = 0; b0 < cut.blocks; b0 += blocks)
        for (j.n = n0; j.n < n1; j.n += j.rows) {
            int64_t b1 = cg_min(b0 + blocks, cut.blocks), t0 = mr_first(&cut, b0);
            j.rows = cg_min(vectors * CG_LANES, n1 - j.n);
            for (j.g0 = 0; j.g0 < j.groups; j.g0 = j.g1) {
                j.g1 = cg_min(j.g0 + size, j.groups);
                decode(&j);
                for (int64_t b = b0; b < b1; b++) {
                    int64_t t = mr_first(&cut, b), lines = (j.rows + 3) / 4;
                    j.first = b == b0;
                    for (int i = 0; i < 2; i++) j.fetch[i] = lines * (b - b0 + i) / (b1 - b0) * 64;
                    multiply(&j, t, mr_tokens(&cut, b), sums + (t - t0) * vectors);
                }
            }
            for (int64_t t = t0; t < mr_first(&cut, b1); t++) mr_finish(p, t, j.n, j.rows, sums + (t - t0) * vectors);
        }
}
