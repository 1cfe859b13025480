"""Turns stored tensors into what the kernels take."""

from collections.abc import Callable, Sequence

import numpy as np

from cgpt.checkpoint.expert_store import ExpertStore
from cgpt.checkpoint.safetensors import Checkpoint
from cgpt.kernels._kernels import Matrix, Tensor, quantize_int8, transpose
from cgpt.machine.huge_pages import Arena

FLOATS = ("F32", "F16", "BF16")


class Loader:
    """Reads a checkpoint's tensors for a model. Matrices stay where they are in the mapped file, except those whose
    stored order or precision is not the kernels': they are copied, and the pages they came from given back.

    dense: None keeps each matrix's dtype, "bf16" rounds f32 and f16 ones, "int8" quantises those that products read
    whole. copy: what would stay mapped is copied into huge pages, where there are any, too, but for embeddings of which
    a token reads one row. store: leaves experts in MXFP4 in their files and enters them there; implies copy.
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
    ) -> None:
        self.checkpoint, self.dense, self.threads, self.store = checkpoint, dense, threads, store
        self.copy = copy or store is not None
        self.reading = ""
        self._progress = progress
        self._memory = Arena()
        self._unread = {name: tensor.nbytes for name, tensor in checkpoint.tensors.items()}
        self._total, self._done = sum(self._unread.values()), 0

    def vector(self, name: str) -> Tensor:
        """A bias, norm weight or the like, as f32 (a small copy)."""
        return Tensor(self.floats(name).reshape(-1))

    def floats(self, name: str) -> np.ndarray:
        """The f32 values of a tensor, in its shape: a copy."""
        self._count(name)
        array = self.checkpoint.array(name)
        if self.checkpoint.tensors[name].dtype == "BF16":
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array.astype(np.float32)

    def matrix(self, name: str, bias: str | None = None) -> Matrix:
        """A weight stored as [N, K] rows."""
        if self.dense != "int8":
            return self.table(name, bias)
        array, dtype = self._to_convert(name)
        return self._quantised(name, array, dtype, bias)

    def table(self, name: str, bias: str | None = None) -> Matrix:
        """A weight stored as [N, K] rows that int8 leaves alone: a router's, whose choices a rounding may change."""
        stored, dtype = self.checkpoint.tensors[name], self.checkpoint.tensors[name].dtype
        if self.dense == "bf16" and dtype != "BF16":
            dtype = "BF16"
        aligned = self._raw(name).flags.aligned
        convert = dtype != stored.dtype or not aligned
        array = self._copied(name, dtype) if convert else self._stored(name)
        return Matrix(dtype, array, bias=self.floats(bias) if bias else None)

    def embedding(self, name: str) -> Matrix:
        """A matrix of which a token reads one row. Where a tied head has a copy of its own, nothing
        else reads them, so they stay in the file, aligned or not."""
        if not self._rows_stay(name):
            return self.table(name)
        self._count(name)
        return Matrix(self.checkpoint.tensors[name].dtype, self._raw(name), aligned=False)

    def head(self, embedding: Matrix, embedding_name: str, name: str, tied: bool) -> Matrix:
        """The logits matrix: the embedding where they are tied, unless the checkpoint stores a head that differs from
        it; then the stored one, as transformers does since version 5."""
        stored = self.checkpoint.tensors.get(name)
        if tied and (
            stored is None
            or stored.shape != embedding.shape
            or np.array_equal(self._raw(name), self._raw(embedding_name))
        ):
            return self.matrix(embedding_name) if self._rows_stay(embedding_name) else embedding
        return self.matrix(name)

    def transposed(self, name: str, bias: str | None = None) -> Matrix:
        """A weight stored as [K, N] (GPT-2's Conv1D) or [E, K, N] (unquantised gpt-oss experts)."""
        array, dtype = self._to_convert(name)
        if self.dense == "int8":
            return self._quantised(name, array, dtype, bias, transposed=True)
        to = "BF16" if self.dense == "bf16" else dtype
        shape = *array.shape[:-2], *array.shape[:-3:-1]
        out = self._memory.empty(shape, np.uint16 if to == "BF16" else array.dtype)
        for part, rows in zip(_matrices(array), _matrices(out), strict=True):
            transpose(rows, to, part, dtype, self.threads)
        self.checkpoint.release(name)
        return Matrix(to, out, bias=self.floats(bias) if bias else None)

    def mxfp4(self, matrices: Sequence[tuple[str, str, str]]) -> list[Matrix]:
        """The experts of a layer, as stored: for each of their matrices the names of blocks [E, N, K/32, 16], scales
        [E, N, K/32] and bias."""
        biases = [self.floats(bias) for _, _, bias in matrices]
        if self.store is None:
            stored = [(self._stored(blocks), self._stored(scales)) for blocks, scales, _ in matrices]
            return [Matrix("MXFP4", *parts, bias) for parts, bias in zip(stored, biases, strict=True)]
        pairs = [(blocks, scales) for blocks, scales, _ in matrices]
        for name in (name for pair in pairs for name in pair):
            self._count(name)
        tensors = self.checkpoint.tensors
        return self.store.add_layer([(tensors[blocks], tensors[scales]) for blocks, scales in pairs], biases)

    def _rows_stay(self, name: str) -> bool:
        """Whether an embedding stays in its file while the head is copied: not where it would be rounded."""
        return self.dense == "int8" or (self.copy and (not self.dense or self.checkpoint.tensors[name].dtype == "BF16"))

    def _raw(self, name: str) -> np.ndarray:
        """The values as they lie in the mapped file, aligned or not."""
        return self.checkpoint.array(name, aligned=False)

    def _stored(self, name: str) -> np.ndarray:
        """The values as they lie in the mapped file, or a copy in huge pages."""
        self._count(name)
        array = self.checkpoint.array(name)
        if not self.copy:
            return array
        self.checkpoint.prefetch(name)
        copy = self._memory.empty(array.shape, array.dtype)
        np.copyto(copy, array)
        self.checkpoint.release(name)
        return copy

    def _to_convert(self, name: str) -> tuple[np.ndarray, str]:
        """A tensor that is read once, to be stored otherwise: its values, aligned or not, and dtype."""
        self._count(name)
        self.checkpoint.prefetch(name)
        return self._raw(name), self.checkpoint.tensors[name].dtype

    def _quantised(
        self, name: str, array: np.ndarray, dtype: str, bias: str | None, transposed: bool = False
    ) -> Matrix:
        """The matrix [N, K], or the matrices [E, N, K], as INT8; transposed: stored as [.., K, N]."""
        pairs = [quantize_int8(m, dtype, self.threads, self._memory.empty, transposed) for m in _matrices(array)]
        q, scales = pairs[0] if array.ndim == 2 else map(np.stack, zip(*pairs, strict=True))
        self.checkpoint.release(name)
        columns = array.shape[-2 if transposed else -1]
        return Matrix("INT8", q, scales, bias=self.floats(bias) if bias else None, columns=columns)

    def _copied(self, name: str, to: str) -> np.ndarray:
        """A copy as dtype `to`, in the same order: the transpose of one long row."""
        array, dtype = self._to_convert(name)
        copy = self._memory.empty(array.shape, np.uint16 if to == "BF16" else array.dtype)
        transpose(copy.reshape(-1, 1), to, array.reshape(1, -1), dtype, self.threads)
        self.checkpoint.release(name)
        return copy

    def _count(self, name: str) -> None:
        self.reading = name
        self._done += self._unread.pop(name, 0)  # a tied head is read as the embedding, too
        if self._progress:
            self._progress(self._done, self._total)


def _matrices(array: np.ndarray) -> np.ndarray:
    """[.., rows, cols] as [n, rows, cols]."""
    return array.reshape(-1, *array.shape[-2:])
