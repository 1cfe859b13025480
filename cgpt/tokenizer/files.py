"""Reads the tokenizer files of a checkpoint directory.

There are two layouts of one thing, a byte-level BPE: `tokenizer.json`, or `vocab.json` with `merges.txt`.
They mean here what they mean in transformers; what cgpt does not know is refused by name.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from cgpt.errors import TokenizerError
from cgpt.fields import decode_utf8, read_json_object, require_regular_file, shown
from cgpt.tokenizer.added_tokens import AddedToken
from cgpt.tokenizer.pretokenizer import PUBLISHED_PATTERNS
from cgpt.tokenizer.vocabulary import (
    MAX_VOCAB_SIZE,
    PUBLISHED,
    TextSteps,
    Vocabulary,
    build,
    merge_alone,
    read_published,
)

MAX_MERGES_BYTES = MAX_VOCABULARY_BYTES = 64 << 20  # GPT-2's merges.txt has 0.46 MB, o200k's tokenizer.json 28

# Files of tokenizers of other kinds.
_FOREIGN = {
    "vocab.txt": "a WordPiece vocabulary",
    "*.model": "a SentencePiece model",
    "*.spm": "a SentencePiece model",
    "tekken.json": "a Tekken vocabulary",
    "*.tiktoken": "a file of tiktoken",
}
_KNOWN = {
    "normalizer": "NFC, NFD, NFKC, NFKD and Lowercase",
    "pre_tokenizer": "GPT-2's and o200k's",
    "post_processor": "ByteLevel and a TemplateProcessing that puts one token first",
    "decoder": "ByteLevel",
}
_SPECIAL_LOOK = r"(?s)[!-/:-@[-`{-~].*[!-/:-@[-`{-~]|[A-Z][A-Z0-9_]+"  # <pad>, __bos__, PAD


def read_directory(directory: str | os.PathLike[str], vocab_size: int) -> Vocabulary:
    """The vocabulary in tokenizer.json, else in vocab.json and merges.txt, else, where there are no tokenizer files,
    the published one of that `vocab_size`. TokenizerError: there is none, or a file cannot be used."""
    if type(vocab_size) is not int or not 0 < vocab_size <= MAX_VOCAB_SIZE:
        raise TokenizerError(f"vocab_size must be from 1 to {MAX_VOCAB_SIZE}, found {shown(vocab_size)}")
    directory = Path(directory)
    whole, vocab, merges = (directory / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if os.path.lexists(whole):
        return _read_tokenizer_json(whole, vocab_size)
    if os.path.lexists(vocab) or os.path.lexists(merges):
        return _read_vocab_and_merges(vocab, merges, vocab_size)
    for pattern, kind in _FOREIGN.items():
        for path in directory.glob(pattern):
            raise TokenizerError(
                f"{path}: is {kind}, which cgpt does not read; it reads tokenizer.json, or vocab.json with merges.txt. "
                f"The model works with token ids: encode the text with the library that made the file"
            )
    for name, known in PUBLISHED.items():
        if known.vocab_size == vocab_size:
            return read_published(name)
    raise TokenizerError(
        f"{directory}: holds neither tokenizer.json nor vocab.json with merges.txt, and no vocabulary of "
        f"{vocab_size} tokens ships with cgpt (only 50257 and 201088); copy the model's tokenizer files there"
    )


def _read_beside(path: Path, name: str) -> dict[str, Any]:
    """The file `name` in the directory of `path`, empty where there is none."""
    path = path.with_name(name)
    return read_json_object(path, TokenizerError) if os.path.lexists(path) else {}


def _read_vocab_and_merges(vocab_path: Path, merges_path: Path, vocab_size: int) -> Vocabulary:
    """GPT-2's own two files, and what added_tokens.json, tokenizer_config.json and special_tokens_map.json add."""
    vocab = read_json_object(vocab_path, TokenizerError, MAX_VOCABULARY_BYTES)
    if require_regular_file(merges_path, TokenizerError) > MAX_MERGES_BYTES:
        raise TokenizerError(f"{merges_path}: has more than {MAX_MERGES_BYTES} bytes")
    try:
        lines = decode_utf8(merges_path.read_bytes()).splitlines()
    except (OSError, ValueError) as problem:
        raise TokenizerError(f"{merges_path}: {problem}") from None
    merges = _pairs([line for line in lines if line and not line.startswith("#version")], merges_path)

    config, names = (_read_beside(vocab_path, f"{name}.json") for name in ("tokenizer_config", "special_tokens_map"))
    config_path = vocab_path.with_name("tokenizer_config.json")
    added = {name: AddedToken(i) for name, i in _read_beside(vocab_path, "added_tokens.json").items()}
    decoder = config.get("added_tokens_decoder") and _get(config, "added_tokens_decoder", dict, config_path)
    for token_id, entry in (decoder or {}).items():
        number = int(token_id) if token_id.isdecimal() and len(token_id) < 10 else token_id
        added |= _added_tokens([entry | {"id": number} if isinstance(entry, dict) else entry], config_path)
    known = {name for values in (config, names) for key in values if "_token" in key for name in _names(values[key])}
    for name in _unmade(vocab, merges, known | added.keys(), merges_path):
        added.setdefault(name, AddedToken(vocab[name]))

    prefix_ids: tuple[int, ...] = ()
    _require_unset(config, "add_eos_token", config_path)
    if _flag(config, "add_bos_token", config_path):
        bos = next(iter(_names(config.get("bos_token") or names.get("bos_token"))), "<|endoftext|>")
        prefix_ids = _rows([added[bos].id if bos in added else vocab.get(bos)], vocab_size, bos, config_path)
    return build(
        vocab_path,
        vocab=vocab,
        merges=merges,
        ignore_merges=False,
        steps=TextSteps("gpt2", _flag(config, "add_prefix_space", config_path), (), prefix_ids),
        added=added,
        vocab_size=vocab_size,
    )


def _unmade(vocab: dict[str, Any], merges: list[list[str]], known: set[str], path: Path) -> list[str]:
    """The tokens that no merge makes: vocab.json does not say which tokens are special, but those are. TokenizerError
    where merges.txt was cut short, and so one of them is the result of the next merge; `known` are special for sure."""
    ranks = {(left, right): rank for rank, (left, right) in enumerate(merges)}
    made = {left + right for left, right in merges}
    ids = {name: token_id if type(token_id) is int else -1 for name, token_id in vocab.items()}
    last = max((ids.get(name, -1) for name in made), default=-1)
    unmade = [name for name in vocab if len(name) > 1 and name not in made]
    for name in unmade:
        special = name in known or ids[name] < last or re.fullmatch(_SPECIAL_LOOK, name)
        if not special and merge_alone(name, ranks)[0] == 2:
            why = "the file is cut short, or the two do not belong together"
            todo = "if it is a special token, special_tokens_map.json must list it"
            raise TokenizerError(f"{path}: no merge makes the token {shown(name)} of vocab.json; {why}; {todo}")
    return unmade


def _names(value: Any) -> list[str]:
    """The tokens that a value of special_tokens_map.json names."""
    values = value if isinstance(value, list) else [value]
    contents = [one.get("content") if isinstance(one, dict) else one for one in values]
    return [one for one in contents if isinstance(one, str)]


def _read_tokenizer_json(path: Path, vocab_size: int) -> Vocabulary:
    """The one-file layout of Hugging Face's tokenizers, https://huggingface.co/docs/tokenizers.

    As in transformers, tokenizer_config.json's add_prefix_space counts beside it, and its add_bos_token does not: the
    post_processor says what a prompt begins with.
    """
    file = read_json_object(path, TokenizerError, MAX_VOCABULARY_BYTES)
    model = _get(file, "model", dict, path)
    if model.get("type", "BPE") != "BPE":
        known = "cgpt knows only BPE, and runs such a model on token ids"
        raise TokenizerError(f"{path}: the model type is {shown(model['type'])}; {known}")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        _require_unset(model, key, path)
    _steps(file, "decoder", path, {"ByteLevel"})
    pattern, prefix_space = _pre_tokenizer(file, path)
    config = _read_beside(path, "tokenizer_config.json")
    if pattern == "gpt2" and config.get("add_prefix_space") is not None:
        prefix_space = _flag(config, "add_prefix_space", path.with_name("tokenizer_config.json"))
    normalizers = _steps(file, "normalizer", path, {"NFC", "NFD", "NFKC", "NFKD", "Lowercase"})
    normal_forms = tuple(step["type"] for step in normalizers)
    return build(
        path,
        vocab=_get(model, "vocab", dict, path),
        merges=_pairs(_get(model, "merges", list, path), path),
        ignore_merges=_flag(model, "ignore_merges", path),
        steps=TextSteps(pattern, prefix_space, normal_forms, _prefix_ids(file, vocab_size, path)),
        added=_added_tokens(_get(file, "added_tokens", list, path), path),
        vocab_size=vocab_size,
    )


def _added_tokens(entries: list[Any], path: Path) -> dict[str, AddedToken]:
    added: dict[str, AddedToken] = {}
    for token in entries:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise TokenizerError(f"{path}: added_tokens holds {shown(token)}, not an object with a content")
        if token["content"] in added:
            raise TokenizerError(f"{path}: added_tokens lists {shown(token['content'])} twice")
        flags = (_flag(token, key, path) for key in ("special", "normalized", "lstrip", "rstrip", "single_word"))
        added[token["content"]] = AddedToken(token.get("id"), *flags)  # type: ignore[arg-type]  # build() checks the id
    return added


def _steps(file: dict[str, Any], key: str, path: Path, known: set[str] | None = None) -> list[dict[str, Any]]:
    """The steps under `key`: none, one, or those of a Sequence, which may hold others; their types must be known."""
    steps, rest = [], [] if file.get(key) is None else [file[key]]
    while rest:
        match rest.pop(0):
            case {"type": "Sequence"} as step if inside := [one for one in step.values() if isinstance(one, list)]:
                rest = inside[0] + rest
            case {"type": str(kind)} as step if kind in known if known else kind != "Sequence":
                steps.append(step)
            case step:
                raise _unsupported(key, step, path)
    return steps


def _unsupported(key: str, step: Any, path: Path) -> TokenizerError:
    return TokenizerError(f"{path}: the {key} {shown(step)} is not supported; cgpt knows {_KNOWN[key]}")


def _prefix_ids(file: dict[str, Any], vocab_size: int, path: Path) -> tuple[int, ...]:
    """The ids that the post_processor puts before a text."""
    prefix_ids: tuple[int, ...] = ()
    for step in _steps(file, "post_processor", path):
        match step:
            case {"type": "ByteLevel"} | {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}]}:
                pass
            case {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": str(name)}}, {"Sequence": {"id": "A"}}],
                "special_tokens": dict(tokens),
            } if not prefix_ids:
                prefix_ids = _rows(_get(tokens, name, dict, path).get("ids"), vocab_size, name, path)
            case _:
                raise _unsupported("post_processor", step, path)
    return prefix_ids


def _rows(ids: Any, vocab_size: int, name: str, path: Path) -> tuple[int, ...]:
    """`ids` of a token that every prompt begins with."""
    if not isinstance(ids, list) or not all(type(one) is int and 0 <= one < vocab_size for one in ids):
        begin = f"prompts begin with {shown(name)}"
        raise TokenizerError(f"{path}: {begin}, whose ids {shown(ids)} the model does not have")
    return tuple(ids)


def _get(values: dict[str, Any], key: str, kind: type, path: Path) -> Any:
    value = values.get(key)
    if not isinstance(value, kind):
        raise TokenizerError(f"{path}: {key} is {shown(value)}, which is not what belongs there")
    return value


def _flag(values: dict[str, Any], key: str, path: Path) -> bool:
    """A value that is true, false, null or absent."""
    return values.get(key) is not None and bool(_get(values, key, bool, path))


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


def _pre_tokenizer(file: dict[str, Any], path: Path) -> tuple[str, bool]:
    """Which pattern the pre-tokenizer cuts by, ByteLevel's own, which is GPT-2's, or that of a Split before it; and
    whether it puts a space first."""
    match _steps(file, "pre_tokenizer", path):
        case [{"type": "ByteLevel", "add_prefix_space": bool(prefix_space)} as step] if step.get("use_regex", True):
            return "gpt2", prefix_space
        case [
            {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            for name, published in PUBLISHED_PATTERNS.items():
                if regex == published:
                    return name, False
    raise _unsupported("pre_tokenizer", file.get("pre_tokenizer"), path)
