/* mxfp4_dequantize: out[32 g + i] = E2M1 code i of group g, times 2^(scales[g] - 127), exactly.
   blocks [groups, 16]: element 2j in the low half of byte j, 2j+1 in the high half; scales [groups]; out [32 groups].
   OCP Microscaling Formats v1.0; gpt_oss/torch/weights.py, _get_mxfp4_tensor. Scale 255 is NaN there, and here. */
static const float mxfp4_values[16] = {CG_E2M1_VALUES};

static void CG_NAME(mxfp4_dequantize)(float *out, const uint8_t *blocks, const uint8_t *scales, int64_t groups) {
    for (int64_t g = 0; g < groups; g++, blocks += CG_MXFP4_GROUP_BYTES, out += CG_MXFP4_GROUP) {
        float scale = scales[g] == 255 ? NAN : cg_e8m0_to_f32(scales[g]);
        for (int j = 0; j < CG_MXFP4_GROUP_BYTES; j++) {
            out[2 * j] = mxfp4_values[blocks[j] & 15] * scale;
            out[2 * j + 1] = mxfp4_values[blocks[j] >> 4] * scale;
        }
    }
}
