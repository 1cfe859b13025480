/* linear_bf16_tile, linear_bf16_packed_tile, linear_mxfp4_tile, linear_int8_tile for AMX: activations are rounded to
   bf16, products and sums are f32. The weights are the A operand: 16 rows x 32 k are loaded from row-major memory as
   they are. The activations are B: blocks of 16 tokens as [K/2, 16 tokens, 2], with zeros up to a multiple of 32 for K
   and of 16 for T. 2 x 2 tiles give 32 rows x 32 tokens. Packed bf16, MXFP4 and INT8 rows are decoded first. Rows whose
   K is no multiple of 32 are copied first, and so are the last rows. */
#include "kernels/linear/bf16_rows.h"
#include "simd/amx_tiles.h"

enum { AMX_ROWS = 2 * TILE_EDGE, AMX_MIN_TOKENS = 8 }; /* fewer tokens are memory-bound */

static int64_t packed_bytes_tile__amx(int64_t T, int64_t K) {
    return cg_round_up(T, TILE_EDGE) * cg_round_up(K, TILE_K) * 2;
}

static void pack_tile__amx(void *packed, const cg_rows *x, int64_t T, int64_t K, int64_t t0, int64_t t1) {
    bf16_pack(cg_round_up(K, TILE_K) / 2, packed, x, T, K, t0, t1);
}

/* y[t + j][n + i] from c[i][j], for `rows` x `tokens` of the 16 x 16. */
static void amx_finish(const cg_product *p, const float (*c)[TILE_EDGE], int64_t n, int64_t rows, int64_t t,
                       int64_t tokens) {
    vf bias = p->bias ? vf_load_n(p->bias + n, rows) : vf_set(0.f);
    vi column;
    for (int i = 0; i < TILE_EDGE; i++) column[i] = i * TILE_EDGE;
    for (int64_t j = 0; j < tokens; j++) {
        float *y = p->y + (t + j) * p->y_stride + n;
        vf v = (vf)_mm512_i32gather_ps((__m512i)column, (const float *)c + j, 4) + bias;
        if (p->add) v += vf_load_n(y, rows);
        _mm512_mask_storeu_ps(y, (__mmask16)((1u << rows) - 1), (__m512)v);
    }
}

/* Rows w [32, w_stride] of which `rows` are real, for 32 tokens from t. Tiles 0-3 are sums, 4-5 weights, 6-7 tokens. */
static void amx_block(const cg_product *p, const uint16_t *w, int64_t w_stride, int64_t n, int64_t rows, int64_t t) {
    int64_t Kp = cg_round_up(p->K, TILE_K), left = p->T - t, two_rows = rows > TILE_EDGE, two_tokens = left > TILE_EDGE;
    const uint16_t *x0 = (const uint16_t *)p->x + t * Kp, *x1 = x0 + TILE_EDGE * Kp;
    const uint16_t *w1 = w + TILE_EDGE * w_stride;
    float c[4][TILE_EDGE][TILE_EDGE];
    __asm__ volatile("" ::: "memory"); /* the rows must be in memory, and GCC 12 does not know that _tile_loadd reads */
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < Kp; k += TILE_K) {
        _tile_loadd(4, w + k, w_stride * 2);
        _tile_loadd(6, x0 + k * TILE_EDGE, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (two_rows) {
            _tile_loadd(5, w1 + k, w_stride * 2);
            _tile_dpbf16ps(1, 5, 6);
        }
        if (two_tokens) {
            _tile_loadd(7, x1 + k * TILE_EDGE, 64);
            _tile_dpbf16ps(2, 4, 7);
            if (two_rows) _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, c[0], 64);
    _tile_stored(1, c[1], 64);
    _tile_stored(2, c[2], 64);
    _tile_stored(3, c[3], 64);
    for (int64_t i = 0; i <= two_rows; i++)
        for (int64_t j = 0; j <= two_tokens; j++)
            amx_finish(p, c[i + 2 * j], n + i * TILE_EDGE, cg_min(rows - i * TILE_EDGE, TILE_EDGE), t + j * TILE_EDGE,
                       cg_min(left - j * TILE_EDGE, TILE_EDGE));
}

/* Outputs n0 .. n1-1. Whole tiles of rows are read where they are `stored`, if they are bf16; others are decoded first.
 */
CG_INLINE void amx_panel(dot_decode *decode, int stored, const cg_product *p, int64_t n0, int64_t n1) {
    tiles_begin();
    for (int64_t n = n0; n < n1; n += AMX_ROWS) {
        int64_t rows = cg_min(AMX_ROWS, n1 - n), stride = p->K;
        const uint16_t *w = (const uint16_t *)p->w + n * p->K;
        if (!stored || rows % TILE_EDGE) {
            uint16_t *decoded = p->work;
            stride = cg_round_up(p->K, CG_INT8_GROUP);
            for (int64_t r = 0; r < rows; r++) decode(decoded + r * stride, p, n + r, 0, p->K);
            if (rows % TILE_EDGE) memset(decoded + rows * stride, 0, (size_t)((AMX_ROWS - rows) * stride) * 2);
            w = decoded;
        }
        for (int64_t t = 0; t < p->T; t += 2 * TILE_EDGE) amx_block(p, w, stride, n, rows, t);
    }
    tiles_end();
}

#define AMX(name, stored) \
    static void panel_##name##_tile__amx(const cg_product *p, int64_t n0, int64_t n1) { \
        amx_panel(bf16_decode_##name, stored, p, n0, n1); \
    } \
    static cg_linear linear_##name##_tile__amx = {packed_bytes_tile__amx, pack_tile__amx, panel_##name##_tile__amx, \
                                                  .min_tokens = AMX_MIN_TOKENS, .work_bytes_per_input = AMX_ROWS * 2};
AMX(bf16, p->K % TILE_K == 0)
AMX(bf16_packed, 0)
AMX(mxfp4, 0)
AMX(int8, 0)
#undef AMX
