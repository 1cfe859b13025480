"""Downloads checkpoints from the Hugging Face hub, by its own client, and only when asked to."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Collection
from pathlib import Path

from cgpt.checkpoint.formats import explain_names
from cgpt.checkpoint.locate import cache_directory, is_id, locate, repo_id
from cgpt.checkpoint.safetensors import INDEX_FILE, SINGLE_FILE
from cgpt.errors import CgptError, CheckpointError, InputError

_SETTINGS = r".*(?<!\.index)\.(json|txt|jinja|model|tiktoken)"  # the config's and the tokenizer's files


def pull(name: str, revision: str | None = None, local_dir: str | os.PathLike[str] | None = None) -> Path:
    """Downloads a checkpoint by its id into the hub's cache, or into local_dir; returns the directory.

    Only what cgpt reads is fetched, and what is there already is not. The client goes on where a connection was cut,
    shows its progress on a terminal, and obeys HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and HF_HOME. It checks sizes; the
    sha256 of each weight file is checked here. revision: a branch, tag or commit; None is main.

    Raises InputError for what is no id or does not fit on the disk; CheckpointError where there is no such model, it
    may not be read, has no safetensors, or came damaged; CgptError without the package huggingface_hub.
    """
    if not is_id(name):
        raise InputError(f"{name}: is no id of a model on the Hugging Face hub, as openai/gpt-oss-20b")
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
    except ImportError:
        raise CgptError("a download needs the package huggingface_hub: pip install huggingface_hub") from None
    repo, where = repo_id(name), os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        info = hub.HfApi().model_info(repo, revision=revision, files_metadata=True)
        files = {file.rfilename: file for file in info.siblings or []}
        wanted = needed_files(files)
        kind = (info.config or {}).get("model_type", "gpt2")
        if kind not in ("gpt2", "gpt_oss"):
            raise CheckpointError(f"{repo}: is a {kind} model; cgpt runs gpt2 and gpt_oss")
        if not any(file.endswith(".safetensors") for file in wanted):
            raise CheckpointError(f"{repo}: {explain_names(files, repo) or 'has no safetensors'}")
        target = cache_directory() if local_dir is None else Path(local_dir).expanduser()
        snapshot = target / f"models--{repo.replace('/', '--')}/snapshots/{info.sha}" if local_dir is None else target
        require_space(target, sum(files[file].size or 0 for file in wanted if not (snapshot / file).exists()))
        patterns = [glob.escape(file) for file in wanted]
        cache, local = (target, None) if local_dir is None else (None, target)
        kept = hub.snapshot_download(repo, revision=revision, cache_dir=cache, local_dir=local, allow_patterns=patterns)
        directory = Path(kept)
        for file in wanted:
            lfs = files[file].lfs  # what is not large has none
            if lfs and (found := _sha256(directory / file)) != lfs.sha256:
                os.remove(os.path.realpath(directory / file))
                damage = (
                    f"its sha256 is {found}, not {lfs.sha256}, so it was removed; the same command fetches it again"
                )
                raise CheckpointError(f"{directory / file}: came damaged; {damage}")
    except errors.GatedRepoError:
        todo = f"agree to its terms at {where}/{repo}, and set HF_TOKEN to a token of yours"
        raise CheckpointError(f"{repo}: is gated; {todo}") from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{repo}: has no revision {revision} at {where}") from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(f"{repo}: no such model at {where}; if it is private, set HF_TOKEN") from None
    except CgptError:
        raise
    except errors.OfflineModeIsEnabled:
        raise CheckpointError(f"{repo}: HF_HUB_OFFLINE is set, so nothing is downloaded") from None
    except Exception as problem:  # the client's, and those of the HTTP library that it happens to use
        reason = " ".join(str(problem).split()) or type(problem).__name__
        again = "whole files are kept; the same command goes on"
        raise CheckpointError(f"{repo}: the download from {where} failed ({reason}); {again}") from None
    return locate(directory)


def needed_files(names: Collection[str]) -> list[str]:
    """Those of a repository's files that cgpt reads: the weights in one of their forms, the config, the tokenizer."""
    weights = [name for name in names if name.endswith(".safetensors") and "/" not in name]
    shards = [name for name in weights if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]
    if SINGLE_FILE in weights:
        weights = [SINGLE_FILE]
    elif INDEX_FILE in names and shards:
        weights = [*shards, INDEX_FILE]
    return [*weights, *(name for name in names if re.fullmatch(_SETTINGS, name) and "/" not in name)]


def require_space(directory: Path, needed: int) -> None:
    """InputError where fewer than `needed` bytes are free in a directory, or where it will be made."""
    import shutil

    there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        sizes = f"the checkpoint takes {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free"
        raise InputError(f"{directory}: {sizes}")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
