"""What callers pass as prompts: texts, ids, and ids as other libraries wrap them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cgpt.errors import InputError


def unwrap(prompt: Any) -> Any:
    """A prompt, or several, as a str, a list or an array: of what transformers' tokenizers return the input_ids,
    without padding; of a tensor the values. InputError where there are none."""
    try:
        if isinstance(prompt, Mapping):
            ids, mask = unwrap(prompt["input_ids"]), prompt.get("attention_mask")
            return ids if mask is None else _without_padding(ids, unwrap(mask))
        if hasattr(prompt, "__array__"):
            return np.asarray(prompt)
        return prompt.tolist() if hasattr(prompt, "tolist") else prompt
    except (KeyError, TypeError, ValueError, RuntimeError) as problem:  # RuntimeError: a tensor that needs a gradient
        raise InputError(
            f"the prompt is a {type(prompt).__name__} that gives no input_ids, {problem!r}; pass input_ids as a list"
        ) from None


def is_batch(prompt: Any) -> bool:
    """Whether an unwrapped `prompt` is several, a list of texts or of lists; a flat list of ids is one prompt."""
    if isinstance(prompt, np.ndarray):
        return prompt.ndim > 1
    parts = prompt if isinstance(prompt, (list, tuple)) else ()
    return any(isinstance(part, (str, list, tuple, np.ndarray, Mapping)) or getattr(part, "ndim", 0) for part in parts)


def only_prompt(prompt: Any) -> Any:
    """The one prompt in an unwrapped batch of one, [1, T]; anything else as it is."""
    sized = prompt.ndim > 1 if isinstance(prompt, np.ndarray) else isinstance(prompt, (list, tuple))
    return prompt[0] if sized and len(prompt) == 1 and is_batch(prompt) else prompt


def _without_padding(ids: Any, mask: Any) -> Any:
    if is_batch(ids):
        return [_without_padding(*row) for row in zip(ids, mask, strict=True)]
    return [one for one, kept in zip(ids, mask, strict=True) if kept]
