"""Turns stored tensors into what the kernels take."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from cgpt.checkpoint.expert_store import ExpertStore
from cgpt.checkpoint.safetensors import Checkpoint
from cgpt.checkpoint.weights_cache import WeightsCache
from cgpt.kernels._kernels import Matrix, Tensor, pack_bf16, quantize_int4, quantize_int8, transpose
from cgpt.machine.huge_pages import Arena

ALL = slice(None)
QUANTIZERS: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {"int8": quantize_int8, "int4": quantize_int4}


class Loader:
    """Reads a checkpoint's tensors for a model. Matrices stay where they are in the mapped file, except those whose
    stored order or precision is not the kernels': they are copied, and the pages they came from given back.

    dense: None keeps each matrix's dtype, "bf16" rounds f32 and f16 ones, "bf16-packed" also packs those that products
    read whole, and embeddings that it rounds, "int8" and "int4" quantise those that products read whole. copy: what
    would stay mapped is copied into huge pages, where there are any, too, but for embeddings of which a token reads one
    row. store: leaves experts in MXFP4 in their files and enters them there; implies copy. cache: has or keeps what is
    converted. In its methods `rows` are the outputs that are wanted, where other ranks have the others.
    progress(done, total) is told the bytes.

    reading: the name of the tensor that was begun last.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dense: str | None = None,
        threads: int = 1,
        progress: Callable[[int, int], None] | None = None,
        copy: bool = False,
        store: ExpertStore | None = None,
        cache: WeightsCache | None = None,
    ) -> None:
        self.checkpoint, self.dense, self.threads, self.store = checkpoint, dense, threads, store
        self.cache = cache
        self.copy = copy or store is not None
        self.reading = ""
        self._progress = progress
        self._memory = Arena()
        self._unread = {name: tensor.nbytes for name, tensor in checkpoint.tensors.items()}
        self._total, self._done = sum(self._unread.values()), 0

    def vector(self, name: str, rows: slice = ALL) -> Tensor:
        """A bias, norm weight or the like, as f32 (a small copy)."""
        return Tensor(self.floats(name).reshape(-1)[rows])

    def floats(self, name: str) -> np.ndarray:
        """The f32 values of a tensor, in its shape: a copy."""
        self._count(name)
        array = self.checkpoint.array(name)
        if self.checkpoint.tensors[name].dtype == "BF16":
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array.astype(np.float32)

    def matrix(self, name: str, bias: str | None = None, rows: slice = ALL) -> Matrix:
        """A weight stored as [N, K] rows."""
        if self.dense in (None, "bf16"):
            return self.table(name, bias, rows)
        array, dtype = self._to_convert(name, rows)
        mine = self._bias(bias, rows)
        if self.dense in QUANTIZERS:
            return self._quantised(name, [array], dtype, mine, array.shape[1], rows=rows)
        return self._packed(name, lambda: array, array.shape, dtype, mine, rows)

    def table(self, name: str, bias: str | None = None, rows: slice = ALL) -> Matrix:
        """A weight stored as [N, K] rows that is neither packed nor quantised: a router's, whose choices a rounding may
        change."""
        stored, dtype = self.checkpoint.tensors[name], self.checkpoint.tensors[name].dtype
        if self.dense in ("bf16", "bf16-packed"):
            dtype = "BF16"
        aligned = self._raw(name).flags.aligned
        convert = dtype != stored.dtype or not aligned
        array = self._copied(name, dtype, rows) if convert else self._stored(name, rows)
        return Matrix(dtype, array, bias=self._bias(bias, rows))

    def embedding(self, name: str) -> Matrix:
        """A matrix of which a token reads one row. Where a tied head has a copy of its own, nothing
        else reads them, so they stay in the file, aligned or not."""
        if not self._rows_stay(name):
            return self.matrix(name)
        self._count(name)
        return Matrix(self.checkpoint.tensors[name].dtype, self._raw(name), aligned=False)

    def head(self, embedding: Matrix, embedding_name: str, name: str, tied: bool, rows: slice = ALL) -> Matrix:
        """The logits matrix: the embedding where they are tied, unless the checkpoint stores a head that differs from
        it; then the stored one, as transformers does since version 5."""
        stored = self.checkpoint.tensors.get(name)
        if tied and (
            stored is None
            or stored.shape != embedding.shape
            or np.array_equal(self._raw(name), self._raw(embedding_name))
        ):
            if self._rows_stay(embedding_name):
                return self.matrix(embedding_name, rows=rows)
            data, *others = embedding.arrays  # packed rows have the numbers of those that are stored as they are
            if len(data[rows]) == len(data):
                return embedding
            columns = embedding.shape[1] if embedding.dtype == "BF16_PACKED" else None
            return Matrix(embedding.dtype, data[rows], others[0] if others else None, columns=columns)
        return self.matrix(name, rows=rows)

    def transposed(self, name: str, bias: str | None = None, rows: Sequence[slice] = (ALL,)) -> Matrix:
        """A weight stored as [K, N] (GPT-2's Conv1D) or [E, K, N] (unquantised gpt-oss experts)."""
        array, dtype = self._to_convert(name)
        parts = (_columns(part, rows) for part in _matrices(array))
        mine = None if bias is None else _columns(self.floats(bias), rows)
        if self.dense in QUANTIZERS:
            return self._quantised(name, parts, dtype, mine, array.shape[-2], transposed=True, experts=array.ndim == 3)
        to, packs = "BF16" if self.dense else dtype, self.dense == "bf16-packed"
        shape = *array.shape[:-2], sum(len(range(*part.indices(array.shape[-1]))) for part in rows), array.shape[-2]

        def copied() -> np.ndarray:
            out = (np.empty if packs else self._memory.empty)(shape, np.uint16 if to == "BF16" else array.dtype)
            for matrix, part in zip(_matrices(out), parts, strict=True):
                transpose(matrix, to, part, dtype, self.threads)
            return out

        if packs:
            return self._packed(name, copied, shape, to, mine)
        return Matrix(to, self._converted(name, lambda: [copied()])[0], bias=mine)

    def mxfp4(self, matrices: Sequence[tuple[str, str, str]], rows: Sequence[slice] = (ALL, ALL)) -> list[Matrix]:
        """The experts of a layer, as stored: for each of their matrices the names of blocks [E, N, K/32, 16], scales
        [E, N, K/32] and bias, and its rows."""
        biases = [_columns(self.floats(bias), [part]) for (_, _, bias), part in zip(matrices, rows, strict=True)]
        if self.store is None:
            return [
                _experts(self._stored(blocks, (ALL, part)), self._stored(scales, (ALL, part)), bias)
                for (blocks, scales, _), part, bias in zip(matrices, rows, biases, strict=True)
            ]
        pairs = [(blocks, scales) for blocks, scales, _ in matrices]
        for name in (name for pair in pairs for name in pair):
            self._count(name)
        tensors = self.checkpoint.tensors
        return self.store.add_layer([(tensors[blocks], tensors[scales]) for blocks, scales in pairs], biases, rows)

    def _rows_stay(self, name: str) -> bool:
        """Whether an embedding stays in its file while the head is copied: not where it would be rounded."""
        rounded = self.dense and self.checkpoint.tensors[name].dtype != "BF16"
        return self.dense in QUANTIZERS or (not rounded and (self.copy or self.dense == "bf16-packed"))

    def _raw(self, name: str) -> np.ndarray:
        """The values as they lie in the mapped file, aligned or not."""
        return self.checkpoint.array(name, aligned=False)

    def _stored(self, name: str, rows: slice | tuple[slice, slice] = ALL) -> np.ndarray:
        """The values as they lie in the mapped file, or a copy in huge pages."""
        self._count(name)
        array = self.checkpoint.array(name)[rows]
        if not self.copy:
            return array
        self.checkpoint.prefetch(name, rows if isinstance(rows, slice) else ALL)
        copy = self._in_memory(array)
        self.checkpoint.release(name)
        return copy

    def _bias(self, name: str | None, rows: slice) -> np.ndarray | None:
        return self.floats(name)[rows] if name else None

    def _to_convert(self, name: str, rows: slice = ALL) -> tuple[np.ndarray, str]:
        """Rows of a tensor that are read once, to be stored otherwise: their values, aligned or not, and dtype."""
        self._count(name)
        return self._raw(name)[rows], self.checkpoint.tensors[name].dtype

    def _converted(self, name: str, make: Callable[[], Sequence[np.ndarray]], rows: slice = ALL) -> list[np.ndarray]:
        """What make() gives for those rows of a tensor, made now or kept in the cache."""

        def made() -> Sequence[np.ndarray]:
            self.checkpoint.prefetch(name, rows)
            arrays = make()
            self.checkpoint.release(name)
            return arrays

        if self.cache is None:
            return list(made())
        arrays = self.cache.arrays(name, made)
        return [self._in_memory(array) for array in arrays] if self.copy and self.cache.kept else list(arrays)

    def _in_memory(self, array: np.ndarray) -> np.ndarray:
        copy = self._memory.empty(array.shape, array.dtype)
        np.copyto(copy, array)
        return copy

    def _quantised(
        self,
        name: str,
        matrices: Iterable[np.ndarray],
        dtype: str,
        bias: np.ndarray | None,
        columns: int,
        transposed: bool = False,
        experts: bool = False,
        rows: slice = ALL,
    ) -> Matrix:
        """The matrix [N, K], or the matrices of `experts`, quantised; transposed: stored as [.., K, N]."""
        assert self.dense
        quantize = QUANTIZERS[self.dense]

        def quantised() -> Sequence[np.ndarray]:
            pairs = [quantize(one, dtype, self.threads, self._memory.empty, transposed) for one in matrices]
            return [np.stack(both) for both in zip(*pairs, strict=True)] if experts else pairs[0]

        q, scales = self._converted(name, quantised, rows)
        return Matrix(self.dense.upper(), q, scales, bias=bias, columns=columns)

    def _packed(
        self,
        name: str,
        array: Callable[[], np.ndarray],
        shape: tuple[int, ...],
        dtype: str,
        bias: np.ndarray | None,
        rows: slice = ALL,
    ) -> Matrix:
        """The matrix [N, K], or the matrices [E, N, K], as BF16_PACKED."""
        *others, columns = shape

        def packed() -> Sequence[np.ndarray]:
            both = pack_bf16(array().reshape(-1, columns), dtype, self.threads, self._memory.empty)
            return [one for one in both if one is not None]  # no row is stored as it is

        data, *stored = self._converted(name, packed, rows)
        return Matrix(
            "BF16_PACKED", data.reshape(*others, -1), stored[0] if stored else None, bias=bias, columns=columns
        )

    def _copied(self, name: str, to: str, rows: slice) -> np.ndarray:
        """A copy as dtype `to`, in the same order: the transpose of one long row."""
        array, dtype = self._to_convert(name, rows)

        def copied() -> Sequence[np.ndarray]:
            copy = self._memory.empty(array.shape, np.uint16 if to == "BF16" else array.dtype)
            transpose(copy.reshape(-1, 1), to, array.reshape(1, -1), dtype, self.threads)
            return [copy]

        return self._converted(name, copied, rows)[0]

    def _count(self, name: str) -> None:
        self.reading = name
        self._done += self._unread.pop(name, 0)  # a tied head is read as the embedding, too
        if self._progress:
            self._progress(self._done, self._total)


def _columns(array: np.ndarray, columns: Sequence[slice]) -> np.ndarray:
    """Those columns side by side: no copy, where they are all."""
    parts = [array[..., part] for part in columns]
    return array if sum(part.shape[-1] for part in parts) == array.shape[-1] else np.concatenate(parts, axis=-1)


def _experts(blocks: np.ndarray, scales: np.ndarray, bias: np.ndarray) -> Matrix:
    """MXFP4 experts, of which each lies in one piece."""
    if blocks.flags.c_contiguous:
        return Matrix("MXFP4", blocks, scales, bias)
    E, N, groups = scales.shape
    begins = [array.ctypes.data + np.arange(E, dtype=np.uint64) * array.strides[0] for array in (blocks, scales)]
    return Matrix.of_experts(np.stack(begins, axis=1).astype(np.uint64), (E, N, groups * 32), bias, (blocks, scales))


def _matrices(array: np.ndarray) -> np.ndarray:
    """[.., rows, cols] as [n, rows, cols]."""
    return array.reshape(-1, *array.shape[-2:])
