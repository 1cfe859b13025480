"""The log-probabilities of tokens, as OpenAI's endpoints give them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from cgpt.generation.request import Request
from cgpt.tokenizer.tokenizer import StreamDecoder, Tokenizer


class TokenAlternative(TypedDict):
    token: str
    logprob: float
    bytes: list[Annotated[int, Field(ge=0, le=255)]]


class TokenLogprob(TokenAlternative):
    """A token of a chat's answer. top_logprobs: the likeliest tokens in its place."""

    top_logprobs: list[TokenAlternative]


@dataclass
class CompletionLogprobs:
    """The tokens of a completion's text. text_offset: the characters before each. The prompt's first token has null
    for its log-probability, as nothing predicts it."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[Annotated[int, Field(ge=0)]]


def token_text(tokenizer: Tokenizer, token_id: int, as_id: bool) -> str:
    """The text of a token; OpenAI writes one that is not whole characters as bytes:\\xe2\\x80. as_id: its id instead,
    as vLLM writes it."""
    if as_id:
        return f"token_id:{token_id}"
    raw = tokenizer.token_bytes(token_id)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def token_logprobs(tokenizer: Tokenizer, request: Request, indices: Iterable[int], as_ids: bool) -> list[TokenLogprob]:
    """The log-probabilities of the tokens request.ids[index]; none where the request keeps no logprobs. as_ids: see
    token_text; the bytes are the token's all the same."""

    def about(token_id: int, logprob: float) -> TokenAlternative:
        text, raw = token_text(tokenizer, token_id, as_ids), tokenizer.token_bytes(token_id)
        return {"token": text, "logprob": logprob, "bytes": list(raw)}

    found = []
    for index in indices if request.num_logprobs is not None else ():
        top = request.top_logprobs[index].items() if request.num_logprobs else ()
        chosen = about(request.ids[index], request.logprobs[index])
        found.append(TokenLogprob(**chosen, top_logprobs=[about(*one) for one in top]))
    return found


class TokenLog:
    """Makes the `logprobs` objects of one choice of /v1/completions, each of the tokens since the last one.

    Offsets count characters of the choice's text, the prompt's included where it is echoed. as_ids: see token_text.
    """

    def __init__(self, tokenizer: Tokenizer, request: Request, echo: bool, as_ids: bool) -> None:
        self._tokenizer, self._request, self._as_ids = tokenizer, request, as_ids
        self._decoder = StreamDecoder(tokenizer, skip_special_tokens=request.params.skip_special_tokens)
        self._length = 0  # of the text whose ids have been looked at
        self._offsets: list[int] = []  # of the new ids
        self._given = 0
        self._prompt_offsets = self._look_at(request.prompt_ids) if echo else None
        self._length += len(self._decoder.flush())

    def _look_at(self, ids: Sequence[int]) -> list[int]:
        """Returns the offset in the text at which each of these begins."""
        offsets = []
        for token_id in ids:
            offsets.append(self._length)
            self._length += len(self._decoder.push(token_id))
        return offsets

    def take(self, num_ids: int, length: int, last: bool) -> CompletionLogprobs:
        """Returns those whose text begins within the first `length` characters, which have been sent; at the end all up
        to num_ids, but those that a stop string has cut away."""
        request, found = self._request, CompletionLogprobs([], [], [], [])
        self._offsets += self._look_at(request.ids[len(self._offsets) : num_ids])
        start, end = self._given, len(self._offsets)
        if request.hit_stop_text or not last:
            end = bisect_left(self._offsets, length, start)
        self._given = end
        if self._prompt_offsets is not None:
            tops = request.prompt_top_logprobs or [{}] * len(request.prompt_logprobs)
            logprobs = [None, *request.prompt_logprobs]
            self._add(found, request.prompt_ids, logprobs, [None, *tops], self._prompt_offsets)
            self._prompt_offsets = None
        tops = request.top_logprobs[start:end] or [{}] * (end - start)
        self._add(found, request.ids[start:end], request.logprobs[start:end], tops, self._offsets[start:end])
        return found

    def _add(self, found: CompletionLogprobs, *columns: Sequence[Any]) -> None:
        """Appends tokens. columns: ids, log-probabilities, alternatives, offsets."""
        for token_id, logprob, top, offset in zip(*columns, strict=True):
            found.tokens.append(token_text(self._tokenizer, token_id, self._as_ids))
            found.token_logprobs.append(logprob)
            found.top_logprobs.append(None if top is None else self._named(top | {token_id: logprob}))
            found.text_offset.append(offset)

    def _named(self, top: dict[int, float]) -> dict[str, float]:
        named: dict[str, float] = {}
        for token_id, logprob in top.items():  # the likeliest first; two ids may have the same text
            named.setdefault(token_text(self._tokenizer, token_id, self._as_ids), logprob)
        return named
