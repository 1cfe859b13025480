/* linear_mxfp4_fixed for AVX2 and AVX-512: vpshufb looks up twice a weight as a byte; the byte at the top of 16 bits is
   256 times that, a shift brings its neighbour there, and vpmaddwd (vpdpwssd where there is VNNI) multiplies with the
   activations. A vector of codes is 2 or 4 groups, G; four of them make a block, with one vector of scales. A lane sums 8
   products of at most 3072 * 32767, which an int32 holds and a float has exactly. One token or many: the same bits. */
#include "kernels/linear/dot.h"
#include "kernels/linear/fixed.h"

enum {
    FIXED_TOKENS = 4, /* that share a row's weights in registers, and stay in the first-level cache */
    FIXED_AHEAD_BYTES = 2048,
    FIXED_G = CG_LANES / 4,
    FIXED_BLOCK = CG_LANES, /* groups */
    FIXED_CODES = FIXED_BLOCK * CG_MXFP4_GROUP_BYTES,
};

/* Packed activations of a block. Steps: vector v of codes finds its groups' at v, v + 4, v + 8, .. */
typedef struct {
    int16_t q[4][4][2 * CG_LANES]; /* [vector][element % 4][group][element / 4] */
    float step[FIXED_BLOCK];       /* over 512, which the weights are multiplied by */
} fixed_block;

CG_INLINE int64_t fixed_blocks(int64_t K) { return (K / CG_MXFP4_GROUP + FIXED_BLOCK - 1) / FIXED_BLOCK; }

static int64_t CG_NAME(fixed_packed_bytes_hand)(int64_t T, int64_t K) {
    return cg_round_up(T * fixed_blocks(K) * (int64_t)sizeof(fixed_block), 64);
}

static void CG_NAME(fixed_pack_hand)(void *packed, const cg_rows *x, int64_t T, int64_t K, int64_t t0, int64_t t1) {
    (void)T;
    int64_t blocks = fixed_blocks(K);
    for (int64_t t = t0; t < t1; t++)
        for (int64_t b = 0; b < blocks; b++) {
            fixed_block *to = (fixed_block *)packed + t * blocks + b;
            const float *from = cg_row_of(x, t) + b * FIXED_BLOCK * CG_MXFP4_GROUP;
            int groups = (int)cg_min(FIXED_BLOCK, K / CG_MXFP4_GROUP - b * FIXED_BLOCK);
            if (groups < FIXED_BLOCK) memset(to, 0, sizeof *to);
            for (int g = 0; g < groups; g++) {
                int32_t q[CG_MXFP4_GROUP];
                int16_t narrow[CG_MXFP4_GROUP];
                to->step[g % FIXED_G * 4 + g / FIXED_G] =
                    fixed_round(CG_MXFP4_GROUP, q, from + g * CG_MXFP4_GROUP) / 512.f;
                for (int i = 0; i < CG_MXFP4_GROUP; i++) narrow[i] = (int16_t)q[i];
                for (int c = 0; c < 4; c++) /* GCC vectorises this, not the scattering of one i after the other */
                    for (int i = 0; i < 8; i++) to->q[g / FIXED_G][c][g % FIXED_G * 8 + i] = narrow[4 * i + c];
            }
        }
}

/* The scales of `groups` groups as floats, in the order of the steps. Missing ones are 1: multiplying by the least one, a
   denormal, takes as long as eight groups. Scale 0 is the denormal 2^-127. */
CG_INLINE vf fixed_scales(const uint8_t *scales, int64_t groups) {
    uint8_t some[16];
    if (groups < FIXED_BLOCK) {
        memset(some, 127, sizeof some);
        for (int64_t g = 0; g < groups; g++) some[g] = scales[g];
        scales = some;
    }
#if CG_LANES == 16
    __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    vi exponent = (vi)_mm512_cvtepu8_epi32(_mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)scales), order));
#else
    __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 0, 0, 0, 0, 0, 0, 0, 0);
    vi exponent = (vi)_mm256_cvtepu8_epi32(_mm_shuffle_epi8(_mm_loadl_epi64((const __m128i *)scales), order));
#endif
    return (vf)(exponent << 23 | ((exponent == 0) & 0x00400000));
}

/* The steps of vector v, each in its group's four lanes. */
CG_INLINE vf fixed_spread(vf steps, const int v) {
#if CG_LANES == 16
#define FIXED_SPREAD(imm) (vf) _mm512_permute_ps((__m512)steps, imm)
#else
#define FIXED_SPREAD(imm) (vf) _mm256_permute_ps((__m256)steps, imm)
#endif
    return v == 0 ? FIXED_SPREAD(0x00) : v == 1 ? FIXED_SPREAD(0x55) : v == 2 ? FIXED_SPREAD(0xaa) : FIXED_SPREAD(0xff);
#undef FIXED_SPREAD
}

/* Codes of `groups` <= FIXED_G groups. */
CG_INLINE vs fixed_codes(const uint8_t *at, int64_t groups) {
    vs codes;
    if (groups == FIXED_G) {
        memcpy(&codes, at, sizeof codes);
        return codes;
    }
#if CG_LANES == 16
    return (vs)_mm512_maskz_loadu_epi32((__mmask16)((1u << 4 * groups) - 1), at);
#else
    return (vs)_mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *)at));
#endif
}

/* Weights times 512, element 4i + c of each group in w[c]. */
CG_INLINE void fixed_weights(vs *w, vs codes) {
    const __m128i doubled = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
    vs low = codes & 0x0f0f, high = codes >> 4 & 0x0f0f;
#if CG_LANES == 16
    const __m512i table = _mm512_broadcast_i32x4(doubled);
    low = (vs)_mm512_shuffle_epi8(table, (__m512i)low);
    high = (vs)_mm512_shuffle_epi8(table, (__m512i)high);
#else
    const __m256i table = _mm256_broadcastsi128_si256(doubled);
    low = (vs)_mm256_shuffle_epi8(table, (__m256i)low);
    high = (vs)_mm256_shuffle_epi8(table, (__m256i)high);
#endif
    w[0] = low << 8;
    w[1] = high << 8;
    w[2] = low & (int16_t)0xff00;
    w[3] = high & (int16_t)0xff00;
}

/* One block of up to FIXED_BLOCK groups. */
CG_INLINE void fixed_groups(const int M, int64_t groups, const uint8_t *w, const uint8_t *scales,
                            const fixed_block *const *x, vf *sum) {
    vf scale = fixed_scales(scales, groups), steps[FIXED_TOKENS];
    for (int m = 0; m < M; m++) steps[m] = scale * vf_load(x[m]->step);
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) {
        if (v * FIXED_G >= groups) break;
        int64_t left = groups == FIXED_BLOCK ? FIXED_G : cg_min(FIXED_G, groups - v * FIXED_G);
        vs weights[4];
        fixed_weights(weights, fixed_codes(w + v * FIXED_G * CG_MXFP4_GROUP_BYTES, left));
        for (int m = 0; m < M; m++) {
            vi dot = {0};
            for (int c = 0; c < 4; c++) {
                vs q;
                memcpy(&q, x[m]->q[v][c], sizeof q);
                dot = vs_dot_pairs(dot, weights[c], q);
            }
            sum[m] = vf_fma(__builtin_convertvector(dot, vf), fixed_spread(steps[m], v), sum[m]);
        }
    }
}

/* Row n for M tokens. */
CG_INLINE void fixed_row(const int M, const cg_product *p, int64_t n, int64_t t) {
    int64_t groups = p->K / CG_MXFP4_GROUP;
    const uint8_t *w = p->w + n * groups * CG_MXFP4_GROUP_BYTES, *scales = p->scales + n * groups;
    const uint8_t *end = scales + groups;
    const fixed_block *x[FIXED_TOKENS];
    vf sum[FIXED_TOKENS];
    for (int m = 0; m < M; m++) {
        x[m] = (const fixed_block *)p->x + (t + m) * fixed_blocks(p->K);
        sum[m] = vf_set(0.f);
    }
    for (; scales + FIXED_BLOCK <= end; scales += FIXED_BLOCK, w += FIXED_CODES) {
        for (int i = 0; i < FIXED_CODES; i += 64) __builtin_prefetch(w + FIXED_AHEAD_BYTES + i, 0, 3);
        fixed_groups(M, FIXED_BLOCK, w, scales, x, sum);
        for (int m = 0; m < M; m++) x[m]++;
    }
    if (scales < end) fixed_groups(M, end - scales, w, scales, x, sum);
    dot_finish_block(1, M, p, t, n, 1, sum, M);
}

static void CG_NAME(fixed_panel_hand)(const cg_product *p, int64_t n0, int64_t n1) {
    for (int64_t t = 0; t < p->T; t += FIXED_TOKENS)
        for (int64_t n = n0; n < n1; n++) switch (cg_min(p->T - t, FIXED_TOKENS)) { /* one stream of memory */
            case 1: fixed_row(1, p, n, t); break;
            case 2: fixed_row(2, p, n, t); break;
            case 3: fixed_row(3, p, n, t); break;
            default: fixed_row(FIXED_TOKENS, p, n, t);
            }
}

static cg_linear CG_NAME(fixed_linear_hand) = {.packed_bytes = CG_NAME(fixed_packed_bytes_hand),
                                               .pack = CG_NAME(fixed_pack_hand),
                                               .panel = CG_NAME(fixed_panel_hand)};
