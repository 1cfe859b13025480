/* peak_tile for AMX: tdpbf16ps on tiles. A round adds the products [16, 32] x [32, 16] of tiles full of `one` and of
   `x`, both rounded to bf16, to four tiles, which are as many as there are beside the operands. */
#include "simd/amx_tiles.h"

static float peak_tile_run__amx(float one, float x, int64_t rounds) {
    uint16_t factor[TILE_EDGE * TILE_K], term[TILE_EDGE * TILE_K];
    float sums[4][TILE_EDGE * TILE_EDGE];
    for (int i = 0; i < TILE_EDGE * TILE_K; i++) {
        factor[i] = cg_f32_to_bf16(one);
        term[i] = cg_f32_to_bf16(x);
    }
    __asm__ volatile("" ::"m"(factor), "m"(term) : "memory"); /* GCC does not know that tileloadd reads them */
    tiles_begin();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, factor, TILE_K * 2);
    _tile_loadd(5, factor, TILE_K * 2);
    _tile_loadd(6, term, TILE_K * 2);
    _tile_loadd(7, term, TILE_K * 2);
    for (int64_t r = 0; r < rounds; r++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 5, 6);
        _tile_dpbf16ps(2, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
    tiles_end();
    float total = 0.f;
    for (int i = 0; i < 4 * TILE_EDGE * TILE_EDGE; i++)
        total += sums[i / (TILE_EDGE * TILE_EDGE)][i % (TILE_EDGE * TILE_EDGE)];
    return total;
}

static cg_peak peak_tile__amx = {2 * 4 * TILE_EDGE * TILE_EDGE * TILE_K, peak_tile_run__amx};
