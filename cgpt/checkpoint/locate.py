"""Finds the checkpoint directory that a path, a name or a Hugging Face id stands for. Nothing here uses a network.

The layout of the hub's cache: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
from pathlib import Path

from cgpt.arguments import warn_caller
from cgpt.checkpoint.formats import explain
from cgpt.checkpoint.safetensors import find_files
from cgpt.checkpoint.sizes import SIZES
from cgpt.errors import CheckpointError, InputError
from cgpt.fields import shown

SYNTH = "synth:"  # before a published size or a config.json: random weights
_DEMO = Path(__file__).parents[1] / "demo"
_ID = r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?"
_OWNERS = {name: "openai" if name.startswith("gpt-oss") else "openai-community" for name in SIZES}
_OWNERS["distilgpt2"] = "distilbert"


def demo_models() -> list[str]:
    """The names of the models that ship in the package."""
    return sorted(path.parent.name for path in _DEMO.glob("*/config.json"))


def locate(path_or_name: str | Path, revision: str | None = None) -> Path:
    """The checkpoint directory of a path, a model of the package, or an id in the local Hugging Face cache.

    A path may be a file of the checkpoint, a folder models--X--Y of the cache, or a Trainer's output, of which the last
    checkpoint-N is taken, with a warning. revision: a branch, tag or commit of an id; None is main.
    CheckpointError where there is none, its download is not complete, or it is of another format.
    """
    found = find(path_or_name, revision)
    if found is None:
        raise CheckpointError(not_found(path_or_name))
    return found


def find(path_or_name: str | Path, revision: str | None = None) -> Path | None:
    """locate(), but None where nothing has this name."""
    if not isinstance(path_or_name, (str, Path)):
        raise InputError(f"a checkpoint is a path or a name, not {shown(path_or_name)}")
    if not isinstance(revision, (str, type(None))):
        raise InputError(f"revision is a branch, tag or commit, not {shown(revision)}")
    name, path = str(path_or_name), Path(os.path.expanduser(path_or_name))
    if os.path.isdir(path):  # Path.is_dir() raises OSError for a name that is too long
        return _in_directory(path, revision)
    if os.path.isfile(path):
        return _of_file(path, revision)
    if name in demo_models():
        return _in_directory(_DEMO / name, revision)
    problems = []
    for repo in dict.fromkeys((name, repo_id(name), name.rpartition("/")[2])) if is_id(name) else ():
        folder = cache_directory() / f"models--{repo.replace('/', '--')}"
        begun = any(folder.glob("snapshots/*")) or any(folder.glob("blobs/*.incomplete"))
        if begun and repo_id(repo) == repo_id(name):
            try:
                return _in_directory(folder, revision)
            except CheckpointError as problem:  # the same model by its other name may be whole
                problems.append(problem)
    if problems:
        raise problems[0]
    return None


def not_found(name: str | Path) -> str:
    """What to say of a name that find() does not know: what was looked at, and what to do."""
    text = f"{name}: no such directory or file, and no model of the package ({', '.join(demo_models())})"
    if is_id(str(name)):
        install = "" if importlib.util.find_spec("huggingface_hub") else "pip install huggingface_hub, then "
        text += f". It is not in the Hugging Face cache {cache_directory()}; to download it: {install}cgpt pull {name}"
    return f"{text}. Random weights of a published size: {', '.join(SYNTH + size for size in SIZES)}"


def is_id(name: object) -> bool:
    """Whether this may be the id of a model on the hub."""
    return isinstance(name, str) and re.fullmatch(_ID, name, re.ASCII) is not None


def repo_id(name: str) -> str:
    """The hub's full id of a name: "openai-community/gpt2" of "gpt2"."""
    return f"{_OWNERS[name]}/{name}" if name in _OWNERS else name


def model_name(directory: Path) -> str:
    """What to call the model in a directory: its name, or the id where it is a snapshot in the hub's cache."""
    in_cache = directory.parent.name == "snapshots"
    return _id_of(directory.parents[1]) if in_cache else directory.resolve().name


def cache_directory() -> Path:
    """Where huggingface_hub keeps what it downloads: HF_HUB_CACHE, or HF_HOME/hub, or hub in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(home, "huggingface")
    hub = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return Path(os.path.expandvars(os.path.expanduser(hub)))


def _id_of(folder: Path) -> str:
    return folder.name.removeprefix("models--").replace("--", "/")


def _in_directory(directory: Path, revision: str | None) -> Path:
    """The directory itself, or what is meant where it holds checkpoints. CheckpointError for another format."""
    if not (directory / "config.json").exists():
        folder = directory.parent if directory.name in ("snapshots", "blobs", "refs") else directory
        if (folder / "snapshots").is_dir() or (folder / "blobs").is_dir():
            return _snapshot(folder, revision)
    if revision is not None:
        raise InputError(f"{directory}: is a directory; a revision is one of an id, as openai-community/gpt2")
    if not any(any(directory.glob(pattern)) for pattern in ("*.safetensors", "pytorch_model*", "adapter_config.json")):
        steps = {path: path.name.rpartition("-")[2] for path in directory.glob("checkpoint-*") if path.is_dir()}
        runs = sorted((path for path, step in steps.items() if step.isdecimal()), key=lambda path: int(steps[path]))
        if runs:
            last = f", the last of {len(runs)}" if len(runs) > 1 else ""
            warn_caller(f"{directory}: holds no model itself; {runs[-1].name}{last} is taken")
            directory = runs[-1]
    problem = explain(directory) or _unfinished(directory)
    if problem is not None:
        raise CheckpointError(f"{directory}: {problem}")
    if (directory / "adapter_config.json").exists():
        warn_caller(f"{directory}: the adapter beside the model is not applied")
    return directory


def _unfinished(directory: Path) -> str | None:
    """What is missing of a download that has not come to its end."""
    in_cache = directory.parent.name == "snapshots"
    parts = [*directory.glob(".cache/huggingface/download/**/*.incomplete")]
    parts += directory.parents[1].glob("blobs/*.incomplete") if in_cache else []
    if (directory / "config.json").exists() and any(directory.glob("*.safetensors*")):
        files = [file for file in find_files(directory)[0] if not file.exists()]
    else:
        files = [directory / "config.json", directory / "model.safetensors"]
    missing = [file.name for file in files if not file.exists()]
    if not missing or not (in_cache or parts):
        return None
    pull = f"cgpt pull {shlex.quote(_id_of(directory.parents[1]))}" if in_cache else "the same command that began it"
    so_far = [f"{path.name} has {path.stat().st_size / 1e6:,.1f} MB so far" for path in parts]
    return "; ".join([f"the download is not complete, {', '.join(missing)} is missing", *so_far, f"go on by {pull}"])


def _snapshot(folder: Path, revision: str | None) -> Path:
    """The directory of a revision in a model's folder of the hub's cache."""
    ref = folder / "refs" / (revision or "main")
    try:
        commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision or ""
    except (OSError, ValueError) as failed:  # ValueError: it is not UTF-8
        raise CheckpointError(f"{ref}: {getattr(failed, 'strerror', None) or failed}") from None
    there = sorted(path for path in folder.glob("snapshots/*") if path.is_dir())
    found = [path for path in there if path.name.startswith(commit)]
    if len(found) == 1:
        return _in_directory(found[0], None)
    names, pull = ", ".join(path.name for path in there), f"cgpt pull {shlex.quote(_id_of(folder))}"
    if found:
        raise CheckpointError(f"{folder}: has no refs/main and several revisions, {names}; name one by revision")
    if revision is not None:
        pull += f" --revision {shlex.quote(revision)}"
        raise CheckpointError(f"{folder}: has no revision {revision}, only {names}; {pull}")
    problem = _unfinished(folder / "snapshots" / (commit or "main"))
    raise CheckpointError(f"{folder}: {problem or 'has no snapshot'}")


def _of_file(path: Path, revision: str | None) -> Path:
    """The directory of a checkpoint's file. CheckpointError where the file is of another format, or not read there."""
    problem = explain(path)
    if problem is not None:
        raise CheckpointError(f"{path}: {problem}")
    if path.suffix not in (".safetensors", ".json") and not (path.parent / "config.json").exists():
        raise CheckpointError(f"{path}: is no file of a checkpoint")
    directory = _in_directory(path.parent, revision)
    read = [file.name for file in find_files(directory)[0]]
    if path.suffix == ".safetensors" and path.name not in read:
        raise CheckpointError(f"{path}: is not the file that cgpt reads in this directory, which is {', '.join(read)}")
    return directory
