"""Text of token ids that come one by one, cut before the first stop string."""

from collections.abc import Iterable

from cgpt.tokenizer.tokenizer import StreamDecoder, Tokenizer


class TextStream:
    """Decodes ids one by one into text up to the first stop string; see StopFilter.

    What it returns never ends within a character. skip_special_tokens: without the names of special tokens.
    """

    def __init__(self, tokenizer: Tokenizer, stops: tuple[str, ...], skip_special_tokens: bool = False) -> None:
        self._decoder = StreamDecoder(tokenizer, skip_special_tokens=skip_special_tokens)
        self._filter = StopFilter(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come; nothing follows it."""
        return self._filter.stopped

    def push(self, token_id: int) -> str:
        """Returns the text that is certain once this id is known."""
        return self._filter.push(self._decoder.push(token_id))

    def flush(self) -> str:
        """Returns the rest, when no more ids come."""
        return self._filter.push(self._decoder.flush()) + self._filter.flush()


class StopFilter:
    """Cuts text that comes in deltas before the first stop string.

    It holds back what may be the beginning of a stop string. Of several stop strings that one counts whose end comes
    first, so how the text is cut into deltas makes no difference.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None  # the stop string that has come; nothing follows

    @property
    def stopped(self) -> bool:
        return self.found is not None

    def flush(self) -> str:
        """Returns the rest, when no more comes."""
        rest, self._held = self._held, ""
        return rest

    def push(self, delta: str) -> str:
        """Returns what is certain once this delta is known."""
        if not self._stops or self.stopped:
            return "" if self.stopped else delta
        text = self._held + delta
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            end, start = min(found)
            self.found, self._held = text[start:end], ""
            return text[:start]
        certain = 0
        while not any(stop.startswith(text[certain:]) for stop in self._stops):
            certain += 1
        self._held = text[certain:]
        return text[:certain]
