"""What a model is and takes here: describe(), for `cgpt info` and whoever wants facts about a model."""

import os
from bisect import bisect_right
from pathlib import Path
from typing import Any

from cgpt.machine.memory import available_memory
from cgpt.models import streaming
from cgpt.models.accounting import (
    RUNTIME,
    Config,
    architecture,
    cache_bytes,
    checked_context,
    look_up,
    shape_of,
    totals,
)
from cgpt.models.kv_cache import DEFAULT_KV_DTYPE
from cgpt.models.streaming_speed import Measure


def describe(
    name_or_dir: str | os.PathLike[str],
    context: int | None = None,
    dense: str | None = None,
    kv_cache_dtype: str = DEFAULT_KV_DTYPE["auto"],
    root: Path = Path("/"),
    memory: int | str | None = None,
    measure: Measure = lambda files: None,
) -> dict[str, Any]:
    """Facts about a checkpoint directory, a model of the package, a published size (no files needed) or a config.json.

    context: positions to have room for; default all the model has. dense: as load() is told; bytes are those
    in memory then. kv_cache_dtype: what keys and values are kept as, "f32", "f16", "bf16" or "int8". root: the file
    system that holds proc and sys. memory: as load() is told, what the process may take. measure: gives the rates of
    the disk and of memory, where experts are streamed. The result, which json can write, holds
      name, source ("files", "published size" or "config.json"), architecture;
      generation_config: what generation_config.json says, {} where there is none;
      shape: layers, width, heads and so on;
      parameters: total, active (those a token is multiplied with), parts {name: number};
      bytes: disk (files), weights (in memory), per_token {part: what decoding a token reads, and "cache"};
      flops: of decoding the token at the end of `context`, {"products", "attention"};
      memory: bytes needed at `context`, as weights, cache (of kv_cache_dtype), runtime and total;
      here: available bytes (None: unknown), whether it fits, and max_context that does (0: none);
      streaming: what models.streaming.expect() says where `memory` is given or the weights do not fit; else None. The
        speeds are those after 512 positions, or `context` where it is given.

    Raises CheckpointError, ConfigError, InputError or ContextLengthError.
    """
    found = look_up(name_or_dir)
    config, shape = found.config, shape_of(found.config)
    after = streaming.CONTEXT if context is None else context
    context = checked_context(context, shape["context"], "this model")
    amounts = totals(found, context, dense, kv_cache_dtype)
    weights, cache = amounts["bytes"]["weights"], cache_bytes(config, context, kv_cache_dtype)
    needed, available = weights + cache + RUNTIME, available_memory(root)
    room = (available or 0) - weights - RUNTIME
    streamed = streaming.expect(
        config, found.tensors, dense, memory, available, min(after, context), measure=measure, root=root
    )
    return {
        "name": Path(name_or_dir).name or str(name_or_dir),
        "source": found.source,
        "architecture": architecture(config),
        "generation_config": dict(found.generation),
        "shape": shape,
        **amounts,
        "memory": {
            "context": context,
            "kv_cache_dtype": kv_cache_dtype,
            "weights": weights,
            "cache": cache,
            "runtime": RUNTIME,
            "total": needed,
        },
        "here": {
            "available": available,
            "fits": None if available is None else needed <= available,
            "max_context": None if available is None else _max_context(config, shape["context"], kv_cache_dtype, room),
        },
        "streaming": streamed,
    }


def _max_context(config: Config, limit: int, kv_cache_dtype: str, room: int) -> int:
    """The longest context whose cache fits into `room` bytes; 0 where none does."""
    contexts = range(1, limit + 1)
    return bisect_right(contexts, room, key=lambda context: cache_bytes(config, context, kv_cache_dtype))
