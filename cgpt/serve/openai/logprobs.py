"""The log-probabilities of a completion's tokens, with where each begins in its text."""

from __future__ import annotations

from typing import Any

from cgpt.generation.request import Request
from cgpt.tokenizer.tokenizer import StreamDecoder, Tokenizer


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """A token as text; one that is not whole characters as OpenAI writes it, bytes:\\xe2\\x80."""
    raw = tokenizer.token_bytes(token_id)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def token_entry(tokenizer: Tokenizer, request: Request, place: int) -> dict[str, Any]:
    """The token request.ids[place] as /v1/chat/completions has its log-probability."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        text, raw = token_text(tokenizer, token_id), tokenizer.token_bytes(token_id)
        return {"token": text, "logprob": logprob, "bytes": list(raw)}

    top = request.top_logprobs[place].items() if request.num_logprobs else ()
    return entry(request.ids[place], request.logprobs[place]) | {"top_logprobs": [entry(*one) for one in top]}


class TokenLog:
    """The `logprobs` objects of one choice of /v1/completions: each of the tokens that have come since the last one.

    Offsets count characters of the choice's text, the prompt's included where it is echoed.
    """

    def __init__(self, tokenizer: Tokenizer, request: Request, echo: bool) -> None:
        self._tokenizer, self._request = tokenizer, request
        self._length = 0  # of the text whose ids have been looked at
        self._offsets: list[int] = []  # of the new ids
        self._given = 0
        self.prompt = self._prompt() if echo else None

    def _prompt(self) -> dict[str, Any]:
        ids, decoder, offsets = self._request.prompt_ids, StreamDecoder(self._tokenizer), []
        for token_id in ids:
            offsets.append(self._length)
            self._length += len(decoder.push(token_id))
        self._length += len(decoder.flush())
        return {"ids": ids, "offsets": offsets}

    def take(self, num_ids: int, length: int, last: bool) -> dict[str, Any]:
        """Those whose text begins within the first `length` characters, which have been given; at the end all up to
        num_ids, but those that a stop string has cut away."""
        if not self._offsets:
            self._decoder = StreamDecoder(self._tokenizer)
        for token_id in self._request.ids[len(self._offsets) : num_ids]:
            self._offsets.append(self._length)
            self._length += len(self._decoder.push(token_id))
        end = self._given
        everything = last and not self._request.hit_stop_text
        while end < len(self._offsets) and (everything or self._offsets[end] < length):
            end += 1
        request, found = self._request, _empty()
        if self.prompt is not None:
            logprobs = [None, *request.prompt_logprobs]
            tops = [None, *(request.prompt_top_logprobs or [{}] * len(request.prompt_logprobs))]
            self._add(found, self.prompt["ids"], logprobs, tops, self.prompt["offsets"])
            self.prompt = None
        new = slice(self._given, end)
        tops = request.top_logprobs[new] or [{}] * (end - self._given)
        self._add(found, request.ids[new], request.logprobs[new], tops, self._offsets[new])
        self._given = end
        return found

    def _add(self, found: dict[str, Any], ids: list, logprobs: list, tops: list, offsets: list) -> None:
        for token_id, logprob, top, offset in zip(ids, logprobs, tops, offsets, strict=True):
            found["tokens"].append(token_text(self._tokenizer, token_id))
            found["token_logprobs"].append(logprob)
            found["top_logprobs"].append(None if top is None else self._named(top | {token_id: logprob}))
            found["text_offset"].append(offset)

    def _named(self, top: dict[int, float]) -> dict[str, float]:
        named: dict[str, float] = {}
        for token_id, logprob in top.items():  # the likeliest first; two ids may have the same text
            named.setdefault(token_text(self._tokenizer, token_id), logprob)
        return named


def _empty() -> dict[str, Any]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
