/* linear_mxfp4_a16 for AVX2, AVX-512 and NEON. vpshufb or tbl looks up twice the weight as a byte. The upper byte of 16
   bits is 256 times its value, and a shift brings the lower byte there; vpmaddwd (vpdpwssd where the CPU has VNNI) or
   smlal multiplies these 16 bits by the activations. A vector holds the codes of G = 1, 2 or 4 groups; four vectors
   make a block, which has one vector of scales. A lane sums 8 products of at most 3072 * 32767, which fit an int32 and
   are exact in a float. A token gets the same bits alone and among others. */
#include "kernels/linear/dot.h"
#include "kernels/linear/lookup.h"
#include "kernels/linear/round.h"

enum {
    A16_TOKENS = 4, /* that a decoded row is multiplied by in registers; their blocks stay in the first-level cache */
    A16_AHEAD_BYTES = 2048,
    A16_G = CG_LANES / 4,
    A16_BLOCK = CG_LANES, /* groups */
    A16_CODES = A16_BLOCK * CG_MXFP4_GROUP_BYTES,
};

/* The packed activations of a block. The scales for vector v of codes are elements v, v + 4, v + 8, .. */
typedef struct {
    int16_t q[4][4][2 * CG_LANES]; /* [vector][element % 4][group][element / 4] */
    float scale[A16_BLOCK];        /* over 512, because the weights are multiplied by it */
} a16_block;

CG_INLINE int64_t a16_blocks(int64_t K) { return (K / CG_MXFP4_GROUP + A16_BLOCK - 1) / A16_BLOCK; }

static int64_t CG_NAME(a16_packed_bytes)(int64_t T, int64_t K) {
    return cg_round_up(T * a16_blocks(K) * (int64_t)sizeof(a16_block), 64);
}

static void CG_NAME(a16_pack)(void *packed, const cg_rows *x, CG_UNUSED int64_t T, int64_t K, int64_t t0, int64_t t1) {
    int64_t blocks = a16_blocks(K);
    for (int64_t t = t0; t < t1; t++)
        for (int64_t b = 0; b < blocks; b++) {
            a16_block *to = (a16_block *)packed + t * blocks + b;
            const float *from = cg_row_of(x, t) + b * A16_BLOCK * CG_MXFP4_GROUP;
            int groups = (int)cg_min(A16_BLOCK, K / CG_MXFP4_GROUP - b * A16_BLOCK);
            if (groups < A16_BLOCK) memset(to, 0, sizeof *to);
            for (int g = 0; g < groups; g++) {
                int16_t q[CG_MXFP4_GROUP];
                to->scale[g % A16_G * 4 + g / A16_G] =
                    group_round_a16(CG_MXFP4_GROUP, q, from + g * CG_MXFP4_GROUP) / 512.f;
                for (int c = 0; c < 4; c++) /* GCC vectorises this loop, but not a loop over i alone */
                    for (int i = 0; i < 8; i++) to->q[g / A16_G][c][g % A16_G * 8 + i] = q[4 * i + c];
            }
        }
}

/* The weights' scales of `groups` groups as floats, in the order of a16_block's. Missing ones are 1, not 0, because
   multiplying by a denormal takes as long as eight groups. Scale 0 is the denormal 2^-127. */
CG_INLINE vf a16_weight_scales(const uint8_t *scales, int64_t groups) {
    uint8_t some[16];
    if (groups < A16_BLOCK) {
        memset(some, 127, sizeof some);
        for (int64_t g = 0; g < groups; g++) some[g] = scales[g];
        scales = some;
    }
#if CG_LANES == 4
    uint32_t four;
    memcpy(&four, scales, sizeof four);
    vi exponent = (vi)vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four))));
#elif CG_LANES == 16
    __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    vi exponent = (vi)_mm512_cvtepu8_epi32(_mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)scales), order));
#else
    __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 0, 0, 0, 0, 0, 0, 0, 0);
    vi exponent = (vi)_mm256_cvtepu8_epi32(_mm_shuffle_epi8(_mm_loadl_epi64((const __m128i *)scales), order));
#endif
    return (vf)(exponent << 23 | ((exponent == 0) & 0x00400000));
}

/* The scales for vector v of codes, each in the four lanes of its group. */
CG_INLINE vf a16_spread(vf scales, const int v) {
#if CG_LANES == 4
    return vf_set(scales[v]);
#else
#define A16_SPREAD(imm) (vf) CG_MM(permute_ps)(scales, imm)
    return v == 0 ? A16_SPREAD(0x00) : v == 1 ? A16_SPREAD(0x55) : v == 2 ? A16_SPREAD(0xaa) : A16_SPREAD(0xff);
#undef A16_SPREAD
#endif
}

/* The codes of `groups` <= A16_G groups; zeros up to a vector. */
CG_INLINE vu a16_codes(const uint8_t *at, CG_UNUSED int64_t groups) {
#if CG_LANES == 16
    if (groups < A16_G) return (vu)_mm512_maskz_loadu_epi32((__mmask16)((1u << 4 * groups) - 1), at);
#elif CG_LANES == 8
    if (groups < A16_G) return (vu)_mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *)at));
#endif
    return (vu)vi_load(at);
}

/* The weights times 512: w[c] has the elements 4i + c of each group. */
CG_INLINE void a16_weights(vs *w, vu codes) {
    static const int8_t doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    const vu table = vu_repeat(doubled);
    vs low = (vs)vu_lookup(table, codes & 0x0f0f0f0f), high = (vs)vu_lookup(table, vu_upper(codes));
    w[0] = low << 8;
    w[1] = high << 8;
    w[2] = low & (int16_t)0xff00;
    w[3] = high & (int16_t)0xff00;
}

/* sum[m] += the block of `groups` groups times the activations of token m. */
CG_INLINE void a16_groups(const int M, int64_t groups, const uint8_t *w, const uint8_t *scales,
                          const a16_block *const *x, vf *sum) {
    vf weight_scales = a16_weight_scales(scales, groups), products[A16_TOKENS];
    for (int m = 0; m < M; m++) products[m] = weight_scales * vf_load(x[m]->scale);
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) {
        if (v * A16_G >= groups) break;
        int64_t left = groups == A16_BLOCK ? A16_G : cg_min(A16_G, groups - v * A16_G);
        vs weights[4];
        a16_weights(weights, a16_codes(w + v * A16_G * CG_MXFP4_GROUP_BYTES, left));
        for (int m = 0; m < M; m++) {
            vi dot = {0};
            for (int c = 0; c < 4; c++) dot = vs_dot_pairs(dot, weights[c], (vs)vi_load(x[m]->q[v][c]));
            sum[m] = vf_fma(__builtin_convertvector(dot, vf), a16_spread(products[m], v), sum[m]);
        }
    }
}

/* Row n for M tokens. */
CG_INLINE void a16_row(const int M, const cg_product *p, int64_t n, int64_t t) {
    int64_t groups = p->K / CG_MXFP4_GROUP;
    const uint8_t *w = p->w + n * groups * CG_MXFP4_GROUP_BYTES, *scales = p->scales + n * groups;
    const uint8_t *end = scales + groups;
    const a16_block *x[A16_TOKENS];
    vf sum[A16_TOKENS];
    for (int m = 0; m < M; m++) {
        x[m] = (const a16_block *)p->x + (t + m) * a16_blocks(p->K);
        sum[m] = vf_set(0.f);
    }
    for (; scales + A16_BLOCK <= end; scales += A16_BLOCK, w += A16_CODES) {
        for (int i = 0; i < A16_CODES; i += 64) __builtin_prefetch(w + A16_AHEAD_BYTES + i, 0, 3);
        a16_groups(M, A16_BLOCK, w, scales, x, sum);
        for (int m = 0; m < M; m++) x[m]++;
    }
    if (scales < end) a16_groups(M, end - scales, w, scales, x, sum);
    dot_finish(1, M, p, t, n, 1, sum, M);
}

static void CG_NAME(a16_panel)(const cg_product *p, int64_t n0, int64_t n1) {
    for (int64_t t = 0; t < p->T; t += A16_TOKENS)
        for (int64_t n = n0; n < n1; n++)
            switch (cg_min(p->T - t, A16_TOKENS)) { /* one row after the other: one stream of memory */
            case 1: a16_row(1, p, n, t); break;
            case 2: a16_row(2, p, n, t); break;
            case 3: a16_row(3, p, n, t); break;
            default: a16_row(A16_TOKENS, p, n, t);
            }
}

static cg_linear CG_NAME(linear_mxfp4_a16) = {
    .packed_bytes = CG_NAME(a16_packed_bytes), .pack = CG_NAME(a16_pack), .panel = CG_NAME(a16_panel)};
