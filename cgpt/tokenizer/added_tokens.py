"""Texts that are one token each, whatever the merges say, as Hugging Face's tokenizers finds them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from cgpt.tokenizer.pretokenizer import BLANKS


@dataclass(frozen=True)
class AddedToken:
    """A text that is one token, with the flags that tokenizer.json has.

    special: only where asked for. normalized: looked for in the text as the normalizers leave it, and after those that
    are not. lstrip, rstrip: the blanks before or after it are part of it. single_word: not within a word.
    """

    id: int
    special: bool = True
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


class AddedTokens:
    """Finds added tokens, by their names, in a text."""

    def __init__(self, tokens: dict[str, AddedToken]) -> None:
        self._tokens = tokens
        self._leading_blanks = re.compile(f"[{BLANKS}]*")
        self._pattern = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))

    def names_in(self, text: str) -> Iterator[str]:
        """The names that `text` holds, from the left, the longest that fits."""
        return (match.group() for match in self._matches(text))

    def _matches(self, text: str) -> Iterator[re.Match[str]]:
        return self._pattern.finditer(text) if self._tokens else iter(())

    def cut(self, text: str) -> Iterator[tuple[str, AddedToken | None]]:
        """The tokens in `text`, each with its name, and (stretch, None) for what is between them."""
        start = 0
        for match in self._matches(text):
            token = self._tokens[match.group()]
            begin, end = match.span()
            if token.single_word and (_is_word(text[begin - 1 : begin]) or _is_word(text[end : end + 1])):
                continue
            if token.lstrip:
                begin = start + len(text[start:begin].rstrip(BLANKS))
            if token.rstrip:
                end += len(self._leading_blanks.match(text, end)[0])  # type: ignore[index]  # it always matches
            if end <= begin:  # blanks that the token before took
                continue
            if begin > start:
                yield text[start:begin], None
            yield match.group(), token
            start = end
        if start < len(text):
            yield text[start:], None


def _is_word(char: str) -> bool:
    r"""Whether \w matches `char` in tokenizers; "" is none."""
    kind = unicodedata.category(char) if char else ""
    return kind[:1] in ("L", "M") or kind in ("Nd", "Nl", "Pc") or char in ("\u200c", "\u200d")
