/* linear_int8: as dense.c, with w [N, K] integers and a bf16 scale for each group of 64. An integer times a bf16 is
   exact in f32, so the weights' exact values are multiplied, as f32 rows are. Parallel over n. */
#include "kernels/linear/dot.h"
#include "kernels/linear/int8.h"

CG_INLINE void int8_decode(void *out, const cg_product *p, int64_t n, int64_t k0, int64_t k1) {
    const uint8_t *row = p->w + n * cg_row_bytes(CG_INT8, p->K);
    vf *to = out;
    for (int64_t k = k0; k < k1; k += CG_INT8_GROUP) {
        float scale = int8_scale(p, n, k / CG_INT8_GROUP);
        for (int64_t i = k; i < cg_min(k + CG_INT8_GROUP, k1); i += CG_LANES) *to++ = vf_load_i8(row + i) * scale;
    }
    while ((to - (vf *)out) % DOT_GROUP) *to++ = vf_set(0.f);
}

/* The same packing for any number of tokens; linear_mxfp4 has it too. */
static int64_t CG_NAME(decoded_packed_bytes)(int64_t T, int64_t K) { return dot_packed_bytes(0, T, K); }

static void CG_NAME(decoded_pack)(void *packed, const cg_rows *x, CG_UNUSED int64_t T, int64_t K, int64_t t0,
                                  int64_t t1) {
    dot_pack(0, dot_as_it_is, packed, x, K, t0, t1);
}

static void CG_NAME(int8_panel)(const cg_product *p, int64_t n0, int64_t n1) { dot_many(0, int8_decode, p, n0, n1); }

static cg_linear CG_NAME(linear_int8) = {CG_NAME(decoded_packed_bytes), CG_NAME(decoded_pack), CG_NAME(int8_panel),
                                         .work_bytes = sizeof(dot_work)};
