/* The eight AMX tiles, all of the same size. Tile state belongs to the thread: every partition of a job begins and ends
   it. Tile numbers must be literals. Intel SDM vol. 1 ch. 18; vol. 2, LDTILECFG. */
#pragma once

enum { TILE_EDGE = 16, TILE_K = 32 }; /* 16 rows of 64 bytes: 16 x 16 f32 or 16 x 32 bf16 */

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
    /* GCC 12 assumes that 8 of these 64 bytes are read, and drops the other stores */
    __asm__ volatile("" ::"m"(config) : "memory");
    _tile_loadconfig(&config);
}
static inline void tiles_end(void) { _tile_release(); }
