"""What every model does with its blocks: steps over batches of sequences, and the calls of the public API."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cgpt.errors import EmptyPromptError, InputError, NumericsError, TokenIdError
from cgpt.generation.generate import Completion, generate, stream
from cgpt.generation.sampling import log_probabilities
from cgpt.kernels import _kernels as k
from cgpt.models import inspection
from cgpt.models.kv_cache import DEFAULT_KV_DTYPE, KV_DTYPES, Sequence
from cgpt.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from cgpt.chat.chat import Chat


@dataclass
class Span:
    """The rows of one sequence in a step."""

    sequence: Sequence
    row: int
    T: int

    @property
    def start(self) -> int:
        return self.sequence.position


class Workspace:
    """Scratch of one running step: kernel contexts (`exact` for what must not be rounded in any precision) and named
    activations [rows, columns], which only grow."""

    def __init__(self, threads: int, precision: str) -> None:
        self.ctx = k.Context(threads, precision)
        self.exact = k.Context(threads, "exact")
        self._tensors: dict[str, k.Tensor] = {}

    def tensor(self, name: str, rows: int, cols: int) -> k.Tensor:
        found = self._tensors.get(name)
        if found is None or found.rows < rows or found.cols != cols:
            found = self._tensors[name] = k.Tensor(np.empty((rows, cols), np.float32))
        return found


class Model:
    """Base of GPT2 and GptOss. A subclass gives `windows`, `heads`, `kv_heads`, `head_dim`, `width`, `head` (the logits
    matrix), `embed(ws, x, ids, spans)`, `blocks` and `final_norm(ws, out, x, T)`.

    Threads may share a model: each step has its own workspace, each sequence belongs to one step at a time.
    """

    PREFILL_CHUNK = 512  # tokens per step that bound the memory of long prompts
    windows: list[int]
    heads: int
    kv_heads: int
    head_dim: int
    width: int
    head: k.Matrix
    blocks: list

    def __init__(self, config, directory: Path, threads: int, precision: str) -> None:
        self.config = config
        self.directory = directory
        self.threads = threads
        self.precision = precision
        self.kv_cache_dtype = DEFAULT_KV_DTYPE[precision]  # load() may choose another
        self.vocab_size: int = config.vocab_size
        self.eos_token_ids: tuple[int, ...] = config.eos_token_ids
        self._idle: list[Workspace] = []

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back, from the checkpoint's own files or the ranks in the package."""
        return Tokenizer.from_directory(self.directory, self.vocab_size)

    @property
    def context_length(self) -> int:
        """The positions the model has."""
        raise NotImplementedError

    def at_precision(self, precision: str) -> "Model":
        """The same weights, with no copy of them, at another precision and with its default cache."""
        twin = copy.copy(self)
        twin.precision, twin.kv_cache_dtype, twin._idle = precision, DEFAULT_KV_DTYPE[precision], []
        return twin

    # ------------------------------------------------------------------------------------------------- the step

    def new_sequence(self, context: int | None = None, slack: int = 0) -> Sequence:
        """An empty sequence with room for `context` positions (default: all the model has) that can go back by `slack`
        tokens, see Sequence.truncate."""
        context = self.context_length if context is None else min(context, self.context_length)
        return Sequence(self.windows, self.kv_heads, self.head_dim, context, slack, KV_DTYPES[self.kv_cache_dtype])

    def uniform_tokens(self, most: int) -> int:
        """The tokens, `most` at the highest, that a step may hold for each to get the bits it would get alone."""
        return min(k.uniform_tokens(matrix, most, self.precision) for _, matrix in self.matrices())

    def matrices(self) -> Iterator[tuple[str, k.Matrix]]:
        """(name, weights) of every product of a step: what a block calls its own, and the head."""
        for block in self.blocks:
            for name, value in vars(block).items():
                for part in value if isinstance(value, list) else [value]:
                    if isinstance(part, k.Matrix):
                        yield name, part
        yield "head", self.head

    def step(self, batch, *, rows: str = "last", head: bool = True, watch: Callable | None = None) -> np.ndarray:
        """Appends ids to sequences and gives what the model says next.

        batch: pairs (sequence, its new ids), any mix of single tokens and chunks of prompts. rows="last": float32
        [len(batch), V], the logits after each sequence's last id; "all": [sum of ids, V]. head=False gives the
        head's input [.., C] instead. watch(blocks, ws, x, spans), if given, is called before the first block and after
        each: how many there were, their workspace, and what left them. Raises EmptyPromptError, TokenIdError or
        ContextLengthError before anything is computed, NumericsError if what comes out is not finite; its `sequences`
        are to blame, and Sequence.undo() takes the others back to where they were.
        """
        ids, spans = self._lay_out(batch)
        with self._workspace() as ws:
            for span in spans:
                span.sequence.begin(span.T)
            x = ws.tensor("x", len(ids), self.width)
            self.embed(ws, x, ids, spans)
            if watch:
                watch(0, ws, x, spans)
            for n, block in enumerate(self.blocks, 1):
                block(ws, x, len(ids), spans)
                if watch:
                    watch(n, ws, x, spans)
            out = self._finish(ws, x, len(ids), spans, rows, head)
        self._require_finite(out, spans)
        for span in spans:
            span.sequence.end(span.T)
        return out

    def _lay_out(self, batch) -> tuple[np.ndarray, list[Span]]:
        parts, spans, row = [], [], 0
        for sequence, new in batch:
            ids = self._check_ids(new)
            sequence.require(len(ids))
            parts.append(ids)
            spans.append(Span(sequence, row, len(ids)))
            row += len(ids)
        if not parts:
            raise EmptyPromptError("a step needs at least one sequence")
        if len({id(span.sequence) for span in spans}) < len(spans):
            raise InputError("a sequence appears twice in one step")
        return np.concatenate(parts), spans

    def _check_ids(self, ids) -> np.ndarray:
        array = np.asarray(ids)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise InputError(f"token ids are a flat list of integers, not {array.dtype} {list(array.shape)}")
        if not array.size:
            raise EmptyPromptError("the prompt holds no token; give at least one id")
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= self.vocab_size:
            wrong = low if low < 0 else high
            raise TokenIdError(f"token id {wrong} is not in the vocabulary, 0 .. {self.vocab_size - 1}")
        return np.ascontiguousarray(array, np.int64)

    def _finish(self, ws, x, T: int, spans: list[Span], rows: str, head: bool) -> np.ndarray:
        if rows == "last":
            T = len(spans)
            last = ws.tensor("last", T, self.width)
            last.array[:T] = x.array[[span.row + span.T - 1 for span in spans]]
            x = last
        elif rows != "all":
            raise InputError(f'rows is "last" or "all", not {rows!r}')
        hidden = k.Tensor(np.empty((T, self.width), np.float32))
        self.final_norm(ws, hidden, x, T)
        if not head:
            return hidden.array
        logits = k.Tensor(np.empty((T, self.vocab_size), np.float32))
        k.linear(ws.ctx, logits, hidden, self.head, T)
        return logits.array

    def _require_finite(self, out: np.ndarray, spans: list[Span]) -> None:
        """out: a row for each span, or all of its rows."""
        if np.isfinite(out).all():
            return
        good = np.isfinite(out).all(axis=1)
        if len(good) != len(spans):
            good = [good[span.row : span.row + span.T].all() for span in spans]
        wrong = tuple(span.sequence for span, fine in zip(spans, good, strict=True) if not fine)
        layers = [bad for sequence in wrong if (bad := sequence.first_bad_layer()) is not None]
        where = f"the keys and values of layer {min(layers)} are the first" if layers else "the last layer or the head"
        f16 = layers and self.kv_cache_dtype == "f16"
        hint = '; an f16 cache keeps at most 65,504, kv_cache_dtype="bf16" keeps them' if f16 else ""
        what = f"NaN or infinity in the model's output ({where}): damaged weights, or an overflow{hint}"
        problem = NumericsError(what)
        problem.sequences = wrong
        raise problem

    @contextmanager
    def _workspace(self) -> Iterator[Workspace]:
        """A workspace of its own for each step that runs at the same time; list operations are atomic."""
        try:
            ws = self._idle.pop()
        except IndexError:
            ws = Workspace(self.threads, self.precision)
        yield ws
        self._idle.append(ws)

    # --------------------------------------------------------------------------------------------- the public API

    def encode_prompt(self, prompt) -> list[int]:
        """The ids of a prompt given as text or as ids."""
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        return self._check_ids(prompt).tolist()

    def _run(self, ids, **what) -> np.ndarray:
        """step() over a whole prompt in chunks, every row."""
        ids = self._check_ids(ids)
        sequence = self.new_sequence(len(ids))
        sequence.require(len(ids))
        chunks = [ids[i : i + self.PREFILL_CHUNK] for i in range(0, len(ids), self.PREFILL_CHUNK)]
        return np.concatenate([self.step([(sequence, chunk)], rows="all", **what) for chunk in chunks])

    def logits(self, ids) -> np.ndarray:
        """float32 [T, V]: the logits after each of the T ids."""
        return self._run(ids)

    def hidden(self, ids) -> np.ndarray:
        """float32 [T, C]: the output of the final norm, which is the head's input, at each of the T ids."""
        return self._run(ids, head=False)

    def score(self, prompt) -> np.ndarray:
        """float32 [T-1]: the log-probability of each token of the prompt (text or ids) given those before it."""
        ids = self._check_ids(self.encode_prompt(prompt))
        sequence = self.new_sequence(len(ids))
        sequence.require(len(ids))
        out = np.empty(len(ids) - 1, np.float32)
        for i in range(0, len(ids) - 1, self.PREFILL_CHUNK):
            chunk, then = ids[:-1][i : i + self.PREFILL_CHUNK], ids[i + 1 : i + 1 + self.PREFILL_CHUNK]
            found = log_probabilities(self.step([(sequence, chunk)], rows="all"))
            out[i : i + len(chunk)] = found[np.arange(len(chunk)), then]
        return out

    def inspect(self, prompt, what=None, **options) -> dict[str, np.ndarray]:
        """What happens inside while the model reads a prompt (text or ids): hidden states, attention's shares, the
        router's choices, the logit lens, as arrays by name; see cgpt.models.inspection."""
        return inspection.inspect(self, prompt, what, **options)

    def chat(self, **options) -> "Chat":
        """A conversation: system=, tools=, reasoning= and more, see cgpt.chat.Chat. ChatError where the model has no
        chat format, as GPT-2."""
        from cgpt.chat.chat import Chat

        return Chat(self, **options)

    def generate(self, prompt, **options) -> Completion | list[Completion]:
        """A completion of `prompt` (text or ids), or of each in a list of prompts; see generation.generate."""
        return generate(self, prompt, **options)

    def stream(self, prompt, **options) -> Iterator[str]:
        """Pieces of the text that generate() would give, as they come; see cgpt.generation.generate.stream."""
        return stream(self, prompt, **options)


def attend(ws, out, qkv, layer: int, spans: list[Span], H: int, **how) -> None:
    """Attention of each sequence over its own cache; `how` as in _kernels.attention."""
    k.attention(ws.ctx, out, qkv, [(s.sequence.layers[layer], s.row, s.start, s.T) for s in spans], H, **how)
