"""Text to token ids and back: tiktoken's BPE over the checkpoint's own vocabulary, never over the network."""

from __future__ import annotations

import codecs
import operator
import os
import unicodedata
from collections.abc import Collection, Iterable
from functools import lru_cache

from cgpt.errors import InputError, TokenIdError, TokenizerError
from cgpt.fields import shown
from cgpt.tokenizer.added_tokens import AddedToken, AddedTokens
from cgpt.tokenizer.files import read_directory
from cgpt.tokenizer.pretokenizer import PATTERNS, cut_long_runs
from cgpt.tokenizer.vocabulary import PUBLISHED, Vocabulary, read_published

MAX_MARKS = 1000  # combining marks in a row: normal forms take the square of their number


class Tokenizer:
    """A byte-level BPE tokenizer.

    name: "gpt2" or "o200k_harmony" for a published vocabulary, else the name of its directory
    vocab_size: ids run from 0 to vocab_size - 1, and each of them decodes
    special_ids: the ids of special_tokens
    special_tokens: {name: id} of the texts that encode() makes one token only where allowed_special names them. Ids
        without a name in the vocabulary are among them as "<|reserved_ID|>", as in tiktoken's o200k_harmony.
    """

    def __init__(self, vocabulary: Vocabulary, vocab_size: int) -> None:
        import tiktoken  # not before there is something to encode: it loads loggers and pools of threads

        self.name = vocabulary.name
        self.vocab_size = vocab_size
        self._steps = vocabulary.steps
        self._pattern = vocabulary.steps.pattern
        self._added = dict(vocabulary.added)
        missing = {bytes([byte]) for byte in range(256)}.difference(vocabulary.tokens)
        self._lacks_bytes = bool(missing)
        self._rank_ids = vocabulary.ids + [-1] * len(missing)
        self._encoding = tiktoken.Encoding(
            vocabulary.name,
            pat_str=PATTERNS[self._pattern],
            mergeable_ranks={token: rank for rank, token in enumerate([*vocabulary.tokens, *missing])},
            special_tokens={},
        )

        named = dict(zip(vocabulary.ids, vocabulary.tokens, strict=True))
        named |= {token_id: token for token, token_id in vocabulary.unmerged.items()}
        named |= {token.id: text.encode("utf-8") for text, token in vocabulary.added.items()}
        for token_id in range(vocab_size):
            if token_id not in named:
                name = f"<|reserved_{token_id}|>"
                named[token_id] = name.encode("ascii")
                self._added.setdefault(name, AddedToken(token_id))
        self._special = frozenset(name for name, token in self._added.items() if token.special)
        self._added_with = lru_cache(8)(self._make_added)
        self.special_tokens = {n: t.id for n, t in self._added.items() if t.special and t.id < vocab_size}
        self.special_ids = frozenset(self.special_tokens.values())
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

    def encode(
        self, text: str, *, allowed_special: str | Collection[str] = (), add_special_tokens: bool = True
    ) -> list[int]:
        """The ids of `text`, which may be any str; a lone surrogate becomes U+FFFD.

        allowed_special: names of the special tokens to recognise, or "all". Any other is ordinary text.
        add_special_tokens: begin with what the tokenizer puts before a prompt: for most nothing, for some a
            beginning-of-sequence token.

        Raises TokenIdError where the text holds a token for which the model has no row, and InputError where it holds a
        byte for which the vocabulary has no token.
        """
        if not isinstance(text, str):
            raise InputError(f"the text to encode must be a str, found {type(text).__name__}")
        ids = list(self._steps.prefix_ids) if add_special_tokens else []
        verbatim, normalized = self._atoms(allowed_special)
        for stretch, token in verbatim.cut(text):
            if token:
                ids.append(self._row(stretch, token))
                continue
            for part, token in normalized.cut(self._normalize(stretch)):
                if token:
                    ids.append(self._row(part, token))
                else:
                    self._encode_ordinary(part, ids)
        return ids

    def encode_part(self, text: str) -> list[int]:
        """The ids of a part of a prompt: ordinary text, without what a prompt begins with."""
        return self.encode(text, add_special_tokens=False)

    def find_special_token(self, text: str) -> str | None:
        """The name of the first special token that `text` holds, None where it holds none."""
        found = (name for tokens in self._atoms("all") for name in tokens.names_in(text))
        return next((name for name in found if name in self.special_tokens), None)

    def decode(self, ids: Iterable[int], *, errors: str = "replace", skip_special_tokens: bool = False) -> str:
        """The text of `ids`. errors: what to do about bytes that are not UTF-8, as in bytes.decode.
        skip_special_tokens: without the names of special tokens."""
        if skip_special_tokens and isinstance(ids, Iterable):
            ids = [row for row in map(self.row, ids) if row not in self.special_ids]
        return self.decode_bytes(ids).decode("utf-8", errors)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`; TokenIdError for an id beyond the vocabulary."""
        if not isinstance(ids, Iterable):
            raise InputError(f"the ids to decode are a list of integers, not {shown(ids)}")
        return b"".join([self.token_bytes(token_id) for token_id in ids])

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, which may end within a character; TokenIdError beyond the vocabulary."""
        return self._bytes[self.row(token_id)]

    def row(self, token_id: int) -> int:
        """A token's id as an int; TokenIdError for what is none, or beyond the vocabulary."""
        try:
            index = operator.index(token_id)
        except TypeError:
            raise TokenIdError(f"a token id must be an integer, found {shown(token_id)}") from None
        if not 0 <= index < self.vocab_size:
            raise TokenIdError(f"token id {index} is outside the vocabulary, 0 to {self.vocab_size - 1}")
        return index

    def _atoms(self, allowed_special: str | Collection[str]) -> tuple[AddedTokens, AddedTokens]:
        """The texts that are one token each, in the text as it is and as it is normalized."""
        allowed = self._special if allowed_special == "all" else frozenset(allowed_special)
        if not allowed <= self._special:
            names = '"all" or names of special tokens'
            raise InputError(f"allowed_special must be {names}, found {shown(allowed_special)}")
        return self._added_with(allowed)

    def _make_added(self, allowed: frozenset[str]) -> tuple[AddedTokens, AddedTokens]:
        tokens = {name: token for name, token in self._added.items() if not token.special or name in allowed}
        verbatim = {name: token for name, token in tokens.items() if not token.normalized}
        # Of two that normalize to one, the first counts.
        normalized = {self._normalize(name): token for name, token in reversed(tokens.items()) if token.normalized}
        return AddedTokens(verbatim), AddedTokens(normalized)

    def _row(self, name: str, token: AddedToken) -> int:
        if token.id >= self.vocab_size:
            rows = f"the model has rows for 0 to {self.vocab_size - 1}"
            raise TokenIdError(f"the text holds {shown(name)}, token {token.id}, and {rows}")
        return token.id

    def _normalize(self, text: str) -> str:
        if self._steps.normalizers and not text.isascii():
            run = 0
            for letter in text:
                run = run + 1 if unicodedata.combining(letter) else 0
                if run > MAX_MARKS:
                    raise InputError(f"the text holds more than {MAX_MARKS} combining marks in a row")
        for step in self._steps.normalizers:
            # Letter by letter, as tokenizers does: str.lower() would make a final sigma of some.
            text = "".join(map(str.lower, text)) if step == "Lowercase" else unicodedata.normalize(step, text)  # type: ignore[arg-type]
        return text

    def _encode_ordinary(self, text: str, ids: list[int]) -> None:
        if self._steps.prefix_space and not text.startswith(" "):
            text = f" {text}"
        for piece in cut_long_runs(text, self._pattern):
            try:
                ranks = self._encoding.encode_ordinary(piece)
            except BaseException as problem:  # a panic of tiktoken's Rust code is no Exception
                if type(problem).__name__ != "PanicException":
                    raise
                raise TokenizerError(f"tiktoken cannot encode {shown(piece[:60])}: {problem}") from None
            new = [self._rank_ids[rank] for rank in ranks]
            if self._lacks_bytes and -1 in new:
                byte = self._encoding.decode_single_token_bytes(ranks[new.index(-1)])
                char = next((one for one in piece if byte in one.encode("utf-8", "replace")), "\ufffd")
                lacks = f"the vocabulary has no token for its byte 0x{byte.hex()}"
                raise InputError(f"the text holds {shown(char)}, and {lacks}")
            ids += new


class StreamDecoder:
    """Decodes ids one at a time into deltas of text that never end within a character; joined, they are
    decode(ids), with the same options."""

    def __init__(self, tokenizer: Tokenizer, *, errors: str = "replace", skip_special_tokens: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors)

    def push(self, token_id: int) -> str:
        """The text that this id completes, "" while a character is incomplete."""
        row = self._tokenizer.row(token_id)
        return "" if row in self._skipped else self._decoder.decode(self._tokenizer.token_bytes(row))

    def flush(self) -> str:
        """The end of the text: "", or a replacement for a character left incomplete."""
        return self._decoder.decode(b"", final=True)
