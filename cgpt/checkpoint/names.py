"""The names that tensors have in checkpoints people save, brought to those of the published ones."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from cgpt.arguments import warn_caller
from cgpt.checkpoint.config import GPT2Config, GptOssConfig
from cgpt.checkpoint.safetensors import Checkpoint, StoredTensor
from cgpt.errors import CheckpointError

# What torch's wrappers put into names: torch.compile, DistributedDataParallel, FSDP, activation checkpoints.
_WRAPPERS = r"(?:(?<=\.)|^)(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
# The part of a name that every model of the kind has, whatever stands before it, and what does as published.
_GPT2 = r"(.*\.)?(?:h\.\d+\.(?:ln_1|ln_2|attn|mlp)\..+|(?:wte|wpe)\.weight|ln_f\.(?:weight|bias))"
_GPT_OSS = r"(.*\.)?(?:layers\.\d+\.(?:self_attn|mlp|\w+_layernorm)\..+|embed_tokens\.weight|norm\.weight)"
_ADAPTER = r".*\.(base_layer|lora_\w+|ia3_l|modules_to_save)(\..*)?"
_QUANTISED = r".*\.(qweight|qzeros|SCB|absmax|quant_map|biases|weight_scale|weight_scale_inv|quant_state\..*)"
_CLASSIFIER = r"(score|classifier|qa_outputs|multiple_choice_head)\b.*\.(weight|bias)"


def open_checkpoint(directory: Path, config: GPT2Config | GptOssConfig) -> Checkpoint:
    """The tensors in a directory, by the published names: what wrappers put before them is gone, and of tied ends the
    embedding is there. CheckpointError for an adapter that is not merged, and for other engines' quantised weights."""
    checkpoint = Checkpoint(directory)
    for name, stored in checkpoint.tensors.items():
        if re.fullmatch(_ADAPTER, name):
            todo = "merge it by peft's merge_and_unload(), then save_pretrained()"
            raise CheckpointError(f"{stored.file}: an adapter that is not merged into its model ({name}); {todo}")
        if re.fullmatch(_QUANTISED, name) or stored.dtype.startswith("F8"):
            what = f"{name}, {stored.dtype}, is of a quantisation that cgpt does not read"
            raise CheckpointError(f'{stored.file}: {what}; take the unquantised model and load it with dense="int8"')
    gpt2 = isinstance(config, GPT2Config)
    pattern, home = (_GPT2, "transformer.") if gpt2 else (_GPT_OSS, "model.")
    names = {name: re.sub(_WRAPPERS, "", name) for name in checkpoint.tensors}
    found = Counter(match[1] or "" for match in (re.fullmatch(pattern, name) for name in names.values()) if match)
    prefix = max(found, key=lambda prefix: (found[prefix], prefix in ("", home)), default=home)
    outer = prefix.removesuffix(home)
    names = {name: inner.removeprefix(outer) for name, inner in names.items()}
    if not gpt2 and not prefix.endswith(home):  # saved without the language model's head around it
        names = {name: home + inner if re.fullmatch(pattern, inner) else inner for name, inner in names.items()}
    tensors = {inner: replace(checkpoint.tensors[name], name=inner) for name, inner in names.items()}
    if len(tensors) < len(names):
        twice = next(inner for inner, count in Counter(names.values()).items() if count > 1)
        raise CheckpointError(f"{directory}: {twice} is there twice, as {[n for n in names if names[n] == twice]}")
    head, embedding = "lm_head.weight", (prefix[len(outer) :] + "wte.weight" if gpt2 else home + "embed_tokens.weight")
    if config.tie_word_embeddings and head in tensors:
        twin = tensors.get(embedding)
        if twin is None or (twin.file, twin.offset) == (tensors[head].file, tensors[head].offset):
            tensors[embedding] = replace(tensors.pop(head), name=embedding)
    heads = [tensors.pop(name) for name in sorted(tensors, reverse=True) if re.fullmatch(_CLASSIFIER, name)]
    if heads:
        _warn_of_classifier(heads[0])
        if embedding in tensors and not config.tie_word_embeddings:
            tensors.setdefault(head, replace(tensors[embedding], name=head))  # hidden() needs none, but a model has one
    checkpoint.tensors = tensors
    return checkpoint


def _warn_of_classifier(head: StoredTensor) -> None:
    text = "is not run; the text is that of the language model"
    if not head.name.startswith("multiple_choice"):
        text = (
            "is a classifier's: the text means nothing, the scores are model.hidden(prompt) @ W.T, W being this tensor"
        )
    warn_caller(f"{head.file}: {head.name} {text}")
