"""Byte-level BPE vocabularies: the two that ship with cgpt, and any other in the form that tiktoken runs.

A checkpoint lists the pairs of tokens that may merge, by priority. tiktoken merges whichever neighbours make
the token of the lowest rank. `merge_order` finds the ranks with which the latter does exactly what the former
says.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, AnyStr

from cgpt.arguments import warn_caller
from cgpt.errors import TokenizerError
from cgpt.fields import shown
from cgpt.tokenizer.added_tokens import AddedToken

MAX_VOCAB_SIZE = 1 << 19  # the largest published vocabularies have some 260,000 tokens
_NEVER = 1 << 62  # the priority of a pair that does not merge
MAX_MERGE_WORK = 32_000_000  # sum of the squared token lengths: 2.5 million for GPT-2, 12.8 million for o200k


@dataclass(frozen=True)
class TextSteps:
    """What is done to a text before and after BPE.

    pattern: "gpt2" or "o200k", the pre-tokenizer. prefix_space: whether it puts a space before each stretch of text
    that does not begin with one. normalizers: Unicode's normal forms and "Lowercase", in order. prefix_ids: what a
    prompt begins with, mostly a beginning-of-sequence token.
    """

    pattern: str
    prefix_space: bool = False
    normalizers: tuple[str, ...] = ()
    prefix_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer is made of.

    tokens: those that encoding may yield, in the order of merge priority: the rank of a token is its place.
    ids: the id of each of `tokens`.
    unmerged: the rest of the vocabulary, which only decodes.
    added: texts that are one token each; ids beyond the model's rows among them are known, and never encoded to.
    """

    name: str
    steps: TextSteps
    tokens: list[bytes]
    ids: list[int]
    unmerged: dict[bytes, int]
    added: dict[str, AddedToken]


@dataclass(frozen=True)
class Published:
    """A vocabulary that ships with cgpt, as tiktoken's rank file, in which a token's rank is its id."""

    file: str  # in cgpt/data, packed with xz
    sha256: str  # of the unpacked file, as tiktoken records it
    tokens: int
    vocab_size: int
    pattern: str
    special: dict[str, int]  # every other id is called <|reserved_ID|>


PUBLISHED = {
    "gpt2": Published(
        file="gpt2.tiktoken.xz",
        sha256="306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
        tokens=50256,
        vocab_size=50257,
        pattern="gpt2",
        special={"<|endoftext|>": 50256},
    ),
    "o200k_harmony": Published(
        file="o200k_base.tiktoken.xz",
        sha256="446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
        tokens=199998,
        vocab_size=201088,
        pattern="o200k",
        special={
            "<|startoftext|>": 199998,
            "<|endoftext|>": 199999,
            "<|return|>": 200002,
            "<|constrain|>": 200003,
            "<|channel|>": 200005,
            "<|start|>": 200006,
            "<|end|>": 200007,
            "<|message|>": 200008,
            "<|call|>": 200012,
            "<|endofprompt|>": 200018,
        },
    ),
}


def read_published(name: str) -> Vocabulary:
    """The vocabulary `name` of PUBLISHED, out of the package's own data."""
    import lzma

    known = PUBLISHED[name]
    path = Path(__file__).parent / "data" / known.file
    try:
        lines = lzma.decompress(path.read_bytes()).splitlines()
    except (OSError, lzma.LZMAError) as problem:
        raise TokenizerError(f"{path}: {problem}; reinstall cgpt") from None
    tokens = [base64.b64decode(line.split(b" ")[0]) for line in lines]
    special = {text: AddedToken(token_id) for text, token_id in known.special.items()}
    return Vocabulary(name, TextSteps(known.pattern), tokens, list(range(len(tokens))), {}, special)


def build(
    path: Path,
    *,
    vocab: dict[str, Any],
    merges: list[list[str]],
    ignore_merges: bool,
    steps: TextSteps,
    added: dict[str, AddedToken],
    vocab_size: int,
) -> Vocabulary:
    """The Vocabulary that the file `path` describes; TokenizerError where its parts do not fit together.

    vocab: the id of each token, spelled in the byte alphabet. merges: pairs of such tokens, by priority.
    ignore_merges: a pre-token that is in the vocabulary is one token even if no merges lead to it.
    added: texts, spelled verbatim; vocab may repeat them.

    A token that only stands for itself and has no row in the model, as one that was added without resizing the model,
    is left out, with a warning.
    """
    made = dict.fromkeys(left + right for left, right in merges)
    verbatim = {name: token.id for name, token in added.items()}
    beyond = {
        n: i
        for n, i in {**vocab, **verbatim}.items()
        if type(i) is int and i >= vocab_size and len(n) > 1 and n not in made
    }
    _check_ids(vocab, verbatim, beyond, vocab_size, path)
    if beyond:
        shown_names = ", ".join(f"{shown(name)} ({shown(token_id)})" for name, token_id in [*beyond.items()][:5])
        warn_caller(f"{path}: the model has ids 0 to {vocab_size - 1}; left out {len(beyond)} beyond: {shown_names}")
    names = [n for n in vocab if n not in beyond and (len(n) == 1 or n in made or n not in added)]
    names.sort(key=vocab.__getitem__)
    token_of = {name: _token_bytes(name, path) for name in names}
    tokens = list(token_of.values())

    id_of = {token_of[name]: vocab[name] for name in names}
    published = _published_name(tokens, list(id_of.values())) if list(made) == names[256:] else None
    if published is None:
        pairs = {}
        for rank, (left, right) in enumerate(merges):
            if not (left in token_of and right in token_of and left + right in token_of):
                raise TokenizerError(f"{path}: merge {rank}, {shown([left, right])}, leaves the vocabulary")
            pairs[token_of[left], token_of[right]] = rank
        tokens = merge_order(tokens, pairs, ignore_merges, path)
    ids = [id_of.pop(token) for token in tokens]
    return Vocabulary(published or path.parent.resolve().name, steps, tokens, ids, id_of, added)


def _check_ids(
    vocab: dict[str, Any], verbatim: dict[str, Any], beyond: dict[str, int], vocab_size: int, path: Path
) -> None:
    """Every id is an int below vocab_size, but for those `beyond`, and no two names share one."""
    names: dict[int, str] = {}
    for name, token_id in (*vocab.items(), *verbatim.items()):
        if type(token_id) is not int or not 0 <= token_id < vocab_size and name not in beyond:
            wanted = f"0 to {vocab_size - 1}, found {shown(token_id)}"
            raise TokenizerError(f"{path}: the id of {shown(name)} must be {wanted}")
        if names.setdefault(token_id, name) != name:
            raise TokenizerError(f"{path}: {shown(names[token_id])} and {shown(name)} share an id, {token_id}")
        if vocab.get(name, token_id) != token_id:
            raise TokenizerError(f"{path}: {shown(name)} has two ids, {vocab[name]} and {token_id}")
    if "" in vocab or "" in verbatim:
        raise TokenizerError(f"{path}: one of the tokens is empty")
    try:
        "".join(verbatim).encode("utf-8")
    except UnicodeEncodeError as problem:
        raise TokenizerError(f"{path}: a special token is not valid Unicode: {problem}") from None


def _byte_alphabet() -> dict[int, int]:
    """Translates GPT-2's byte alphabet to Latin-1, and characters outside it to what Latin-1 does not have.

    A printable Latin-1 character stands for its own byte, those from U+0100 on stand for the other 68 in
    order: bytes_to_unicode in https://github.com/openai/gpt-2/blob/master/src/encoder.py.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: 0xFFFF for byte in others} | {0x100 + i: byte for i, byte in enumerate(others)}


_BYTE_ALPHABET = _byte_alphabet()


def _token_bytes(name: str, path: Path) -> bytes:
    try:
        return name.translate(_BYTE_ALPHABET).encode("latin-1")
    except UnicodeEncodeError:
        raise TokenizerError(f"{path}: {shown(name)} is not spelled in GPT-2's byte alphabet") from None


def _published_name(tokens: list[bytes], ids: list[int]) -> str | None:
    """Which of PUBLISHED these tokens are, or None."""
    for name, known in PUBLISHED.items():
        if len(tokens) == known.tokens and ids == list(range(known.tokens)):
            lines = b"".join(b"%b %d\n" % (base64.b64encode(token), i) for i, token in enumerate(tokens))
            if hashlib.sha256(lines).hexdigest() == known.sha256:
                return name
    return None


def merge_order(
    tokens: list[bytes], merges: dict[tuple[bytes, bytes], int], ignore_merges: bool, path: Path
) -> list[bytes]:
    """The tokens that encoding may yield, in the order of ranks with which tiktoken merges as `merges` say.

    What becomes of a stretch of text does not depend on its surroundings until a merge crosses one of its
    ends. So a token is only ever made in the way in which it is made of its own bytes alone: the last merge
    there is its priority, and neighbours that make it without being that pair never come up. A token to which
    its own bytes do not lead is never made. With ignore_merges it still stands for a whole pre-token, and a
    whole pre-token is what tiktoken looks up first. But if its bytes end up as two parts, tiktoken would join
    them elsewhere too; that cannot be expressed.
    """
    if sum(len(token) ** 2 for token in tokens) > MAX_MERGE_WORK:
        raise TokenizerError(f"{path}: tokens too long; their squared lengths add up to over {MAX_MERGE_WORK}")
    priority: dict[bytes, int] = {}
    whole = []
    for token in tokens:
        parts, last = merge_alone(token, merges)
        if parts == 1:
            priority[token] = last
        elif ignore_merges and parts == 2:
            why = f"no merge joins the two tokens that {shown(token)} falls into; cgpt does not support that"
            raise TokenizerError(f"{path}: ignore_merges is true, and {why}")
        elif ignore_merges:
            whole.append(token)
    return sorted(priority, key=priority.__getitem__) + whole


def merge_alone(token: AnyStr, merges: dict[tuple[AnyStr, AnyStr], int]) -> tuple[int, int]:
    """BPE of the bytes, or letters, of `token`: how many parts are left, the priority of the last merge (-1: none)."""
    parts = [token[i : i + 1] for i in range(len(token))]
    last = -1
    while len(parts) > 1:
        pairs = zip(parts, parts[1:], strict=False)
        priority, i = min((merges.get(pair, _NEVER), i) for i, pair in enumerate(pairs))
        if priority == _NEVER:
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
        last = priority
    return len(parts), last
