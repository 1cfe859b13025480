"""The harmony parser: what it makes of well-formed ids, of malformed ones, and of anything at all."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cgpt
from cgpt.chat.messages import Message, SpecialTokens, tool_result
from cgpt.chat.parse import MAX_HEADER, Parser, parse
from cgpt.chat.render import render_conversation
from cgpt.errors import ChatError, InputError
from cgpt.tokenizer.tokenizer import Tokenizer

from support.harmony_cases import Reference


@pytest.fixture(scope="module")
def small():
    """The tokenizer of demo-gpt-oss, whose vocabulary is small."""
    return cgpt.load("demo-gpt-oss").tokenizer


@pytest.fixture(scope="module")
def real():
    return Tokenizer.packaged("o200k_harmony")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return Reference(tmp_path_factory.mktemp("ranks"))


C, S, M, E, R, K, CALL = (
    f"<|{name}|>" for name in ("channel", "start", "message", "end", "return", "constrain", "call")
)


def ids_of(tokenizer, text):
    return tokenizer.encode(text, allowed_special="all")


def said(text, channel="final", *more, **named):
    return Message("assistant", text, channel, *more, **named)


CALLED = said("{}", "commentary", "functions.f", "<|constrain|>json")
WELL_FORMED = {
    f"{C}final{M}hi{R}": [said("hi")],
    f"{C}final{M}hi": [said("hi")],
    f"{C}analysis{M}a{E}{S}assistant{C}final{M}b{R}": [said("a", "analysis"), said("b")],
    f" to=functions.f{C}commentary {K}json{M}{{}}{CALL}": [CALLED],
    f"{C}commentary to=functions.f {K}json{M}{{}}{CALL}": [CALLED],
    f"{C}commentary to=functions.f{K}json{M}{{}}{CALL}": [CALLED],
    f"{C}commentary to=functions.f json{M}{{}}{CALL}": [said("{}", "commentary", "functions.f", "json")],
    f"{C}analysis to=python code{M}1{CALL}{S}python to=assistant{C}analysis{M}2{E}": [
        said("1", "analysis", "python", "code"),
        Message("tool", "2", "analysis", "assistant", name="python"),
    ],
    f"{M}x{E}": [said("x", None)],
    f"{C}final{M}{E}{S}user{M}x{E}": [said(""), Message("user", "x")],
    f"{C}final{M}a{K}b{M}c<|endoftext|>{E}": [said(f"a{K}b{M}c<|endoftext|>")],
    f"{C}final{M}a{C}b{S}c{E}": [said(f"a{C}b{S}c")],
}
MALFORMED = {
    f"{C}final{M}a{S}assistant{C}final{M}b{E}": [said("a"), said("b")],
    f"{C}analysis{M}a{C}final{M}b{E}": [said("a", "analysis"), said("b")],
    f"{C}analysis{M}a{E}assistant{C}final{M}b{E}": [said("a", "analysis"), said("b")],
    f"{C}analysis{M}a{E}{C}final{M}b{E}": [said("a", "analysis"), said("b")],
    f"{C}final{M}a{E}{E}{R}{S}assistant{C}final{M}b{E}": [said("a"), said("b")],
    f"{C}final{M}a{E}junk{S}assistant{C}final{M}b{E}": [said("a"), said("junk", None), said("b")],
    f"{S}assistant{C}final{M}b{E}": [said("b")],
    f"{C} final {M}b{E}": [said("b")],
    f"assistant{C}final{M}b{E}": [said("b")],
    f"{C}{M}b{E}": [said("b", None)],
    f"{C}final{E}": [said("")],
    f"{C}analysis{M}a{E}{S}assistant{R}": [said("a", "analysis"), said("", None)],
    f"Hello there.{R}": [said("Hello there.", None)],
    f"{C}fin": [],
    "": [],
    f"{E}{S}": [],
    f"{C}commentary functions.f {K}json{M}{{}}{CALL}": [CALLED],
    f"{C}commentary to=functions.f {K} json{M}{{}}{CALL}": [CALLED],
    f" to=a{C}commentary to=b json{M}{{}}{CALL}": [said("{}", "commentary", "a", "json")],
    f"{C}commentary json to=functions.f{M}{{}}{CALL}": [said("{}", "commentary", "functions.f", "json")],
    f"{C}final x y z{M}q{E}": [said("q", "final", "x", "y")],
    f"{C}final {K}json{M}{{}}{E}": [said("{}", "final", None, f"{K}json")],
    f"{C}final json{M}{{}}{E}": [said("{}", "final", None, "json")],
    f"{C}final{C}analysis{M}b{E}": [said("b", "final", None, "analysis")],
    f"{C}final{M}a{E}{S}{C}final{M}b{E}": [said("a"), said("b")],
    f"{C}final{M}a{E}{S}Assistant{C}final{M}b{E}": [said("a"), said("b")],
    f"{C}final{M}a{E}{S}user:bob{M}b{E}": [said("a"), Message("user", "b", name="bob")],
    f"{C}final{M}a{E}{S}functions.f{C}commentary{M}b{E}": [
        said("a"),
        Message("tool", "b", "commentary", name="functions.f"),
    ],
    f"{C}commentary to={M}b{E}": [said("b", "commentary")],
    f"{C}fi<|endoftext|>nal{M}b{E}": [said("b", "fi", None, "nal")],
}
NOT_COUNTED = (
    f"{C} final {M}b{E}",
    f"assistant{C}final{M}b{E}",
    "",
    f"{C}final{M}a{E}{S}user:bob{M}b{E}",
    f"{C}final json{M}{{}}{E}",
    f"{C}final {K}json{M}{{}}{E}",
    f"{C}commentary json to=functions.f{M}{{}}{CALL}",
    f"{C}final{M}a{E}{S}functions.f{C}commentary{M}b{E}",
)


@pytest.mark.parametrize("text", [*WELL_FORMED, *MALFORMED])
@pytest.mark.parametrize("vocabulary", ["small", "real"])
def test_headers(text, vocabulary, request):
    tokenizer = request.getfixturevalue(vocabulary)
    parser = Parser(tokenizer)
    ids = ids_of(tokenizer, text)
    deltas = parser.push_all(ids) + parser.finish()
    assert parser.messages == {**WELL_FORMED, **MALFORMED}[text]
    assert parser.raw_text == text
    assert_deltas_are_the_messages(deltas, parser.messages)
    untouched = text in WELL_FORMED and f"{C}b" not in text
    assert not parser.repairs if untouched or text in NOT_COUNTED else parser.repairs


def assert_deltas_are_the_messages(deltas, messages):
    texts = {}
    for delta in deltas:
        if delta.index not in texts:
            assert delta.text == "" and delta.index == len(texts)
        message, head = messages[delta.index], delta.header
        said = (message.role, message.name, message.channel, message.recipient, message.content_type)
        assert said == (head.role, head.name, head.channel, head.recipient, head.content_type)
        texts[delta.index] = texts.get(delta.index, "") + delta.text
    assert list(texts.values()) == [message.content for message in messages]


@pytest.mark.parametrize("text", WELL_FORMED)
def test_the_cases_agree_with_openai_harmony(text, reference, real):
    assert_agrees(reference, real, ids_of(real, text))


def by_reference(reference, ids, role="assistant"):
    """openai-harmony's messages as ours, None where it raises."""
    package = reference.package
    try:
        found = reference.encoding.parse_messages_from_completion_tokens(ids, package.Role(role) if role else None)
    except package.HarmonyError:
        return None
    return [
        Message(
            m.author.role.value,
            "".join(c.text for c in m.content),
            m.channel,
            m.recipient,
            m.content_type,
            m.author.name,
        )
        for m in found
    ]


def assert_agrees(reference, real, ids, role="assistant"):
    expected = by_reference(reference, ids, role)
    assert expected is not None and parse(real, ids, role) == expected


# ----------------------------------------------------------------------------------------- drawn from hypothesis

WORDS = st.text("abcdefghijklmnopqrstuvwxyz_0123456789", min_size=1, max_size=8)
CHARACTERS = st.characters(exclude_categories=["Cs"])
TEXTS = st.lists(CHARACTERS | st.sampled_from([S, C, M, E, K, "\n", " "]), max_size=20).map("".join)
TYPES = st.sampled_from([None, "json", "code", "<|constrain|>json"])


@st.composite
def messages(draw):
    text, kind = draw(TEXTS), draw(st.integers(0, 4))
    name = draw(WORDS.map("functions.{}".format))
    if kind == 0:
        return Message("user", text)
    if kind == 1:
        return tool_result(name, text)
    if kind == 2:
        return Message("assistant", text, draw(st.sampled_from(["commentary", "analysis"])), name, draw(TYPES))
    return Message("assistant", text, draw(st.sampled_from(["analysis", "commentary", "final", None])))


@given(st.lists(messages(), max_size=5))
@settings(deadline=None)
@pytest.mark.parametrize("vocabulary", ["small", "real"])
def test_parse_undoes_render(vocabulary, request, drawn):
    tokenizer = request.getfixturevalue(vocabulary)
    ids = render_conversation(tokenizer, drawn, next_role=None, drop_analysis="none")
    parser = Parser(tokenizer, None)
    assert_deltas_are_the_messages(parser.push_all(ids), drawn)
    assert parser.messages == drawn and not parser.repairs and parser.partial is None


@given(st.lists(messages(), max_size=5))
@settings(deadline=None)
def test_rendered_messages_agree_with_openai_harmony(reference, real, drawn):
    assert_agrees(reference, real, render_conversation(real, drawn, next_role=None, drop_analysis="none"), None)


BITS = [S, C, M, E, R, CALL, K, "assistant", "user", "analysis", "commentary", "final", " to=functions.f", " to=",
        "json", " json", " ", "\n", "é", "x y", "<|endoftext|>", "functions.f", "assistant:bob",
        f"{C}final{M}", f"{E}{S}assistant", f"{C}analysis{M}", f"{C}commentary to=functions.f {K}json{M}",
        f"{S}user{M}"]  # fmt: skip


@st.composite
def id_lists(draw, tokenizer):
    """Bits of the format in any order, and any ids between them."""
    bits = st.sampled_from(BITS).map(lambda bit: ids_of(tokenizer, bit))
    anything = st.lists(st.integers(0, tokenizer.vocab_size - 1), min_size=1, max_size=3)
    return [i for part in draw(st.lists(bits | bits | anything, max_size=20)) for i in part]


@given(st.data(), st.sampled_from([None, "assistant"]))
@settings(deadline=None, max_examples=300)
def test_any_ids_give_messages_and_the_raw_text(small, data, role):
    ids = data.draw(id_lists(small))
    parser = Parser(small, role)
    deltas = parser.push_all(ids) + parser.finish()
    assert_deltas_are_the_messages(deltas, parser.messages)
    assert parser.raw_text == small.decode(ids) and parser.partial is None
    again = Parser(small, role)
    assert [p for i in ids for p in again.push(i)] + again.finish() == deltas  # no state outside the parser


@st.composite
def loose_messages(draw, tokenizer):
    """Messages in every form that openai-harmony reads: where the recipient stands, spaces, what a content holds."""
    pick = lambda *choices: draw(st.sampled_from(choices))  # noqa: E731
    ids = []
    for first in [True, *draw(st.lists(st.just(False), max_size=3))]:
        author = pick("", " ", "assistant") if first else pick("assistant", " assistant ", "user", "functions.g to=me")
        to, kind = pick("", " to=functions.f", "\nto=é"), pick("", " json", f" {K}json", f"{K}json", "\n code ")
        if "to=me" in author:
            to = ""
        kind = kind if to or "to=" in author else ""
        channel = pick("", f"{C}analysis", f"{C}final ", f"{C}x_1")
        head = author + (pick(to + channel + kind, channel + to + kind) if channel else to + kind)
        content = st.lists(st.integers(0, 199_999) | st.sampled_from(ids_of(tokenizer, f"{S}{C}{K}<|endoftext|>")))
        inside = [i for i in draw(content) if i not in ids_of(tokenizer, E + R)]
        start = [] if first else ids_of(tokenizer, S)
        end = ids_of(tokenizer, pick(E, R, CALL))
        ids += [*start, *ids_of(tokenizer, head), *ids_of(tokenizer, M), *inside, *end]
    return ids


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_agrees_with_openai_harmony_on_all_it_reads(reference, real, data):
    assert_agrees(reference, real, data.draw(loose_messages(real)))


@given(st.data(), st.sampled_from([None, "assistant"]))
@settings(deadline=None, max_examples=300)
def test_agrees_with_openai_harmony_where_it_does_not_raise(reference, real, data, role):
    """Headers apart that hold words which the two read differently on purpose, see harmony_parse."""
    ids = data.draw(id_lists(real).filter(lambda ids: 200018 not in ids))  # whose name the two do not share
    expected = by_reference(reference, ids, role)
    parser = Parser(real, role)
    parser.push_all(ids)
    parser.finish()
    if expected is None or parser.repairs.keys() - {"a special token within a content"}:
        return
    found = parser.messages
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.content, ours.channel) == (theirs.content, theirs.channel)
        lone_word = (theirs.recipient, None) == (ours.content_type, ours.recipient)
        assert lone_word or (ours.recipient, ours.content_type) == (theirs.recipient, theirs.content_type)
        assert (ours.role, ours.name) == (theirs.role, theirs.name) or ours.name == "bob" or lone_word


@pytest.mark.parametrize("text", [max(WELL_FORMED, key=len), *list(MALFORMED)[:8]])
def test_every_cut(text, small):
    """What came before the cut stays: messages never change once they are complete, contents only grow."""
    ids = ids_of(small, text)
    whole = parse(small, ids)
    for cut in range(len(ids) + 1):
        parser = Parser(small)
        parser.push_all(ids[:cut])
        complete = list(parser.messages)
        assert complete == whole[: len(complete)]
        if parser.partial:
            assert whole[len(complete)].content.startswith(parser.partial.content)
        parser.finish()
        assert parser.messages[: len(complete)] == complete and len(parser.messages) <= len(complete) + 1
        assert parser.raw_text == small.decode(ids[:cut])


def test_deltas_hold_whole_characters(small):
    ids = [*ids_of(small, f"{C}final{M}"), *small.encode("é€😀"), SpecialTokens(small).return_]
    assert [p.text for p in Parser(small).push_all(ids)] == ["", "é", "€", "😀"]
    cut = Parser(small)
    cut.push_all(ids[:-2])
    assert [p.text for p in cut.finish()] == ["\ufffd"] and cut.messages == [said("é€\ufffd")]


def test_a_header_without_end_becomes_text(small):
    ids = small.encode("word " * MAX_HEADER)
    parser = Parser(small)
    deltas = parser.push_all(ids)
    assert "".join(p.text for p in deltas) == "word " * MAX_HEADER
    assert parser.repairs == {"a header that does not end": 1}
    parser = Parser(small)
    parser.push_all([*ids_of(small, f"{C}final{M}a{S}"), *ids])
    assert parser.partial == said(f"a{S}" + "word " * MAX_HEADER)


def test_ids_outside_the_vocabulary(small):
    parser = Parser(small)
    parser.push_all([*ids_of(small, f"{C}final{M}a"), 10**6, -1])
    assert parser.partial == said("a\ufffd\ufffd") and parser.repairs.total() == 2


def test_time_is_linear(small, monkeypatch):
    """Each id is looked at once, and each text joined once."""
    looked = []
    token_bytes = small.token_bytes
    monkeypatch.setattr(small, "token_bytes", lambda i: looked.append(i) or token_bytes(i))
    ids = [*ids_of(small, f"{C}final{M}"), *small.encode("a" * 50_000), *[SpecialTokens(small).start] * 50_000]
    parser = Parser(small)
    parser.push_all(ids)
    assert len(looked) == len(ids)
    assert sum(len(part) for part in parser._text) >= 50_000 and len(parser._header_raw) < 10


def test_bad_arguments(small):
    with pytest.raises(InputError, match="role is one of"):
        Parser(small, "tool")
    with pytest.raises(ChatError, match="gpt2 has no .*generate"):
        Parser(Tokenizer.packaged("gpt2"))
