"""What happens inside a model while it reads a prompt, as NumPy arrays: `model.inspect(prompt, names)`.

    seen = model.inspect("ROMEO:", ["hidden", "lens_ids"])
    seen["hidden"][-1]                                 # what leaves the last block, [T, C]

L layers, T tokens, C the model's width, H query heads, E experts of which k run, V the vocabulary. float32 unless told:

    hidden          [L+1, T, C]   the residual stream before the first block and after each; the last one is not normed
                                  yet, which the rows of `Model.hidden` are
    sink_mass       [L, H, T]     the share of a token's attention that goes to the sink; gpt-oss only
    window_mass     [L, H, T]     .. to the last `window` tokens, its own included
    beyond_mass     [L, H, T]     .. to those before them: 0 where a layer does not see so far. The three add up to 1
    router_choices  int32 [L, T, k]  the experts chosen, the best first; gpt-oss only
    router_weights  [L, T, k]     what their outputs are multiplied by; they add up to 1
    expert_load     int64 [L, E]  how many tokens chose each expert: T times k in a layer
    lens_ids        int32 [L+1, T, top]  the logit lens: the likeliest next tokens, best first, if `hidden` went from
                                  there straight to the final norm and the head; at index L, what the model says
    lens_logprobs   [L+1, T, top] their log-probabilities, in nats

They come from the steps that Model.logits makes, by the same kernels. The shares are what `attention` gives, for the
layer's own queries, keys and sinks, if the values are 1 for the tokens to be counted and 0 for the others; off by some
1e-7, with int8 keys by some 1e-5. The choices are what `topk` gives of the layer's own logits. The lens is
the model's final norm and head, applied early: nostalgebraist, "interpreting GPT: the logit lens" (2020).
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from cgpt.arguments import require_integer
from cgpt.errors import InputError
from cgpt.fields import shown
from cgpt.kernels import _kernels as k
from cgpt.models.base import BatchSlice, Ids, Transformer, Workspace
from cgpt.models.kv_cache import KVCache, int8_scales
from cgpt.models.logprobs import top_logprobs

SINKS, MASSES = ("sink_mass",), ("window_mass", "beyond_mass")
ROUTER = "router_choices", "router_weights", "expert_load"
LENS = ("lens_ids", "lens_logprobs")
WINDOW = 128  # where the model has no window of its own: gpt-oss's
LENS_ROWS = 32  # tokens whose logits exist at a time


def names_of(model: Transformer) -> tuple[str, ...]:
    """The names that inspect() knows for this model."""
    block = model.blocks[0]
    sinks, router = SINKS if hasattr(block, "sinks") else (), ROUTER if hasattr(block, "router") else ()
    return ("hidden", *sinks, *MASSES, *router, *LENS)


def inspect(
    model: Transformer, ids: Ids, what: str | Iterable[str] | None = None, *, window: int | None = None, top: int = 5
) -> dict[str, np.ndarray]:
    """{name: array}, as the module says, of the ids of a prompt.

    what: a name or several, None for all that the model has; nothing is computed for the others. window: tokens, None
    for the model's own, or 128 where it has none. top: of the lens. Costs: the masses take the time of attention once
    or twice more, the lens (L+1) heads. Memory: the arrays asked for, a cache of the prompt in every layer, and chunks.

    Raises InputError for names that the model does not have, and what Model.logits raises.
    """
    names = _check(model, what)
    if window is None:
        window = max(model.windows) or WINDOW
    window, top = require_integer("window", window, low=1), require_integer("top", top, low=1)
    if top > model.vocab_size:
        raise InputError(f"top is {top}, the vocabulary has {model.vocab_size} tokens")
    ids = model.check_ids(ids)
    cache = model.new_cache(len(ids), slack=len(ids))  # no ring: a chunk's keys are all there after its step
    cache.require_room(len(ids))
    inspector = _Inspector(model, cache, names, window, top)
    chunk = min(model.PREFILL_CHUNK, model.LOGITS_CHUNK)  # blocks go through longer ones in parts
    for at in range(0, len(ids), chunk):
        model.step([(cache, ids[at : at + chunk])], head=False, observer=inspector)
    return {name: inspector.out[name] for name in names}


def _check(model: Transformer, what: str | Iterable[str] | None) -> list[str]:
    known = names_of(model)
    names: list[Any] = list(known) if what is None else [what]
    if isinstance(what, Iterable) and not isinstance(what, (str, bytes)):
        names = list(what)
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise InputError(f"{type(model).__name__} has no {shown(name)} to inspect; it has {', '.join(known)}")
    return names


class _Inspector:
    """Fills `out` as step() shows it the layers: a StepObserver."""

    def __init__(self, model: Transformer, cache: KVCache, names: list[str], window: int, top: int) -> None:
        self.model, self.cache, self.window, self.top = model, cache, window, top
        L, T, H = len(model.blocks), cache.context, model.heads
        shapes: dict[str, tuple[int, ...]] = {"hidden": (L + 1, T, model.width)}
        shapes |= dict.fromkeys(LENS, (L + 1, T, top)) | dict.fromkeys(SINKS + MASSES, (L, H, T))
        if "expert_load" in names_of(model):
            chosen, experts = model.config.experts_per_token, model.config.num_experts
            shapes |= {"router_choices": (L, T, chosen), "router_weights": (L, T, chosen), "expert_load": (L, experts)}
        dtypes = {"lens_ids": np.int32, "router_choices": np.int32, "expert_load": np.int64}
        self.out = {name: np.zeros(shapes[name], dtypes.get(name, np.float32)) for name in names}
        # By what a layer keeps: values, ones and marks, that take the place of its own.
        self.values: dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]] = {}

    def __call__(self, blocks: int, ws: Workspace, x: k.Tensor, slices: list[BatchSlice]) -> None:
        (part,), out = slices, self.out
        rows = slice(part.start, part.start + part.T)
        self._keep("hidden", (blocks, rows), x.array[: part.T])
        if out.keys() & set(LENS):
            self._lens(blocks, ws, x, part)
        if blocks and out.keys() & set(ROUTER):
            self._router(blocks - 1, ws, rows)
        if blocks and out.keys() & set(SINKS + MASSES):
            total, beyond = self._masses(self.model.blocks[blocks - 1], ws, part)
            for name, mass in (("sink_mass", 1 - total), ("window_mass", total - beyond), ("beyond_mass", beyond)):
                self._keep(name, (blocks - 1, slice(None), rows), mass.clip(0, 1).T)

    def _keep(self, name: str, where: tuple[int | slice, ...], values: npt.ArrayLike) -> None:
        if name in self.out:
            self.out[name][where] = values

    def _lens(self, blocks: int, ws: Workspace, x: k.Tensor, part: BatchSlice) -> None:
        if not np.isfinite(x.array[: part.T]).all():
            return  # step() will say so at its end, and where it began
        for i in range(0, part.T, LENS_ROWS):
            rows = k.Tensor(x.array[i : min(i + LENS_ROWS, part.T)])
            logits = self.model.predict(ws, rows, rows.rows)
            self.model.require_finite(logits, [])
            for t, best in enumerate(top_logprobs(logits, self.top, self.model.threads), part.start + i):
                self._keep("lens_ids", (blocks, t), list(best))
                self._keep("lens_logprobs", (blocks, t), list(best.values()))

    def _router(self, layer: int, ws: Workspace, rows: slice) -> None:
        config, T = self.model.config, rows.stop - rows.start
        weight = ws.tensor("weight", T, config.experts_per_token)
        index = np.empty((T, config.experts_per_token), np.int32)
        k.topk(ws.ctx, index, weight, ws.tensor("router", T, config.num_experts), T)
        self._keep("router_choices", (layer, rows), index)
        self._keep("router_weights", (layer, rows), weight.array[:T])
        if "expert_load" in self.out:
            self.out["expert_load"][layer] += np.bincount(index.ravel(), minlength=config.num_experts)

    def _masses(self, block: Any, ws: Workspace, part: BatchSlice) -> tuple[np.ndarray, np.ndarray]:
        """float32 [T, H]: the weight of all tokens, and of those before the window."""
        model, T, start = self.model, part.T, part.start
        H, G, D, W = model.heads, model.kv_heads, model.head_dim, self.window
        qkv, attended = ws.tensor("qkv", T, (H + 2 * G) * D), ws.tensor("attended", T, H * D)
        (keys, values), kept = self.cache.arrays[block.layer], self.cache.layers[block.layer].dtype
        sinks, sees = getattr(block, "sinks", None), getattr(block, "window", 0)
        if kept not in self.values:
            self.values[kept] = np.zeros_like(values), np.zeros_like(values)
        ones, marks = self.values[kept]
        if kept == "INT8":  # whose keys have the scales of values with them
            keys = keys.copy()

        def attend(values: np.ndarray, new: float, row: int, n: int) -> np.ndarray:
            qkv.array[row : row + n, (H + G) * D :] = new
            if kept == "INT8":
                int8_scales(keys)[:, :, :, 1] = np.float32(1 / 127)
            cache = k.LayerCache(keys, values, kept, D)
            how = dict(scale=block.scale, window=sees, sinks=sinks)
            k.attention(ws.ctx, attended, qkv, [(cache, row, start + row, n)], H, **how)
            return attended.array[row : row + n].reshape(n, H, D)

        total, beyond = np.ones((T, H), np.float32), np.zeros((T, H), np.float32)
        if sinks is not None:
            total[:] = attend(ones, 1, 0, T)[:, :, 0]
        step = min(D, W)
        for row in range(0, T, step):
            n = min(step, T - row)
            if start + row + n > W and not 0 < sees <= W:
                self._mark(marks, kept, start + row)
                each = np.arange(n)
                beyond[row : row + n] = attend(marks, 0, row, n)[each, :, each]
        return total, beyond

    def _mark(self, values: npt.NDArray[Any], kept: str, position: int) -> None:
        """Makes column c of the values before `position` 1 where the query at position + c has the key before its
        window, else 0. All columns of older ones are 1 already."""
        panels = values.shape[2]
        first = max(0, position - self.window - self.model.head_dim) // k.KV_BLOCK
        last = -(-position // k.KV_BLOCK)
        at = np.arange(first * k.KV_BLOCK, last * k.KV_BLOCK)
        marks = at[:, None] <= position - self.window + np.arange(panels * k.KV_PANEL)
        marks = (marks * np.array({"BF16": 0x3F80, "INT8": 127}.get(kept, 1), values.dtype)).reshape(
            last - first, 2, k.KV_PANEL, panels, k.KV_PANEL
        )
        order = (0, 3, 2, 4, 1) if kept == "INT8" else (0, 3, 1, 2, 4)
        values[:, first:last] = marks.transpose(order).reshape(last - first, *values.shape[2:])
