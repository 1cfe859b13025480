"""Encoding, decoding and streaming with the vocabularies that ship with cgpt."""

import hashlib
import json
import lzma
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from cgpt.errors import InputError, TokenIdError, TokenizerError
from cgpt.tokenizer import pretokenizer
from cgpt.tokenizer.pretokenizer import PUBLISHED_PATTERNS, cut_long_runs
from cgpt.tokenizer.tokenizer import StreamDecoder, Tokenizer
from cgpt.tokenizer.vocabulary import PUBLISHED

DATA = Path(pretokenizer.__file__).parent / "data"
GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer"
BLANKS = " \t\n\r\v\f\x85\xa0\u1680\u2003\u2028\u202f\u3000"
# Characters that touch every alternative of both patterns, blanks most of all.
TRICKY = st.text(st.sampled_from(BLANKS + "  \n\naB'sStT1٣.!/\\é中ǅʰ\u0301ſ😀\x1f\u180e\u200b"), max_size=40)
ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=40)  # lone surrogates as well


@pytest.fixture(scope="module", params=["gpt2", "o200k_harmony"])
def tokenizer(request):
    return Tokenizer.packaged(request.param)


@pytest.fixture(scope="module")
def harmony():
    return Tokenizer.packaged("o200k_harmony")


@pytest.fixture(scope="module")
def published():
    return json.loads(lzma.decompress((GOLDEN / "published.json.xz").read_bytes()))


@pytest.fixture(scope="module")
def plain(tokenizer):
    """tiktoken over the same ranks with the pattern exactly as published."""
    ours = tokenizer._encoding
    pattern = PUBLISHED_PATTERNS[PUBLISHED[tokenizer.name].pattern]
    return tiktoken.Encoding("plain", pat_str=pattern, mergeable_ranks=ours._mergeable_ranks, special_tokens={})


def replaced(text):
    """`text` with U+FFFD for each lone surrogate, and pairs joined."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@pytest.mark.parametrize("name", PUBLISHED)
def test_packaged_ranks_are_the_published_ones(name):
    ranks = lzma.decompress((DATA / PUBLISHED[name].file).read_bytes())
    assert hashlib.sha256(ranks).hexdigest() == PUBLISHED[name].sha256
    assert [int(line.split()[1]) for line in ranks.splitlines()] == list(range(PUBLISHED[name].tokens))


def test_golden_texts(tokenizer, published):
    assert len(published["texts"]) == 1953
    for text, ids in zip(published["texts"], published[tokenizer.name], strict=True):
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == text


def test_golden_texts_as_streams(tokenizer, published):
    for text, ids in zip(published["texts"], published[tokenizer.name], strict=True):
        decoder = StreamDecoder(tokenizer)
        assert "".join(decoder.push(i) for i in ids) == text
        assert decoder.flush() == ""


@settings(deadline=None, max_examples=300)
@given(ids=st.lists(st.integers(0, 50256) | st.integers(94, 255), max_size=20))
def test_stream_of_any_ids_is_decode(tokenizer, ids):
    decoder = StreamDecoder(tokenizer)
    pieces = [decoder.push(i) for i in ids]
    assert "".join(pieces) + decoder.flush() == tokenizer.decode(ids)


def test_stream_holds_back_an_incomplete_character(tokenizer):
    flag = tokenizer.encode("🏴")
    assert len(flag) > 1
    decoder = StreamDecoder(tokenizer)
    assert [decoder.push(i) for i in flag] == [""] * (len(flag) - 1) + ["🏴"]
    assert decoder.push(flag[0]) == ""
    assert decoder.flush() == "\ufffd"
    assert decoder.push(tokenizer.encode("a")[0]) == "a"


@settings(deadline=None, max_examples=500)
@given(text=ANY_TEXT | TRICKY)
def test_any_str_encodes_and_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == replaced(text)


@settings(deadline=None, max_examples=1000)
@given(text=TRICKY)
def test_patterns_cut_as_published(tokenizer, plain, text):
    assert tokenizer.encode(text) == plain.encode_ordinary(text)


@settings(deadline=None, max_examples=1000)
@given(text=TRICKY)
def test_cutting_long_runs_changes_nothing(tokenizer, plain, text):
    runs = pretokenizer._LONG_RUNS
    short = {name: re.compile(run.pattern.replace("10000", "2")) for name, run in runs.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretokenizer, "_LONG_RUNS", short)
        assert "".join(cut_long_runs(text, tokenizer._pattern)) == text
        assert tokenizer.encode(text) == plain.encode_ordinary(text)


@pytest.mark.parametrize("unit", [" ", "\n", " \n", "a", "A", "1", "!", "/\n"])
@pytest.mark.parametrize("end", ["", "x"])
def test_a_million_characters_without_a_break(tokenizer, unit, end):
    text = "x" + unit * (1_000_000 // len(unit)) + end
    start = time.monotonic()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert time.monotonic() - start < 60  # takes half a second; a quadratic algorithm would take minutes


def test_finding_long_runs_is_linear():
    text = (" " * 9999 + "x") * 300
    start = time.monotonic()
    assert list(cut_long_runs(text, "gpt2")) == list(cut_long_runs(text, "o200k")) == [text]
    assert time.monotonic() - start < 3  # takes 0.02 s; without the lookbehind, a minute


def test_a_long_run_encodes_as_tiktoken_has_it(tokenizer, plain):
    for text in (" " * 100_000 + "word", "!" + "\n" * 50_000 + " " * 50_000 + "\n", "\t" * 20_000 + "/"):
        assert tokenizer.encode(text) == plain.encode_ordinary(text)


def test_a_panic_of_tiktoken_is_a_tokenizer_error(monkeypatch):
    class PanicException(BaseException):  # what pyo3 raises has this name, and cannot be imported
        pass

    class Broken:
        def __init__(self, error):
            self.error = error

        def encode_ordinary(self, text):
            raise self.error

    tokenizer = Tokenizer.packaged("gpt2")
    tokenizer._encoding = Broken(PanicException("StackOverflow"))
    with pytest.raises(TokenizerError, match="StackOverflow"):
        tokenizer.encode("x")
    tokenizer._encoding = Broken(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        tokenizer.encode("x")


def test_special_tokens_only_when_asked_for(harmony):
    text = "<|start|>user<|message|>Hi<|end|>"
    ordinary = harmony.encode(text)
    assert not set(ordinary) & set(harmony.special_tokens.values())
    assert harmony.decode(ordinary) == text
    user, hi = harmony.encode("user"), harmony.encode("Hi")
    assert harmony.encode(text, allowed_special="all") == [200006, *user, 200008, *hi, 200007]
    only_start = harmony.encode(text, allowed_special={"<|start|>"})
    assert only_start == [200006, *harmony.encode("user<|message|>Hi<|end|>")]
    assert harmony.encode("a <|start|> b", allowed_special=["<|start|>"]) == [
        *harmony.encode("a "),
        200006,
        *harmony.encode(" b"),
    ]


def test_special_tokens_of_gpt2():
    tokenizer = Tokenizer.packaged("gpt2")
    assert tokenizer.special_tokens == {"<|endoftext|>": 50256}
    assert tokenizer.encode("<|endoftext|>", allowed_special="all") == [50256]
    assert tokenizer.encode("<|endoftext|>") == [27, 91, 437, 1659, 5239, 91, 29]


def test_harmony_names_its_ids_as_tiktoken_does(harmony):
    assert (harmony.vocab_size, len(harmony.special_tokens)) == (201088, 201088 - 199998)
    assert harmony.special_tokens["<|channel|>"] == 200005
    for i in (200000, 200001, 200004, 200009, 200011, 200013, 200017, 200019, 201087):
        assert harmony.decode([i]) == f"<|reserved_{i}|>"
        assert harmony.encode(f"<|reserved_{i}|>", allowed_special="all") == [i]
    assert harmony.decode([200018]) == "<|endofprompt|>"


def test_every_id_decodes(tokenizer):
    ids = range(tokenizer.vocab_size)
    assert tokenizer.decode_bytes(ids) == b"".join(map(tokenizer.token_bytes, ids))
    assert all(tokenizer.token_bytes(i) for i in ids)
    for name, i in tokenizer.special_tokens.items():
        assert tokenizer.token_bytes(i) == name.encode()


def test_ids_beyond_the_vocabulary(tokenizer):
    for bad in (-1, tokenizer.vocab_size, 1 << 70, 1.0, "1", None):
        for decode in (tokenizer.token_bytes, StreamDecoder(tokenizer).push):
            with pytest.raises(TokenIdError, match="token id"):
                decode(bad)
        with pytest.raises(TokenIdError, match="token id"):
            tokenizer.decode([0, bad])
    assert tokenizer.decode(np.array([0, 1], np.uint32)) == '!"'


def test_decode_errors(tokenizer):
    broken = tokenizer.encode("🏴")[:1]
    assert tokenizer.decode(broken) == "\ufffd"
    assert tokenizer.decode(broken, errors="ignore") == ""
    assert tokenizer.decode_bytes(broken) == tokenizer.token_bytes(broken[0])


def test_lone_surrogates_become_replacement_characters(tokenizer):
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a\ufffdb")
    assert tokenizer.encode("\ud83d\ude00") == tokenizer.encode("😀")  # a pair is one character


def test_arguments_that_cannot_be_used(tokenizer):
    for allowed in ("<|endoftext|>", {"<|no such token|>"}, {"all"}):
        with pytest.raises(InputError, match="allowed_special"):
            tokenizer.encode("x", allowed_special=allowed)
    for text in (b"x", None, ["x"]):
        with pytest.raises(InputError, match="must be a str"):
            tokenizer.encode(text)
    with pytest.raises(TokenizerError, match="gpt2 and o200k_harmony"):
        Tokenizer.packaged("cl100k_base")


def test_damaged_package_data(tmp_path, monkeypatch):
    monkeypatch.setattr("cgpt.tokenizer.vocabulary.__file__", str(tmp_path / "vocabulary.py"))
    with pytest.raises(TokenizerError, match="reinstall"):
        Tokenizer.packaged("gpt2")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / PUBLISHED["gpt2"].file).write_bytes((DATA / PUBLISHED["gpt2"].file).read_bytes()[:5000])
    with pytest.raises(TokenizerError, match="reinstall"):
        Tokenizer.packaged("gpt2")


def test_no_socket_is_ever_opened(tmp_path):
    code = f"""
import sys
def refuse(event, args):
    if event.startswith(("socket.", "urllib.", "http.")):
        raise RuntimeError(event)
sys.addaudithook(refuse)
from cgpt.tokenizer.tokenizer import Tokenizer
for tokenizer in (
    Tokenizer.packaged("gpt2"),
    Tokenizer.packaged("o200k_harmony"),
    Tokenizer.from_directory({str(tmp_path)!r}, 50257),
    Tokenizer.from_directory({str(DATA.parents[1] / "demo" / "demo-gpt2")!r}, 2048),
):
    assert tokenizer.decode(tokenizer.encode("offline")) == "offline"
"""
    environment = {**os.environ, "TIKTOKEN_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert not list(tmp_path.iterdir())


def test_ids_to_decode_are_a_list():
    with pytest.raises(InputError, match="a list of integers, not 5"):
        Tokenizer.packaged("gpt2").decode(5)
