/* embed: out[C] = table[id] (+ positions[position]), each row of any float dtype or packed bf16. */
#include "kernels/linear/bf16_packed.h"

enum { EMBED_STEP = PACKED_HALF };

/* Columns c .. c+n-1 of row id, n up to EMBED_STEP. */
CG_INLINE void embed_part(vf *out, const cg_matrix *m, int64_t id, int64_t c, int64_t n) {
    const uint8_t *row = m->data + id * cg_row_bytes(m->dtype, m->K);
    cg_dtype dtype = m->dtype;
    if (dtype == CG_BF16_PACKED) {
        int64_t stored = packed_stored(row);
        if (stored < 0) {
            packed_floats(out, row, m->K, c, c + n);
            return;
        }
        row = m->scales + stored * m->K * 2;
        dtype = CG_BF16;
    }
    for (int64_t i = 0; i < n; i += CG_LANES) *out++ = vf_load_as_n(dtype, row, c + i, cg_min(n - i, CG_LANES));
}

static void CG_NAME(embed)(float *out, const cg_matrix *table, int64_t id, const cg_matrix *positions,
                           int64_t position) {
    for (int64_t c = 0; c < table->K; c += EMBED_STEP) {
        vf part[EMBED_STEP / CG_LANES], added[EMBED_STEP / CG_LANES];
        int64_t n = cg_min(table->K - c, EMBED_STEP);
        embed_part(part, table, id, c, n);
        if (positions) {
            embed_part(added, positions, position, c, n);
            for (int64_t i = 0; i < n; i += CG_LANES) part[i / CG_LANES] += added[i / CG_LANES];
        }
        memcpy(out + c, part, (size_t)n * sizeof(float));
    }
}
