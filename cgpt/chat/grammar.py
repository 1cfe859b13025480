"""Keeps what a model writes to a JSON schema, where it should be: in the final answer of a chat, or in the arguments
of a call. What it thinks before stays free. By llguidance: pip install 'cgpt[grammar]'.
"""

from __future__ import annotations

import json
from os.path import commonprefix
from typing import Any

import numpy as np

from cgpt.chat.messages import SpecialTokens
from cgpt.chat.parse import Parser, Piece
from cgpt.errors import InputError
from cgpt.tokenizer.tokenizer import Tokenizer

JSON_OPTIONS = {"whitespace_pattern": r"[ \n]{0,8}"}  # no endless blanks
MAX_NESTING = 1024  # llguidance goes down by recursion, and at some 1,500 levels beyond the end of the stack


class Grammars:
    """JSON schemas for one vocabulary of harmony. InputError without llguidance, ChatError without harmony's tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        try:
            import llguidance
        except ImportError:
            raise InputError("keeping to a schema needs llguidance: pip install 'cgpt[grammar]'") from None
        self.special = SpecialTokens(tokenizer)
        self.tokenizer = tokenizer
        self._matcher = llguidance.LLMatcher
        words = llguidance.TokenizerWrapper(_Words(tokenizer, self.special.return_))
        self._words = llguidance.LLTokenizer(words, n_vocab=tokenizer.vocab_size)

    def compile(self, schema: dict[str, Any]) -> Any:
        """The matcher of a schema, at its beginning; InputError says what llguidance cannot do with it.

        All that takes long happens here, up to seconds for thousands of properties: following a text copies it.
        """
        if (levels := _nesting(schema)) > MAX_NESTING:
            why = f"its levels times its different $refs are {levels}; at most {MAX_NESTING}"
            raise InputError(f"no grammar can be made of the schema: {why}")
        try:
            grammar = self._matcher.grammar_from_json_schema(json.dumps(schema), overrides=JSON_OPTIONS)
            matcher = self._matcher(self._words, grammar, log_level=0)
            matcher.compute_bitmask()  # some find out here only that nothing can be written
            problem = _error(matcher)
        except ValueError as failed:
            problem = str(failed)[:300]
        if problem:
            raise InputError(f"no grammar can be made of the schema: {problem}")
        return matcher


def _error(matcher: Any) -> str | None:
    """What a matcher had to give up for, without the dump of its state that follows; None if it did not."""
    if not matcher.is_error():
        return None
    problem = (matcher.get_error() or "unknown").partition("\n<state>")[0][:300]
    return "nothing that ends keeps to it" if problem == "NoExtensionBias" else problem


def _nesting(schema: Any) -> int:
    """How deep a schema can be at most with its $refs followed, each of them once on the way down."""
    levels, refs, level = 0, set(), [schema]
    while level := [one for one in level if isinstance(one, (dict, list))]:
        levels += 1
        refs |= {one["$ref"] for one in level if isinstance(one, dict) and isinstance(one.get("$ref"), str)}
        level = [value for one in level for value in (one.values() if isinstance(one, dict) else one)]
    return levels * (len(refs) + 1)


class _Words:
    """A tokenizer as llguidance wants it."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, end: int) -> None:
        self.eos_token_id = end
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.special_tokens.values())
        self._encode = tokenizer.encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text.decode("utf-8") if isinstance(text, bytes) else text)


class Guide:
    """Follows one turn, and says which ids may come next: a Request's `guide`.

    answer: the matcher of the final message, or None. calls: those of the arguments, by function. seed: ids at the
    prompt's end that begin a message. problem: why the matcher had to give up, None as long as it holds; the message
    then ends
    """

    def __init__(self, grammars: Grammars, answer: Any, calls: dict[str, Any], seed: list[int]) -> None:
        self.problem: str | None = None
        self._grammars, self._answer, self._calls = grammars, answer, calls
        self._parser = Parser(grammars.tokenizer)
        self._matcher: Any = None
        self._end = grammars.special.return_  # what may follow the text that is complete
        for token_id in seed:
            self.push(token_id)

    def mask(self, logits: np.ndarray) -> np.ndarray:
        """The float32 logits [V], -infinity for what may not come."""
        if self._matcher is None:
            return logits
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, count=len(logits), bitorder="little").astype(bool)
        if problem := _error(self._matcher):
            self.problem = problem
            allowed[:] = False
        complete = allowed[self._grammars.special.return_] or not allowed.any()
        allowed[self._grammars.special.return_] = False
        allowed[self._end] = complete
        return np.where(allowed, logits, np.float32(-np.inf))

    def push(self, token_id: int) -> None:
        """Takes the id that was chosen."""
        if self._matcher is not None:
            if token_id == self._end:
                self._matcher = None
            elif not self._matcher.consume_token(token_id):
                self.problem = _error(self._matcher) or "a token it did not allow"
        for piece in self._parser.push(token_id):
            if not piece.text:
                self._begin(piece)

    def _begin(self, piece: Piece) -> None:
        special, matcher = self._grammars.special, None
        if piece.role == "assistant" and piece.recipient is not None:
            matcher, self._end = self._calls.get(piece.recipient.removeprefix("functions.")), special.call
        elif piece.role == "assistant" and piece.channel == "final":
            matcher, self._end = self._answer, special.return_
        self._matcher = matcher.deep_copy() if matcher else None


class Beginning:
    """A guide that lets one of several beginnings come, and then what another guide allows, or anything.

    seed: the ids that all beginnings share, which the prompt ends with. None of them may be the beginning of another.
    """

    def __init__(self, beginnings: list[list[int]], then: Guide | None = None) -> None:
        self.beginnings = beginnings
        self.seed: list[int] = commonprefix(beginnings) or []
        self._left = [ids[len(self.seed) :] for ids in beginnings]
        self.then = then

    @property
    def problem(self) -> str | None:
        return self.then.problem if self.then else None

    def mask(self, logits: np.ndarray) -> np.ndarray:
        """The float32 logits [V], -infinity for what may not come."""
        allowed = sorted({ids[0] for ids in self._left if ids})
        if not allowed:
            return self.then.mask(logits) if self.then else logits
        masked = np.full_like(logits, -np.inf)
        masked[allowed] = logits[allowed]
        return masked

    def push(self, token_id: int) -> None:
        """Takes the id that was chosen."""
        self._left = [ids[1:] for ids in self._left if ids and ids[0] == token_id]
        if self.then:
            self.then.push(token_id)
