"""GPT-2 and gpt-oss in NumPy: the answer key of the tests.

Nothing here touches cgpt, so a mistake would have to be made twice to go unseen. Computed in float64 unless
told otherwise; correctness and readability come first, speed last.
"""

import json
from pathlib import Path

import numpy as np

from . import gpt2, gpt_oss


def load(directory, dtype=np.float64):
    """The reference model of a checkpoint directory, with `.logits(ids)`, `.hidden(ids)` and `.config`.

    dtype: what it computes in, np.float64 or (for full-width models) np.float32.
    """
    config = json.loads((Path(directory) / "config.json").read_text())
    module = gpt2 if config.get("model_type") == "gpt2" else gpt_oss
    return module.Model(directory, dtype)
