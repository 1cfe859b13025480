/* The eight AMX tiles: the intrinsics, or (built with CGPT_EMULATE_AMX) the same operations in C, so that the AMX
   kernels can be tested on machines without AMX. Intel SDM vol. 2, TILELOADD, TDPBF16PS. Tile numbers are literals. */
#ifndef CG_AMX_TILES_H
#define CG_AMX_TILES_H

enum { TILE_EDGE = 16, TILE_K = 32 };  /* 16 rows of 64 bytes: 16 x 16 f32 or 16 x 32 bf16 */

#ifdef CGPT_EMULATE_AMX
static __thread union {
    float f32[16][16];
    uint16_t bf16[16][32];
} tiles[8];

static inline void tile_copy_in(int tile, const void *from, int64_t stride_bytes) {
    for (int i = 0; i < 16; i++) memcpy(tiles[tile].f32[i], (const char *)from + i * stride_bytes, 64);
}
static inline void tile_copy_out(int tile, void *to, int64_t stride_bytes) {
    for (int i = 0; i < 16; i++) memcpy((char *)to + i * stride_bytes, tiles[tile].f32[i], 64);
}
static inline void tile_multiply(int c, int a, int b) {
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++)
            for (int k = 0; k < 32; k++)
                tiles[c].f32[i][j] += cg_bf16_to_f32(tiles[a].bf16[i][k]) * cg_bf16_to_f32(tiles[b].bf16[k / 2][2 * j + k % 2]);
}
#define TILE_ZERO(t) memset(&tiles[t], 0, sizeof tiles[t])
#define TILE_LOAD(t, from, stride_bytes) tile_copy_in(t, from, stride_bytes)
#define TILE_STORE(t, to, stride_bytes) tile_copy_out(t, to, stride_bytes)
#define TILE_DOT(c, a, b) tile_multiply(c, a, b)
static inline void tiles_begin(void) {}
static inline void tiles_end(void) {}

#else
#define TILE_ZERO(t) _tile_zero(t)
#define TILE_LOAD(t, from, stride_bytes) _tile_loadd(t, from, stride_bytes)
#define TILE_STORE(t, to, stride_bytes) _tile_stored(t, to, stride_bytes)
#define TILE_DOT(c, a, b) _tile_dpbf16ps(c, a, b)

/* All tiles at their full size. Tile state belongs to the thread: every share of a job begins and ends it. */
static inline void tiles_begin(void) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        config.row_bytes[t] = 64;
        config.rows[t] = 16;
    }
    /* GCC 12 believes that 8 of these 64 bytes are read and drops the other stores */
    __asm__ volatile("" ::"m"(config) : "memory");
    _tile_loadconfig(&config);
}
static inline void tiles_end(void) { _tile_release(); }
#endif

#endif
