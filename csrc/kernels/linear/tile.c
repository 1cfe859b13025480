/* linear_f32_tile, linear_f16_tile, linear_bf16_tile, linear_bf16_packed_tile: as dense.c, with the weights' exact
   values and f32 products, but summed in the order of tile.h, which differs from that of a few tokens. It is faster and
   does not give the same bits. Parallel over n. */
#include "kernels/linear/tile.h" /* and decode_<dtype> of dense.c and bf16_packed.c */

enum { TILE_MIN_TOKENS_F32 = 48 }; /* fewer tokens are as fast with dense.c */

static int64_t CG_NAME(tile_packed_f32)(int64_t T, int64_t K) { return tile_packed_bytes(K, T); }

static void CG_NAME(tile_pack_f32)(void *packed, const cg_rows *x, int64_t T, int64_t K, int64_t t0, int64_t t1) {
    for (int64_t t = t0; t < cg_round_up(t1, CG_LANES); t++) {
        float *to = (float *)packed + t / CG_LANES * CG_LANES * K + t % CG_LANES;
        const float *from = t < T ? cg_row_of(x, t) : NULL;
        for (int64_t k = 0; k < K; k++) to[k * CG_LANES] = from ? from[k] : 0.f;
    }
}

#define TILE(name, dtype) \
    static void CG_NAME(tile_panel_##name)(const cg_product *p, int64_t n0, int64_t n1) { \
        tile_many(p->K, 1, TILE_STEPS, dtype, decode_##name, tile_blocks, p, n0, n1); \
    } \
    static cg_linear CG_NAME(linear_##name##_tile) = {CG_NAME(tile_packed_f32), CG_NAME(tile_pack_f32), \
                                                      CG_NAME(tile_panel_##name), .min_tokens = TILE_MIN_TOKENS_F32, \
                                                      .work_bytes = sizeof(tile_work)};
TILE(f32, CG_F32)
TILE(f16, CG_F16)
TILE(bf16, CG_BF16)
TILE(bf16_packed, CG_BF16_PACKED)
#undef TILE
