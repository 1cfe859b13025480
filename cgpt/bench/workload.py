"""What is measured: prompts, and generation by one or several sequences, at the start of a context or deep in it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cgpt.bench.gathers import GatherClock, on_all, ranks_per_first
from cgpt.bench.trace import Trace
from cgpt.checkpoint.expert_store import ExpertStats
from cgpt.errors import ContextLengthError, InputError
from cgpt.models.base import Transformer
from cgpt.models.kv_cache import KVCache, int8_scales

TRACED_STEPS = 8  # of generation, which tell what a step reads


@dataclass(frozen=True)
class Case:
    """Either a prompt of n_prompt tokens or n_gen steps of generation, for n_parallel sequences that have n_depth
    positions behind them."""

    n_prompt: int = 0
    n_gen: int = 0
    n_depth: int = 0
    n_parallel: int = 1

    def __str__(self) -> str:
        name = f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"
        name += f" x{self.n_parallel}" if self.n_parallel > 1 else ""
        return name + (f" @ d{self.n_depth}" if self.n_depth else "")

    @property
    def tokens(self) -> int:
        return (self.n_prompt + self.n_gen) * self.n_parallel


@dataclass
class Measured:
    """repetitions: the seconds of each step of each repetition. bytes, flops: what one repetition must read and
    calculate, by all ranks together. experts: what each repetition found in memory and read, where experts are
    streamed. gathers: of each repetition, where there are several ranks."""

    case: Case
    bytes: float
    flops: float
    repetitions: list[list[float]] = field(default_factory=list)
    experts: list[ExpertStats] = field(default_factory=list)
    gathers: list[GatherClock] = field(default_factory=list)

    @property
    def seconds(self) -> list[float]:
        return [sum(steps) for steps in self.repetitions]


def cases(
    context: int, prompts: Sequence[int], gens: Sequence[int], depths: Sequence[int], parallels: Sequence[int]
) -> tuple[list[Case], list[Case]]:
    """Every prompt and every number of generated tokens at every depth, generation for every number of sequences; a 0
    among prompts or gens is none. Those that fit `context` positions, and those that do not. ContextLengthError where
    none does, InputError for nonsense."""
    for name, values in {"prompt": prompts, "generated": gens, "depth": depths}.items():
        if min(values, default=0) < 0:
            raise InputError(f"{name} tokens: {min(values)} is less than none")
    if min(parallels, default=1) < 1:
        raise InputError(f"sequences at once: {min(parallels)} is less than one")
    found: list[Case] = []
    for depth in depths:
        found += [Case(n_prompt=p, n_depth=depth) for p in prompts if p]
        found += [Case(n_gen=n, n_depth=depth, n_parallel=b) for b in parallels for n in gens if n]
    if not found:
        raise InputError("nothing to measure: give a number of prompt tokens or of tokens to generate")
    fitting = [case for case in found if case.n_depth + case.n_prompt + case.n_gen <= context]
    if not fitting:
        raise ContextLengthError(f"{found[0]} takes more than the {context} positions of this model")
    return fitting, [case for case in found if case not in fitting]


def measure(model: Transformer, case: Case, repetitions: int, rng: np.random.Generator) -> Measured:
    """Runs a case once to warm up, watching what it reads, then `repetitions` times, each on fresh random tokens. Where
    experts are streamed, generation warms up for a whole repetition more, so that memory is full of them."""
    watched = min(case.n_gen, TRACED_STEPS)
    middle = case.n_depth + (case.n_gen - watched) // 2  # reads as much as the steps do on average
    with Trace(model) as trace:
        run(model, case, rng, depth=middle, steps=watched)
    per_run = (case.n_gen / watched if watched else 1) * ranks_per_first(model)
    measured = Measured(case, trace.total.bytes * per_run, trace.total.flops * per_run)
    store = model.streaming.store if model.streaming else None
    if store and case.n_gen:
        run(model, case, rng)
    for _ in range(repetitions):
        before = store.stats - ExpertStats() if store else None
        with GatherClock(model) as clock:
            measured.repetitions.append(run(model, case, rng))
        if model.ranks is not None:
            measured.gathers.append(clock)
        if store and before:
            measured.experts.append(store.stats - before)
    return measured


def run(
    model: Transformer, case: Case, rng: np.random.Generator, *, depth: int | None = None, steps: int | None = None
) -> list[float]:
    """The seconds of each step: a chunk of the prompt, or a token of each sequence, the likeliest next ones picked. The
    ids are random all the same, so that experts are, and what lies before them is a cache of random keys and values.

    depth, steps: instead of the case's n_depth and n_gen.
    """
    depth = case.n_depth if depth is None else depth
    steps = case.n_gen if steps is None else steps
    batch = [model.new_cache(depth + case.n_prompt + steps) for _ in range(case.n_parallel)]
    for cache in batch:
        on_all(model, _fill, cache, depth, rng)
    if case.n_prompt:
        ids = rng.integers(0, model.vocab_size, case.n_prompt)
        starts = range(0, case.n_prompt, model.PREFILL_CHUNK)
        inputs = [[(sequence, ids[i : i + model.PREFILL_CHUNK])] for sequence in batch for i in starts]
    else:
        ids = rng.integers(0, model.vocab_size, (steps, case.n_parallel, 1))
        inputs = [list(zip(batch, step, strict=True)) for step in ids]
    seconds = []
    for step in inputs:
        start = time.perf_counter()
        model.step(step).argmax(-1)
        seconds.append(time.perf_counter() - start)
    return seconds


def _fill(cache: KVCache, depth: int, rng: np.random.Generator) -> None:
    """Fills a cache with random keys and values, as if `depth` tokens had been read."""
    if not depth:
        return
    noise = rng.standard_normal(1 << 16, np.float32)
    some: dict[str, np.ndarray] = {  # bits of bf16; integers, for the scale below
        "uint16": (noise.view(np.uint32) >> 16).astype(np.uint16),
        "int8": (noise * 25).clip(-127, 127).astype(np.int8),
    }
    for array in (a for arrays in cache.arrays for a in arrays):
        flat, values = array.reshape(-1), some.get(array.dtype.name, noise)
        for i in range(0, flat.size, noise.size):
            flat[i : i + noise.size] = values[: flat.size - i]
    for keys, _ in cache.arrays:
        if keys.dtype == np.int8:
            int8_scales(keys)[:] = 1 / 25
    cache.position = depth
