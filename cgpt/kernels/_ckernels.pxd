"""csrc/cgpt.h, as far as Python needs it."""
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t


cdef extern from "cgpt.h" nogil:
    ctypedef enum cg_dtype:
        CG_F32, CG_F16, CG_BF16, CG_MXFP4, CG_INT8, CG_BF16_PACKED, CG_INT4, CG_U8
    ctypedef enum cg_status:
        CG_OK, CG_BAD_SHAPE, CG_BAD_DTYPE, CG_NO_MEMORY, CG_BAD_VALUE
    ctypedef enum cg_feature:
        CG_NO_FEATURE, CG_FEATURES
    ctypedef enum cg_level:
        CG_REF, CG_LEVELS
    ctypedef enum cg_activation:
        CG_GELU_TANH
    enum:
        CG_INT8_GROUP, CG_MAX_HEAD_DIM, CG_MAX_EXPERTS, CG_MAX_TOP_K, CG_KV_BLOCK, CG_KV_PANEL, CG_KV_SPLIT
        CG_KERNEL_COUNT, CG_MAX_SEQUENCES

    ctypedef enum cg_precision:
        CG_PRECISION_AUTO, CG_PRECISION_EXACT, CG_PRECISION_INT8
    ctypedef struct cg_context:
        int threads
        cg_precision precision
        void *scratch
        int64_t scratch_bytes
    ctypedef struct cg_expert:
        const uint8_t *data
        const uint8_t *scales
    ctypedef struct cg_matrix:
        cg_dtype dtype
        int64_t E, N, K
        const uint8_t *data
        const uint8_t *scales
        const float *bias
        const cg_expert *experts
    ctypedef struct cg_kv:
        void *k
        void *v
        int64_t blocks
        cg_dtype dtype
    ctypedef struct cg_attention:
        const float *q
        const float *k
        const float *v
        const float *sinks
        float *out
        int64_t q_stride, kv_stride, out_stride
        cg_kv past
        int64_t start, T, window, H, G, D
        float scale

    ctypedef struct cg_logit_change:
        int32_t id
    ctypedef struct cg_sampling:
        double temperature, top_p, min_p, presence_penalty
        float frequency_penalty, repetition_penalty
        const cg_logit_change *changes
        int64_t top_k, n_changes
    int64_t cg_logits_scratch(int64_t)
    ctypedef struct cg_moe:
        float *out
        const float *x
        const float *weight
        int64_t out_stride, x_stride, T, k
        const int32_t *index
        const cg_matrix *gate_up
        const cg_matrix *down
        float alpha, limit
        float *act
        int64_t act_column
    enum: CG_MOE_GATE_UP, CG_MOE_DOWN, CG_MOE_BOTH

    ctypedef struct cg_peak:
        int64_t flops
        float (*run)(float, float, int64_t) noexcept nogil

    ctypedef struct cg_kernels:
        void (*embed)(float *, const cg_matrix *, int64_t, const cg_matrix *, int64_t) noexcept nogil
        void (*layernorm)(float *, const float *, const float *, const float *, float, int64_t) noexcept nogil
        void (*rmsnorm)(float *, const float *, const float *, float, int64_t) noexcept nogil
        void (*rope)(float *, const float *, const float *, int64_t, int64_t) noexcept nogil
        void (*activation)(float *, cg_activation, int64_t) noexcept nogil
        void (*topk)(int32_t *, float *, const float *, int64_t, int64_t) noexcept nogil
        void (*mxfp4_dequantize)(float *, const uint8_t *, const uint8_t *, int64_t) noexcept nogil
        void (*int4_decode)(uint8_t *, const uint8_t *, int64_t) noexcept nogil
        int64_t (*sample)(double *, const cg_sampling *, const float *, int64_t, double, void *) noexcept nogil
        void (*logprobs)(double *, double *, int32_t *, double *, const float *, int64_t, int64_t, void *) noexcept nogil
        uint32_t (*read)(const uint32_t *, int64_t) noexcept nogil
        const cg_peak *peak
        const cg_peak *peak_tile
        const cg_peak *peak_a8
    const cg_kernels *cg_active

    const char *cg_level_name(cg_level)
    const char *cg_missing_for(cg_level)
    const char *cg_use_level(cg_level, cg_feature)
    cg_level cg_current_level()
    const char *cg_feature_name(cg_feature)
    const char *cg_kernel_name(int)
    const char *cg_kernel_variant(int)
    const char *cg_thread_runtime()
    int cg_threads_short(int *)
    void cg_name_bus_errors()
    int cg_openmp_places(int *, int)

    int64_t cg_uniform_tokens(const cg_matrix *, int64_t, cg_precision)
    int64_t cg_linear_scratch(const cg_context *, const cg_matrix *, int64_t)
    cg_status cg_run_linear(const cg_context *, float *, int64_t, const float *, int64_t, int64_t, const cg_matrix *, int)
    int64_t cg_moe_scratch(const cg_context *, const cg_moe *)
    int64_t cg_moe_job_bytes(const cg_moe *)
    cg_status cg_moe_begin(const cg_context *, const cg_moe *, void *)
    cg_status cg_moe_experts(const cg_context *, void *, const int32_t *, int64_t, int)
    int cg_moe_complete(const void *, int)
    cg_status cg_moe_end(const cg_context *, void *)
    int64_t cg_attention_scratch(const cg_context *, const cg_attention *, int64_t)
    cg_status cg_run_attention(const cg_context *, cg_attention *, int64_t)
    cg_status cg_run_transpose(int, void *, cg_dtype, const void *, cg_dtype, int64_t, int64_t)
    int64_t cg_row_bytes(cg_dtype, int64_t)
    int64_t cg_run_pack_bf16(int, uint8_t *, const void *, cg_dtype, int64_t, int64_t)
    cg_status cg_run_quantize(int, cg_dtype, uint8_t *, uint8_t *, const void *, cg_dtype, int64_t, int64_t, int)
    ctypedef void cg_row_fn(void *, int64_t, int) noexcept nogil
    void cg_for_rows(int, int64_t, int64_t, cg_row_fn *, void *)
