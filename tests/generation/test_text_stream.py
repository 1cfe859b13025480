"""TextStream: any text, in any pieces, up to the first stop string."""

from hypothesis import given
from hypothesis import strategies as st

from cgpt.generation.text_stream import TextStream


class Pieces:
    """A tokenizer whose tokens are given."""

    def __init__(self, tokens):
        self.tokens = tokens

    def row(self, i):
        return i

    def token_bytes(self, i):
        return self.tokens[i]


def cut_slowly(text, stops):
    """The text before the stop string whose end comes first, the longest of these; whether there is one."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@given(
    st.text("ab\u00e9\U0001f451", max_size=30),
    st.lists(st.text("ab\u00e9\U0001f451", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 60), max_size=20),
    st.binary(max_size=2),
)
def test_text_stream_is_the_text_cut(text, stops, cuts, tail):
    """Any text in any pieces of bytes; its end may break off within a character."""
    raw = text.encode() + tail
    bounds = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    tokens = [raw[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
    text_stream, so_far = TextStream(Pieces(tokens), tuple(stops)), ""
    expected, stopped = cut_slowly(raw.decode(errors="replace"), stops)
    for i in range(len(tokens)):
        so_far += text_stream.push(i)
        assert expected.startswith(so_far)
        certain, _ = cut_slowly(b"".join(tokens[: i + 1]).decode(errors="ignore"), stops)
        longest_hold = max(map(len, stops), default=1) - 1
        assert len(so_far) >= len(certain) - longest_hold  # nothing is held back that need not be
    assert so_far + text_stream.flush() == expected
    assert text_stream.stopped == stopped
