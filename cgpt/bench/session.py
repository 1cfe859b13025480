"""One model, measured: every case with every number of threads, beside a roofline taken before and after each."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cgpt.arguments import require_integer
from cgpt.bench import rows
from cgpt.bench.gathers import measure_roofline
from cgpt.bench.noise import Watch
from cgpt.bench.trace import Trace
from cgpt.bench.workload import Case, cases, measure, run
from cgpt.checkpoint.expert_store import READERS, ExpertStore
from cgpt.loading import load
from cgpt.machine.disk import MAX_REQUEST, DiskRate, disk_rate
from cgpt.models.base import Precision, Transformer

ROOFLINE_SECONDS = DISK_SECONDS = 0.6  # for each of the rooflines, and of the rates of the disk


def bench(
    directory: Path,
    *,
    prompts: Sequence[int] | None = None,
    gens: Sequence[int] = (64,),
    depths: Sequence[int] = (0,),
    parallels: Sequence[int] = (1,),
    threads: Sequence[int | None] = (None,),
    repetitions: int = 5,
    precision: Precision = "auto",
    dense: Literal["bf16", "bf16-packed", "int8", "int4"] | None = None,
    kv_cache_dtype: Literal["f32", "f16", "bf16", "int8"] | None = None,
    huge_pages: bool = False,
    memory: int | str | None = None,
    weights_cache: str | os.PathLike[str] | None = None,
    comm: Any = None,
    profile: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[dict[str, Any]]:
    """A row (cgpt.bench.rows) for each case, as soon as it is measured; see cgpt.bench.workload.cases for the numbers.

    prompts: default is 512 tokens, or half the model's context. threads: None is the model's own default. The model is
    loaded anew for each number of threads. comm: as for load(); rooflines and bytes are then those of all ranks.
    profile adds "profile" to each row. say(text) is told what comes next.
    """
    require_integer("repetitions", repetitions, low=1)
    for number in threads:
        model = None  # the one before goes first
        rows.reset_peak_memory()
        start = time.perf_counter()
        model = load(
            directory,
            number,
            precision,
            dense,
            kv_cache_dtype=kv_cache_dtype,
            huge_pages=huge_pages,
            memory=memory,
            weights_cache=weights_cache,
            comm=comm,
        )
        streaming = model.transformer.streaming
        facts = rows.model_facts(model, str(directory), dense, time.perf_counter() - start)
        facts |= {"huge_pages": huge_pages, "memory_limit": streaming.limit if streaming else None}
        loading = rows.peak_memory()
        if prompts is None:
            prompts = (min(512, model.context_length // 2),)
        fitting, too_long = cases(model.context_length, prompts, gens, depths, parallels)
        for case in too_long:
            say(f"{case} is left out: it takes more than the {model.context_length} positions of this model")
        rng, before = np.random.default_rng(), measure_roofline(model.transformer, ROOFLINE_SECONDS, precision)
        for case in fitting:
            say(f"{case}, {model.threads} threads")
            rows.reset_peak_memory()
            disk = _disk_rate(streaming.store) if streaming else None
            watch = Watch()
            measured = measure(model.transformer, case, repetitions, rng)
            shares, faults, peak = watch.shares(), watch.faults(), rows.peak_memory()
            after = measure_roofline(model.transformer, ROOFLINE_SECONDS, precision)
            peak = max(peak, loading) if peak and loading else None
            row = facts | rows.row(measured, (before, after), shares, peak, faults)
            if measured.gathers:
                row |= rows.gathered(measured, model.transformer)
            if streaming and disk:
                row |= rows.streamed(measured, (disk, _disk_rate(streaming.store)))
            if profile:
                row["profile"] = profiled(model.transformer, case, rng, row)
            yield row
            before = after


def _disk_rate(store: ExpertStore) -> DiskRate:
    """The rate of the disk of a checkpoint in reads like the largest of the store's."""
    largest = max((file.path for file in store.checkpoint.files), key=lambda path: path.stat().st_size)
    return disk_rate(largest, DISK_SECONDS, request_bytes=min(store.request_bytes, MAX_REQUEST), readers=READERS)


def profiled(model: Transformer, case: Case, rng: np.random.Generator, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Where the time of one more repetition goes, kernel by kernel: rows.profile."""
    with Trace(model) as trace:
        seconds = run(model, case, rng)
    return rows.profile(trace, sum(seconds), len(seconds), row)
