/* linear_bf16_packed: as dense.c, with rows of bf16 in 12 bits (bf16_packed.h). The weights have their exact values and
   sums the order of bf16 rows, so the results have the same bits. Parallel over n. */
#include "kernels/linear/dot.h" /* and dense_pack, dense_packed_bytes, dense_decode of dense.c */

enum { PACKED_TOKENS = CG_LANES == 16 ? 8 : 4 }; /* that are multiplied at once, at the most */

CG_INLINE void decode_bf16_packed(void *out, const cg_product *p, int64_t n, int64_t k0, int64_t k1) {
    const uint8_t *row = p->w + n * cg_row_bytes(CG_BF16_PACKED, p->K), *stored = packed_as_stored(p, n);
    if (stored) {
        cg_product plain = packed_row_product(p, n, stored);
        dense_decode(CG_BF16, out, &plain, 0, k0, k1);
        return;
    }
    vf *to = packed_floats(out, row, p->K, k0, k1);
    while ((to - (vf *)out) % DOT_GROUP) *to++ = vf_set(0.f);
}

CG_INLINE void packed_row(const cg_product *p, int64_t n) {
    const uint8_t *stored = packed_as_stored(p, n);
    if (stored) {
        cg_product plain = packed_row_product(p, n, stored);
        dot_few(CG_BF16, &plain, 0, 1);
    } else dot_few_rows(1, PACKED_TOKENS, CG_BF16_PACKED, p, n, 0);
}

/* Blocks of R rows that are far from each other, as in dot_few_blocks. */
CG_INLINE void packed_blocks(const int R, const cg_product *p, int64_t n0, int64_t n1) {
    int64_t row_stride = (n1 - n0) / R, n = n0;
    for (; n < n0 + row_stride; n++) {
        int packed = 1;
        for (int r = 0; r < R; r++) packed &= !packed_as_stored(p, n + r * row_stride);
        if (packed) dot_few_rows(R, PACKED_TOKENS, CG_BF16_PACKED, p, n, row_stride);
        else
            for (int r = 0; r < R; r++) packed_row(p, n + r * row_stride);
    }
    for (n = n0 + R * row_stride; n < n1; n++) packed_row(p, n);
}

static void CG_NAME(panel_bf16_packed)(const cg_product *p, int64_t n0, int64_t n1) {
    if (p->T > DOT_FEW) dot_many(0, decode_bf16_packed, p, n0, n1);
    else if (p->T <= 4) packed_blocks(4, p, n0, n1);
    else packed_blocks(2, p, n0, n1);
}

static cg_linear CG_NAME(linear_bf16_packed) = {CG_NAME(dense_packed_bytes), CG_NAME(dense_pack),
                                                CG_NAME(panel_bf16_packed), .work_bytes = sizeof(dot_work)};
