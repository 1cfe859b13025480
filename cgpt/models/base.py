"""What both architectures share: steps over batches of sequences, and what scores and hidden states are made of.

Nothing here knows of text, chats or requests: ids go in, logits come out. One step serves everything: prompts, single
tokens and any mix of both. Norms, projections and experts see the concatenated tokens [T, C]; attention and the caches
go sequence by sequence.
"""

import copy
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from cgpt.arguments import require_integer
from cgpt.checkpoint.changes import FileWatch
from cgpt.checkpoint.config import GPT2Config, GptOssConfig
from cgpt.checkpoint.expert_store import ExpertStore
from cgpt.errors import (
    CheckpointError,
    EmptyPromptError,
    InputError,
    ModelClosed,
    NumericsError,
    OutOfMemoryError,
    TokenIdError,
)
from cgpt.fields import shown
from cgpt.kernels import _kernels as k
from cgpt.machine.memory import available_memory
from cgpt.models.kv_cache import DEFAULT_KV_DTYPE, KV_DTYPES, KVCache
from cgpt.models.logprobs import gather_logprobs
from cgpt.models.partition import OUTPUTS, Ranks, Split, split

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Rows = Literal["last", "all"]
Batch = Iterable[tuple[KVCache, npt.ArrayLike]]
Precision = Literal["auto", "exact", "int8"]
Self = TypeVar("Self", bound="Transformer")


@dataclass
class BatchSlice:
    """The rows of one sequence in a step: `T` of them from `row` on, the step's first or those after `offset` more."""

    cache: KVCache
    row: int
    T: int
    offset: int = 0

    @property
    def start(self) -> int:
        """The position of its first token."""
        return self.cache.position + self.offset


def cut(slices: list[BatchSlice], rows: slice) -> list[BatchSlice]:
    """What `rows` of a step hold, numbered from their first on."""
    if rows.start == 0 and rows.stop >= slices[-1].row + slices[-1].T:
        return slices
    found = []
    for one in slices:
        first, end = max(one.row, rows.start), min(one.row + one.T, rows.stop)
        if first < end:
            found.append(BatchSlice(one.cache, first - rows.start, end - first, one.offset + first - one.row))
    return found


class Workspace:
    """Scratch of one running step: kernel contexts (`exact` for what must not be rounded in any precision) and named
    activations [rows, columns], which only grow; `ranks` have the other columns of some."""

    def __init__(self, threads: int, precision: str, ranks: Ranks | None) -> None:
        self.ranks = ranks
        self.ctx = k.Context(threads, precision)
        self.exact = k.Context(threads, "exact")
        self._tensors: dict[str, k.Tensor] = {}

    def tensor(self, name: str, rows: int, cols: int) -> k.Tensor:
        """The activation `name` with at least `rows` rows; what it holds is undefined."""
        found = self._tensors.get(name)
        if found is None or found.rows < rows or found.cols != cols:
            found = self._tensors[name] = k.Tensor(np.empty((rows, cols), np.float32))
        return found

    def gather(self, y: k.Tensor, rows: int, columns: Split) -> None:
        """Completes rows of y, of which this rank has some columns, by those of the others."""
        if self.ranks is not None:
            self.ranks.gather(y.array[:rows], columns.bounds)


class StepObserver(Protocol):
    """Called before the first block of a step and after each one."""

    def __call__(self, blocks: int, ws: Workspace, x: k.Tensor, slices: list[BatchSlice]) -> None:
        """blocks: how many have run; x: the residual stream [T, C] that left them."""


class Streaming(Protocol):
    """What shares a bounded memory out between experts and what a step needs: models.streaming.MemoryBudget."""

    limit: int  # bytes
    store: ExpertStore

    def begin_step(self, tokens: int) -> None:
        """Makes room for a step of so many tokens; OutOfMemoryError where there is none."""

    def add_cache(self, cache: KVCache) -> None:
        """Counts a cache, as long as there is one."""

    def available(self) -> int:
        """The bytes that caches may take."""

    def share(self) -> None:
        """One more model uses it."""

    def close(self) -> None:
        """Gives the memory back, once no model uses it."""


class Transformer:
    """A model that is ready to run: base of GPT2 and GptOss, which give the attributes below, `embed` and `final_norm`.

    Threads may share it: each step has its own workspace, and each KVCache belongs to one step at a time.
    """

    PREFILL_CHUNK = 512  # tokens per step that bound the memory of long prompts; more where experts are streamed
    LOGITS_CHUNK = 512  # the same where the logits of all of them are wanted
    KEPT_TOKENS = 64  # of a step whose scratch is kept for the next one, where memory is bounded
    files: FileWatch | None = None  # what the weights are read from; load() sets it
    streaming: Streaming | None = None  # of experts that do not stay in memory; load() sets it
    windows: list[int]  # of each layer, in positions; 0 sees everything
    heads: int
    kv_heads: int
    head_dim: int
    width: int
    head: k.Matrix  # of the logits
    blocks: list[Any]

    def __init__(
        self, config: GPT2Config | GptOssConfig, threads: int, precision: Precision, ranks: Ranks | None
    ) -> None:
        self.config: Any = config
        self.ranks = ranks
        self.threads = threads
        self.precision = precision
        self.kv_cache_dtype = DEFAULT_KV_DTYPE[precision]  # load() may choose another
        self.vocab_size: int = config.vocab_size
        self.vocabulary = split(config.vocab_size, ranks, OUTPUTS)
        self.eos_token_ids: tuple[int, ...] = config.eos_token_ids
        self.closed = False
        self.closed_for = "the model was closed and its weights given back"
        self._begin()
        self._without_weights = {"_without_weights", *vars(self)}

    def _begin(self) -> None:
        """Starts with no step running."""
        self._idle: list[Workspace] = []
        self._lock = threading.Lock()  # guards what follows
        self._running = 0

    @property
    def context_length(self) -> int:
        """The positions the model has."""
        raise NotImplementedError

    def embed(self, ws: Workspace, x: k.Tensor, ids: Ids, slices: list[BatchSlice]) -> None:
        """Writes the embeddings of `ids` to x [T, C]."""
        raise NotImplementedError

    def final_norm(self, ws: Workspace, out: k.Tensor, x: k.Tensor, T: int) -> None:
        """Writes the norm of x [T, C] that the head reads to `out`."""
        raise NotImplementedError

    def at_precision(self: Self, precision: Precision) -> Self:
        """The same weights, with no copy of them, at another precision and with its default cache."""
        self.require_open()
        twin = copy.copy(self)
        twin.precision, twin.kv_cache_dtype = precision, DEFAULT_KV_DTYPE[precision]
        twin._begin()
        if self.ranks is not None:
            self.ranks.track("at_precision", self, twin, precision)
        if twin.streaming is not None:
            twin.streaming.share()
        return twin

    def close(self) -> None:
        """Gives weights and scratch back: at once, or when the steps that are running have ended. A twin of
        at_precision() keeps the weights until it is closed too. Every later call raises ModelClosed."""
        with self._lock:
            self.closed = True
            self._release()
        if self.ranks is not None:
            self.ranks.record("close", self)

    def _release(self) -> None:
        if self.closed and not self._running:
            if self.streaming is not None:
                self.streaming.close()
            for name in vars(self).keys() - self._without_weights:
                delattr(self, name)
            self._idle.clear()

    def require_open(self) -> None:
        """Raises ModelClosed after close()."""
        if self.closed:
            raise ModelClosed(f"{self.closed_for}; load it again")

    def require_unchanged(self) -> None:
        """Closes the model and raises CheckpointError where its files have changed."""
        try:
            if self.files is not None:
                self.files.require_unchanged()
        except CheckpointError:
            self.closed_for = "the model was closed because its checkpoint changed on disk"
            self.close()
            raise

    # ------------------------------------------------------------------------------------------------- the step

    def new_cache(self, context: int | None = None, slack: int = 0) -> KVCache:
        """The empty cache of a new sequence of up to `context` positions (default: all the model has), which can go
        back by `slack` tokens, see KVCache.truncate."""
        self.require_open()
        most = self.context_length
        context = most if context is None else min(require_integer("context", context, low=0), most)
        kv_heads = split(self.kv_heads, self.ranks).count
        cache = KVCache(self.windows, kv_heads, self.head_dim, context, slack, KV_DTYPES[self.kv_cache_dtype])
        if self.ranks is not None:
            cache.ranks = self.ranks
            self.ranks.track("new_cache", self, cache, context, slack)
        if self.streaming is not None:
            self.streaming.add_cache(cache)
        return cache

    def available_memory(self) -> int | None:
        """The bytes that caches may take here; None: unknown."""
        if self.streaming is not None:
            return self.streaming.available()
        available = available_memory()
        return available if available is None or self.ranks is None else available // self.ranks.on_host

    def uniform_tokens(self, max_tokens: int) -> int:
        """How many tokens, `max_tokens` at most, a step may hold for each to get the bits it would get alone."""
        return min(k.uniform_tokens(matrix, max_tokens, self.precision) for _, matrix in self.matrices())

    def matrices(self) -> Iterator[tuple[str, k.Matrix]]:
        """(name, weights) of every product of a step: what a block calls its own, and the head."""
        for block in self.blocks:
            for name, value in vars(block).items():
                for part in value if isinstance(value, list) else [value]:
                    if isinstance(part, k.Matrix):
                        yield name, part
        yield "head", self.head

    def step(
        self, batch: Batch, *, rows: Rows = "last", head: bool = True, observer: StepObserver | None = None
    ) -> Floats:
        """Appends ids to sequences and returns what the model predicts next.

        batch: pairs (KVCache, its new ids), any mix of single tokens and chunks of prompts; no cache twice.
        rows="last": float32 [len(batch), V], the logits after each sequence's last id; "all": [sum of ids, V].
        head=False gives the head's input [.., C] instead.

        Raises InputError, EmptyPromptError, TokenIdError, ContextLengthError or ModelClosed before anything is
        computed, and CheckpointError, which closes the model, where its file has changed on disk. Raises NumericsError
        if what comes out is not finite, whose `caches` are to blame, or OutOfMemoryError; KVCache.rollback() takes
        caches of a failed step back to where they were.
        """
        self.require_open()
        self.require_unchanged()
        if rows not in ("last", "all"):
            raise InputError(f'rows is "last" or "all", not {shown(rows)}')
        ids, slices = self._lay_out(batch)
        if self.ranks is not None:
            self.check_ids(ids)
            if observer is not None:
                raise InputError("what happens inside a model can be observed where one process has all of it")
        if self.streaming is not None:
            self.streaming.begin_step(len(ids))
        keep = self.streaming is None or len(ids) <= self.KEPT_TOKENS
        parts = [(part.cache, ids[part.row : part.row + part.T].tolist()) for part in slices] if self.ranks else None
        with self._workspace(keep) as ws, self._lead("step", parts, rows=rows, head=head):
            x = ws.tensor("x", len(ids), self.width)
            self.embed(ws, x, ids, slices)  # checks the ids
            for part in slices:
                part.cache.begin_step(part.T)
            if observer:
                observer(0, ws, x, slices)
            for n, block in enumerate(self.blocks, 1):
                block(ws, x, len(ids), slices)
                if observer:
                    observer(n, ws, x, slices)
            T = len(ids)
            if rows == "last":
                T, last = len(slices), ws.tensor("last", len(slices), self.width)
                last.array[:T] = x.array[[part.row + part.T - 1 for part in slices]]
                x = last
            out = self.predict(ws, x, T, head)
            if self.vocabulary.start == 0:  # the first rank has all of it
                self.require_finite(out, slices)
                self._end_step(slices)
        if self.vocabulary.start:  # the others, once the first one has let them
            self._end_step(slices)
        return out

    def _end_step(self, slices: list[BatchSlice]) -> None:
        for part in slices:
            part.cache.end_step(part.T)

    def _lead(self, what: str, *args: Any, **options: Any) -> AbstractContextManager[None]:
        """Within it all ranks call the same method; nothing where there is one."""
        return nullcontext() if self.ranks is None else self.ranks.lead(what, self, *args, **options)

    def predict(self, ws: Workspace, x: k.Tensor, T: int, head: bool = True) -> Floats:
        """float32 [T, V]: the logits of T rows of the residual stream x; without the head its input [T, C]."""
        hidden = k.Tensor(np.empty((T, self.width), np.float32))
        self.final_norm(ws, hidden, x, T)
        return self._logits(ws, hidden, T) if head else hidden.array

    def _logits(self, ws: Workspace, hidden: k.Tensor, T: int) -> Floats:
        """float32 [T, V], the head's outputs; those of this rank alone where it is not the first."""
        mine = self.vocabulary
        logits = k.Tensor(np.empty((T, mine.count if mine.start else self.vocab_size), np.float32))
        k.linear(ws.ctx, logits, hidden, self.head, T)
        if self.ranks is not None:
            self.ranks.collect(logits.array, mine.bounds)
        return logits.array

    def require_finite(self, out: Floats, slices: list[BatchSlice]) -> None:
        """Raises NumericsError where `out`, a row for each slice or all of their rows, holds NaN or infinity."""
        if np.isfinite(out).all():
            return
        good: npt.NDArray[np.bool_] = np.asarray(np.isfinite(out).all(axis=1))
        if len(good) != len(slices):
            good = np.array([good[part.row : part.row + part.T].all() for part in slices])
        wrong = tuple(part.cache for part, fine in zip(slices, good, strict=True) if not fine)
        layers = [bad for cache in wrong if (bad := cache.first_bad_layer()) is not None]
        where = f"the keys and values of layer {min(layers)} are the first" if layers else "the last layer or the head"
        f16 = layers and any(cache.layers[min(layers)].dtype == "F16" for cache in wrong)
        hint = '; an f16 cache keeps at most 65,504, kv_cache_dtype="bf16" keeps them' if f16 else ""
        raise NumericsError(
            f"NaN or infinity in the model's output ({where}): damaged weights, or an overflow{hint}", wrong
        )

    def check_ids(self, ids: npt.ArrayLike) -> Ids:
        """The token ids of a prompt as int64 [T]; raises InputError, EmptyPromptError or TokenIdError."""
        array = _as_ids(ids)
        if array.size and (array.min() < 0 or array.max() >= self.vocab_size):
            wrong = int(array.min() if array.min() < 0 else array.max())
            raise TokenIdError(f"token id {wrong} is not in the vocabulary, 0 .. {self.vocab_size - 1}")
        return array

    def _lay_out(self, batch: Batch) -> tuple[Ids, list[BatchSlice]]:
        parts: list[Ids] = []
        slices: list[BatchSlice] = []
        row = 0
        for cache, new in batch:
            ids = _as_ids(new)
            cache.require_room(len(ids))
            parts.append(ids)
            slices.append(BatchSlice(cache, row, len(ids)))
            row += len(ids)
        if not parts:
            raise EmptyPromptError("a step needs at least one sequence")
        if len({id(part.cache) for part in slices}) < len(slices):
            raise InputError("a sequence appears twice in one step")
        return np.concatenate(parts), slices

    @contextmanager
    def _workspace(self, keep: bool = True) -> Iterator[Workspace]:
        """A workspace of its own for each step that runs at the same time; one whose step failed, and one that is not
        to be kept, is dropped."""
        with self._lock:
            self.require_open()
            self._running += 1
            idle = self._idle.pop() if self._idle else None
        try:
            ws = idle or Workspace(self.threads, self.precision, self.ranks)
            yield ws
            if keep:
                self._idle.append(ws)
        except MemoryError as problem:
            if isinstance(problem, OutOfMemoryError):
                raise
            raise OutOfMemoryError(f"no memory for a step ({problem}); use shorter prompts or fewer at once") from None
        finally:
            with self._lock:
                self._running -= 1
                self._release()

    # --------------------------------------------------------------------------------------------- whole prompts

    def logits(self, ids: npt.ArrayLike) -> Floats:
        """float32 [T, V]: the logits after each of the T ids."""
        return self._read(ids, lambda cache, chunk, _: self.step([(cache, chunk)], rows="all"), self.LOGITS_CHUNK)

    def hidden(self, ids: npt.ArrayLike) -> Floats:
        """float32 [T, C]: the output of the final norm, which is the head's input, at each of the T ids."""
        take = lambda cache, chunk, _: self.step([(cache, chunk)], rows="all", head=False)  # noqa: E731
        return self._read(ids, take, self.PREFILL_CHUNK)

    def score(self, ids: npt.ArrayLike) -> Floats:
        """float32 [T-1]: the log-probability, in nats, of each id after the first given those before it."""

        def targets(cache: KVCache, chunk: Ids, following: Ids) -> Floats:
            if not len(following):  # the last id of all, whose logits predict nothing
                return np.empty(0, np.float32)
            hidden, n = self.step([(cache, chunk[: len(following)])], rows="all", head=False), self.LOGITS_CHUNK
            scored = [self._score(hidden[i : i + n], following[i : i + n]) for i in range(0, len(following), n)]
            return np.concatenate(scored)

        return self._read(ids, targets, self.PREFILL_CHUNK)

    def logits_of(self, hidden: Floats) -> Floats:
        """float32 [T, V]: the logits of these inputs [T, C] of the head."""
        with self._workspace() as ws, self._lead("logits_of", hidden):
            return self._logits(ws, k.Tensor(hidden), len(hidden))

    def _score(self, hidden: Floats, targets: Ids) -> Floats:
        """The log-probabilities of the ids that follow these inputs [T, C] of the head."""
        logits = self.logits_of(hidden)
        self.require_finite(logits, [])
        return gather_logprobs(logits, targets, threads=self.threads)[0].astype(np.float32)

    def _read(self, ids: npt.ArrayLike, take: Callable[[KVCache, Ids, Ids], Floats], n: int) -> Floats:
        """What `take` makes of each chunk of n ids of a prompt, and of the ids that follow each of its tokens."""
        self.require_open()
        array = self.check_ids(ids)
        cache = self.new_cache(len(array))
        cache.require_room(len(array))
        try:
            return np.concatenate(
                [take(cache, array[i : i + n], array[i + 1 : i + 1 + n]) for i in range(0, len(array), n)]
            )
        except MemoryError as problem:
            if isinstance(problem, OutOfMemoryError):
                raise
            raise OutOfMemoryError(f"no memory for the result of {len(array)} tokens: {problem}") from None


def _as_ids(ids: npt.ArrayLike) -> Ids:
    """`ids` as int64 [T], T at least 1; whether the vocabulary has them is another's to check."""
    if type(ids) is np.ndarray and ids.dtype == np.int64 and ids.ndim == 1 and ids.size:
        return np.ascontiguousarray(ids)
    wanted = "a prompt is a str or a flat list of token ids, a tokenizer's input_ids"
    try:
        array = np.asarray(ids)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{wanted}, not {shown(ids)}") from None
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        wide = array.dtype == object and array.ndim == 1 and all(type(one) is int for one in array)
        if wide:  # an integer of more than 64 bits
            raise TokenIdError(f"token id {shown(max(array, key=abs))} is not in the vocabulary")
        raise InputError(f"{wanted}, not {f'{array.dtype} {list(array.shape)}' if array.ndim else shown(ids)}")
    if not array.size:
        raise EmptyPromptError("the prompt holds no token; give some text, or at least one id")
    if array.dtype == np.uint64 and array.max() > np.iinfo(np.int64).max:
        raise TokenIdError(f"token id {array.max()} is not in the vocabulary")
    return np.ascontiguousarray(array, np.int64)


def attend(
    ws: Workspace, out: k.Tensor, qkv: k.Tensor, layer: int, slices: list[BatchSlice], H: int, **how: Any
) -> None:
    """Attention of each sequence over its own cache; `how` as in _kernels.attention."""
    k.attention(ws.ctx, out, qkv, [(s.cache.layers[layer], s.row, s.start, s.T) for s in slices], H, **how)
