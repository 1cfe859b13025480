"""The keys and values of one sequence, layer by layer: whole contexts, and rings for sliding windows."""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cgpt.errors import ContextLengthError, InputError, OutOfMemoryError
from cgpt.kernels._kernels import KV_BLOCK, KV_PANEL, NUMPY_DTYPES, LayerCache, kv_shapes
from cgpt.models.partition import Ranks

Array = npt.NDArray[Any]
KV_DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "int8": "INT8"}  # as load() names them, and the kernels
KEY_AT, VALUE_AT = np.arange(KV_BLOCK).reshape(-1, 1, KV_PANEL), np.arange(KV_BLOCK).reshape(-1, 1)  # within a block
DEFAULT_KV_DTYPE = {"exact": "f32", "auto": "f16", "int8": "f16"}  # f16 rounds eight times finer than bf16


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What the rings of a sequence held when it was at `position`. Its other layers keep what they held, so with them
    it is all that another sequence needs to go on from there.

    rings: for each layer with a window the blocks of keys and of values that the next positions see, else None
    """

    position: int
    rings: list[tuple[Array, Array] | None]

    @property
    def nbytes(self) -> int:
        """Bytes of the copies."""
        return sum(array.nbytes for array in self.arrays())

    def arrays(self) -> list[Array]:
        """The copies, layer by layer."""
        return [array for ring in self.rings if ring for array in ring]


class KVCache:
    """The keys and values of one sequence in every layer, which Transformer.step extends.

    A full layer has address space for `context` positions, which becomes memory as it is touched; a sliding layer has a
    ring of its window and of `slack` more, for truncate(). Made by Transformer.new_cache(); used by one step at a time.

    position: how many tokens it holds. intact: False within a step, and after one that was interrupted. arrays: keys
    and values of each layer, see kernels.kv_shapes
    """

    def __init__(self, windows: list[int], G: int, D: int, context: int, slack: int = 0, dtype: str = "F32") -> None:
        """windows: per layer, how many positions it sees (0: all); G key/value heads of D. dtype: of what is kept, one
        of the kernels' KV_DTYPES."""
        self.position = 0
        self.context = context
        self.ranks: Ranks | None = None  # those that have the other heads of this sequence
        self._written = 0  # the positions that have ever been reached
        self._oldest = 0  # what truncate() can go back to, at the most
        self._slack = slack if any(windows) else context
        self._windows = windows
        self.intact = True  # False within a step, and after one that was interrupted
        self._begun = 0  # the tokens of that step
        self._before: Snapshot | None = None  # what its windows held, if the step may overwrite some of it
        blocks = [-(-min(window + slack if window else context, context) // KV_BLOCK) for window in windows]
        dtypes = [layer_dtype(dtype, window) for window in windows]
        kept = [np.dtype(NUMPY_DTYPES[each]) for each in dtypes for _ in "kv"]
        shapes = [shape for b, each in zip(blocks, dtypes, strict=True) for shape in kv_shapes(b, G, D, each)]
        ends = np.cumsum([np.prod(shape) * each.itemsize for shape, each in zip(shapes, kept, strict=True)])
        size = int(ends[-1])
        try:
            # Zeroed, and untouched so far; private, so that after a fork each process has its own.
            memory = np.frombuffer(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
        except (OSError, ValueError, OverflowError, MemoryError) as problem:
            raise OutOfMemoryError(
                f"a cache for {context} positions takes {size / 1e9:.1f} GB of address space, which the system "
                f"refuses ({problem}); ask for a shorter context"
            ) from None
        split = np.split(memory, ends[:-1])
        parts = [part.view(each).reshape(shape) for part, each, shape in zip(split, kept, shapes, strict=True)]
        self.arrays = list(zip(parts[::2], parts[1::2], strict=True))
        self.layers = [LayerCache(k, v, each, D) for (k, v), each in zip(self.arrays, dtypes, strict=True)]

    def require_room(self, tokens: int) -> None:
        """Raises where a step of `tokens` more tokens cannot be done."""
        if not self.intact:
            raise InputError("this sequence was interrupted in the middle of a step; begin a new one")
        if self.position + tokens > self.context:
            raise ContextLengthError(
                f"{self.position} + {tokens} tokens exceed the {self.context} positions of this sequence"
            )

    def begin_step(self, tokens: int) -> None:
        """Begins a step of so many tokens; until end_step() the cache is not what `position` says."""
        self._before = self._snapshot(self.position) if tokens > self._slack + 1 else None
        self._begun, self.intact = tokens, False

    def rollback(self) -> None:
        """Takes a sequence whose step was interrupted back to where it was before."""
        if self.intact:
            return
        if self.ranks is not None:
            self.ranks.record("rollback", self)
        if self._before is None:
            self._written = max(self._written, self.position + self._begun)
        else:
            for window, ring, arrays in zip(self._windows, self._before.rings, self.arrays, strict=True):
                for kept, array in zip(ring or (), arrays, strict=False):
                    array[:, _blocks(self.position, window, array)] = kept
            self._oldest = self.position
        self._before, self.intact = None, True

    def end_step(self, tokens: int) -> None:
        """Ends a step of so many tokens."""
        self.position += tokens
        self._written = max(self._written, self.position)
        self._before, self.intact = None, True

    def truncate(self, position: int) -> None:
        """Forgets what stands at `position` and after it. Not further back than `slack` from the farthest that was
        reached where there are sliding layers: their rings have lost what is older. InputError otherwise."""
        self._require_held(position)
        if self.ranks is not None:
            self.ranks.record("truncate", self, position)
        self.position = position

    def _require_held(self, position: int) -> None:
        self.require_room(0)
        if not max(self._oldest, self._written - self._slack) <= position <= self.position:
            raise InputError(
                f"a sequence that holds {self.position} tokens and has held {self._written} cannot be cut to "
                f"{position}; give Transformer.new_cache() more slack than {self._slack}"
            )

    def snapshot(self, position: int | None = None) -> Snapshot:
        """A copy of what the windows hold now, or held at an earlier position that truncate() could go back to. Takes
        3 MB in gpt-oss-20b, nothing in GPT-2."""
        position = self.position if position is None else position
        self._require_held(position)
        snapshot = self._snapshot(position)
        if self.ranks is not None:
            self.ranks.track("snapshot", self, snapshot, position)
        return snapshot

    def _snapshot(self, position: int) -> Snapshot:
        rings = [
            (k[:, _blocks(position, window, k)], v[:, _blocks(position, window, v)]) if window else None
            for window, (k, v) in zip(self._windows, self.arrays, strict=True)
        ]
        return Snapshot(position, rings)

    def resume(self, source: "KVCache", snapshot: Snapshot) -> None:
        """Makes this empty sequence what `source`, of the same model, was at `snapshot`; it cannot be truncated to
        less where there are windows. Copies, so both can go on."""
        source.require_room(0)
        if self.position or snapshot.position > source.position:
            raise InputError(
                f"a sequence of {self.position} positions cannot resume at {snapshot.position} of "
                f"{source.position}; take a new one, and a snapshot of what is still there"
            )
        self.require_room(snapshot.position)
        if self.ranks is not None:
            self.ranks.record("resume", self, source, snapshot)
        for mine, theirs in zip(
            self.full_layers(0, snapshot.position), source.full_layers(0, snapshot.position), strict=True
        ):
            mine[:] = theirs
        self.restore(snapshot)

    def restore(self, snapshot: Snapshot) -> None:
        """Makes this empty sequence, whose layers without a window hold what is before `snapshot`, what another one was
        there."""
        p = snapshot.position
        for window, ring, mine in zip(self._windows, snapshot.rings, self.arrays, strict=True):
            for i, at in enumerate((KEY_AT, VALUE_AT)):
                if ring is not None and (blocks := _blocks(p, window, mine[i])):
                    mine[i][:, blocks[:-1]] = ring[i][:, :-1]
                    # The ring may be too small for its newest block to have a place other than the oldest one's.
                    np.copyto(mine[i][:, blocks[-1]], ring[i][:, -1], where=at <= (p - 1) % KV_BLOCK)
        self.position = self._written = p
        self._oldest = p if any(self._windows) else 0

    def full_layers(self, start: int, end: int) -> Iterator[Array]:
        """The blocks that hold positions from `start` up to `end` in the layers without a window: of each layer's keys,
        and of its values, a contiguous view for each head."""
        blocks = slice(start // KV_BLOCK, -(-end // KV_BLOCK))
        for window, arrays in zip(self._windows, self.arrays, strict=True):
            for array in arrays if not window else ():
                yield from array[:, blocks]

    def empty_snapshot(self, position: int) -> Snapshot:
        """Memory for a snapshot at `position`, to be filled."""
        rings: list[tuple[Array, Array] | None] = []
        for window, (k, v) in zip(self._windows, self.arrays, strict=True):
            n = len(_blocks(position, window, k))
            parts = [np.empty((len(a), n, *a.shape[2:]), a.dtype) for a in (k, v)]
            rings.append((parts[0], parts[1]) if window else None)
        return Snapshot(position, rings)

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept, without what is only reserved."""
        blocks = -(-self.position // KV_BLOCK)
        return sum(array[:, :blocks].nbytes for arrays in self.arrays for array in arrays)

    def first_bad_layer(self) -> int | None:
        """The first layer whose keys or values are not finite."""
        used = -(-(self.position + 1) // KV_BLOCK)
        for n, (k, v) in enumerate(self.arrays):
            kept = (int8_scales(k),) if k.dtype == np.int8 else (k, v)
            if not all(_finite(array[:, :used]) for array in kept):
                return n
        return None


def layer_dtype(dtype: str, window: int) -> str:
    """What a layer keeps: `dtype`, but where it has a window F16 for INT8, since little is read there."""
    return "F16" if window and dtype == "INT8" else dtype


def int8_scales(keys: Array) -> Array:
    """float32 [G, blocks, 2, 2, 16]: a view of the scales of INT8 keys, and of those of their values."""
    return keys[:, :, :, -8:].reshape(*keys.shape[:3], 2, 64).view(np.float32)


def _blocks(position: int, window: int, ring: Array) -> list[int]:
    """The blocks of a ring that a token at `position` sees, the oldest first."""
    first, end = max(0, position - window) // KV_BLOCK, -(-position // KV_BLOCK)
    return [block % ring.shape[1] for block in range(first, end)]


def _finite(kept: Array) -> bool:
    """Whether no element is NaN or infinite."""
    if kept.dtype == np.uint16:  # bf16: all bits of the exponent are set
        return bool(((kept & 0x7F80) != 0x7F80).all())
    return bool(np.isfinite(kept).all())
