/* linear_mxfp4 for AVX-512: f32 activations times the weights' exact values, straight from the stored nibbles.

   vpermps looks up only the low 4 bits of each 32-bit lane, so with the 16 E2M1 values as its table, v, v >> 4, ..,
   v >> 28 are indices as they are: 7 shifts, 8 lookups and 8 FMAs per 128 weights. Lane l of the n-th lookup is weight
   8 l + n of the 128, so the activations are transposed from [16, 8] to [8, 16] once per call. Four lanes are one
   group, hence one more FMA applies four groups' scales.
   Rows of 2 x 4 tokens share loads; each output keeps its own order, so one token or many give the same bits. */
#include "dot.h"

enum { MX_BLOCK = 128, MX_BLOCK_BYTES = 64, MX_AHEAD_BYTES = 2048, MX_ROWS = 2, MX_TOKENS = 4 };

static int64_t mx_packed_bytes__avx512(int64_t T, int64_t K) { return T * cg_round_up(K, MX_BLOCK) * 4; }

static void mx_pack__avx512(void *packed, const float *x, int64_t x_stride, const int32_t *rows, int64_t T, int64_t K,
                               int64_t t0, int64_t t1) {
    (void)T;
    int64_t Kp = cg_round_up(K, MX_BLOCK);
    for (int64_t t = t0; t < t1; t++) {
        const float *from = x + (rows ? rows[t] : t) * x_stride;
        float *to = (float *)packed + t * Kp;
        for (int64_t k = 0; k < Kp; k += MX_BLOCK)
            for (int n = 0; n < 8; n++)
                for (int l = 0; l < 16; l++) to[k + n * 16 + l] = k + 8 * l + n < K ? from[k + 8 * l + n] : 0.f;
    }
}

/* The scales of four groups, each in its group's four lanes; `groups` < 4 in a row's last block. */
CG_INLINE __m512 mx_scales(const uint8_t *scales, int64_t groups) {
    uint32_t four = 0;
    memcpy(&four, scales, (size_t)groups);
    const __m128i spread = _mm_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    __m512i exponent = _mm512_cvtepu8_epi32(_mm_shuffle_epi8(_mm_cvtsi32_si128((int)four), spread));
    /* scale 0 is the denormal 2^-127 */
    return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_slli_epi32(exponent, 23), _mm512_set1_epi32(0x00400000)));
}

/* One block of 128 weights of R rows, for M tokens. */
CG_INLINE void mx_block(const int R, const int M, const __m512i *codes, const __m512 *scale, const float *const *x,
                        int64_t k, __m512 (*sum)[MX_TOKENS]) {
    static const float e2m1[16] = {CG_E2M1_VALUES};
    const __m512 values = _mm512_loadu_ps(e2m1);
    __m512 w[MX_ROWS][8];
    for (int r = 0; r < R; r++)
        for (int n = 0; n < 8; n++) w[r][n] = _mm512_permutexvar_ps(_mm512_srli_epi32(codes[r], 4 * n), values);
    for (int m = 0; m < M; m++) {
        __m512 part[MX_ROWS];
        for (int r = 0; r < R; r++) part[r] = _mm512_mul_ps(w[r][0], _mm512_loadu_ps(x[m] + k));
        for (int n = 1; n < 8; n++)
            for (int r = 0; r < R; r++)
                part[r] = _mm512_fmadd_ps(w[r][n], _mm512_loadu_ps(x[m] + k + 16 * n), part[r]);
        for (int r = 0; r < R; r++) sum[r][m] = _mm512_fmadd_ps(part[r], scale[r], sum[r][m]);
    }
}

CG_INLINE void mx_rows(const int R, const int M, const int fetch, const cg_product *p, int64_t n, int64_t t) {
    int64_t groups = p->K / CG_MXFP4_GROUP, whole = p->K / MX_BLOCK * MX_BLOCK, left = groups % 4;
    const uint8_t *blocks = p->w + n * groups * CG_MXFP4_GROUP_BYTES, *scales = p->scales + n * groups;
    const float *x[MX_TOKENS];
    for (int m = 0; m < M; m++) x[m] = (const float *)p->x + (t + m) * cg_round_up(p->K, MX_BLOCK);
    __m512 sum[MX_ROWS][MX_TOKENS], scale[MX_ROWS];
    __m512i codes[MX_ROWS];
    for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++) sum[r][m] = _mm512_setzero_ps();
    for (int64_t k = 0; k < whole; k += MX_BLOCK) {
        for (int r = 0; r < R; r++) {
            const uint8_t *at = blocks + r * groups * CG_MXFP4_GROUP_BYTES + k / 2;
            if (fetch) _mm_prefetch((const char *)at + MX_AHEAD_BYTES, _MM_HINT_T0);
            codes[r] = _mm512_loadu_si512(at);
            scale[r] = mx_scales(scales + r * groups + k / CG_MXFP4_GROUP, 4);
        }
        mx_block(R, M, codes, scale, x, k, sum);
    }
    if (left) {
        __mmask16 mask = (__mmask16)((1u << 4 * left) - 1);
        for (int r = 0; r < R; r++) {
            codes[r] = _mm512_maskz_loadu_epi32(mask, blocks + r * groups * CG_MXFP4_GROUP_BYTES + whole / 2);
            scale[r] = mx_scales(scales + r * groups + whole / CG_MXFP4_GROUP, left);
        }
        mx_block(R, M, codes, scale, x, whole, sum);
    }
    for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++) dot_finish(1, p, t + m, n + r, (const vf *)&sum[r][m]);
}

/* R rows for the tokens t0 <= t < t1, as many at a time as there are. The first of them bring the weights in. */
CG_INLINE void mx_tokens(const int R, const cg_product *p, int64_t n, int64_t t0, int64_t t1) {
    int64_t t = t0;
    if (t + MX_TOKENS <= t1) mx_rows(R, MX_TOKENS, 1, p, n, t), t += MX_TOKENS;
    for (; t + MX_TOKENS <= t1; t += MX_TOKENS) mx_rows(R, MX_TOKENS, 0, p, n, t);
    switch (t1 - t) {
    case 3: mx_rows(R, 3, 1, p, n, t); break;
    case 2: mx_rows(R, 2, 1, p, n, t); break;
    case 1: mx_rows(R, 1, 1, p, n, t); break;
    }
}

static void mx_panel__avx512(const cg_product *p, int64_t n0, int64_t n1) {
    int64_t block = dot_token_block(DOT_F32, p->K);
    for (int64_t t0 = 0; t0 < p->T; t0 += block) {
        int64_t t1 = cg_min(t0 + block, p->T), n = n0;
        if (t1 - t0 > 1)  /* one row after the other is one stream of memory: the fastest for one token */
            for (; n + MX_ROWS <= n1; n += MX_ROWS) mx_tokens(MX_ROWS, p, n, t0, t1);
        for (; n < n1; n++) mx_tokens(1, p, n, t0, t1);
    }
}

static cg_linear mx_linear__avx512 = {mx_packed_bytes__avx512, mx_pack__avx512, mx_panel__avx512};
