"""Reads the tokenizer files of a checkpoint directory.

There are two layouts of one thing, a byte-level BPE: `tokenizer.json`, or `vocab.json` with `merges.txt`.
What would make text encode otherwise than cgpt does it is refused by name.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cgpt.errors import TokenizerError
from cgpt.fields import read_json_object, require_regular_file, shown
from cgpt.tokenizer.pretokenizer import PUBLISHED_PATTERNS
from cgpt.tokenizer.vocabulary import MAX_VOCAB_SIZE, PUBLISHED, Vocabulary, build, read_published

MAX_MERGES_BYTES = 64 << 20  # GPT-2's merges.txt has 0.46 MB


def read_directory(directory: str | os.PathLike[str], vocab_size: int) -> Vocabulary:
    """The vocabulary in tokenizer.json, else in vocab.json and merges.txt, else, where none of these exist,
    the published one of that `vocab_size`. TokenizerError: there is none, or a file cannot be used."""
    if type(vocab_size) is not int or not 0 < vocab_size <= MAX_VOCAB_SIZE:
        raise TokenizerError(f"vocab_size must be from 1 to {MAX_VOCAB_SIZE}, found {shown(vocab_size)}")
    directory = Path(directory)
    whole, vocab, merges = (directory / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if os.path.lexists(whole):
        _check_tokenizer_config(directory / "tokenizer_config.json")
        return _read_tokenizer_json(whole, vocab_size)
    if os.path.lexists(vocab) or os.path.lexists(merges):
        _check_tokenizer_config(directory / "tokenizer_config.json")
        return _read_vocab_and_merges(vocab, merges, vocab_size)
    for name, known in PUBLISHED.items():
        if known.vocab_size == vocab_size:
            return read_published(name)
    raise TokenizerError(
        f"{directory}: holds neither tokenizer.json nor vocab.json with merges.txt, and no vocabulary of "
        f"{vocab_size} tokens ships with cgpt (only 50257 and 201088); copy the model's tokenizer files there"
    )


def _check_tokenizer_config(path: Path) -> None:
    if not os.path.lexists(path):
        return
    config = read_json_object(path, TokenizerError)
    for key in ("add_prefix_space", "add_bos_token"):
        _require_unset(config, key, path)


def _read_vocab_and_merges(vocab_path: Path, merges_path: Path, vocab_size: int) -> Vocabulary:
    """GPT-2's own two files, and added_tokens.json where there is one."""
    vocab = read_json_object(vocab_path, TokenizerError)
    if require_regular_file(merges_path, TokenizerError) > MAX_MERGES_BYTES:
        raise TokenizerError(f"{merges_path}: has more than {MAX_MERGES_BYTES} bytes")
    try:
        lines = merges_path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as problem:
        raise TokenizerError(f"{merges_path}: {problem}") from None
    merges = _pairs([line for line in lines if line and not line.startswith("#version")], merges_path)

    # vocab.json does not say which tokens are special: those that no merge makes, and they look like it.
    made = {left + right for left, right in merges}
    special = {name: token_id for name, token_id in vocab.items() if len(name) > 1 and name not in made}
    for name in special:
        if name[0] + name[-1] not in ("<>", "[]"):
            raise TokenizerError(
                f"{merges_path}: no merge makes the token {shown(name)} of {vocab_path.name}; "
                f"the file is cut short, or the two do not belong together"
            )
    more = vocab_path.with_name("added_tokens.json")
    if os.path.lexists(more):
        special |= read_json_object(more, TokenizerError)
    return build(
        vocab_path,
        vocab=vocab,
        merges=merges,
        ignore_merges=False,
        pattern="gpt2",
        special=special,
        added={},
        vocab_size=vocab_size,
    )


def _read_tokenizer_json(path: Path, vocab_size: int) -> Vocabulary:
    """The one-file layout of Hugging Face's tokenizers, https://huggingface.co/docs/tokenizers."""
    file = read_json_object(path, TokenizerError)
    model = _get(file, "model", dict, path)
    if model.get("type", "BPE") != "BPE":
        raise TokenizerError(f"{path}: the model type is {shown(model['type'])}; cgpt knows only BPE")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        _require_unset(model, key, path)
    _require_unset(file, "normalizer", path)
    for key in ("post_processor", "decoder"):
        if file.get(key) is not None and _get(file, key, dict, path).get("type") != "ByteLevel":
            raise TokenizerError(f"{path}: the {key} is {shown(file[key])}; cgpt knows only ByteLevel")

    special: dict[str, Any] = {}
    added: dict[str, Any] = {}
    for token in _get(file, "added_tokens", list, path):
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise TokenizerError(f"{path}: added_tokens holds {shown(token)}, not an object with a content")
        for key in ("single_word", "lstrip", "rstrip"):
            _require_unset(token, key, path)
        if token["content"] in special or token["content"] in added:
            raise TokenizerError(f"{path}: added_tokens lists {shown(token['content'])} twice")
        (special if token.get("special") is True else added)[token["content"]] = token.get("id")
    return build(
        path,
        vocab=_get(model, "vocab", dict, path),
        merges=_pairs(_get(model, "merges", list, path), path),
        ignore_merges=model.get("ignore_merges") is not None and _get(model, "ignore_merges", bool, path),
        pattern=_pattern(file.get("pre_tokenizer"), path),
        special=special,
        added=added,
        vocab_size=vocab_size,
    )


def _get(values: dict[str, Any], key: str, kind: type, path: Path) -> Any:
    value = values.get(key)
    if not isinstance(value, kind):
        raise TokenizerError(f"{path}: {key} is {shown(value)}, which is not what belongs there")
    return value


def _require_unset(values: dict[str, Any], key: str, path: Path) -> None:
    if values.get(key):
        raise TokenizerError(f"{path}: {key} is {shown(values[key])}, which cgpt does not support")


def _pairs(merges: list[Any], path: Path) -> list[list[str]]:
    """Merges, each spelled "a b" (older files) or ["a", "b"], as pairs."""
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    for number, pair in enumerate(pairs):
        if type(pair) is not list or len(pair) != 2 or not type(pair[0]) is type(pair[1]) is str:
            raise TokenizerError(f"{path}: merge {number} is {shown(merges[number])}, not a pair of tokens")
    return pairs


def _pattern(pre_tokenizer: Any, path: Path) -> str:
    """Which pattern the pre-tokenizer cuts by: ByteLevel's own, which is GPT-2's, or that of a Split before
    it."""
    match pre_tokenizer:
        case {"type": "Sequence", "pretokenizers": list(steps)}:
            pass
        case _:
            steps = [pre_tokenizer]
    match steps:
        case [{"type": "ByteLevel", "add_prefix_space": False} as step] if step.get("use_regex", True):
            return "gpt2"
        case [
            {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            for name, published in PUBLISHED_PATTERNS.items():
                if regex == published:
                    return name
    raise TokenizerError(
        f"{path}: the pre_tokenizer {shown(pre_tokenizer)} is not supported; cgpt knows GPT-2's and o200k's"
    )
