/* embed: out[C] = table[id] (+ positions[position]), each row of any float dtype. */
static void CG_NAME(embed)(float *out, const void *table, cg_dtype dtype, int64_t id, const void *positions,
                           cg_dtype positions_dtype, int64_t position, int64_t C) {
    const char *row = (const char *)table + id * cg_row_bytes(dtype, C);
    const char *pos = positions ? (const char *)positions + position * cg_row_bytes(positions_dtype, C) : NULL;
    for (int64_t i = 0; i < C; i += CG_LANES) {
        int64_t n = cg_min(C - i, CG_LANES);
        vf v = vf_load_as_n(dtype, row, i, n);
        if (pos) v += vf_load_as_n(positions_dtype, pos, i, n);
        vf_store_n(out + i, v, n);
    }
}
