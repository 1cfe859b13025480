"""Sequences and their keys and values."""

import mmap

import numpy as np

from cgpt._kernels import KV_BLOCK, NUMPY_DTYPES, LayerCache, kv_shapes
from cgpt.errors import ContextLengthError, InputError, OutOfMemoryError

KV_DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}  # as load() names them, and the kernels
DEFAULT_KV_DTYPE = {"exact": "f32", "auto": "f16"}  # by precision; f16 rounds eight times finer than bf16


class Sequence:
    """One sequence of tokens inside a model, with a cache of its own: what `model.step` extends.

    A full layer's cache has address space for `context` positions, which becomes memory as it is touched; a sliding
    layer's is a ring of its window and of `slack` more, for truncate(). Made by `model.new_sequence()`; used by one
    step at a time.
    """

    def __init__(
        self, windows: list[int], G: int, D: int, context: int, slack: int = 0, dtype: str = "F32"
    ) -> None:
        """windows: per layer, how many positions it sees (0: all); G key/value heads of D. dtype: "F32", "F16" or
        "BF16", of what is kept."""
        self.position = 0
        self.context = context
        self._written = 0  # the positions that have ever been reached
        self._slack = slack if any(windows) else context
        self._whole = True
        blocks = [-(-min(window + slack if window else context, context) // KV_BLOCK) for window in windows]
        shapes = [shape for b in blocks for shape in kv_shapes(b, G, D)]
        sizes = [int(np.prod(shape)) for shape in shapes]
        kept = np.dtype(NUMPY_DTYPES[dtype])
        size = sum(sizes) * kept.itemsize
        try:
            memory = np.frombuffer(mmap.mmap(-1, size), kept)  # zeroed, and untouched so far
        except (OSError, ValueError, OverflowError, MemoryError) as problem:
            raise OutOfMemoryError(
                f"a cache for {context} positions takes {size / 1e9:.1f} GB of address space, which the system "
                f"refuses ({problem}); ask for a shorter context"
            ) from None
        parts = [part.reshape(s) for part, s in zip(np.split(memory, np.cumsum(sizes)[:-1]), shapes, strict=True)]
        self.arrays = list(zip(parts[::2], parts[1::2], strict=True))
        self.layers = [LayerCache(k, v, dtype) for k, v in self.arrays]

    def require(self, tokens: int) -> None:
        """Raises where a step of `tokens` more tokens cannot be done."""
        if not self._whole:
            raise InputError("this sequence was interrupted in the middle of a step; begin a new one")
        if self.position + tokens > self.context:
            raise ContextLengthError(
                f"{self.position} + {tokens} tokens exceed the {self.context} positions of this sequence"
            )

    def begin(self) -> None:
        """Called before a step: until end(), the cache is not what `position` says."""
        self._whole = False

    def end(self, tokens: int) -> None:
        """Called when the step is complete."""
        self.position += tokens
        self._written = max(self._written, self.position)
        self._whole = True

    def truncate(self, position: int) -> None:
        """Forgets what stands at `position` and after it. Not further back than `slack` from the farthest that was
        reached where there are sliding layers: their rings have lost what is older. InputError otherwise."""
        self.require(0)
        if not max(0, self._written - self._slack) <= position <= self.position:
            raise InputError(
                f"a sequence that holds {self.position} tokens and has held {self._written} cannot be cut to "
                f"{position}; give model.new_sequence() more slack than {self._slack}"
            )
        self.position = position

    def first_bad_layer(self) -> int | None:
        """The first layer whose keys or values are not finite."""
        for layer, arrays in enumerate(self.arrays):
            used = -(-(self.position + 1) // KV_BLOCK)
            if not all(_finite(a[:, :used]) for a in arrays):
                return layer
        return None


def _finite(kept: np.ndarray) -> bool:
    if kept.dtype == np.uint16:  # bf16: all bits of the exponent are set
        return bool(((kept & 0x7F80) != 0x7F80).all())
    return bool(np.isfinite(kept).all())
