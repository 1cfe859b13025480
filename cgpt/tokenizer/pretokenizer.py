"""The two ways of cutting text into the pre-tokens that BPE then works on: GPT-2's and o200k's."""

from __future__ import annotations

import re
from collections.abc import Iterator

_O200K_WORD = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
)

# As the published tokenizer.json (and, for GPT-2, encoder.py) spells them.
PUBLISHED_PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "o200k": _O200K_WORD + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}

# The same cuts with less backtracking: GPT-2's as tiktoken writes it, o200k's with one alternative more,
# \s++$.
PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "o200k": _O200K_WORD + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s++$|\s+(?!\S)|\s+",
}

# Unicode's White_Space, which \s means in the patterns above, but for \r and \n; and all of it.
_BLANKS = "\t\v\f \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
BLANKS = _BLANKS + "\r\n"
_LONG_RUNS = {
    "gpt2": re.compile(f"(?<![{BLANKS}])[{BLANKS}]{{10000,}}"),
    "o200k": re.compile(f"(?<![{_BLANKS}])[{_BLANKS}]{{10000,}}"),
}


def cut_long_runs(text: str, pattern: str) -> Iterator[str]:
    r"""Pieces of `text` that encode, one after the other, to what the whole does; joined they are the text.

    tiktoken's regex engine runs out of stack where \s+(?!\S) meets some 500,000 blanks before a word. That
    alternative takes all of the run but its last character, so a cut there changes nothing, and up to the cut
    \s++$ matches. With o200k a run that ends in \r or \n belongs to \s*[\r\n]+, which has no such limit.
    """
    start = 0
    for run in _LONG_RUNS[pattern].finditer(text):
        if text[run.end() : run.end() + 1] not in ("", "\r", "\n"):
            yield text[start : run.end() - 1]
            start = run.end() - 1
    yield text[start:]
