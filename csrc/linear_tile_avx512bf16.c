/* linear_bf16_tile, linear_mxfp4_tile for AVX512_BF16: activations rounded to bf16, products and sums in f32.
   vdpbf16ps on rows of weights and rows of activations (dot.h): nothing but the activations is packed, [T, K] as bf16
   with K padded by zeros to a multiple of 32. MXFP4 rows are decoded eight at a time, for a block of tokens. */
#include "bf16_rows.h"

/* Values from one packed token to the next. Rows a multiple of 4 KB apart would share their cache sets. */
static int64_t tile_x_stride(int64_t K) {
    int64_t Kp = cg_round_up(K, 32);
    return Kp % 2048 ? Kp : Kp + 32;
}

static int64_t packed_bytes_tile__avx512bf16(int64_t T, int64_t K) { return cg_round_up(T * tile_x_stride(K) * 2, 64); }

static void pack_tile__avx512bf16(void *packed, const float *x, int64_t x_stride, const int32_t *rows, int64_t T,
                                  int64_t K, int64_t t0, int64_t t1) {
    (void)T;
    for (int64_t t = t0; t < t1; t++)
        bf16_row((uint16_t *)packed + t * tile_x_stride(K), x + (rows ? rows[t] : t) * x_stride, K);
}

static void panel_bf16_tile__avx512bf16(const cg_product *p, int64_t n0, int64_t n1) {
    cg_product packed = *p;
    packed.x_stride = tile_x_stride(p->K);
    dot_panel(DOT_PAIRS, &packed, n0, n1);
}

static void panel_mxfp4_tile__avx512bf16(const cg_product *p, int64_t n0, int64_t n1) {
    uint16_t rows[DOT_ROWS * CG_MXFP4_MAX_K];
    int64_t groups = p->K / CG_MXFP4_GROUP, w_bytes = groups * CG_MXFP4_GROUP_BYTES;
    int64_t block = dot_token_block(DOT_PAIRS, p->K);
    cg_product packed = *p;
    packed.x_stride = tile_x_stride(p->K);
    for (int64_t t0 = 0; t0 < p->T; t0 += block)
        for (int64_t n = n0; n < n1; n += DOT_ROWS) {
            int64_t count = cg_min(DOT_ROWS, n1 - n);
            const uint8_t *w = p->w + n * w_bytes;
            for (int64_t r = 0; r < count; r++)
                bf16_row_from_mxfp4(rows + r * p->K, w + r * w_bytes, p->scales + (n + r) * groups, p->K);
            dot_fetch next = {(const char *)w + DOT_ROWS * w_bytes, DOT_ROWS * w_bytes, 0};
            dot_some_rows(DOT_PAIRS, &packed, (const char *)rows, p->K * 2, n, count, t0, cg_min(t0 + block, p->T),
                          next);
        }
}

static cg_linear linear_bf16_tile__avx512bf16 = {packed_bytes_tile__avx512bf16, pack_tile__avx512bf16,
                                                 panel_bf16_tile__avx512bf16};
static cg_linear linear_mxfp4_tile__avx512bf16 = {packed_bytes_tile__avx512bf16, pack_tile__avx512bf16,
                                                  panel_mxfp4_tile__avx512bf16};
