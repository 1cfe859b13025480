"""Sequences and their keys and values."""

import mmap

import numpy as np

from cgpt._kernels import KV_BLOCK, V_ALIGN, LayerCache
from cgpt.errors import ContextLengthError, InputError, OutOfMemoryError


class Sequence:
    """One sequence of tokens inside a model, with a cache of its own: what `model.step` extends.

    A full layer's cache has address space for `context` positions, which becomes memory as it is touched; a sliding
    layer's is a ring of its window. Made by `model.new_sequence()`; used by one step at a time.
    """

    def __init__(self, windows: list[int], G: int, D: int, context: int) -> None:
        """windows: per layer, how many positions it sees (0: all); G key/value heads of D."""
        self.position = 0
        self.context = context
        self.layers: list[LayerCache] = []
        self.arrays: list[tuple[np.ndarray, np.ndarray]] = []
        self._whole = True
        blocks = [-(-min(window or context, context) // KV_BLOCK) for window in windows]
        key_shape, value_shape = (G, D, KV_BLOCK), (G, KV_BLOCK, -(-D // V_ALIGN) * V_ALIGN)
        sizes = [b * int(np.prod(shape)) for b in blocks for shape in (key_shape, value_shape)]
        try:
            memory = np.frombuffer(mmap.mmap(-1, sum(sizes) * 4), np.float32)  # zeroed, and untouched so far
        except (OSError, ValueError, OverflowError, MemoryError) as problem:
            raise OutOfMemoryError(
                f"a cache for {context} positions takes {sum(sizes) * 4 / 1e9:.1f} GB of address space, which the "
                f"system refuses ({problem}); ask for a shorter context"
            ) from None
        parts = np.split(memory, np.cumsum(sizes)[:-1])
        for layer, b in enumerate(blocks):
            k, v = parts[2 * layer].reshape(b, *key_shape), parts[2 * layer + 1].reshape(b, *value_shape)
            self.arrays.append((k, v))
            self.layers.append(LayerCache(k, v))

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
        self._whole = True

    def first_bad_layer(self) -> int | None:
        """The first layer whose keys or values are not finite."""
        for layer, arrays in enumerate(self.arrays):
            used = -(-(self.position + 1) // KV_BLOCK)
            if not all(np.isfinite(a[:used]).all() for a in arrays):
                return layer
        return None
