/* linear_mxfp4: as dense.c, with w [N, K/32, 16] nibbles and scales [N, K/32].
   Pieces of rows are dequantised to f32, which is exact because a weight has two significant bits, and multiplied as
   f32 rows are, in the same order for one token and for many. */
#include "kernels/linear/dot.h"

CG_INLINE void mxfp4_decode(void *out, const cg_product *p, int64_t n, int64_t k0, int64_t k1) {
    int64_t group = n * (p->K / CG_MXFP4_GROUP) + k0 / CG_MXFP4_GROUP;
    CG_NAME(mxfp4_dequantize)(out, p->w + group * CG_MXFP4_GROUP_BYTES, p->scales + group, (k1 - k0) / CG_MXFP4_GROUP);
    int64_t count = k1 - k0;
    memset((float *)out + count, 0, (size_t)(cg_round_up(count, DOT_GROUP * CG_LANES) - count) * 4);
}

static void CG_NAME(mxfp4_panel)(const cg_product *p, int64_t n0, int64_t n1) { dot_many(0, mxfp4_decode, p, n0, n1); }

static cg_linear CG_NAME(linear_mxfp4) = {CG_NAME(decoded_packed_bytes), CG_NAME(decoded_pack), CG_NAME(mxfp4_panel),
                                          .work_bytes = sizeof(dot_work)};
