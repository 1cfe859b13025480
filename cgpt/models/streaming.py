"""Models larger than memory: how a bounded amount is shared out, and what to expect of it.

Dense weights stay in memory; an expert store holds as many experts as the rest allows, and gives memory back to keys
and values as they grow.
"""

import threading
import weakref
from collections.abc import Collection, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cgpt.arguments import require_bytes, warn_caller
from cgpt.checkpoint.config import GPT2Config, GptOssConfig
from cgpt.checkpoint.expert_store import ExpertStore
from cgpt.checkpoint.safetensors import Checkpoint, StoredTensor
from cgpt.errors import InputError, OutOfMemoryError
from cgpt.kernels._kernels import KV_BLOCK
from cgpt.machine.memory import available_memory, process_memory
from cgpt.models.accounting import (
    RUNTIME,
    AnyTensor,
    bytes_per_token,
    cache_bytes,
    cache_read,
    expert_bytes,
    is_streamed,
    loaded_bytes,
    part_of,
    tensor_specs,
)
from cgpt.models.base import Transformer
from cgpt.models.kv_cache import KVCache
from cgpt.models.partition import Ranks
from cgpt.models.streaming_speed import Measure, decode_speeds, hit_rates, measure_rates, said

MARGIN = 100_000_000  # bytes left alone: what the allocator holds back, and pages of embeddings and libraries
LOADING = 30_000_000  # bytes that loading leaves behind, beside the weights
AUTOMATIC_SHARE = 0.9  # of what can be had, where nobody says how much
CONTEXT = 512  # positions after which the speed is that which is said
MAX_CHUNK = 8192  # tokens of a prompt that are read at once, so that each expert is read once for them


def dense_bytes(config: GptOssConfig, tensors: Iterable[AnyTensor], dense: str | None) -> int:
    """The bytes of what stays in memory: all but experts in MXFP4, and the embedding, whose rows stay in the file."""
    stays = [
        tensor
        for tensor in tensors
        if not is_streamed(tensor) and (config.tie_word_embeddings or part_of(tensor.name) != "embedding")
    ]
    # Vectors and the biases of experts are kept as f32.
    return round(sum(loaded_bytes(config, one, dense) * (1 if _is_dense(one.name) else 2) for one in stays))


def _is_dense(name: str) -> bool:
    return name.endswith("weight") and not part_of(name) == "norms"


class MemoryBudget:
    """Shares `limit` bytes of this process out between what it has, keys and values, a step's activations and the
    experts, which get what is left. Base's Streaming."""

    def __init__(
        self, limit: int, config: GptOssConfig, store: ExpertStore, own: int, ranks: Ranks | None = None
    ) -> None:
        """own: the bytes that the process has now, without experts."""
        self.limit, self.config, self.store, self.own, self.ranks = limit, config, store, own, ranks
        self._caches: weakref.WeakSet[KVCache] = weakref.WeakSet()
        self._users = 1
        self._lock = threading.Lock()  # guards both

    @property
    def min_slots(self) -> int:
        """The experts that one token takes in all layers. With fewer slots none would be found again. With several
        ranks those of a layer, too: they stay until the ranks have gathered what came of them."""
        taken = self.config.num_hidden_layers * self.config.experts_per_token
        return min(max(taken, self.config.num_experts if self.ranks else 0), self.store.experts)

    def slots(self, tokens: int) -> int:
        """The experts that fit beside a step of so many tokens."""
        with self._lock:
            caches = list(self._caches)
        cache = sum(cache.nbytes for cache in caches) + tokens * self._position_bytes()
        scratch = scratch_bytes(self.config, tokens, self.ranks)
        return (self.limit - self.own - cache - scratch - MARGIN) // self.store.slot_bytes

    def _position_bytes(self) -> int:
        """The most bytes that one position's keys and values take, as f32 in every layer."""
        return 8 * self.config.num_hidden_layers * self.config.num_key_value_heads * self.config.head_dim

    def chunk(self) -> int:
        """The tokens of a prompt that a step may read: an eighth of the experts' room is the most that it costs."""
        chunk, part = MAX_CHUNK, Transformer.PREFILL_CHUNK
        least = max(self.min_slots, self.slots(part) * 7 // 8)
        while chunk > part and (self.slots(chunk) < least or chunk // 2 >= self.config.max_position_embeddings):
            chunk //= 2
        return chunk

    def available(self) -> int:
        """The bytes that caches may take where the experts keep the fewest slots that work."""
        left = self.limit - self.own - scratch_bytes(self.config, Transformer.PREFILL_CHUNK, self.ranks) - MARGIN
        return max(0, left - self.min_slots * self.store.slot_bytes)

    def begin_step(self, tokens: int) -> None:
        """Makes room for a step of so many tokens; OutOfMemoryError where there is none."""
        slots = self.slots(tokens)
        if self.ranks is not None and self.ranks.rank:
            slots = max(slots, self.min_slots)  # rank 0, which has most of its own, has made sure of it
        if slots < self.min_slots:
            raise OutOfMemoryError(
                f"memory={self.limit / 1e9:.1f} GB leaves room for {max(slots, 0)} experts beside keys and values, and "
                f"a token takes {self.min_slots}; use fewer or shorter sequences, or more memory"
            )
        if slots != self.store.capacity:
            self.store.resize(slots)

    def add_cache(self, cache: KVCache) -> None:
        """Counts a cache, as long as there is one."""
        with self._lock:
            self._caches.add(cache)

    def share(self) -> None:
        """One more model uses the experts."""
        with self._lock:
            self._users += 1

    def close(self) -> None:
        """Ends the store's threads and gives its memory back, once no model uses it."""
        with self._lock:
            self._users -= 1
            unused = not self._users
        if unused:
            self.store.close()


def scratch_bytes(config: GptOssConfig, tokens: int, ranks: Ranks | None = None) -> int:
    """What a step of so many tokens takes for activations, at the most."""
    C, I, top_k = config.hidden_size, config.intermediate_size, config.experts_per_token
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    part = min(tokens, Transformer.PREFILL_CHUNK)
    whole = tokens * (2 * C + top_k * (C + 4))  # the residual stream, the experts' input and results
    whole += 0 if ranks is None else tokens * top_k * I  # their activations, which are gathered
    rows = part * top_k + 16 * min(part * top_k, config.num_experts)
    at_once = part * (2 * C + 2 * heads * config.head_dim + config.num_experts + top_k * 3 * I) + rows * (C + I)
    logits = min(tokens, Transformer.KEPT_TOKENS) * config.vocab_size
    return 4 * (whole + at_once + logits)


def least_memory(
    config: GptOssConfig, tensors: Collection[AnyTensor], dense: str | None, own: int, ranks: int = 1
) -> int:
    """The bytes with which a model can run: `own`, which this process has already, and of so many ranks' share of the
    dense weights and one token's experts its own; with several ranks those of a layer at least."""
    stored, taken = expert_bytes(config, tensors)
    if ranks > 1:
        taken = max(taken, stored // config.num_hidden_layers)
    held = (dense_bytes(config, tensors, dense) + taken) // ranks + scratch_bytes(config, KV_BLOCK)
    return own + held + MARGIN + LOADING


def expect(
    config: GPT2Config | GptOssConfig,
    tensors: Collection[AnyTensor],
    dense: str | None,
    memory: int | str | None,
    available: int | None,
    context: int,
    measure: Measure = lambda files: None,
    root: Path = Path("/"),
    ranks: int = 1,
) -> dict[str, Any] | None:
    """How a model is streamed within `memory`, or most of what is `available` where it does not fit there; None where
    all of it stays in memory. InputError where that cannot be done within `memory`.

    context: the positions that a sequence has. measure: gives the rates, once they are wanted. ranks: processes that
      share the model, of which this is one. The result, which json
    can write, holds bytes: least (that works) and memory (None: too little is available); and where there is enough
      resident, the share of the experts that is in memory; hit_rates and disk_bytes_per_token, {"uniform", "text"};
      rates, None or {"disk", "memory", "measured"} in bytes a second; tokens_per_second, None or {"uniform", "text"}.
    """
    limit = None if memory is None else require_bytes("memory", memory)
    needed = round(sum(loaded_bytes(config, tensor, dense) for tensor in tensors)) // ranks + RUNTIME
    stored, taken = expert_bytes(config, tensors) if isinstance(config, GptOssConfig) else (0, 0)
    stored, taken = stored // ranks, taken // ranks
    if not isinstance(config, GptOssConfig) or not stored:
        if limit is not None and needed > limit:
            why = "GPT-2 has no experts" if isinstance(config, GPT2Config) else "its experts are not in MXFP4"
            raise InputError(
                f"memory: all of this model must be in memory, since {why}: it takes {needed / 1e9:.1f} GB"
            )
        return None
    own = process_memory(root) or MARGIN
    least = least_memory(config, tensors, dense, own, ranks)
    if limit is None:
        if available is None or needed <= available:
            return None
        limit = round(available * AUTOMATIC_SHARE)
        if limit < least:
            return {"memory": None, "least": least}
    elif limit < least:
        raise InputError(
            f"memory: {limit / 1e9:.2f} GB do not hold the dense weights and the experts of one token; the least "
            f"that works is {-(-least // 10**7) / 100:.2f} GB" + ("" if dense else ', or less with dense="int8"')
        )
    room = limit - least + taken - cache_bytes(config, context)
    share = min(max(room, taken) / stored, 1)
    hits = hit_rates(share)
    missed = {name: taken * (1 - rate) for name, rate in hits.items()}
    rest = (sum(bytes_per_token(config, tensors, dense).values()) + cache_read(config, context)) // ranks - taken
    rates = measure({tensor.file for tensor in tensors if isinstance(tensor, StoredTensor)})
    return {
        "memory": limit,
        "least": least,
        "resident": share,
        "hit_rates": hits,
        "disk_bytes_per_token": missed,
        "rates": None if rates is None else asdict(rates),
        "tokens_per_second": None if rates is None else decode_speeds(missed, taken, rest, rates),
    }


def choose_limit(
    config: GPT2Config | GptOssConfig,
    checkpoint: Checkpoint,
    dense: str | None,
    memory: int | str | None,
    ranks: Ranks | None = None,
) -> int | None:
    """The bytes within which a model's experts are streamed: `memory`, or most of what can be had where the model does
    not fit there, with a warning; None where all of it stays in memory. InputError where that cannot be done within
    `memory`."""
    available = _available(ranks)
    measure: Measure = measure_rates if memory is None else lambda files: None
    names = checkpoint.tensors
    used = [names[name] for name in tensor_specs(config, names) if name in names]  # the model's own check comes later
    size = 1 if ranks is None else ranks.size
    found = expect(config, used, dense, memory, available, CONTEXT, measure, ranks=size)
    if found is None or found["memory"] is None:
        return None
    limit: int = found["memory"]
    if memory is None and available is not None:
        speeds = found["tokens_per_second"]
        warn_caller(
            f"{checkpoint.directory}: the model does not fit into the {available / 1e9:.1f} GB that can be had: its "
            f'experts are read from the files as they are chosen, within memory="{limit / 1e9:.1f}GB"'
            + (f"; to expect: {said(speeds)}" if speeds else "")
        )
    return limit


def default_limit(ranks: Ranks | None) -> int:
    """The bytes within which experts are streamed where nobody says: most of what can be had."""
    return round((_available(ranks) or 0) * AUTOMATIC_SHARE)


def _available(ranks: Ranks | None) -> int | None:
    available = available_memory()
    return available if available is None or ranks is None else available // ranks.on_host


def begin(transformer: Transformer, store: ExpertStore, limit: int) -> None:
    """Shares the memory out, once all that stays there is loaded."""
    budget = MemoryBudget(limit, transformer.config, store, process_memory() or 0, transformer.ranks)
    slots = budget.slots(KV_BLOCK)
    if slots < budget.min_slots:
        least = limit + (budget.min_slots - slots) * store.slot_bytes
        raise InputError(f"memory: {limit / 1e9:.2f} GB do not hold one token's experts; give {least / 1e9:.2f} GB")
    store.allocate(slots)
    transformer.streaming = budget
    transformer.PREFILL_CHUNK = budget.chunk()
