# cython: language_level=3, boundscheck=False, nonecheck=True, embedsignature=True, freethreading_compatible=True
"""The kernels of csrc/ as Python functions: shapes are checked, the GIL is released, C is called. No arithmetic here.

Activations are `Tensor`s, float32 [rows, columns]; T is how many of their rows a call works on. Weights are
`Matrix`es. Contracts, formulas and references: csrc/cgpt.h. The GIL protects nothing here, so Pythons without one are
supported: a Context, a LayerCache and a SamplingState belong to one call at a time, whoever makes the call.
"""
from cpython.buffer cimport PyBUF_ANY_CONTIGUOUS, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from posix.stdlib cimport posix_memalign

from cgpt.kernels._ckernels cimport *

import math
import warnings

import numpy as np

from cgpt.errors import KernelError, OutOfMemoryError, TokenIdError

DTYPES = {"F32": CG_F32, "F16": CG_F16, "BF16": CG_BF16, "MXFP4": CG_MXFP4, "INT8": CG_INT8, "BF16_PACKED": CG_BF16_PACKED,
          "INT4": CG_INT4,
          "U8": CG_U8}
PRECISIONS = ("auto", "exact", "int8")  # cg_precision
ACTIVATIONS = ("gelu_tanh", "gelu_erf", "quick_gelu", "relu", "silu", "tanh")
FLOATS = ("F32", "F16", "BF16")
KV_DTYPES = (*FLOATS, "INT8")  # of keys and values
NUMPY_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "uint16", "U8": "uint8", "INT8": "int8"}
MAX_HEAD_DIM, MAX_EXPERTS, MAX_TOP_K = CG_MAX_HEAD_DIM, CG_MAX_EXPERTS, CG_MAX_TOP_K
KV_BLOCK, KV_PANEL, KV_SPLIT, INT8_GROUP = CG_KV_BLOCK, CG_KV_PANEL, CG_KV_SPLIT, CG_INT8_GROUP
cdef int64_t ANY = -(2**62)  # as a number of columns


# ------------------------------------------------------------------------------------------------------ the level

cdef text(const char *found):
    return None if found == NULL else found.decode()


FEATURES = tuple(text(cg_feature_name(<cg_feature><int>i)) for i in range(CG_FEATURES))  # that can be masked

def use_level(str name, *, str mask=""):
    """Makes `name` the level in use; KernelError if this machine lacks it. Only while no kernel runs. `mask`, one of
    FEATURES, treats the CPU as one without that feature and what came after it."""
    if mask not in FEATURES:
        raise KernelError(f"{mask!r} cannot be masked; {', '.join(FEATURES[1:])} can")
    names = list(levels())
    if name not in names:
        raise KernelError(f"unknown level {name!r}; there are {', '.join(names)}")
    missing = text(cg_use_level(<cg_level><int>names.index(name), <cg_feature><int>FEATURES.index(mask)))
    if missing:
        raise KernelError(f"level {name!r} needs {missing}, which this machine does not offer")


def level():
    """The name of the level in use."""
    return cg_level_name(cg_current_level()).decode()


def levels():
    """{level: what keeps it out on this machine, or None}, lowest first."""
    return {text(cg_level_name(<cg_level><int>i)): text(cg_missing_for(<cg_level><int>i)) for i in range(CG_LEVELS)}


def kernels():
    """{slot: the variant in it}, "-" where the level in use has none."""
    return {cg_kernel_name(i).decode(): cg_kernel_variant(i).decode() for i in range(CG_KERNEL_COUNT)}


def thread_runtime():
    """What this build has threads of, "OpenMP" or "pthreads"."""
    return cg_thread_runtime().decode()


def name_bus_errors():
    """From now on a SIGBUS names the mapped file on stderr before it ends the process; for the command line."""
    cg_name_bus_errors()


def openmp_places():
    """The CPUs that OpenMP binds threads to; [] where it binds none (OMP_PROC_BIND and OMP_PLACES are not set)."""
    cdef int cpus[4096]
    return [cpus[i] for i in range(cg_openmp_places(cpus, 4096))]


use_level("ref")  # so that there is something to call; cgpt.kernels.isa chooses better

# ------------------------------------------------------------------------------------------------ what kernels take

cdef cg_precision as_precision(str name) except *:
    if name not in PRECISIONS:
        raise KernelError(f"unknown precision {name!r}; there are {', '.join(PRECISIONS)}")
    return <cg_precision><int>PRECISIONS.index(name)


cdef class Context:
    """Threads, one of PRECISIONS and scratch memory of a series of calls. One at a time may use it."""
    cdef cg_context c

    def __init__(self, int threads, str precision):
        self.c.threads = max(1, threads)
        self.c.precision = as_precision(precision)

    def __dealloc__(self):
        free(self.c.scratch)

    cdef int reserve(self, int64_t size) except -1:
        if size <= self.c.scratch_bytes:
            return 0
        free(self.c.scratch)
        self.c.scratch, self.c.scratch_bytes = NULL, 0
        if posix_memalign(&self.c.scratch, 64, size) != 0:
            raise OutOfMemoryError(f"no memory for {size} bytes of scratch; use shorter chunks or fewer sequences")
        self.c.scratch_bytes = size
        return 0


cdef class Tensor:
    """A C-contiguous array of one or two dimensions that stays where it is. dtype "F32", "F16", "BF16" (as uint16),
    "U8" or "INT8". aligned=False admits one that is not, for the few kernels that take it."""
    cdef Py_buffer view
    cdef cg_dtype dtype
    cdef readonly object array
    cdef readonly int64_t rows, cols

    def __cinit__(self, array, str dtype="F32", bint aligned=True):
        expected = NUMPY_DTYPES.get(dtype)
        if expected is None or array.dtype != expected:
            raise KernelError(f"a {dtype} tensor cannot hold {array.dtype}")
        if array.ndim not in (1, 2) or not array.flags.c_contiguous or (aligned and not array.flags.aligned):
            raise KernelError(f"a tensor is an aligned, C-contiguous array of 1 or 2 dimensions, not {array.shape}")
        self.array = array
        self.dtype = DTYPES[dtype]
        self.rows = array.shape[0] if array.ndim == 2 else 1
        self.cols = array.shape[-1]
        PyObject_GetBuffer(array, &self.view, PyBUF_ANY_CONTIGUOUS | (PyBUF_WRITABLE if array.flags.writeable else 0))

    def __dealloc__(self):
        PyBuffer_Release(&self.view)  # nothing, where __cinit__ got no buffer

    def part(self, rows):
        """The rows from the first of a slice on, at least as many as it has, in the same memory."""
        return self if rows.start == 0 else Tensor(self.array[rows])

    cdef float *f32(self, int64_t row, int64_t T, int64_t cols, str what) except NULL:
        """Where its row `row` begins, if T rows from there exist and rows have exactly `cols` (ANY: any) columns."""
        if self.dtype != CG_F32 or row < 0 or T < 0 or T > self.rows - row or (cols != ANY and cols != self.cols):
            raise KernelError(f"{what}: found {self.array.dtype} {self.array.shape}, expected rows {row} .. of float32 "
                              f"[{row} + {T}, {'any' if cols == ANY else cols}]")
        return <float *>self.view.buf + row * self.cols

    cdef float *out(self, int64_t row, int64_t T, int64_t cols, str what) except NULL:
        if self.view.readonly:
            raise KernelError(f"{what}: the output is read-only")
        return self.f32(row, T, cols, what)


cdef class Matrix:
    """Weights: [N, K], or [E, N, K] for experts. `data` holds F32, F16, BF16 (as uint16), or with dtype "MXFP4" the
    blocks [.., N, K/32, 16], with `scales` [.., N, K/32], or with dtype "INT8" or "INT4" what quantize_int8 or
    quantize_int4 gives, with dtype "BF16_PACKED" what pack_bf16 gives, and `columns` is K; `bias` float32 [.., N] or None. aligned=False admits data that
    only embed() will read."""
    cdef cg_matrix c
    cdef readonly str dtype
    cdef readonly tuple shape
    cdef readonly tuple arrays
    cdef tuple tensors
    cdef bint aligned

    def __init__(self, str dtype, data, scales=None, bias=None, columns=None, bint aligned=True):
        if dtype == "MXFP4":
            shape = (*data.shape[:-2], *(32 * g for g in data.shape[-2:-1]))
            fits = data.shape[-1:] == (16,) and scales is not None and scales.shape == data.shape[:-1]
        elif dtype in ("INT8", "INT4"):
            width, kind = (64, np.int8) if dtype == "INT8" else (32, np.uint8)
            shape = (*data.shape[:-1], data.shape[-1] * (64 // width) if columns is None else columns)
            groups = (*shape[:-1], -(-shape[-1] // CG_INT8_GROUP))
            fits = data.shape == (*shape[:-1], groups[-1] * width) and data.dtype == kind \
                and scales is not None and scales.shape == groups
        elif dtype == "BF16_PACKED":
            shape = (*data.shape[:-1], columns or 0)
            fits = data.dtype == np.uint8 and data.shape[-1] == cg_row_bytes(CG_BF16_PACKED, shape[-1]) \
                and (scales is None or scales.ndim == 2 and scales.shape[1] == shape[-1])
        else:
            shape, fits = data.shape, scales is None and dtype != "U8"
        if not fits or len(shape) not in (2, 3) or min(shape) < 1:
            raise KernelError(f"a {dtype} matrix cannot have data {data.shape} and scales "
                              f"{None if scales is None else scales.shape}")
        if bias is not None and bias.shape != shape[:-1]:
            raise KernelError(f"bias: found {bias.shape}, expected {shape[:-1]}")
        if dtype == "BF16_PACKED" and stored_rows(data).max() >= (0 if scales is None else len(scales)):
            raise KernelError(f"a BF16_PACKED matrix names row {stored_rows(data).max()} of "
                              f"{0 if scales is None else len(scales)} that are stored as they are")
        flat = data.reshape(-1)
        held = [Tensor(flat.view(np.uint8) if dtype == "INT8" else flat, "U8" if dtype in ("MXFP4", "INT8", "INT4", "BF16_PACKED") else dtype,
                       aligned)]
        self.c.data = <const uint8_t *>(<Tensor>held[0]).view.buf
        if scales is not None:
            held.append(Tensor(scales.reshape(-1), "U8" if dtype == "MXFP4" else "BF16"))
            self.c.scales = <const uint8_t *>(<Tensor>held[-1]).view.buf
        if bias is not None:
            held.append(Tensor(bias.reshape(-1)))
            self.c.bias = <const float *>(<Tensor>held[-1]).view.buf
        self.c.dtype = DTYPES[dtype]
        self.c.E = shape[0] if len(shape) == 3 else 1
        self.c.N, self.c.K = shape[-2], shape[-1]
        self.dtype, self.shape, self.tensors, self.aligned = dtype, tuple(shape), tuple(held), aligned
        self.arrays = tuple(a for a in (data, scales, bias) if a is not None)

    @staticmethod
    def of_experts(addresses, tuple shape, bias, memory=None):
        """MXFP4 experts [E, N, K] that lie anywhere, or come and go: row e of `addresses`, uint64 [E, 2], says where the
        blocks and the scales of expert e begin, 0 while they are not in memory. moe() reads it when it multiplies.
        memory: what they lie in, which stays as long as the matrix."""
        cdef Matrix self = Matrix.__new__(Matrix)
        cdef Tensor held = Tensor(bias.reshape(-1))
        cdef uint64_t[:, ::1] table = addresses
        E, N, K = shape
        if table.shape[0] != E or table.shape[1] != 2 or bias.shape != (E, N) or min(shape) < 1:
            raise KernelError(f"experts {shape} cannot have addresses {addresses.shape} and biases {bias.shape}")
        self.c.dtype, self.c.E, self.c.N, self.c.K = CG_MXFP4, E, N, K
        self.c.bias, self.c.experts = <const float *>held.view.buf, <const cg_expert *>&table[0, 0]
        self.dtype, self.shape, self.tensors, self.aligned = "MXFP4", shape, (held, addresses, memory), True
        self.arrays = (bias,)
        return self


def stored_rows(data):
    """int32 [..]: for each BF16_PACKED row [.., bytes] -1, or its number among those that are stored as they are."""
    return data[..., :4].view(np.int32)[..., 0]


cdef class LayerCache:
    """Keys and values of one sequence in one layer, in memory the caller gives: zeroed arrays `k` and `v` of
    kv_shapes(), one of KV_DTYPES; `D` where that is "INT8". Fewer positions than the context make a ring."""
    cdef cg_kv c
    cdef Tensor k, v
    cdef readonly int64_t G, D, row_bytes  # row_bytes: of a key, or a value, of a position and a head
    cdef readonly str dtype

    def __init__(self, k, v, str dtype="F32", int64_t D=0):
        G, blocks, _, rows, _ = k.shape if k.ndim == 5 else (0, 0, 0, 0, 0)
        D = D or rows
        if dtype not in KV_DTYPES or (k.shape, v.shape) != kv_shapes(blocks, G, D, dtype):
            raise KernelError(f"a {dtype} cache cannot have keys {k.shape} and values {v.shape}")
        if not (k.flags.carray and v.flags.carray):
            raise KernelError("a cache is written in place: it needs aligned, C-contiguous arrays that can be written")
        self.k, self.v = Tensor(k.reshape(-1), dtype), Tensor(v.reshape(-1), dtype)
        self.c.k, self.c.v, self.c.dtype = self.k.view.buf, self.v.view.buf, self.k.dtype
        self.c.blocks, self.G, self.D, self.dtype, self.row_bytes = blocks, G, D, dtype, kv_row_bytes(D, dtype)


def kv_shapes(int64_t blocks, int64_t G, int64_t D, str dtype="F32"):
    """The shapes of the keys and values of `blocks` blocks of KV_BLOCK positions: [G, blocks, 2, D, 16] and [G, blocks,
    panels of 16 of the D dimensions, 32, 16]. INT8 keys have D rounded up to 2, and 8 rows more, of which the last four
    are the float32 scales of the values, those before them of the keys. See cg_kv in csrc/cgpt.h."""
    return ((G, blocks, CG_KV_BLOCK // CG_KV_PANEL, D + D % 2 + 8 if dtype == "INT8" else D, CG_KV_PANEL),
            (G, blocks, -(-D // CG_KV_PANEL), CG_KV_BLOCK, CG_KV_PANEL))


def kv_row_bytes(int64_t D, str dtype):
    """The bytes of a key, or a value, of a position and a head: D elements, and the scale of INT8."""
    return D * np.dtype(NUMPY_DTYPES[dtype]).itemsize + (4 if dtype == "INT8" else 0)


cdef bint warned = False

cdef int check(cg_status status, str op, object details) except -1:
    """KernelError unless `status` is CG_OK. Says once that the system has fewer threads than were asked for."""
    global warned
    cdef int wanted, had = cg_threads_short(&wanted)
    if had and not warned:
        warned = True
        warnings.warn(f"the system starts only {had} of {wanted} threads, so no more are used; what limits them is "
                      "ulimit -u, a container's limit of processes, or memory", RuntimeWarning, stacklevel=2)
    if status == CG_OK:
        return 0
    why = {CG_BAD_SHAPE: "shapes do not fit", CG_BAD_DTYPE: "no kernel for this dtype",
           CG_NO_MEMORY: "scratch is too small", CG_BAD_VALUE: "an index is out of range"}[status]
    raise KernelError(f"{op}: {why}: {details}")


cdef allocate(empty, tuple shape, dtype, str op):
    """empty(shape, dtype), or OutOfMemoryError."""
    try:
        return empty(shape, dtype)
    except MemoryError as error:
        raise OutOfMemoryError(f"{op}: no memory for {math.prod(shape) * np.dtype(dtype).itemsize:,} bytes") from error


# ----------------------------------------------------------------------------------------------- row-wise kernels

cdef struct RowJob:
    float *out
    const float *x
    const float *a
    const float *b
    float eps
    int64_t cols, stride, heads
    int which
    int32_t *index

cdef void layernorm_row(void *job, int64_t t, int thread) noexcept nogil:
    cdef RowJob *j = <RowJob *>job
    cg_active.layernorm(j.out + t * j.cols, j.x + t * j.cols, j.a, j.b, j.eps, j.cols)

cdef void rmsnorm_row(void *job, int64_t t, int thread) noexcept nogil:
    cdef RowJob *j = <RowJob *>job
    cg_active.rmsnorm(j.out + t * j.cols, j.x + t * j.cols, j.a, j.eps, j.cols)

cdef void rope_row(void *job, int64_t t, int thread) noexcept nogil:
    cdef RowJob *j = <RowJob *>job
    cdef int64_t at = t * (j.cols // 2)
    cg_active.rope(j.out + t * j.stride, j.a + at, j.b + at, j.heads, j.cols)

cdef void activation_row(void *job, int64_t t, int thread) noexcept nogil:
    cdef RowJob *j = <RowJob *>job
    cg_active.activation(j.out + t * j.stride, <cg_activation>j.which, j.cols)

cdef void topk_row(void *job, int64_t t, int thread) noexcept nogil:
    cdef RowJob *j = <RowJob *>job
    cg_active.topk(j.index + t * j.heads, j.out + t * j.heads, j.x + t * j.cols, j.cols, j.heads)


cdef int for_rows(Context ctx, int64_t rows, int64_t cost, cg_row_fn *fn, void *job) except -1:
    with nogil:
        cg_for_rows(ctx.c.threads, rows, cost, fn, job)
    return 0


def layernorm(Context ctx, Tensor out, Tensor x, Tensor weight, Tensor bias, float eps, int64_t T):
    """out[t] = layer norm of x[t]; out may be x."""
    cdef RowJob job
    job.x, job.cols, job.eps = x.f32(0, T, ANY, "layernorm x"), x.cols, eps
    job.out = out.out(0, T, x.cols, "layernorm out")
    job.a, job.b = weight.f32(0, 1, x.cols, "layernorm weight"), bias.f32(0, 1, x.cols, "layernorm bias")
    for_rows(ctx, T, job.cols, layernorm_row, &job)


def rmsnorm(Context ctx, Tensor out, Tensor x, Tensor weight, float eps, int64_t T):
    """out[t] = RMS norm of x[t]; out may be x."""
    cdef RowJob job
    job.x, job.cols, job.eps = x.f32(0, T, ANY, "rmsnorm x"), x.cols, eps
    job.out, job.a = out.out(0, T, x.cols, "rmsnorm out"), weight.f32(0, 1, x.cols, "rmsnorm weight")
    for_rows(ctx, T, job.cols, rmsnorm_row, &job)


def rope(Context ctx, Tensor x, Tensor cos, Tensor sin, int64_t row, int64_t start, int64_t heads, int64_t D, int64_t T):
    """Rotates the first `heads` heads of D columns of rows row .. row+T-1 of x, which stand at positions start ..;
    cos, sin [positions, D/2]."""
    cdef RowJob job
    job.out = x.out(row, T, ANY, "rope x")
    job.a, job.b = cos.f32(start, T, D // 2, "rope cos"), sin.f32(start, T, D // 2, "rope sin")
    if D < 2 or D % 2 or heads < 0 or heads > x.cols // D:
        raise KernelError(f"rope: {heads} heads of {D} do not fit {x.cols} columns")
    job.stride, job.heads, job.cols = x.cols, heads, D
    for_rows(ctx, T, heads * D, rope_row, &job)


def activation(Context ctx, Tensor x, str which, int64_t T, *, int64_t column=0, columns=None):
    """x[t] = f(x[t]) in place, in so many `columns` from `column` on, None: in all; `which` is one of ACTIVATIONS."""
    cdef RowJob job
    job.out, job.stride, job.cols = x.out(0, T, ANY, "activation x") + column, x.cols, x.cols if columns is None else columns
    if column < 0 or job.cols < 0 or column > x.cols - job.cols:
        raise KernelError(f"activation: columns {column} .. {column + job.cols} of {x.cols}")
    if which not in ACTIVATIONS:
        raise KernelError(f"activation: {which!r} is none of {', '.join(ACTIVATIONS)}")
    job.which = ACTIVATIONS.index(which)
    for_rows(ctx, T, job.cols * 8, activation_row, &job)


def topk(Context ctx, int32_t[:, ::1] index, Tensor weight, Tensor logits, int64_t T):
    """index, weight [.., k] of the k largest logits [.., E] of each row, and the softmax over those k."""
    cdef RowJob job
    job.x, job.cols, job.heads = logits.f32(0, T, ANY, "topk logits"), logits.cols, weight.cols
    job.out = weight.out(0, T, ANY, "topk weight")
    if index.shape[0] < T or index.shape[1] != weight.cols or not 1 <= weight.cols <= logits.cols:
        raise KernelError(f"topk: {index.shape[1]} of {logits.cols} into {weight.array.shape}")
    job.index = &index[0, 0] if T else NULL
    for_rows(ctx, T, job.cols * 8, topk_row, &job)


def embed(Tensor out, Matrix table, const int64_t[::1] ids, Matrix positions=None, int64_t row=0, int64_t start=0):
    """out[row + t] = table[ids[t]] (+ positions[start + t])."""
    cdef int64_t t, T = ids.shape[0], C = table.c.K
    cdef float *to = out.out(row, T, C, "embed out")
    cdef const cg_matrix *pos = NULL
    if positions is not None:
        if positions.c.K != C or start < 0 or T > positions.c.N - start:
            raise KernelError(f"embed: positions {start} .. {start + T} of {positions.shape}")
        pos = &positions.c
    for t in range(T):
        if not 0 <= ids[t] < table.c.N:
            raise TokenIdError(f"token id {ids[t]} is not in the vocabulary, 0 .. {table.c.N - 1}")
    for m in (table, positions):
        if m is not None and m.dtype not in (*FLOATS, "BF16_PACKED"):
            raise KernelError(f"embed: no kernel for {m.dtype}")
    with nogil:
        for t in range(T):
            cg_active.embed(to + t * C, &table.c, ids[t], pos, start + t)


def mxfp4_dequantize(blocks, scales):
    """The float32 values [.., 32 G] of MXFP4 blocks uint8 [.., G, 16] (element 2j in the low half of byte j) and
    scales uint8 [.., G]: E2M1 values times 2^(scale - 127), exactly. Scale 255 is NaN."""
    blocks, scales = np.ascontiguousarray(blocks), np.ascontiguousarray(scales)
    if blocks.dtype != np.uint8 or scales.dtype != np.uint8 or blocks.shape != (*scales.shape, 16) or scales.ndim < 1:
        raise KernelError(f"mxfp4_dequantize: found {blocks.dtype} {blocks.shape} and {scales.dtype} {scales.shape}, "
                          "expected uint8 [.., G, 16] and uint8 [.., G]")
    out = allocate(np.empty, (*scales.shape[:-1], scales.shape[-1] * 32), np.float32, "mxfp4_dequantize")
    cdef Tensor to = Tensor(out.reshape(-1)), b = Tensor(blocks.reshape(-1), "U8"), s = Tensor(scales.reshape(-1), "U8")
    cdef int64_t groups = scales.size
    with nogil:
        cg_active.mxfp4_dequantize(<float *>to.view.buf, <const uint8_t *>b.view.buf, <const uint8_t *>s.view.buf, groups)
    return out


def quantize_int8(array, str dtype, int threads, empty=np.empty, bint transposed=False):
    """What an INT8 Matrix of F32, F16 or BF16 [N, K], or [K, N] where `transposed`, is made of, from empty(shape, dtype): int8
    [N, K rounded up to 64] and bf16 scales (as uint16) [N, groups of 64]. A weight is its integer, -127 .. 127, times
    its group's scale."""
    return quantize("INT8", "quantize_int8", array, dtype, threads, empty, transposed)


def quantize_int4(array, str dtype, int threads, empty=np.empty, bint transposed=False):
    """What an INT4 Matrix of F32, F16 or BF16 [N, K], or [K, N] where `transposed`, is made of, from empty(shape, dtype):
    uint8 codes [N, groups of 64, times 32] and bf16 scales (as uint16) [N, groups], those of the least squared error. A
    weight is what int4_decode makes of its code, times its group's scale."""
    return quantize("INT4", "quantize_int4", array, dtype, threads, empty, transposed)


def int4_decode(codes):
    """The integers int8 [.., 64 G] of INT4 codes uint8 [.., 32 G]: that of weight i of a group in the low half of its byte
    i, that of weight 32 + i in the high half."""
    codes = np.ascontiguousarray(codes)
    if codes.dtype != np.uint8 or codes.ndim < 1 or codes.shape[-1] % 32:
        raise KernelError(f"int4_decode: found {codes.dtype} {codes.shape}, expected uint8 [.., 32 G]")
    out = allocate(np.empty, (*codes.shape[:-1], 2 * codes.shape[-1]), np.int8, "int4_decode")
    cdef Tensor to = Tensor(out.reshape(-1).view(np.uint8), "U8"), read = Tensor(codes.reshape(-1), "U8")
    cdef int64_t groups = codes.size // 32
    with nogil:
        cg_active.int4_decode(<uint8_t *>to.view.buf, <const uint8_t *>read.view.buf, groups)
    return out


cdef quantize(str to, str what, array, str dtype, int threads, empty, bint transposed):
    cdef Tensor x = Tensor(array, dtype, False)
    if array.ndim != 2:
        raise KernelError(f"{what}: found {array.shape}, expected two dimensions")
    cdef int64_t N = x.cols if transposed else x.rows, K = x.rows if transposed else x.cols
    cdef cg_dtype target = DTYPES[to]
    groups, (width, kind) = -(-K // CG_INT8_GROUP), (64, np.int8) if to == "INT8" else (32, np.uint8)
    q = allocate(empty, (N, groups * width), kind, what)
    scales = allocate(empty, (N, groups), np.uint16, what)
    cdef Tensor out = Tensor(q.view(np.uint8), "U8"), beside = Tensor(scales.view(np.uint8), "U8")
    cdef cg_status status
    with nogil:
        status = cg_run_quantize(threads, target, <uint8_t *>out.view.buf, <uint8_t *>beside.view.buf, x.view.buf, x.dtype,
                                 N, K, transposed)
    check(status, what, (dtype, N, K))
    return q, scales


def packed_row_bytes(int64_t K):
    """The bytes of a BF16_PACKED row of K weights."""
    return cg_row_bytes(CG_BF16_PACKED, K)


def pack_bf16(array, str dtype, int threads, empty=np.empty):
    """What a BF16_PACKED Matrix of F32, F16 or BF16 [N, K] is made of, from empty(shape, dtype): uint8 [N, bytes of a row] and
    the rows that have too many exponents, as BF16 (uint16) [.., K], or None. Floats are rounded to bf16, and that is all
    that is lost."""
    cdef Tensor x = Tensor(array, dtype, False)
    if array.ndim != 2 or dtype not in FLOATS:
        raise KernelError(f"pack_bf16: found {dtype} {array.shape}, expected floats of two dimensions")
    packed = allocate(empty, (x.rows, cg_row_bytes(CG_BF16_PACKED, x.cols)), np.uint8, "pack_bf16")
    cdef Tensor out = Tensor(packed, "U8")
    cdef int64_t count, rows = x.rows, cols = x.cols
    with nogil:
        count = cg_run_pack_bf16(threads, <uint8_t *>out.view.buf, x.view.buf, x.dtype, rows, cols)
    if not count:
        return packed, None
    stored = allocate(empty, (count, x.cols), np.uint16, "pack_bf16")
    for n, row in enumerate(np.flatnonzero(stored_rows(packed) >= 0)):
        transpose(stored[n].reshape(-1, 1), "BF16", array[row].reshape(1, -1), dtype, 1)
    return packed, stored


# ------------------------------------------------------------------------------------------------------ sampling

LOGIT_CHANGE = np.dtype([("id", np.int32), ("seen", np.int32), ("count", np.int32), ("bias", np.float32)])


cdef class SamplingState:
    """How the tokens of one sequence are chosen (cg_sampling), and what is known of them so far: `changes`, a
    LOGIT_CHANGE array whose ids ascend and lie below the vocabulary size V that sample() is given."""
    cdef cg_sampling c
    cdef Tensor held

    def __init__(self, double temperature, int64_t top_k, double top_p, double min_p, double presence_penalty,
                 float frequency_penalty, float repetition_penalty):
        self.c.temperature, self.c.top_k, self.c.top_p, self.c.min_p = temperature, top_k, top_p, min_p
        self.c.presence_penalty, self.c.frequency_penalty = presence_penalty, frequency_penalty
        self.c.repetition_penalty = repetition_penalty
        self.changes = np.empty(0, LOGIT_CHANGE)

    @property
    def changes(self):
        return self.held.array.view(LOGIT_CHANGE)

    @changes.setter
    def changes(self, array):
        if array.dtype != LOGIT_CHANGE or array.ndim != 1 or (np.diff(array["id"], prepend=-1) < 1).any():
            raise KernelError(f"changes of logits are LOGIT_CHANGE [n] with ascending ids, not {array.dtype} {array.shape}")
        self.held = Tensor(array.view(np.uint8), "U8")
        self.c.changes, self.c.n_changes = <const cg_logit_change *>self.held.view.buf, array.shape[0]


def sample(Context ctx, Tensor logits, SamplingState state, double draw):
    """The id of the next token after one row of logits [V], chosen by `state` and a draw from [0, 1), and the largest
    logit as changed. Id -1 where that is not finite."""
    cdef const float *row = logits.f32(0, 1, ANY, "logits")
    cdef int64_t token, V = logits.cols
    cdef double largest
    if logits.rows != 1 or V < 1:
        raise KernelError(f"sample: found logits {logits.array.shape}, expected one row")
    if state.c.n_changes and state.c.changes[state.c.n_changes - 1].id >= V:
        raise KernelError(f"sample: a changed logit's id is beyond the vocabulary, {V}")
    ctx.reserve(cg_logits_scratch(V))
    with nogil:
        token = cg_active.sample(&largest, &state.c, row, V, draw, ctx.c.scratch)
    return token, largest


cdef struct LogprobsJob:
    const float *logits
    double *largest
    double *log_sum
    double *top
    int32_t *ids
    int64_t V, k, scratch_bytes
    char *scratch

cdef void logprobs_row(void *job, int64_t t, int thread) noexcept nogil:
    cdef LogprobsJob *j = <LogprobsJob *>job
    cg_active.logprobs(j.largest + t, j.log_sum + t, j.ids + t * j.k, j.top + t * j.k, j.logits + t * j.V, j.V, j.k,
                       j.scratch + thread * j.scratch_bytes)


def logprobs(Context ctx, Tensor logits, int64_t k):
    """largest, log_sum float64 [T], ids int32 [T, k], top float64 [T, k] of logits [T, V]: the log-probability of i is
    (logits[i] - largest) - log_sum; the k largest of them are `top`, in the order of their ids."""
    cdef LogprobsJob job
    job.logits, job.V, job.k = logits.f32(0, logits.rows, ANY, "logits"), logits.cols, k
    if not 0 <= k <= logits.cols or logits.rows < 1 or logits.cols < 1:
        raise KernelError(f"logprobs: the {k} largest of logits {logits.array.shape}")
    largest, log_sum = np.empty(logits.rows), np.empty(logits.rows)
    ids, top = np.empty((logits.rows, k), np.int32), np.empty((logits.rows, k))
    cdef double[::1] peaks = largest, sums = log_sum
    cdef int32_t[:, ::1] to_ids = ids
    cdef double[:, ::1] to_top = top
    job.largest, job.log_sum = &peaks[0], &sums[0]
    job.ids, job.top = &to_ids[0, 0] if k else NULL, &to_top[0, 0] if k else NULL
    job.scratch_bytes = cg_logits_scratch(job.V)
    ctx.reserve(min(ctx.c.threads, logits.rows) * job.scratch_bytes)
    job.scratch = <char *>ctx.c.scratch
    for_rows(ctx, logits.rows, job.V * 16, logprobs_row, &job)
    return largest, log_sum, ids, top


# ------------------------------------------------------------------------------------------ linear, experts, attention

def linear(Context ctx, Tensor y, Tensor x, Matrix w, int64_t T, *, int64_t column=0, int64_t row=0, bint add=False):
    """y[t, column : column + N] = x[row + t] @ w.T + bias for t < T (+ y where `add`)."""
    cdef const float *from_ = x.f32(row, T, w.c.K, "linear x")
    cdef float *to = y.out(0, T, ANY, "linear y") + column
    cdef cg_status status
    if column < 0 or column > y.cols - w.c.N or w.c.E != 1 or not w.aligned:
        raise KernelError(f"linear: weights {w.shape} do not fit columns {column} .. of {y.cols}, or are embed's alone")
    ctx.reserve(cg_linear_scratch(&ctx.c, &w.c, T))
    with nogil:
        status = cg_run_linear(&ctx.c, to, y.cols, from_, x.cols, T, &w.c, add)
    check(status, "linear", (w.dtype, w.shape, T))


def uniform_tokens(Matrix w, int64_t limit, str precision):
    """The largest number of tokens, `limit` at the most, of which each gets the bits that it gets alone from w."""
    return cg_uniform_tokens(&w.c, limit, as_precision(precision))


cdef cg_status run_experts(const cg_context *c, char *jobs, int64_t parts, int64_t job_bytes, const int32_t *experts,
                           int64_t n, int phases) noexcept nogil:
    cdef int64_t i
    cdef cg_status status = CG_OK
    for i in range(parts):
        if status == CG_OK:
            status = cg_moe_experts(c, jobs + i * job_bytes, experts, n, phases)
    return status

cdef bint experts_done(char *jobs, int64_t parts, int64_t job_bytes, int phases) noexcept nogil:
    cdef int64_t i
    for i in range(parts):
        if not cg_moe_complete(jobs + i * job_bytes, phases):
            return False
    return True


def moe(Context ctx, Tensor out, Tensor x, const int32_t[:, ::1] index, Tensor weight, Matrix gate_up, Matrix down,
        float alpha, float limit, int64_t T, *, int64_t part=0, arrivals=None, int64_t column=0, Tensor act=None,
        int64_t act_column=0, gather=None):
    """out[t, column : column + N] += sum over j of weight[t, j] * down_e(swiglu(gate_up_e(x[t]))), e = index[t, j].

    part: each so many tokens get the bits of a call of their own; 0: all are multiplied together. arrivals: iterates
    int32 arrays of experts, which are multiplied before the next are asked for; together they hold all that were
    chosen. None: all are in memory.

    act: [T * k, I], for a gate_up that gives only its columns from `act_column` on: once they are there, gather() fills
    in the others, and then comes the second product. What arrived last must stay until it is asked for more."""
    cdef cg_moe m
    cdef int phases = CG_MOE_BOTH if act is None else CG_MOE_GATE_UP
    cdef cg_status status = CG_OK
    cdef int64_t k = index.shape[1], P = min(T, part or T), parts = (T + P - 1) // P if P > 0 else 0, i, job_bytes, n
    cdef const int32_t[::1] experts
    cdef const int32_t *given
    cdef char *jobs
    cdef cg_context c
    if index.shape[0] < T or parts < 1:
        raise KernelError(f"moe: {index.shape[0]} rows of choices for {T} tokens in parts of {part}")
    m.x_stride, m.out_stride, m.k, m.alpha, m.limit = x.cols, out.cols, k, alpha, limit
    m.gate_up, m.down, m.T, m.act, m.act_column = &gate_up.c, &down.c, P, NULL, act_column
    if act is not None:
        m.act = act.out(0, T * k, down.c.K, "moe act")
    job_bytes = cg_moe_job_bytes(&m)
    ctx.reserve(parts * job_bytes + cg_moe_scratch(&ctx.c, &m))
    c, jobs = ctx.c, <char *>ctx.c.scratch
    c.scratch, c.scratch_bytes = jobs + parts * job_bytes, c.scratch_bytes - parts * job_bytes
    x.f32(0, T, gate_up.c.K, "moe x")
    out.out(0, T, down.c.N if act is None else ANY, "moe out")
    if column < 0 or column > out.cols - down.c.N:
        raise KernelError(f"moe: {down.shape} does not fit columns {column} .. of {out.cols}")
    weight.f32(0, T, k, "moe weight")
    for i in range(parts):
        m.x, m.out = x.f32(i * P, 0, ANY, "moe x"), out.out(i * P, 0, ANY, "moe out") + column
        if act is not None:
            m.act = act.out(i * P * k, 0, ANY, "moe act")
        m.weight, m.index, m.T = weight.f32(i * P, 0, ANY, "moe weight"), &index[i * P, 0], min(P, T - i * P)
        check(cg_moe_begin(&c, &m, jobs + i * job_bytes), "moe", (gate_up.dtype, gate_up.shape, down.shape, T))
    for experts in (None,) if arrivals is None else arrivals:
        n = 0 if experts is None else experts.shape[0]
        given = &experts[0] if n else NULL
        if n or experts is None:
            with nogil:
                status = run_experts(&c, jobs, parts, job_bytes, given, n, phases)
            check(status, "moe", (gate_up.shape, "experts that are not there"))
        if phases == CG_MOE_GATE_UP and experts_done(jobs, parts, job_bytes, phases):
            gather()
            with nogil:
                status = run_experts(&c, jobs, parts, job_bytes, NULL, 0, CG_MOE_DOWN)
            check(status, "moe", (down.shape, "experts that have gone"))
            phases = CG_MOE_BOTH
    with nogil:
        for i in range(parts):
            if status == CG_OK:
                status = cg_moe_end(&c, jobs + i * job_bytes)
    check(status, "moe", (gate_up.shape, "experts that never came"))


def attention(Context ctx, Tensor out, Tensor qkv, list slices, int64_t H, *, float scale, int64_t window=0,
              Tensor sinks=None, int64_t column=0):
    """For each slice (cache, row, start, T) of the batch: out[row + t], from `column` on, = attention of H query heads
    over the sequence's cache and its T new rows of qkv (H query heads, G key heads, G value heads of D columns) at positions start ..
    start+T-1, whose keys and values are appended to the cache. Each slice has a cache of its own. Window 0 sees all."""
    cdef cg_attention a[CG_MAX_SEQUENCES]
    cdef int64_t n, row, start, T, count = min(len(slices), CG_MAX_SEQUENCES)
    cdef LayerCache cache
    cdef cg_status status
    for n, (cache, row, start, T) in enumerate(slices[:count]):
        a[n].q = qkv.f32(row, T, (H + 2 * cache.G) * cache.D, "attention qkv")
        a[n].out = out.out(row, T, ANY, "attention out") + column
        if column < 0 or column > out.cols - H * cache.D:
            raise KernelError(f"attention out: {H} heads of {cache.D} do not fit columns {column} .. of {out.cols}")
        a[n].k, a[n].v, a[n].past = a[n].q + H * cache.D, a[n].q + (H + cache.G) * cache.D, cache.c
        a[n].q_stride, a[n].kv_stride, a[n].out_stride = qkv.cols, qkv.cols, out.cols
        a[n].start, a[n].T, a[n].window, a[n].H, a[n].G, a[n].D = start, T, window, H, cache.G, cache.D
        a[n].sinks, a[n].scale = sinks.f32(0, 1, H, "attention sinks") if sinks is not None else NULL, scale
    ctx.reserve(cg_attention_scratch(&ctx.c, a, count))
    with nogil:
        status = cg_run_attention(&ctx.c, a, count)
    check(status, "attention", (H, window, slices))
    if len(slices) > count:
        attention(ctx, out, qkv, slices[count:], H, scale=scale, window=window, sinks=sinks, column=column)


def transpose(out, str to, array, str dtype, int threads):
    """out [cols, rows] = array [rows, cols] of F32, F16 or BF16 (as uint16); `to` is `dtype`, or BF16, rounded to
    nearest even."""
    cdef Tensor dst = Tensor(out, to), src = Tensor(array, dtype, False)
    if array.ndim != 2 or out.shape != array.shape[::-1] or dst.view.readonly:
        raise KernelError(f"transpose: found {array.shape} into {out.shape}")
    cdef cg_dtype dst_dtype = dst.dtype
    cdef cg_status status
    with nogil:
        status = cg_run_transpose(threads, dst.view.buf, dst_dtype, src.view.buf, src.dtype, src.rows, src.cols)
    check(status, "transpose", (dtype, to))


# ------------------------------------------------------------------------------------------- what the machine can do

cdef struct PeakJob:
    float *out
    const cg_peak *kernel
    float one, x
    int64_t rounds

cdef void read_row(void *job, int64_t t, int thread) noexcept nogil:
    cdef RowJob *j = <RowJob *>job
    j.index[t] = <int32_t>cg_active.read(<const uint32_t *>(j.x + t * j.cols), j.cols)

cdef void peak_row(void *job, int64_t t, int thread) noexcept nogil:
    cdef PeakJob *j = <PeakJob *>job
    j.out[t] = j.kernel.run(j.one, j.x, j.rounds)


def read(Context ctx, int32_t[::1] out, Tensor data):
    """out[t] = the exclusive or of the 32-bit words in row t of the float32 `data`."""
    cdef RowJob job
    job.x, job.cols = data.f32(0, data.rows, ANY, "read data"), data.cols
    if out.shape[0] != data.rows or data.rows < 1:
        raise KernelError(f"read: {out.shape[0]} results for {data.rows} rows")
    job.index = &out[0]
    for_rows(ctx, data.rows, job.cols, read_row, &job)


def peak(Context ctx, Tensor out, int64_t rounds, *, str dtype="f32", float one=1, float x=1):
    """out[t] (one row) = what one run of `rounds` multiply-adds in every register gives, see cgpt.h, with factors of
    `dtype`, "f32", "bf16" or "int8". The number of operations that took."""
    cdef PeakJob job
    job.out = out.out(0, 1, ANY, "peak out")
    job.kernel = (cg_active.peak if dtype == "f32" else cg_active.peak_tile if dtype == "bf16" else
                  cg_active.peak_a8 if dtype == "int8" else NULL)
    if job.kernel == NULL or rounds < 0:
        raise KernelError(f"peak: {rounds} rounds of {dtype} at level {level()}")
    job.one, job.x, job.rounds = one, x, rounds
    cdef int64_t tasks = out.cols, flops = job.kernel.flops * rounds
    for_rows(ctx, tasks, flops, peak_row, &job)
    return tasks * flops
