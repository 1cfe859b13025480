"""What speed to expect of a published size on a machine whose roofline is known: for `cgpt doctor`.

A token decoded must read the weights it uses and the cache; a token of a prompt must be multiplied with them. So the
read bandwidth and the matrix peak bound both from above. What cgpt reaches of these bounds is REACHED.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cgpt.checkpoint.sizes import SIZES
from cgpt.machine.disk import DiskRate
from cgpt.machine.roofline import Roofline
from cgpt.models.accounting import cache_read
from cgpt.models.description import describe
from cgpt.models.streaming_speed import DECODE_REACHED, Rates

CONTEXT = 512  # tokens of the prompt, and before the token decoded

# The share of the roofline where it was measured; prompts of 512 tokens reached 55 to 81 % (bench/SPEED.md). Other
# machines will differ; hence "expected" beside "at_most", never instead of it.
REACHED = {"decode": DECODE_REACHED, "prompt": 0.6}

VARIANTS: list[tuple[str, str | None]] = [
    (name, dense)
    for name in SIZES
    for dense in (None, "bf16", "bf16-packed", "int8", "int4")
    if dense != "bf16" or name.startswith("gpt2")
]


def forecast(
    name: str,
    dense: str | None,
    roofline: Roofline | None = None,
    root: Path = Path("/"),
    disk: DiskRate | None = None,
) -> dict[str, Any]:
    """What the size `name` takes and gives here with load(dense=dense).

    roofline: what roofline.measure() found; None leaves the rates out. root: the file system that holds proc and sys.
    disk: what disk_rate() found; None leaves out what a model gives whose experts are streamed.
    The result, which json can write, holds name, dense; weights, bytes; available, fits (at the full context),
    max_context (0: none) and context (all the model has), as describe() has them; bytes_per_token, flops_per_token;
    decode and prompt, tokens a second, {"at_most", "expected"} or None where they cannot be told or experts are
    streamed; streaming as describe() has it.
    """
    rates = None
    if roofline is not None and disk is not None:
        rates = Rates(disk.bytes_per_second, DECODE_REACHED * roofline.read_bytes_per_s)
    facts = describe(name, dense=dense, root=root, measure=lambda files: rates)
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
        "streaming": facts["streaming"],
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
