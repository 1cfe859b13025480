/* linear_bf16_tile, linear_mxfp4_tile, linear_int8_tile for AVX512_BF16: activations rounded to bf16, products and sums in f32.
   vdpbf16ps on pieces of weight rows and of activations, both bf16 (dot.h); MXFP4 is decoded to bf16, exactly, INT8 rounded. */
#include "bf16_rows.h"

/* Zeros after `count` values, up to a whole group of vectors. */
CG_INLINE void tile_zeros(uint16_t *out, int64_t count) {
    memset(out + count, 0, (size_t)(cg_round_up(count, DOT_GROUP * 32) - count) * 2);
}

CG_INLINE void tile_order(void *out, const float *x, int64_t count) {
    bf16_row(out, x, count);  /* zeros up to a multiple of 32 */
    tile_zeros(out, cg_round_up(count, 32));
}

/* One layout for any number of tokens. */
static int64_t packed_bytes_tile__avx512bf16(int64_t T, int64_t K) {
    return dot_packed_bytes(DOT_PAIRS, 0, T, K);
}

static void pack_tile__avx512bf16(void *packed, const cg_rows *x, int64_t T, int64_t K, int64_t t0, int64_t t1) {
    (void)T;
    dot_pack(DOT_PAIRS, 0, tile_order, packed, x, K, t0, t1);
}

CG_INLINE void tile_decode_bf16(void *out, const cg_product *p, int64_t n, int64_t k0, int64_t k1) {
    memcpy(out, p->w + (n * p->K + k0) * 2, (size_t)(k1 - k0) * 2);
    tile_zeros(out, k1 - k0);
}

CG_INLINE void tile_decode_mxfp4(void *out, const cg_product *p, int64_t n, int64_t k0, int64_t k1) {
    int64_t group = n * (p->K / CG_MXFP4_GROUP) + k0 / CG_MXFP4_GROUP;
    bf16_row_from_mxfp4(out, p->w + group * CG_MXFP4_GROUP_BYTES, p->scales + group, k1 - k0);
    tile_zeros(out, k1 - k0);
}

CG_INLINE void tile_decode_int8(void *out, const cg_product *p, int64_t n, int64_t k0, int64_t k1) {
    int64_t end = cg_round_up(k1, CG_INT8_GROUP);
    bf16_row_from_int8(out, p->w + n * cg_row_bytes(CG_INT8, p->K), p->scales + n * cg_scale_bytes(CG_INT8, p->K), k0,
                       end);
    tile_zeros(out, end - k0);
}

static void panel_bf16_tile__avx512bf16(const cg_product *p, int64_t n0, int64_t n1) {
    dot_many(DOT_PAIRS, tile_decode_bf16, p, n0, n1);
}

static void panel_mxfp4_tile__avx512bf16(const cg_product *p, int64_t n0, int64_t n1) {
    dot_many(DOT_PAIRS, tile_decode_mxfp4, p, n0, n1);
}

static void panel_int8_tile__avx512bf16(const cg_product *p, int64_t n0, int64_t n1) {
    dot_many(DOT_PAIRS, tile_decode_int8, p, n0, n1);
}

static cg_linear linear_bf16_tile__avx512bf16 = {packed_bytes_tile__avx512bf16, pack_tile__avx512bf16,
                                                 panel_bf16_tile__avx512bf16};
static cg_linear linear_mxfp4_tile__avx512bf16 = {packed_bytes_tile__avx512bf16, pack_tile__avx512bf16,
                                                  panel_mxfp4_tile__avx512bf16};
static cg_linear linear_int8_tile__avx512bf16 = {packed_bytes_tile__avx512bf16, pack_tile__avx512bf16,
                                                 panel_int8_tile__avx512bf16};
