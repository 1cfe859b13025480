"""Opens a checkpoint as a model that is ready to run."""

from collections.abc import Callable
from pathlib import Path

from cgpt.checkpoint.config import GPT2Config, read_config
from cgpt.checkpoint.loader import Loader
from cgpt.checkpoint.locate import locate
from cgpt.checkpoint.safetensors import Checkpoint
from cgpt.errors import InputError
from cgpt.kernels._kernels import PRECISIONS
from cgpt.machine.threads import default_threads
from cgpt.models.base import Model
from cgpt.models.gpt2 import GPT2
from cgpt.models.gpt_oss import GptOss
from cgpt.models.kv_cache import KV_DTYPES

DENSE = ("bf16", "int8")  # what load() takes


def load(
    path_or_name: str | Path,
    threads: int | None = None,
    precision: str = "auto",
    dense: str | None = None,
    *,
    kv_cache_dtype: str | None = None,
    huge_pages: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Model:
    """A model, ready to run, from a checkpoint directory or by the name of one in the package.

    threads: default is the physical cores this process may use (machine.threads). precision: "auto" lets prompts use
    bf16 products where the CPU has them, fixed point and other orders of sums; "exact" keeps f32 activations
    everywhere, and then every logit is the same to the bit for any threads, batch companions and chunking; "int8" is
    "auto" but for CPUs with AVX512_VNNI and no matrix units: there it rounds the activations of prompts, and of 6 or
    more requests at once, to 8 bits where the weights are INT8 or MXFP4, group by group, as most engines do. dense:
    None keeps the dense matrices as stored, "bf16" rounds them, "int8" quantises those that products read whole, in
    groups of 64 (`cgpt quality` measures the price). kv_cache_dtype: what keys and values are kept as, "f32", "f16"
    (up to 65,504; beyond, NumericsError says so) or "bf16"; None is f32 with "exact", else f16. huge_pages
    copies weights that would be read where the file is mapped into memory of huge pages: gpt-oss-20b's decode was 9 %
    faster there, but it took 20 s to open instead of 0.3, and processes no longer share one copy, so it is off by
    default; what load() copies anyway lies in them. It needs the checkpoint's size in free memory. progress(done,
    total) is told the bytes looked at.

    Raises CheckpointError, ConfigError, InputError or OutOfMemoryError, which say what is wrong and what to do.
    """
    if precision not in PRECISIONS:
        raise InputError(f'precision is "auto", "exact" or "int8", not {precision!r}')
    if dense not in (None, *DENSE):
        raise InputError(f'dense is None, "bf16" or "int8", not {dense!r}')
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 4096):
        raise InputError(f"threads is a number from 1 to 4096, not {threads!r}")
    if kv_cache_dtype not in (None, *KV_DTYPES):
        raise InputError(f"kv_cache_dtype is None or one of {', '.join(KV_DTYPES)}, not {kv_cache_dtype!r}")
    directory = locate(path_or_name)
    config = read_config(directory)
    checkpoint = Checkpoint(directory)
    threads = threads or default_threads()
    kind = GPT2 if isinstance(config, GPT2Config) else GptOss
    model = kind(config, checkpoint, Loader(checkpoint, dense, threads, progress, huge_pages), threads, precision)
    if kv_cache_dtype:
        model.kv_cache_dtype = kv_cache_dtype
    return model
