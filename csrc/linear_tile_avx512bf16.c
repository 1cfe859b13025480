/* linear_bf16_tile, linear_mxfp4_tile for AVX512_BF16: activations rounded to bf16, products and sums in f32.
   Dot products of 4 weight rows and 6 tokens with vdpbf16ps, both row-major along K: nothing but the activations is
   packed, [T, K] as bf16 with K padded by zeros to a multiple of 32. MXFP4 rows are decoded four at a time. */
#include "bf16_rows.h"

enum { TILE_ROWS = 4, TILE_TOKENS = 6 };

static int64_t packed_bytes_tile__avx512bf16(int64_t T, int64_t K) { return cg_round_up(T * cg_round_up(K, 32) * 2, 64); }

static void pack_tile__avx512bf16(void *packed, const float *x, int64_t x_stride, const int32_t *rows, int64_t T,
                                  int64_t K, int64_t t0, int64_t t1) {
    (void)T;
    for (int64_t t = t0; t < t1; t++)
        bf16_row((uint16_t *)packed + t * cg_round_up(K, 32), x + (rows ? rows[t] : t) * x_stride, K);
}

CG_INLINE void tile_block(const int R, const int M, const cg_product *p, const uint16_t *w, int64_t w_stride, int64_t n,
                          int64_t t) {
    int64_t Kp = cg_round_up(p->K, 32), whole = p->K / 32 * 32;
    const uint16_t *x = (const uint16_t *)p->x + t * Kp;
    __m512 sum[TILE_ROWS][TILE_TOKENS];
    for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++) sum[r][m] = _mm512_setzero_ps();
    for (int64_t k = 0; k < whole; k += 32) {
        __m512bh wk[TILE_ROWS];
        for (int r = 0; r < R; r++) wk[r] = (__m512bh)_mm512_loadu_si512(w + r * w_stride + k);
        for (int m = 0; m < M; m++) {
            __m512bh xk = (__m512bh)_mm512_loadu_si512(x + m * Kp + k);
            for (int r = 0; r < R; r++) sum[r][m] = _mm512_dpbf16_ps(sum[r][m], wk[r], xk);
        }
    }
    if (whole < p->K) {
        __mmask32 mask = (__mmask32)((1u << (p->K - whole)) - 1);
        for (int r = 0; r < R; r++) {
            __m512bh wk = (__m512bh)_mm512_maskz_loadu_epi16(mask, w + r * w_stride + whole);
            for (int m = 0; m < M; m++)
                sum[r][m] = _mm512_dpbf16_ps(sum[r][m], wk, (__m512bh)_mm512_loadu_si512(x + m * Kp + whole));
        }
    }
    for (int m = 0; m < M; m++)
        for (int r = 0; r < R; r++) cg_finish(p, t + m, n + r, vf_sum((vf)sum[r][m]));
}

CG_INLINE void tile_rows(const int R, const cg_product *p, const uint16_t *w, int64_t w_stride, int64_t n, int64_t t0,
                         int64_t t1) {
    int64_t t = t0;
    for (; t + TILE_TOKENS <= t1; t += TILE_TOKENS) tile_block(R, TILE_TOKENS, p, w, w_stride, n, t);
    for (; t + 2 <= t1; t += 2) tile_block(R, 2, p, w, w_stride, n, t);
    for (; t < t1; t++) tile_block(R, 1, p, w, w_stride, n, t);
}

static void panel_bf16_tile__avx512bf16(const cg_product *p, int64_t n0, int64_t n1) {
    int64_t block = cg_token_block(p->K, 2);
    for (int64_t t0 = 0; t0 < p->T; t0 += block) {
        int64_t t1 = cg_min(t0 + block, p->T), n = n0;
        for (; n + TILE_ROWS <= n1; n += TILE_ROWS)
            tile_rows(TILE_ROWS, p, (const uint16_t *)p->w + n * p->K, p->K, n, t0, t1);
        for (; n < n1; n++) tile_rows(1, p, (const uint16_t *)p->w + n * p->K, p->K, n, t0, t1);
    }
}

static void panel_mxfp4_tile__avx512bf16(const cg_product *p, int64_t n0, int64_t n1) {
    uint16_t rows[TILE_ROWS * CG_MXFP4_MAX_K];
    int64_t groups = p->K / CG_MXFP4_GROUP, block = cg_token_block(p->K, 2);
    for (int64_t t0 = 0; t0 < p->T; t0 += block) {
        int64_t t1 = cg_min(t0 + block, p->T);
        for (int64_t n = n0; n < n1; n += TILE_ROWS) {
            int64_t count = cg_min(TILE_ROWS, n1 - n);
            for (int64_t r = 0; r < count; r++)
                bf16_row_from_mxfp4(rows + r * p->K, p->w + (n + r) * groups * CG_MXFP4_GROUP_BYTES,
                                    p->scales + (n + r) * groups, p->K);
            if (count == TILE_ROWS) tile_rows(TILE_ROWS, p, rows, p->K, n, t0, t1);
            else
                for (int64_t r = 0; r < count; r++) tile_rows(1, p, rows + r * p->K, p->K, n + r, t0, t1);
        }
    }
}

static cg_linear linear_bf16_tile__avx512bf16 = {packed_bytes_tile__avx512bf16, pack_tile__avx512bf16,
                                                 panel_bf16_tile__avx512bf16};
static cg_linear linear_mxfp4_tile__avx512bf16 = {packed_bytes_tile__avx512bf16, pack_tile__avx512bf16,
                                                  panel_mxfp4_tile__avx512bf16};
