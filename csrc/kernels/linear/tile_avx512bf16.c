/* linear_bf16_tile, linear_bf16_packed_tile, linear_int8_tile for AVX512_BF16: activations are
   rounded to bf16, products and sums are f32. vdpbf16ps multiplies slices of weight rows and of activations (tile.h).
   INT8 weights are rounded. */
#include "kernels/linear/bf16_rows.h"
#include "kernels/linear/tile.h"

enum {
    TILE_FEW = 15,               /* tokens for which bf16 rows are best read as they are stored */
    TILE_FEW_ROWS = 24,          /* packed rows that are decoded together for them */
    TILE_MIN_TOKENS = 8,         /* fewer are memory-bound: the exact kernel is as fast */
    TILE_MIN_TOKENS_DECODED = 24 /* fewer are as fast with 16-bit integers */
};

static int64_t packed_bytes_tile__avx512bf16(int64_t T, int64_t K) { return tile_packed_bytes((K + 1) / 2, T); }

static void pack_tile__avx512bf16(void *packed, const cg_rows *x, int64_t T, int64_t K, int64_t t0, int64_t t1) {
    bf16_pack((K + 1) / 2, packed, x, T, K, t0, t1);
}

static int64_t packed_bytes_bf16_tile__avx512bf16(int64_t T, int64_t K) {
    return T <= TILE_FEW ? dot_packed_bytes(1, T, K) : packed_bytes_tile__avx512bf16(T, K);
}

static void pack_bf16_tile__avx512bf16(void *packed, const cg_rows *x, int64_t T, int64_t K, int64_t t0, int64_t t1) {
    if (T <= TILE_FEW) dot_pack(1, bf16_row, packed, x, K, t0, t1);
    else pack_tile__avx512bf16(packed, x, T, K, t0, t1);
}

static void panel_bf16_tile__avx512bf16(const cg_product *p, int64_t n0, int64_t n1) {
    if (p->T <= TILE_FEW) dot_few(CG_BF16, p, n0, n1);
    else tile_many((p->K + 1) / 2, 2, TILE_STEPS, CG_BF16, bf16_decode_bf16, tile_blocks, p, n0, n1);
}

static cg_linear linear_bf16_tile__avx512bf16 = {packed_bytes_bf16_tile__avx512bf16, pack_bf16_tile__avx512bf16,
                                                 panel_bf16_tile__avx512bf16, .min_tokens = TILE_MIN_TOKENS,
                                                 .work_bytes = sizeof(tile_work)};

/* The bits of linear_bf16_tile: packed rows become what it multiplies. */
static void panel_bf16_packed_tile__avx512bf16(const cg_product *p, int64_t n0, int64_t n1) {
    if (p->T > TILE_FEW) {
        tile_many((p->K + 1) / 2, 2, TILE_STEPS, CG_BF16_PACKED, bf16_decode_bf16_packed, tile_blocks, p, n0, n1);
        return;
    }
    for (int64_t n = n0; n < n1; n += TILE_FEW_ROWS) {
        int64_t rows = cg_min(TILE_FEW_ROWS, n1 - n);
        for (int64_t r = 0; r < rows; r++) bf16_decode_bf16_packed((uint16_t *)p->work + r * p->K, p, n + r, 0, p->K);
        cg_product decoded = packed_row_product(p, n, p->work);
        dot_few(CG_BF16, &decoded, 0, rows);
    }
}

static cg_linear linear_bf16_packed_tile__avx512bf16 = {
    packed_bytes_bf16_tile__avx512bf16, pack_bf16_tile__avx512bf16,      panel_bf16_packed_tile__avx512bf16,
    .min_tokens = TILE_MIN_TOKENS,      .work_bytes = sizeof(tile_work), .work_bytes_per_input = TILE_FEW_ROWS * 2};

static void panel_int8_tile__avx512bf16(const cg_product *p, int64_t n0, int64_t n1) {
    tile_many((p->K + 1) / 2, 2, TILE_STEPS, CG_INT8, bf16_decode_int8, tile_blocks, p, n0, n1);
}

static cg_linear linear_int8_tile__avx512bf16 = {packed_bytes_tile__avx512bf16, pack_tile__avx512bf16,
                                                 panel_int8_tile__avx512bf16, .min_tokens = TILE_MIN_TOKENS_DECODED,
                                                 .work_bytes = sizeof(tile_work)};
