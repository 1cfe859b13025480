/* The driver that packs rows of weights as BF16_PACKED (kernels/linear/bf16_packed.h), at load. The source may be
   unaligned. */
#include "core/parallel.h"

typedef struct {
    uint8_t *out;
    const char *src;
    cg_dtype dtype;
    int64_t K, row_bytes;
} pack_job;

/* Weights of a row, rounded to nearest even. */
CG_INLINE void read_bf16(uint16_t *to, const char *from, int64_t count, const cg_dtype dtype) {
    for (int64_t i = 0; i < count; i++) {
        float f32;
        uint16_t f16;
        if (dtype == CG_F32) memcpy(&f32, from + i * 4, 4), to[i] = cg_f32_to_bf16(f32);
        else memcpy(&f16, from + i * 2, 2), to[i] = cg_f32_to_bf16(cg_f16_to_f32(f16));
    }
}

/* The table of up to 1024 weights, and the index of each exponent; 0 where there are more than a table holds. */
static int make_table(uint8_t *table, uint8_t *index, const uint16_t *weights, int64_t count) {
    uint8_t seen[256] = {0};
    int n = 0;
    for (int64_t i = 0; i < count; i++) seen[weights[i] >> 7 & 0xff] = 1;
    for (int e = 0; e < 256; e++) {
        if (!seen[e]) continue;
        if (n == CG_PACKED_EXPONENTS) return 0;
        table[n] = (uint8_t)e;
        index[e] = (uint8_t)n++;
    }
    return 1;
}

static void pack_block(uint8_t *block, const uint8_t *index, const uint16_t *weights) {
    uint8_t codes[CG_PACKED_BLOCK];
    for (int q = 0; q < 4; q++)
        for (int h = 0; h < 2; h++)
            for (int j = 0; j < 4; j++)
                for (int o = 0; o < 2; o++) {
                    uint16_t w = weights[32 * h + 16 * o + 4 * q + j];
                    int at = 16 * q + 8 * h + 2 * j + o;
                    block[at] = (uint8_t)((w >> 8 & 0x80) | (w & 0x7f));
                    codes[at] = index[w >> 7 & 0xff];
                }
    for (int i = 0; i < CG_PACKED_BLOCK / 2; i++)
        block[CG_PACKED_BLOCK + i] = (uint8_t)(codes[i] | codes[i + CG_PACKED_BLOCK / 2] << 4);
}

static void pack_row(void *data, int64_t n, CG_UNUSED int thread) {
    const pack_job *j = data;
    const int64_t size = (int64_t)cg_dtype_bytes(j->dtype), head = cg_packed_head_bytes(j->K);
    uint8_t *row = j->out + n * j->row_bytes, *block = row + head, *table = row + 16;
    int32_t stored = -1;
    memset(row, 0, (size_t)head);
    for (int64_t k = 0; k < j->K && stored < 0; k += CG_PACKED_RUN, table += CG_PACKED_EXPONENTS) {
        uint16_t weights[CG_PACKED_RUN];
        uint8_t index[256];
        int64_t count = cg_min(CG_PACKED_RUN, j->K - k), padded = cg_round_up(count, CG_PACKED_BLOCK);
        const char *from = j->src + (n * j->K + k) * size;
        if (j->dtype == CG_BF16) memcpy(weights, from, (size_t)count * 2);
        else if (j->dtype == CG_F32) read_bf16(weights, from, count, CG_F32);
        else read_bf16(weights, from, count, CG_F16);
        if (!make_table(table, index, weights, count)) {
            stored = 0;
            break;
        }
        /* padding: of the least exponent that is there, or of 0 where there is but infinity */
        uint16_t pad = (uint16_t)(table[0] << 7);
        if (table[0] == 255) pad = 0, index[0] = 1;
        for (int64_t i = count; i < padded; i++) weights[i] = pad;
        for (int64_t i = 0; i < padded; i += CG_PACKED_BLOCK, block += CG_PACKED_BLOCK_BYTES)
            pack_block(block, index, weights + i);
    }
    memcpy(row, &stored, sizeof stored);
}

int64_t cg_run_pack_bf16(int threads, uint8_t *out, const void *src, cg_dtype dtype, int64_t N, int64_t K) {
    pack_job job = {out, src, dtype, K, cg_row_bytes(CG_BF16_PACKED, K)};
    int32_t count = 0;
    cg_for_rows(threads, N, K * 8, pack_row, &job);
    for (int64_t n = 0; n < N; n++) {
        int32_t stored;
        memcpy(&stored, out + n * job.row_bytes, sizeof stored);
        if (stored < 0) continue;
        memcpy(out + n * job.row_bytes, &count, sizeof count);
        count++;
    }
    return count;
}
