"""What a directory or file that is no safetensors checkpoint is, and what to do with it. Names alone decide."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cgpt.checkpoint.sizes import SIZES

_PULL = "pull the safetensors of the model it was made from, as cgpt pull {id}"
_SAVE = "convert once: {save}, and copy the tokenizer's files to NEW"
_TORCH = "write its weights by torch as model.safetensors, named as the published ones, beside a config.json"
_TRANSFORMERS_4 = _SAVE.replace("convert once:", "convert once, with transformers 4:")
# A pattern of names, what such a file is, what to do, and how _SAVE reads it; the first that matches counts.
_FORMATS = (
    (r".*\.gguf|ggml.*", "GGUF, the format of llama.cpp", _PULL, ""),
    (r"openvino.*\.(xml|bin)", "OpenVINO's", _PULL, ""),
    (r"ckpt.*\.pt", "a pickle of a training, as nanoGPT's", f"{_TORCH}, c_attn, c_fc and c_proj transposed", ""),
    (r"(pytorch_)?model.*\.bin", "a pickle of PyTorch", _SAVE, ""),
    (r"tf_model.*\.h5", "TensorFlow's", _TRANSFORMERS_4, ", from_tf=True"),
    (r"flax_model.*\.msgpack", "Flax's", _TRANSFORMERS_4, ", from_flax=True"),
    (r".*\.ckpt\..*|saved_model\.pb|.*\.(h5|keras|tflite)", "TensorFlow's", _PULL, ""),
    (r".*\.onnx(_data|\.data)?", "ONNX", _PULL, ""),
    (r".*\.npz", "NumPy's arrays, as early MLX kept weights", _PULL, ""),
    (r".*\.(mlmodel|mlpackage)", "Core ML's", _PULL, ""),
    (r".*\.msgpack", "Flax's", _PULL, ""),
    (r".*\.(incomplete|part|crdownload|aria2)", "a download that is not complete", "go on with it", ""),
    (r".*\.bin", "a pickle of PyTorch", _SAVE, ""),
    (r".*\.(pt|pth|pkl|ckpt|ot)", "a pickle of PyTorch", _TORCH, ""),
)  # fmt: skip

_BESIDE = r"(training_args|optimizer|scheduler|scaler|rng_state)\b"  # what a Trainer puts beside weights


def explain(path: Path) -> str | None:
    """What another format the files of a directory, or a file, have, and the next step; None where it may be a
    checkpoint that cgpt reads, or nothing is known."""
    if path.is_file():
        return explain_names([path.name], path.parent)
    names = sorted(file.name for file in path.glob("*"))
    if not any(name.endswith(".safetensors") and not name.startswith("adapter_") for name in names):
        if "adapter_config.json" in names or "adapter_model.safetensors" in names:
            return _adapter(path)
        if not any(name.endswith(".safetensors.index.json") for name in names):
            below = sorted(f"{file.parent.name}/{file.name}" for file in path.glob("*/*"))
            return _elsewhere(names, below) or explain_names(names, path) or explain_names(below, path)
    return None


def explain_names(names: Iterable[str], directory: Path | str) -> str | None:
    """explain() for the names of the files in a directory, or in a repository of the hub."""
    names = [name for name in names if not re.match(_BESIDE, os.path.basename(name))]
    for pattern, what, step, how in _FORMATS:
        name = next((name for name in names if re.fullmatch(pattern, os.path.basename(name), re.IGNORECASE)), None)
        if name is not None:
            told = f"{os.path.basename(directory)}/{name}".lower()
            sizes = [size for size in sorted(SIZES, key=len, reverse=True) if size in told]
            model = f"{'openai' if 'oss' in sizes[0] else 'openai-community'}/{sizes[0]}" if sizes else "ID"
            save = _save("transformers import AutoModelForCausalLM", directory, f"{how})")
            return f"{name} is {what}; cgpt reads safetensors only: {step.format(save=save, id=model)}"
    return None


def _elsewhere(names: list[str], below: list[str]) -> str | None:
    """Where the checkpoints are, if they lie a level deeper."""
    folders = [name.partition("/")[0] for name in below if name.endswith("/config.json")]
    if "config.json" in names or not folders:
        return None
    return f"no config.json, so this is not a checkpoint directory; its folder {folders[0]}/ has one"


def _adapter(directory: Path) -> str:
    try:
        settings: Any = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
        base, kind = settings.get("base_model_name_or_path"), settings.get("peft_type")
    except (OSError, ValueError, AttributeError):
        base = kind = None
    save = _save("peft import AutoPeftModelForCausalLM", directory, ").merge_and_unload()")
    of = base or "a model that it does not name"
    return f"a {kind or 'LoRA'} adapter of {of}, not a model; merge them once: {save}, and load NEW"


def _save(imported: str, directory: Path | str, then: str) -> str:
    """The command that reads a directory by another package and saves it as NEW, quoted for Python and the shell."""
    path = json.dumps(str(directory), ensure_ascii=False)
    return "python -c " + shlex.quote(f'from {imported} as M; M.from_pretrained({path}{then}.save_pretrained("NEW")')
