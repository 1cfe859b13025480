"""cgpt: GPT-2 and gpt-oss on the CPU, from the checkpoints as published.

    import cgpt
    model = cgpt.load("demo-gpt2")                # a directory, or the name of a model in the package
    print(model.generate("ROMEO:", max_new_tokens=40).text)

The map: gpt2.py and gpt_oss.py are the models, side by side; model.py what they share (steps, logits, scores);
generate.py, scheduler.py, sampling.py and lookup.py make text of it, prefix.py remembers what was computed; chat.py,
tools.py and harmony*.py make conversations; engine.py and serve/ share a model between many; inspection.py shows what
happens inside; quality.py compares two settings; accounting.py counts what a model takes; weights.py, loader.py,
configs.py read checkpoints; kvcache.py holds sequences; tokenizer.py wraps tiktoken; openmp.py loads _kernels.pyx,
which hands everything to the C in csrc/.
"""

from cgpt import openmp  # noqa: F401  first: it loads the kernels

# isort: split
from collections.abc import Callable
from pathlib import Path

from cgpt import isa, quality
from cgpt._kernels import PRECISIONS  # noqa: F401  what load() takes
from cgpt.configs import GPT2Config, read_config
from cgpt.errors import CgptError, CheckpointError, InputError
from cgpt.generate import Completion
from cgpt.gpt2 import GPT2
from cgpt.gpt_oss import GptOss
from cgpt.isa import kernels
from cgpt.kvcache import KV_DTYPES
from cgpt.loader import Loader
from cgpt.model import Model
from cgpt.prefix import PrefixCache
from cgpt.threads import default_threads
from cgpt.weights import Checkpoint

__all__ = ["CgptError", "Completion", "Model", "PrefixCache", "demo_models", "kernels", "load", "locate", "quality"]
__version__ = "0.1.0"

isa.use_best()

_DEMO = Path(__file__).parent / "demo"
DENSE = ("bf16", "int8")  # what load() takes


def demo_models() -> list[str]:
    """The names of the models that ship in the package."""
    return sorted(path.parent.name for path in _DEMO.glob("*/config.json"))


def locate(path_or_name: str | Path) -> Path:
    """The checkpoint directory that a path, or the name of a model in the package, stands for."""
    path = Path(path_or_name)
    if path.is_dir():
        return path
    if str(path_or_name) in demo_models():
        return _DEMO / str(path_or_name)
    raise CheckpointError(
        f"{path_or_name}: no such directory, and no model of the package ({', '.join(demo_models())})"
    )


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

    threads: default is the physical cores this process may use (cgpt.threads). precision: "auto" lets prompts use
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
