/* cgpt's kernels: the contracts.

   Dimensions, the same letters in C, Cython, Python and tests:
     T tokens   C model width   N outputs   K inputs   H query heads   G key/value heads   D head dimension
     E experts  V vocabulary
   Activations are f32, row-major; a *_stride counts elements of its array unless it ends in _bytes.
   Kernels do not allocate, print, exit or keep state, and their frames are below 64 KB: threads may have small stacks. Every float result depends on its own row alone, never on the
   number of threads; the functions called *_tile also let the order of a sum depend on the number of tokens, and those
   for bf16 products round activations, as do *_fixed and *_a8.

   A kernel here works on one share of the job and knows nothing of threads; the drivers at the end of this file
   cut the job into shares. */
#ifndef CGPT_H
#define CGPT_H

#include "types.h"

/* ------------------------------------------------------------------------------------------- one row at a time */

/* out[C] = table[id] (+ positions[pos] where positions is given). Tables of any float dtype, row-major [.., C]. */
typedef void cg_embed_fn(float *out, const void *table, cg_dtype dtype, int64_t id, const void *positions,
                         cg_dtype positions_dtype, int64_t position, int64_t C);

/* out = (x - mean) / sqrt(var + eps) * weight + bias over C values. out may be x. Ba et al., arXiv:1607.06450. */
typedef void cg_layernorm_fn(float *out, const float *x, const float *weight, const float *bias, float eps, int64_t C);

/* out = x / sqrt(mean(x^2) + eps) * weight over C values. out may be x. Zhang & Sennrich, arXiv:1910.07467. */
typedef void cg_rmsnorm_fn(float *out, const float *x, const float *weight, float eps, int64_t C);

/* Rotates `heads` consecutive heads of D values in place, half-split pairs (d, d + D/2); cos and sin [D/2] with
   YaRN's concentration already in them. Su et al., arXiv:2104.09864; Peng et al., arXiv:2309.00071. */
typedef void cg_rope_fn(float *x, const float *cos, const float *sin, int64_t heads, int64_t D);

/* x = f(x) for n values, in place. */
typedef enum { CG_GELU_TANH, CG_GELU_ERF, CG_QUICK_GELU, CG_RELU, CG_SILU, CG_TANH, CG_ACTIVATIONS } cg_activation;
typedef void cg_activation_fn(float *x, cg_activation which, int64_t n);

/* out[I] from gate_up[2I], gates at even places and ups at odd ones, as gpt-oss stores them:
   g = min(gate, limit), u = clip(up, -limit, limit), out = g sigmoid(alpha g) (u + 1). Shazeer, arXiv:2002.05202. */
typedef void cg_swiglu_fn(float *out, const float *gate_up, float alpha, float limit, int64_t I);

/* The k largest of E logits, largest first and the lower index on a tie, and their softmax. A NaN anywhere among the
   logits makes every weight NaN. */
typedef void cg_topk_fn(int32_t *index, float *weight, const float *logits, int64_t E, int64_t k);

/* out[t] += sum over j < k of weight[j] * y[slot[j]] for C values, in the order of j. */
typedef void cg_combine_fn(float *out, const float *y, int64_t y_stride, const int32_t *slot, const float *weight,
                           int64_t k, int64_t C);

/* out[groups * 32] = the exact f32 values of MXFP4 blocks [groups, 16] and scales [groups]; scale 255 gives NaN. */
typedef void cg_mxfp4_dequantize_fn(float *out, const uint8_t *blocks, const uint8_t *scales, int64_t groups);

/* A row of K floats of any float dtype as INT8: scales[g] = the group's largest / 127, rounded up to bf16; out = x / scale,
   to nearest, zeros up to a whole group. A group below 2^-100 is zero; one that is not finite has scale NaN. */
typedef void cg_quantize_int8_fn(int8_t *out, uint16_t *scales, const void *x, cg_dtype dtype, int64_t K);

/* ------------------------------------------------------------------------------------------------------ linear */

/* y[t][n] = sum over k of x[t][k] w[n][k] (+ bias[n]) (+ y[t][n] where add). */
typedef struct {
    const uint8_t *w;      /* rows of K weights, row-major; MXFP4: nibbles [N, K/32, 16] */
    const uint8_t *scales; /* MXFP4: [N, K/32]; INT8: bf16 [N, K/64 rounded up]; else NULL */
    const float *bias;     /* [N] or NULL */
    const void *x;         /* what pack() wrote */
    float *y;
    int64_t y_stride;
    int64_t T, K;
    int add;
    void *work; /* cg_work_bytes(), 64-byte aligned, which no other call uses meanwhile */
} cg_product;

/* Rows of activations: row t begins at data + index[t] * stride (index NULL: t). */
typedef struct {
    const float *data;
    int64_t stride;
    const int32_t *index;
} cg_rows;
static inline const float *cg_row_of(const cg_rows *x, int64_t t) {
    return x->data + (x->index ? x->index[t] : t) * x->stride;
}

/* One way to multiply by weights of one dtype. */
typedef const struct {
    /* Bytes that pack() needs for T tokens; a multiple of 64. */
    int64_t (*packed_bytes)(int64_t T, int64_t K);
    /* Brings rows t0 <= t < t1 of the T into the order that panel() reads. t0 is a multiple of 16; t1 too, or T. */
    void (*pack)(void *packed, const cg_rows *x, int64_t T, int64_t K, int64_t t0, int64_t t1);
    /* The outputs n0 <= n < n1 for all T tokens. n0 is a multiple of 16. */
    void (*panel)(const cg_product *p, int64_t n0, int64_t n1);
    /* More tokens are another kernel's; 0: it takes any number. */
    int64_t most_tokens;
    /* Fewer tokens are faster by another kernel. */
    int64_t least_tokens;
    /* Bytes of memory that panel() works in: some, and some for each input. */
    int64_t work_bytes, work_bytes_per_input;
} cg_linear;
static inline int64_t cg_work_bytes(cg_linear *kernel, int64_t K) {
    return cg_round_up(kernel->work_bytes + kernel->work_bytes_per_input * cg_round_up(K, CG_INT8_GROUP), 64);
}

/* --------------------------------------------------------------------------------------------------- attention */

/* The keys and values of one sequence in one layer, f32, f16 or bf16. Block b holds positions
   32b .. 32b+31: keys as 2 panels [D, 16], so that 16 scores come from one pass over D, values as Dv / 16 panels
   [32, 16], Dv = D rounded up to 16. It is stored at b % blocks, so that a sliding layer is a ring. */
typedef struct {
    void *k; /* [G, blocks, 2, D, 16] */
    void *v; /* [G, blocks, Dv / 16, 32, 16] */
    int64_t blocks;
    cg_dtype dtype;
} cg_kv;

/* Puts the T keys and values of head g (rows k and v, D floats, stride kv_stride) at positions start .. start+T-1,
   rounded to nearest even where the cache is of 16 bits; what f16 cannot hold becomes infinity. */
typedef void cg_kv_append_fn(const cg_kv *kv, const float *k, const float *v, int64_t kv_stride, int64_t start,
                             int64_t T, int64_t g, int64_t D);

/* Causal attention of T queries at positions start .. start+T-1; out[t][h] = softmax(q k * scale) v over the positions
   p with max(0, pos - window + 1) <= p <= pos (window 0: all). A sink adds exp(sink[h]) to the denominator. Blocks
   >= first_fresh come from `fresh` (its block 0 is first_fresh), earlier ones from `past`, the sequence's cache.
   Online softmax over blocks aligned to absolute positions: Milakov & Gimelshein, arXiv:1805.02867; partial sums of
   spans of a long cache: Dao et al., "Flash-Decoding" (2023); sinks: Xiao et al., arXiv:2309.17453, as learned in
   gpt-oss. */
typedef struct {
    const float *q;
    int64_t q_stride; /* per token */
    float *out;
    int64_t out_stride; /* per token */
    const float *k, *v; /* the T new keys and values, G heads each */
    int64_t kv_stride;  /* per token */
    cg_kv past, fresh;
    int64_t first_fresh; /* a block */
    int64_t start, T, window;
    int64_t H, G, D;
    const float *sinks; /* [H] or NULL */
    float scale;
} cg_attention;

/* (token, head) rows of one key/value head are numbered t * H/G + h; a share is up to cg_attention_rows(D) of them. */
enum {
    CG_ATTENTION_ROWS = 32,
    CG_ATTENTION_FLOATS = CG_MAX_HEAD_DIM,                                         /* rows * D */
    CG_ATTENTION_STATE = CG_ATTENTION_FLOATS + 3 * CG_V_ALIGN * CG_ATTENTION_ROWS, /* floats of a share's state */
};
static inline int64_t cg_attention_rows(int64_t D) { return cg_min(CG_ATTENTION_ROWS, CG_ATTENTION_FLOATS / D); }
static inline int64_t cg_attention_stride(int64_t D) { return cg_round_up(D, CG_V_ALIGN) + 2 * CG_V_ALIGN; }

/* Floats of memory that the attention of a share works in: its queries, a state, a block's keys and values. */
static inline int64_t cg_attention_work(int64_t D) {
    return CG_ATTENTION_FLOATS + CG_ATTENTION_STATE + CG_KV_BLOCK * (D + cg_round_up(D, CG_V_ALIGN));
}

/* What is known of the rows after the spans span0 .. span1-1 (of CG_KV_SPAN positions each). A row of `state` has
   cg_attention_stride(D) floats: [Dv] the sum over p of e^(score - top) v[p], [16] that of e^(score - top) in any number
   of lanes, and `top`, the largest score. work: cg_attention_work(D) floats, 64-byte aligned, which no other call uses
   meanwhile. */
typedef void cg_attention_fn(const cg_attention *a, int64_t g, int64_t row0, int64_t row1, int64_t span0, int64_t span1,
                             float *state, float *work);
/* Writes the rows of out from n such states [n, rows, stride], in the order of their spans; overwrites the first. */
typedef void cg_attention_merge_fn(const cg_attention *a, int64_t g, int64_t row0, int64_t row1, int64_t n,
                                   float *states);

/* ---------------------------------------------------------------------------------------------------- sampling */

/* What is known of one token of a sequence. */
typedef struct {
    int32_t id;
    int32_t seen;  /* 1: in the sequence, prompt included, so the repetition penalty applies */
    int32_t count; /* times it was chosen */
    float bias;
} cg_logit_change;

/* How a token is chosen. The settings apply in this order: the changes of logits, temperature, top_k, top_p, min_p.
   Changes, in f32: logit * repetition_penalty (negative) or / (positive) where seen; + bias. With presence or frequency
   penalties, in f64 from there: (logit - presence (count > 0)) - f32(frequency * count) + bias. */
typedef struct {
    double temperature; /* 0: the largest logit, the lower id on a tie */
    int64_t top_k;      /* the k largest logits; V or more: all */
    double top_p;       /* of those, the fewest likeliest whose weights reach top_p of their sum; 1: all */
    double min_p;       /* of those, the ones of min_p times the largest weight or more; 0: all */
    double presence_penalty;
    float frequency_penalty, repetition_penalty;
    const cg_logit_change *changes; /* [n_changes], ids ascending */
    int64_t n_changes;
} cg_sampling;

/* Tokens whose weights are added up by themselves; the bins that values are sorted into. */
enum { CG_LOGITS_BLOCK = 256, CG_LOGITS_BINS_LOG2 = 11 };
static inline int64_t cg_logits_blocks(int64_t V) { return (V + CG_LOGITS_BLOCK - 1) / CG_LOGITS_BLOCK; }
/* Bytes of scratch of the two kernels below, 64-byte aligned; they touch much of it for flat distributions only. */
static inline int64_t cg_logits_scratch(int64_t V) {
    return cg_round_up(cg_logits_blocks(V) * (16 + 24 * CG_LOGITS_BLOCK) + (8 << CG_LOGITS_BINS_LOG2), 64);
}

/* The id of the next token after one row of logits [V]; draw, in [0, 1), is used where temperature > 0. largest: the
   largest logit as changed; where that is not finite, there is no choice, and the result is -1. */
typedef int64_t cg_sample_fn(double *largest, const cg_sampling *s, const float *logits, int64_t V, double draw,
                             void *scratch);

/* log p[i] = (logits[i] - largest) - log_sum; ids ascending, top: the k <= V largest log p, the lower ids on a tie. All
   NaN where the largest logit is not finite. */
typedef void cg_logprobs_fn(double *largest, double *log_sum, int32_t *ids, double *top, const float *logits, int64_t V,
                            int64_t k, void *scratch);

/* ---------------------------------------------------------------------------------------- what the machine can do */

/* The exclusive or of n words. */
typedef uint32_t cg_read_fn(const uint32_t *data, int64_t n);

/* Multiply-adds as fast as they go, from registers, on a single core. With one = 1 the result of run() is
   flops / 2 * rounds * x (peak_a8's sums are integers; exact while it is an integer below 2^24): nothing of the work can be left out. */
typedef const struct {
    int64_t flops; /* of a round; a multiply-add is two */
    float (*run)(float one, float x, int64_t rounds);
} cg_peak;

/* ----------------------------------------------------------------------------------- the table, and who fills it */

typedef struct {
#define KERNEL(name, type) type *name;
#include "kernels.def"
#undef KERNEL
} cg_kernels;

enum {
    CG_KERNEL_COUNT = 0
#define KERNEL(name, type) +1
#include "kernels.def"
#undef KERNEL
};

typedef enum { CG_REF, CG_AVX2, CG_AVX512, CG_AMX, CG_LEVELS } cg_level;

extern const cg_kernels *cg_active; /* what the drivers call */
const char *cg_level_name(cg_level level);
cg_level cg_highest_level(void);            /* of this machine and build */
const char *cg_missing_for(cg_level level); /* the first thing that keeps a level out, or NULL */
cg_status cg_use_level(cg_level level);     /* CG_BAD_VALUE beyond the highest */
/* Pretend that the CPU lacks a feature, and those that came with it or later; takes effect with cg_use_level. */
typedef enum { CG_NO_FEATURE, CG_AVX512_VNNI, CG_AVX512_BF16 } cg_feature;
void cg_mask_feature(cg_feature feature);
cg_level cg_current_level(void);
const char *cg_kernel_name(int slot);
const char *cg_kernel_variant(int slot); /* "ref", "avx2", ..., or "-" for none */

/* --------------------------------------------------------------------------------------------------- the drivers */

/* How activations are multiplied: what is faster without losing more than bf16 does, as f32 everywhere, or also as 8-bit
   integers where the weights have 8 bits or 4. */
typedef enum { CG_PRECISION_AUTO, CG_PRECISION_EXACT, CG_PRECISION_INT8 } cg_precision;

typedef struct {
    int threads;
    cg_precision precision;
    void *scratch; /* 64-byte aligned */
    int64_t scratch_bytes;
} cg_context;

/* A weight matrix, or E of them stacked. */
typedef struct {
    cg_dtype dtype;
    int64_t E, N, K;
    const uint8_t *data;
    const uint8_t *scales; /* MXFP4, INT8 */
    const float *bias;     /* [E, N] or NULL */
} cg_matrix;

int cg_has_openmp(void);
/* Where the system has started fewer threads than `wanted` (the last time that happened): how many; else 0. */
int cg_threads_short(int *wanted);
/* Writes the CPUs of the places that OpenMP binds threads to, at most `most`, and returns how many; 0: it binds none. */
int cg_openmp_places(int *cpus, int most);

/* Bytes of scratch that linear needs for T tokens: packed activations, and memory for each thread to work in. */
int64_t cg_linear_scratch(const cg_context *ctx, const cg_matrix *w, int64_t T);
/* The most tokens, `most` at the highest, that a product may have for every one to get the bits it gets alone. */
int64_t cg_uniform_tokens(const cg_matrix *w, int64_t most, cg_precision precision);
cg_status cg_run_linear(const cg_context *ctx, float *y, int64_t y_stride, const float *x, int64_t x_stride, int64_t T,
                        const cg_matrix *w, int add);

int64_t cg_moe_scratch(const cg_context *ctx, const cg_matrix *gate_up, const cg_matrix *down, int64_t T, int64_t k);
/* out[t] += sum over the k chosen experts of weight * (down(swiglu(gate_up(x[t])))). index, weight [T, k]. */
cg_status cg_run_moe(const cg_context *ctx, float *out, int64_t out_stride, const float *x, int64_t x_stride, int64_t T,
                     const int32_t *index, const float *weight, int64_t k, const cg_matrix *gate_up,
                     const cg_matrix *down, float alpha, float limit);

/* Attention of n sequences of the same H, G and D over their caches, a[i].past, to which their new keys and values are
   added. a->fresh and a->first_fresh are set here. A ring may be as small as the window rounded up to 32: the keys that
   a chunk would overwrite too early wait in scratch. */
enum { CG_ATTENTION_MOST = 16 }; /* n at the highest */
int64_t cg_attention_scratch(const cg_context *ctx, const cg_attention *a, int64_t n);
cg_status cg_run_attention(const cg_context *ctx, cg_attention *a, int64_t n);

/* dst[cols, rows] = transpose of src[rows, cols] of f32, f16 or bf16; dst_dtype is the same, or bf16. */
cg_status cg_run_transpose(int threads, void *dst, cg_dtype dst_dtype, const void *src, cg_dtype src_dtype,
                           int64_t rows, int64_t cols);

/* out[N, K rounded up to CG_INT8_GROUP] and scales[N, groups] from floats [N, K], or [K, N] where `turned`. */
cg_status cg_run_quantize_int8(int threads, int8_t *out, uint16_t *scales, const void *src, cg_dtype dtype, int64_t N,
                               int64_t K, int turned);

typedef void cg_row_fn(void *job, int64_t row);
/* Calls fn for every row, in parallel where rows * cost (about one float operation each) is worth a fork. */
void cg_for_rows(int threads, int64_t rows, int64_t cost, cg_row_fn *fn, void *job);

#endif
