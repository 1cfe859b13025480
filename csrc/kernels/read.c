/* read: the exclusive or of n 32-bit words, which takes no time beside reading them: how fast memory can be read.
   data [n], any n. Vectors are read in four streams, because a core then waits for more cache lines at once (Zen 3: 24
   GB/s instead of 17). The order of an exclusive or does not matter. */
enum { CG_NAME(READ_STREAMS) = 4, CG_NAME(READ_VECTORS) = 8 };

static uint32_t CG_NAME(read)(const uint32_t *data, int64_t n) {
    enum { STEP = CG_NAME(READ_VECTORS) * CG_LANES };
    int64_t part = n / (STEP * CG_NAME(READ_STREAMS)) * STEP;
    vu sums[CG_NAME(READ_VECTORS)] = {{0}};
    for (int64_t i = 0; i < part; i += STEP)
        for (int p = 0; p < CG_NAME(READ_STREAMS); p++)
            for (int j = 0; j < CG_NAME(READ_VECTORS); j++) sums[j] ^= (vu)vi_load(data + p * part + i + j * CG_LANES);
    uint32_t out = 0;
    for (int j = 0; j < CG_NAME(READ_VECTORS); j++)
        for (int lane = 0; lane < CG_LANES; lane++) out ^= sums[j][lane];
    for (int64_t i = part * CG_NAME(READ_STREAMS); i < n; i++) out ^= data[i];
    return out;
}
