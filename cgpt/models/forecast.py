"""What speed to expect of a published size on a machine whose roofline is known: for `cgpt doctor`.

A token decoded must read the weights it uses and the cache; a token of a prompt must be multiplied with them. So the
read bandwidth and the matrix peak bound both from above. What cgpt reaches of these bounds is REACHED.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cgpt.checkpoint.sizes import SIZES
from cgpt.machine.roofline import Roofline
from cgpt.models.accounting import cache_read, describe

CONTEXT = 512  # tokens of the prompt, and before the token decoded

# The share of the roofline where it was measured, whole models on AVX2 and AVX-512 (bench/SPEED.md): decode 51 to 87 %,
# prompts of 512 tokens 55 to 81 %. Other machines will differ; hence "expected" beside "at_most", never instead of it.
REACHED = {"decode": 0.65, "prompt": 0.6}

VARIANTS: list[tuple[str, str | None]] = [
    (name, dense) for name in SIZES for dense in ((None, "bf16", "int8") if name.startswith("gpt2") else (None, "int8"))
]


def forecast(name: str, dense: str | None, roofline: Roofline | None = None, root: Path = Path("/")) -> dict[str, Any]:
    """What the size `name` takes and gives here with load(dense=dense).

    roofline: what roofline.measure() found; None leaves the rates out. root: the file system that holds proc and sys.
    The result, which json can write, holds name, dense; weights, bytes; available, fits (at the full context),
    max_context (0: none) and context (all the model has), as describe() has them; bytes_per_token, flops_per_token;
    decode and prompt, tokens a second, {"at_most", "expected"} or None where they cannot be told.
    """
    facts = describe(name, dense=dense, root=root)
    read = sum((facts["bytes"]["per_token"] | {"cache": cache_read(SIZES[name], CONTEXT)}).values())
    flops = flops_per_token(facts)
    decode = prompt = None
    if roofline is not None:
        decode = _rates(roofline.read_bytes_per_s / read, "decode")
        # The peak of bf16 units says nothing of products with f32 matrices, which do not run on them.
        if roofline.dtype == "f32" or dense or not name.startswith("gpt2"):
            prompt = _rates(roofline.flops_per_s / flops, "prompt")
    return {
        "name": name,
        "dense": dense,
        "weights": facts["bytes"]["weights"],
        **facts["here"],
        "context": facts["shape"]["context"],
        "bytes_per_token": read,
        "flops_per_token": flops,
        "decode": decode,
        "prompt": prompt,
    }


def flops_per_token(facts: Mapping[str, Any]) -> int:
    """The additions and multiplications of one token of a prompt of CONTEXT, from what describe() found: those
    of its products without the head, which only the last token meets, and four for each number of a key it sees."""
    shape = facts["shape"]
    products = facts["flops"]["products"] - 2 * shape["vocabulary"] * shape["width"]
    keys = (shape["layers"] - shape["sliding_layers"]) * _keys(CONTEXT)
    keys += shape["sliding_layers"] * _keys(shape.get("window", 0))
    flops: float = products + 4 * shape["heads"] * shape["head_dim"] * keys
    return round(flops)


def _keys(window: int) -> float:
    """The keys that a token of a prompt of CONTEXT sees on average: its own and those before it, at most `window`."""
    w = min(window, CONTEXT)
    return w - w * (w - 1) / 2 / CONTEXT


def _rates(at_most: float, what: str) -> dict[str, float]:
    return {"at_most": at_most, "expected": at_most * REACHED[what]}
