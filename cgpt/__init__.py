"""cgpt: GPT-2 and gpt-oss on the CPU, from the checkpoints as published.

    import cgpt
    model = cgpt.load("demo-gpt2")                # a directory, or the name of a model in the package
    print(model.generate("ROMEO:", max_new_tokens=40, temperature=0.6, seed=10).text)

load() opens a checkpoint as a Model, which generates, streams, chats, scores and answers batches of requests.
SamplingParams say how a text is sampled, a Completion is the result, a PrefixCache keeps what was computed, and every
failure is a CgptError.

The layers, each importing only those before it: errors, fields, arguments; kernels (the C of csrc/); machine;
checkpoint and tokenizer; models (gpt2.py and gpt_oss.py side by side); generation; distributed; chat; api; loading;
serve and analysis; batch; cluster; bench; evolution; cli.
"""

from cgpt import kernels as _kernels  # noqa: F401  first: it loads the kernels

# isort: split
from cgpt.api import Model
from cgpt.checkpoint.locate import demo_models, locate
from cgpt.errors import CgptError
from cgpt.generation.prefix_cache import PrefixCache
from cgpt.generation.request import Completion
from cgpt.generation.sampling import SamplingParams
from cgpt.kernels.isa import kernels as kernel_variants
from cgpt.loading import load
from cgpt.version import __version__

__all__ = [
    "CgptError",
    "Completion",
    "Model",
    "PrefixCache",
    "SamplingParams",
    "__version__",
    "demo_models",
    "kernel_variants",
    "load",
    "locate",
]
