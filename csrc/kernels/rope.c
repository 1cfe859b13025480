/* rope: for each head and d < D/2, the pair (a, b) = (x[d], x[d + D/2]) becomes (a cos - b sin, b cos + a sin).
   x [heads, D] in place; cos, sin [D/2] of the token's position, YaRN's frequencies and concentration in them.
   Reference: gpt_oss/torch/model.py, _apply_rotary_emb (half-split, as GPT-NeoX). */
static void CG_NAME(rope)(float *x, const float *cos, const float *sin, int64_t heads, int64_t D) {
    int64_t half = D / 2;
    for (int64_t h = 0; h < heads; h++, x += D) {
        for (int64_t d = 0; d < half; d++) {
            float a = x[d], b = x[d + half];
            x[d] = a * cos[d] - b * sin[d];
            x[d + half] = b * cos[d] + a * sin[d];
        }
    }
}
