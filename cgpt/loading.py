"""Opens checkpoints: load(), a public call."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cgpt.api import Model
from cgpt.arguments import checked_arguments, require_choice, require_flag, warn_caller
from cgpt.checkpoint.config import GPT2Config, read_config
from cgpt.checkpoint.expert_store import ExpertStore
from cgpt.checkpoint.hub import pull
from cgpt.checkpoint.loader import Loader
from cgpt.checkpoint.locate import SYNTH, is_id, locate
from cgpt.checkpoint.names import open_checkpoint
from cgpt.checkpoint.weights_cache import WeightsCache
from cgpt.errors import CheckpointError, InputError, OutOfMemoryError
from cgpt.kernels._kernels import PRECISIONS
from cgpt.machine.huge_pages import require as require_huge_pages
from cgpt.machine.threads import thread_count
from cgpt.models import accounting, streaming, synth
from cgpt.models.base import Precision, Transformer
from cgpt.models.gpt2 import GPT2
from cgpt.models.gpt_oss import GptOss
from cgpt.models.kv_cache import KV_DTYPES

if TYPE_CHECKING:
    from cgpt.distributed.session import Session

DENSE = ("bf16", "bf16-packed", "int8", "int4")  # what load() takes


@contextmanager
def _checkpoint_directory(
    path_or_name: str | Path, revision: str | None, download: bool, progress: Callable[[int, int], None] | None
) -> Iterator[Path]:
    """Where the files are while load() reads them. Random weights stay mapped when their files have gone."""
    if isinstance(path_or_name, str) and path_or_name.startswith(SYNTH):
        import tempfile  # which nothing else needs

        with tempfile.TemporaryDirectory(prefix="cgpt-synth-") as temporary:
            directory = Path(temporary, Path(path_or_name.removeprefix(SYNTH)).stem)
            synth.write(path_or_name, directory, progress=progress)
            warn_caller(f"{path_or_name}: random weights, so the text means nothing")
            yield directory
    elif download and is_id(path_or_name):
        try:
            directory = locate(path_or_name, revision)
        except CheckpointError:  # it is not in the cache, or not the whole of it
            if Path(path_or_name).exists():
                raise
            directory = pull(str(path_or_name), revision)
        yield directory
    else:
        yield locate(path_or_name, revision)


@checked_arguments
def load(
    path_or_name: str | Path,
    threads: int | None = None,
    precision: Precision = "auto",
    dense: Literal["bf16", "bf16-packed", "int8", "int4"] | None = None,
    *,
    kv_cache_dtype: Literal["f32", "f16", "bf16", "int8"] | None = None,
    huge_pages: bool = False,
    memory: int | str | None = None,
    weights_cache: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    revision: str | None = None,
    download: bool = False,
    comm: Any = None,
) -> Model:
    """Opens a checkpoint as a Model that is ready to run.

    path_or_name: a checkpoint directory or a file in it, a model of the package, or an id of the Hugging Face hub that
        is in the local cache; "synth:gpt2" and the other published sizes have random weights, in a temporary directory
    threads: None takes the physical cores that this process may use (cgpt.machine.threads)
    precision: "auto" lets prompts use bf16 products where the CPU has them, 16-bit fixed-point activations and other
        orders of sums; "exact" keeps f32 activations everywhere, and then every logit is the same to the bit for any
        threads, batch companions and chunking; "int8" is "auto", but on CPUs without AMX it rounds the
        activations of prompts, and of 6 or more requests at once, to 8 bits where the weights are MXFP4 (from AVX2 on)
        or INT8 (with AVX512_VNNI, and both from DotProd on), group by group, as most engines do
    dense: None keeps the dense matrices as stored, "bf16" rounds them, "bf16-packed" is "bf16" in 12 bits with the same
        logits to the bit, "int8" quantises those that products read whole, in groups of 64, "int4" to four bits
        (`cgpt quality` measures the price)
    kv_cache_dtype: what keys and values are kept as, "f32", "f16" (up to 65,504; beyond, NumericsError says so),
        "bf16" or "int8", with a scale for each head and token, in layers without a window (the others: f16); None is
        f32 with "exact", else f16
    huge_pages: copies weights that would be read from the mapped file into huge pages, which needs the checkpoint's
        size in free memory. gpt-oss-20b decoded 9 % faster, but took 20 s to open instead of 0.3, and processes no
        longer share one copy. What load() copies anyway is in huge pages without it
    memory: what this process may take, in bytes or as "18GB". The dense weights of a gpt-oss model stay in memory then,
        and its experts are read from the files as tokens choose them; the logits are the same to the bit (of a single
        Transformer.step of more than 512 tokens in "exact" only). None does so, with a warning, where it does not fit
    weights_cache: a directory in which the matrices that were transposed, rounded, packed or quantised are kept, for
        each checkpoint and `dense` apart. The next load() of this version maps them, which takes no time and no memory
        of the process's own
    progress: a function that is called with (bytes done, bytes in all)
    revision: a branch, tag or commit of an id; None is main
    download: whether an id that is not in the cache may be downloaded, see cgpt.checkpoint.hub.pull
    comm: an mpi4py communicator, as MPI.COMM_WORLD, whose processes all call load() with it: together they run the
        model, each with a part of every matrix. It returns in rank 0 alone; the others do what that one does, and end
        the process (SystemExit) when it ends

    Raises CheckpointError, ConfigError, InputError or OutOfMemoryError, which say what is wrong and what to do.
    """
    require_choice("precision", precision, PRECISIONS)
    require_choice("dense", dense, (None, *DENSE))
    require_choice("kv_cache_dtype", kv_cache_dtype, (None, *KV_DTYPES))
    require_flag("huge_pages", huge_pages)
    require_flag("download", download)
    thread_count(threads)
    if progress is not None and not callable(progress):
        raise InputError(f"progress is a function of two numbers, not a {type(progress).__name__}")
    how: dict[str, Any] = {"threads": threads, "precision": precision, "dense": dense, "kv_cache_dtype": kv_cache_dtype}
    how |= {"huge_pages": huge_pages, "memory": memory, "revision": revision, "download": download}
    how["weights_cache"] = weights_cache
    if comm is None:
        return _open(None, progress=progress, path_or_name=path_or_name, **how)
    from cgpt.distributed.session import session_of  # pickle, socket and more, which one process needs not

    session = session_of(comm)
    if session.rank:
        follow(session)
        raise SystemExit
    model: Model = session.load(partial(_open, progress=progress), path_or_name=path_or_name, **how)
    return model


def follow(session: Session) -> None:
    """Does what rank 0 does, in a process of another rank, until that one ends."""
    session.follow(partial(_open, progress=None))


def _open(
    ranks: Session | None,
    *,
    progress: Callable[[int, int], None] | None,
    path_or_name: str | Path,
    threads: int | None,
    precision: Precision,
    dense: str | None,
    kv_cache_dtype: str | None,
    huge_pages: bool,
    memory: int | str | None,
    weights_cache: str | os.PathLike[str] | None,
    revision: str | None,
    download: bool,
) -> Model:
    """load(), on one rank or on each."""
    together = nullcontext if ranks is None else ranks.together
    count = thread_count(threads) if ranks is None else ranks.thread_count(threads)
    with ExitStack() as stack:
        with together():
            directory = stack.enter_context(_checkpoint_directory(path_or_name, revision, download, progress))
            config = read_config(directory)
            if ranks is not None and ranks.size > (heads := accounting.shape_of(config)["kv_heads"]):
                raise InputError(
                    f"{directory} has {heads} key/value heads, too few for {ranks.size} ranks; start fewer"
                )
            checkpoint = open_checkpoint(directory, config)
            limit = streaming.choose_limit(config, checkpoint, dense, memory, ranks)
        if ranks is not None and any(ranks.exchange(limit is not None)) and limit is None:
            limit = streaming.default_limit(ranks)  # all do as the one that has the least memory
        with together():
            if huge_pages and limit is None:
                require_huge_pages(sum(tensor.nbytes for tensor in checkpoint.tensors.values()))
            store = None if limit is None else ExpertStore(checkpoint)
            cache = None
            if weights_cache is not None:
                partition = (0, 1) if ranks is None else (ranks.rank, ranks.size)
                cache = WeightsCache(weights_cache, checkpoint, dense, partition)
            loader = Loader(checkpoint, dense, count, progress, huge_pages, store, cache)
            transformer: Transformer
            try:
                if isinstance(config, GPT2Config):
                    transformer = GPT2(config, checkpoint, loader, count, precision, ranks)
                else:
                    transformer = GptOss(config, checkpoint, loader, count, precision, ranks)
                    if store is not None and limit is not None:
                        streaming.begin(transformer, store, limit)
            except MemoryError as problem:
                raise OutOfMemoryError(f"{directory}: no memory to load {loader.reading}: {problem}") from None
            transformer.files = checkpoint.watch(None if cache is None else cache.kept)
            if cache is not None:
                cache.save()
        if ranks is not None:
            ranks.require_same("checkpoint", (repr(config), transformer.files.digest()), str(directory))
            transformer.PREFILL_CHUNK = min(ranks.exchange(transformer.PREFILL_CHUNK))
    if store is not None:
        store.watch = transformer.files
    if kv_cache_dtype:
        transformer.kv_cache_dtype = kv_cache_dtype
    return Model(transformer, directory)
