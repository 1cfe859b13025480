/* The contracts of cgpt's kernels.

   The dimensions have the same letters in C, Cython, Python and tests:
     T tokens   C model width   N outputs   K inputs   H query heads   G key/value heads   D head dimension
     E experts  V vocabulary    I width of an expert
   Activations are f32 and row-major. A *_stride counts elements of its array unless its name ends in _bytes.

   Kernels do not allocate, print, exit or keep state. Their stack frames are below 64 KB because threads may have small
   stacks. Each row of a float result depends on its own inputs alone, never on the number of threads. Two kinds of
   kernels give more bits away for speed: in a *_tile kernel the order of a sum also depends on the number of tokens,
   and the *_a16, *_a8 and bf16 kernels round activations.

   A kernel works on one partition of a job and knows nothing of threads. The drivers at the end of this file cut jobs
   into partitions. */
#pragma once

#include "types.h"

/* ---------------------------------------------------------------------------------------------- weight matrices */

/* Where the weights and scales of one expert lie. */
typedef struct {
    const uint8_t *data, *scales;
} cg_expert;

/* A weight matrix [N, K], or E of them. */
typedef struct {
    cg_dtype dtype;
    int64_t E, N, K;
    const uint8_t *data;
    const uint8_t *scales;    /* MXFP4, INT8 and BF16_PACKED, as in cg_product; else NULL */
    const float *bias;        /* [E, N] or NULL */
    const cg_expert *experts; /* [E], data NULL of those that are not in memory; NULL: all lie in data and scales */
} cg_matrix;

/* ------------------------------------------------------------------------------------------- one row at a time */

/* out[C] = table[id] (+ positions[position] unless positions is NULL). Tables are [.., C] of any float dtype, or
   BF16_PACKED; those of floats need not be aligned. */
typedef void cg_embed_fn(float *out, const cg_matrix *table, int64_t id, const cg_matrix *positions, int64_t position);

/* out = (x - mean) / sqrt(var + eps) * weight + bias over C values. out may be x. Ba et al., arXiv:1607.06450. */
typedef void cg_layernorm_fn(float *out, const float *x, const float *weight, const float *bias, float eps, int64_t C);

/* out = x / sqrt(mean(x^2) + eps) * weight over C values. out may be x. Zhang & Sennrich, arXiv:1910.07467. */
typedef void cg_rmsnorm_fn(float *out, const float *x, const float *weight, float eps, int64_t C);

/* Rotates `heads` consecutive heads of D values in place. The pairs are (d, d + D/2); cos and sin are [D/2] and include
   YaRN's attention factor. Su et al., arXiv:2104.09864; Peng et al., arXiv:2309.00071. */
typedef void cg_rope_fn(float *x, const float *cos, const float *sin, int64_t heads, int64_t D);

/* x = f(x) for n values, in place. */
typedef enum { CG_GELU_TANH, CG_GELU_ERF, CG_QUICK_GELU, CG_RELU, CG_SILU, CG_TANH, CG_ACTIVATIONS } cg_activation;
typedef void cg_activation_fn(float *x, cg_activation which, int64_t n);

/* out[I] from gate_up[2I], whose even elements are gates and whose odd ones are ups, as gpt-oss stores them:
   g = min(gate, limit), u = clip(up, -limit, limit), out = g sigmoid(alpha g) (u + 1). Shazeer, arXiv:2002.05202. */
typedef void cg_swiglu_fn(float *out, const float *gate_up, float alpha, float limit, int64_t I);

/* The k largest of E logits, largest first and the lower index first on a tie, and the softmax over those k. A NaN
   anywhere among the logits makes every weight NaN. */
typedef void cg_topk_fn(int32_t *index, float *weight, const float *logits, int64_t E, int64_t k);

/* out += sum over j < k of weight[j] * y[slot[j]], each [C], summed in the order of j. */
typedef void cg_combine_fn(float *out, const float *y, int64_t y_stride, const int32_t *slot, const float *weight,
                           int64_t k, int64_t C);

/* out[groups * 32] = the exact f32 values of MXFP4 blocks [groups, 16] and scales [groups]. Scale 255 gives NaN. */
typedef void cg_mxfp4_dequantize_fn(float *out, const uint8_t *blocks, const uint8_t *scales, int64_t groups);

/* Quantises a row of K floats of any float dtype to INT8: scales[g] (bf16) = the group's largest magnitude / 127,
   rounded up; out = x / scale, rounded to nearest, with zeros up to a whole group. Or to INT4: the scale among a few
   and the codes that have the least squared error; what is behind the end of a row has any code. A group whose largest
   magnitude is below 2^-100 becomes zero. A group that is not finite gets scale NaN. x need not be aligned. */
typedef void cg_quantize_fn(uint8_t *out, uint8_t *scales, const void *x, cg_dtype dtype, int64_t K);

/* out[groups * 64] = the integers of INT4 codes [groups, 32]. */
typedef void cg_int4_decode_fn(uint8_t *out, const uint8_t *codes, int64_t groups);

/* ------------------------------------------------------------------------------------------------------ linear */

/* y[t][n] = sum over k of x[t][k] w[n][k] (+ bias[n]) (+ y[t][n] where add). */
typedef struct {
    const uint8_t *w;      /* rows of K weights, row-major; MXFP4: nibbles [N, K/32, 16] */
    const uint8_t *scales; /* MXFP4: [N, K/32]; INT8, INT4: bf16 [N, K/64 rounded up]; BF16_PACKED: bf16 [.., K], the
                              rows of the matrix that are stored as they are, or NULL; else NULL */
    const float *bias;     /* [N] or NULL */
    const void *x;         /* what pack() wrote */
    float *y;
    int64_t y_stride;
    int64_t T, K;
    int add;
    void *work; /* cg_work_bytes() that no other call uses at the same time, 64-byte aligned */
} cg_product;

/* Rows of activations: row t begins at data + index[t] * stride, or at data + t * stride where index is NULL. */
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
    /* The bytes that pack() needs for T tokens; a multiple of 64. */
    int64_t (*packed_bytes)(int64_t T, int64_t K);
    /* Packs rows t0 <= t < t1 of the T tokens for panel(). t0 is a multiple of 16; t1 is a multiple of 16, or T. */
    void (*pack)(void *packed, const cg_rows *x, int64_t T, int64_t K, int64_t t0, int64_t t1);
    /* Computes outputs n0 <= n < n1 of all T tokens. n0 is a multiple of 16. */
    void (*panel)(const cg_product *p, int64_t n0, int64_t n1);
    /* The most tokens that it can multiply; 0: any number. */
    int64_t max_tokens;
    /* The fewest tokens for which it is the fastest. */
    int64_t min_tokens;
    /* The fewest tokens of a step for it, where a product has only those of an expert; 0: any number. Shorter steps
       give each token the bits that it gets alone (cg_uniform_tokens). */
    int64_t min_step;
    /* The memory that panel() works in: a constant, and for each input. */
    int64_t work_bytes, work_bytes_per_input;
} cg_linear;
static inline int64_t cg_work_bytes(cg_linear *kernel, int64_t K) {
    return cg_round_up(kernel->work_bytes + kernel->work_bytes_per_input * cg_round_up(K, CG_INT8_GROUP), 64);
}

/* --------------------------------------------------------------------------------------------------- attention */

/* The keys and values of one sequence in one layer, in f32, f16, bf16 or int8. Block b holds positions 32b .. 32b+31:
   its keys as two panels [D, 16], so that one pass over D gives 16 scores, its values as Dv / 16 panels [32, 16], where
   Dv is D rounded up to 16. Block b is stored at b % blocks, so that the cache of a sliding window is a ring.

   int8: a row (of a head, at a position) is integers of -127 .. 127 times an f32 scale. Two numbers that are summed
   into one stand side by side, for instructions that multiply pairs: keys as [Dk / 2, 16, 2], where Dk is D rounded up
   to 2, values as [16, 16, 2], where the two are positions j and j + 16 of the block. A panel of keys ends in its 16
   scales and in those of the values at the same positions. */
typedef struct {
    void *k; /* [G, blocks, 2, D, 16]; int8: bytes [G, blocks, 2, Dk + 8, 16] */
    void *v; /* [G, blocks, Dv / 16, 32, 16] */
    int64_t blocks;
    cg_dtype dtype;
} cg_kv;

/* The bytes of a panel of keys, and of all values of a block. */
static inline int64_t cg_kv_panel_bytes(cg_dtype d, int64_t D) {
    return CG_KV_PANEL * (d == CG_INT8 ? cg_round_up(D, 2) + 8 : D * (int64_t)cg_dtype_bytes(d));
}
static inline int64_t cg_kv_value_bytes(cg_dtype d, int64_t D) {
    return CG_KV_BLOCK * cg_round_up(D, CG_V_ALIGN) * (int64_t)cg_dtype_bytes(d);
}

/* Stores the T keys and values of head g (rows k and v of D floats, every kv_stride) at positions start .. start+T-1.
   A 16-bit cache rounds to nearest even; what f16 cannot hold becomes infinity. int8: the scale is the row's largest
   magnitude / 127; below 2^-100 the row is 0, and where it is not finite the scale is infinite. */
typedef void cg_kv_append_fn(const cg_kv *kv, const float *k, const float *v, int64_t kv_stride, int64_t start,
                             int64_t T, int64_t g, int64_t D);

/* Causal attention of T queries at positions start .. start+T-1: out[t][h] = softmax(q k * scale) v over the positions
   p with max(0, position - window + 1) <= p <= position (window 0: all earlier ones). A sink adds exp(sink[h]) to the
   denominator. Blocks >= first_fresh are read from `fresh`, whose block 0 is first_fresh, and earlier ones from `past`,
   the sequence's cache. Online softmax over blocks of absolute positions: Milakov & Gimelshein, arXiv:1805.02867; KV
   splits of a long cache: Dao et al., "Flash-Decoding" (2023); sinks: Xiao et al., arXiv:2309.17453, learned in
   gpt-oss. */
typedef struct {
    const float *q;
    int64_t q_stride; /* per token */
    float *out;
    int64_t out_stride; /* per token */
    const float *k, *v; /* the T new keys and values of G heads */
    int64_t kv_stride;  /* per token */
    cg_kv past, fresh;
    int64_t first_fresh; /* a block */
    int64_t start, T, window;
    int64_t H, G, D;
    const float *sinks; /* [H] or NULL */
    float scale;
} cg_attention;

/* A partition: rows row0 .. row1-1 of key/value head g, where row t * H/G + h is query head h of token t, and the KV
   splits split0 .. split1-1, each of CG_KV_SPLIT positions. It has up to cg_attention_rows(D) rows. */
typedef struct {
    int64_t g, row0, row1, split0, split1;
    float *state;       /* the result so far: [rows, cg_attention_stride(D)] */
    int64_t state_step; /* floats from the state of a KV split to that of the next; 0: they are merged in one */
    float *work;        /* cg_attention_work(D) floats that no other call uses at the same time, 64-byte aligned */
} cg_attention_part;

enum {
    CG_ATTENTION_ROWS = 32,
    CG_ATTENTION_FLOATS = CG_MAX_HEAD_DIM,                                         /* rows * D at the most */
    CG_ATTENTION_STATE = CG_ATTENTION_FLOATS + 3 * CG_V_ALIGN * CG_ATTENTION_ROWS, /* floats of a state at the most */
};
static inline int64_t cg_attention_rows(int64_t D) { return cg_min(CG_ATTENTION_ROWS, CG_ATTENTION_FLOATS / D); }
static inline int64_t cg_attention_stride(int64_t D) { return cg_round_up(D, CG_V_ALIGN) + 2 * CG_V_ALIGN; }
/* Queries, the state of one KV split, and the keys and values of one block. */
static inline int64_t cg_attention_work(int64_t D) {
    return CG_ATTENTION_FLOATS + CG_ATTENTION_STATE + CG_KV_BLOCK * (D + cg_round_up(D, CG_V_ALIGN));
}

/* Writes the state of the partition's rows over its KV splits. A row of it is [Dv] the sum over p of e^(score - max)
   v[p], [16] the sum of e^(score - max) spread over any of the lanes, and first of
   the last 16 `max`, the largest score. */
typedef void cg_attention_fn(const cg_attention *a, const cg_attention_part *part);
/* Writes the partition's rows of out from the states [n, rows, stride] of n runs of KV splits, in the order of their
   positions. Overwrites the first state. */
typedef void cg_attention_merge_fn(const cg_attention *a, const cg_attention_part *part, int64_t n);

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

/* Multiply-adds in registers on one core, as many a second as it can do. With one = 1 run() returns
   flops / 2 * rounds * x, so that no part of the work can be left out. (The sums of peak_a8 are integers; the result is
   exact while it is an integer below 2^24.) */
typedef const struct {
    int64_t flops; /* of one round; a multiply-add counts as two */
    float (*run)(float one, float x, int64_t rounds);
} cg_peak;

/* ----------------------------------------------------------------------------------- the table, and who fills it */

typedef struct {
#define KERNEL(name, type) type *name;
#include "kernels.def"
} cg_kernels;

enum { CG_KERNEL_COUNT = sizeof(cg_kernels) / sizeof(void *) };

/* The levels of x86-64, and in their places those of aarch64. */
typedef enum { CG_REF, CG_AVX2, CG_AVX512, CG_AMX, CG_LEVELS, CG_NEON = 1, CG_DOTPROD, CG_I8MM } cg_level;

extern const cg_kernels *cg_active; /* the kernels that the drivers call */
const char *cg_level_name(cg_level level);
const char *cg_missing_for(cg_level level); /* the first feature that a level needs and the machine lacks, or NULL */
/* Makes it the level in use, on a CPU that is treated as one without the masked feature and those that came with it or
   later; or returns what is missing for that, and changes nothing. */
typedef enum {
    CG_NO_FEATURE,
    CG_AVX512_VNNI,
    CG_AVX512_BF16,
    CG_FEATURES,
    CG_MASK_DOTPROD = 1,
    CG_MASK_I8MM
} cg_feature;
const char *cg_use_level(cg_level level, cg_feature mask);
cg_level cg_current_level(void);
const char *cg_feature_name(cg_feature feature); /* "" for none */
const char *cg_kernel_name(int slot);
const char *cg_kernel_variant(int slot); /* "ref", "avx2", ..., or "-" where the level has none */

/* --------------------------------------------------------------------------------------------------- the drivers */

/* How products treat activations. AUTO: rounded where that is faster and loses no more than bf16 does. EXACT: f32.
   INT8: as AUTO, and rounded to 8 bits where weights have 8 or 4 bits. */
typedef enum { CG_PRECISION_AUTO, CG_PRECISION_EXACT, CG_PRECISION_INT8 } cg_precision;

typedef struct {
    int threads;
    cg_precision precision;
    void *scratch; /* 64-byte aligned */
    int64_t scratch_bytes;
} cg_context;

/* What this build has threads of. */
const char *cg_thread_runtime(void);
/* Where the system has started fewer threads than `wanted` (the last time that happened), how many it has started; 0
   where it never happened. */
int cg_threads_short(int *wanted);
/* From now on a SIGBUS (Linux) first writes to stderr which mapped file could not be read. For programs, not libraries.
 */
void cg_name_bus_errors(void);
/* Writes at most `max` of the CPUs of OpenMP's places, and returns how many; 0 where OpenMP binds no thread. */
int cg_openmp_places(int *cpus, int max);

/* The bytes of scratch that linear needs for T tokens: packed activations, and memory for each thread to work in. */
int64_t cg_linear_scratch(const cg_context *ctx, const cg_matrix *w, int64_t T);
/* The largest number of tokens, `limit` at the most, of which each gets the bits that it gets alone. */
int64_t cg_uniform_tokens(const cg_matrix *w, int64_t limit, cg_precision precision);
/* y[t] = x[t] w^T + bias (+ y[t] where add), for T tokens. */
cg_status cg_run_linear(const cg_context *ctx, float *y, int64_t y_stride, const float *x, int64_t x_stride, int64_t T,
                        const cg_matrix *w, int add);

/* Mixture of experts: out[t] += sum over j < k of weight[t][j] * down_e(swiglu(gate_up_e(x[t]))), e = index[t][j]. */
typedef struct {
    float *out;
    int64_t out_stride;
    const float *x;
    int64_t x_stride, T;
    const int32_t *index; /* [T, k] */
    const float *weight;  /* [T, k] */
    int64_t k;
    const cg_matrix *gate_up, *down; /* [E, 2I, C], [E, C, I] */
    float alpha, limit;              /* of swiglu */
    /* NULL; or [T * k, I], where swiglu's results lie between two phases, the slots by expert. Then gate_up may have
       only the rows of some of these columns, from act_column on, and whoever has the others fills them in. */
    float *act;
    int64_t act_column;
} cg_moe;
/* It runs in steps, so that experts may come from a disk, in any order: begin, experts as often as it takes for each
   chosen one to be given once, end, which writes `out`. Where there is `act`, both phases may be run at once, or first
   one and then the other for all experts. job: cg_moe_job_bytes() for all of it, 64-byte aligned, beside the context's
   scratch, of which experts needs cg_moe_scratch(). */
enum { CG_MOE_GATE_UP = 1, CG_MOE_DOWN = 2, CG_MOE_BOTH = 3 };
int64_t cg_moe_job_bytes(const cg_moe *m);
int64_t cg_moe_scratch(const cg_context *ctx, const cg_moe *m);
cg_status cg_moe_begin(const cg_context *ctx, const cg_moe *m, void *job);
/* Multiplies by the `n` experts given, of which those that nobody chose are passed over; experts NULL: by all. */
cg_status cg_moe_experts(const cg_context *ctx, void *job, const int32_t *experts, int64_t n, int phases);
int cg_moe_complete(const void *job, int phases);       /* whether each chosen expert was through these phases */
cg_status cg_moe_end(const cg_context *ctx, void *job); /* CG_BAD_VALUE where an expert was never given */

/* Attention of n sequences of the same H, G and D over their caches, a[i].past, to which it appends their new keys and
   values. It sets a[i].fresh and a[i].first_fresh. A ring needs no more positions than the window, rounded up to 32:
   the keys that a chunk would overwrite too early wait in scratch. */
enum { CG_MAX_SEQUENCES = 16 };                                                        /* of one call */
int64_t cg_attention_scratch(const cg_context *ctx, const cg_attention *a, int64_t n); /* 0 where shapes do not fit */
cg_status cg_run_attention(const cg_context *ctx, cg_attention *a, int64_t n);

/* dst[cols, rows] = the transpose of src[rows, cols] of f32, f16 or bf16. dst_dtype is src_dtype, or bf16. */
cg_status cg_run_transpose(int threads, void *dst, cg_dtype dst_dtype, const void *src, cg_dtype src_dtype,
                           int64_t rows, int64_t cols);

/* Packs src [N, K] of any float dtype, rounded to bf16, as BF16_PACKED rows. Returns how many have too many exponents:
   they are numbered, in their order, and not packed. */
int64_t cg_run_pack_bf16(int threads, uint8_t *out, const void *src, cg_dtype dtype, int64_t N, int64_t K);

/* Quantises src [N, K], or [K, N] where `transposed`, to rows of dtype `to`, INT8 or INT4, and their scales. */
cg_status cg_run_quantize(int threads, cg_dtype to, uint8_t *out, uint8_t *scales, const void *src, cg_dtype dtype,
                          int64_t N, int64_t K, int transposed);

/* Calls fn for every row, in parallel where rows * cost, in float operations, is worth starting threads for. thread: a
   number below `threads` and `rows` that no other row has meanwhile. */
typedef void cg_row_fn(void *job, int64_t row, int thread);
void cg_for_rows(int threads, int64_t rows, int64_t cost, cg_row_fn *fn, void *job);
