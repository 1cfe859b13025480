"""Text to token ids and back: tiktoken's BPE over the checkpoint's own vocabulary, never over the network."""

from __future__ import annotations

import codecs
import operator
import os
import re
from collections.abc import Collection, Iterable
from functools import cached_property

import tiktoken

from cgpt.errors import InputError, TokenIdError, TokenizerError
from cgpt.fields import shown
from cgpt.tokenizer.files import read_directory
from cgpt.tokenizer.pretokenizer import PATTERNS, cut_long_runs
from cgpt.tokenizer.vocabulary import PUBLISHED, Vocabulary, read_published


class Tokenizer:
    """A byte-level BPE tokenizer.

    name: "gpt2" or "o200k_harmony" for a published vocabulary, else the name of its directory
    vocab_size: ids run from 0 to vocab_size - 1, and each of them decodes
    special_tokens: {name: id} of the texts that encode() makes one token only where allowed_special names them. Ids
        without a name in the vocabulary are among them as "<|reserved_ID|>", as in tiktoken's o200k_harmony.
    """

    def __init__(self, vocabulary: Vocabulary, vocab_size: int) -> None:
        self.name = vocabulary.name
        self.vocab_size = vocab_size
        self.special_tokens = dict(vocabulary.special)
        self._added = vocabulary.added
        self._pattern = vocabulary.pattern
        self._rank_ids = vocabulary.ids
        self._encoding = tiktoken.Encoding(
            vocabulary.name,
            pat_str=PATTERNS[vocabulary.pattern],
            mergeable_ranks={token: rank for rank, token in enumerate(vocabulary.tokens)},
            special_tokens={},
        )

        named = dict(zip(vocabulary.ids, vocabulary.tokens, strict=True))
        named |= {token_id: token for token, token_id in vocabulary.unmerged.items()}
        for text, token_id in (*vocabulary.special.items(), *vocabulary.added.items()):
            named[token_id] = text.encode("utf-8")
        for token_id in range(vocab_size):
            if token_id not in named:
                name = f"<|reserved_{token_id}|>"
                named[token_id] = name.encode("ascii")
                self.special_tokens.setdefault(name, token_id)
        self._bytes = [named[token_id] for token_id in range(vocab_size)]

    @classmethod
    def from_directory(cls, directory: str | os.PathLike[str], vocab_size: int) -> Tokenizer:
        """The tokenizer of a checkpoint directory, for a model of `vocab_size` ids.

        It is built from tokenizer.json, else from vocab.json and merges.txt. A directory without any of these
        gets the vocabulary that ships with cgpt if vocab_size is 50257 (GPT-2's) or 201088 (gpt-oss's).
        Raises TokenizerError where it has another size, or a file is damaged or describes what cgpt does not support.
        """
        return cls(read_directory(directory, vocab_size), vocab_size)

    @classmethod
    def packaged(cls, name: str) -> Tokenizer:
        """The tokenizer of a vocabulary that ships with cgpt, "gpt2" or "o200k_harmony"; else TokenizerError."""
        if name not in PUBLISHED:
            raise TokenizerError(f"only {' and '.join(PUBLISHED)} ship with cgpt, not {shown(name)}")
        return cls(read_published(name), PUBLISHED[name].vocab_size)

    def encode(self, text: str, *, allowed_special: str | Collection[str] = ()) -> list[int]:
        """The ids of `text`, which may be any str; a lone surrogate becomes U+FFFD.

        allowed_special: names of the special tokens to recognise, or "all". Any other is ordinary text.
        """
        if not isinstance(text, str):
            raise InputError(f"the text to encode must be a str, found {type(text).__name__}")
        ids: list[int] = []
        start = 0
        atoms = self._atoms(allowed_special)
        for match in atoms.finditer(text) if atoms else ():
            self._encode_ordinary(text[start : match.start()], ids)
            name = match.group()
            ids.append(self._added[name] if name in self._added else self.special_tokens[name])
            start = match.end()
        self._encode_ordinary(text[start:], ids)
        return ids

    def decode(self, ids: Iterable[int], *, errors: str = "replace") -> str:
        """The text of `ids`. errors: what to do about bytes that are not UTF-8, as in bytes.decode."""
        return self.decode_bytes(ids).decode("utf-8", errors)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`; TokenIdError for an id beyond the vocabulary."""
        return b"".join([self.token_bytes(token_id) for token_id in ids])

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, which may end within a character; TokenIdError beyond the vocabulary."""
        try:
            index = operator.index(token_id)
        except TypeError:
            raise TokenIdError(f"a token id must be an integer, found {shown(token_id)}") from None
        if not 0 <= index < self.vocab_size:
            raise TokenIdError(f"token id {index} is outside the vocabulary, 0 to {self.vocab_size - 1}")
        return self._bytes[index]

    def _atoms(self, allowed_special: str | Collection[str]) -> re.Pattern[str] | None:
        """Matches the texts that are one token each; None if there are none."""
        if allowed_special == "all":
            return self._all_atoms
        if not set(allowed_special) <= self.special_tokens.keys():
            raise InputError(
                f'allowed_special must be "all" or names of special tokens, found {shown(allowed_special)}'
            )
        return _any_of({*self._added, *allowed_special})

    @cached_property
    def _all_atoms(self) -> re.Pattern[str] | None:
        return _any_of({*self._added, *self.special_tokens})

    def _encode_ordinary(self, text: str, ids: list[int]) -> None:
        for piece in cut_long_runs(text, self._pattern):
            try:
                ranks = self._encoding.encode_ordinary(piece)
            except BaseException as problem:  # a panic of tiktoken's Rust code is no Exception
                if type(problem).__name__ != "PanicException":
                    raise
                raise TokenizerError(f"tiktoken cannot encode {shown(piece[:60])}: {problem}") from None
            ids.extend(map(self._rank_ids.__getitem__, ranks))


def _any_of(texts: Collection[str]) -> re.Pattern[str] | None:
    """Matches any of the texts, the longest that fits."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True)))) if texts else None


class StreamDecoder:
    """Decodes ids one at a time into deltas of text that never end within a character; joined, they are
    decode(ids)."""

    def __init__(self, tokenizer: Tokenizer, *, errors: str = "replace") -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors)

    def push(self, token_id: int) -> str:
        """The text that this id completes, "" while a character is incomplete."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """The end of the text: "", or a replacement for a character left incomplete."""
        return self._decoder.decode(b"", final=True)
