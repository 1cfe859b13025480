"""Tokenizers out of a checkpoint's own files: the published ones, the demos', and any small one."""

import json
import lzma
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cgpt.tokenizer.vocabulary
from cgpt.errors import TokenizerError
from cgpt.tokenizer.files import read_directory
from cgpt.tokenizer.tokenizer import Tokenizer
from cgpt.tokenizer.vocabulary import read_published

from support.tokenizer_cases import ALPHABET, load, small, write_gpt2, write_gpt_oss

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer"
DEMO = Path(cgpt.__file__).parent / "demo"


def golden(name):
    return json.loads(lzma.decompress((GOLDEN / name).read_bytes()))


@pytest.fixture(scope="module")
def gpt2_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("gpt2")
    write_gpt2(directory)
    return directory


@pytest.fixture(scope="module")
def gpt_oss_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("gpt-oss")
    write_gpt_oss(directory)
    return directory


def check_golden(tokenizer, name):
    packaged = Tokenizer.packaged(name)
    data = golden("published.json.xz")
    for text, ids in zip(data["texts"], data[name], strict=True):
        assert tokenizer.encode(text) == ids
    assert tokenizer.name == packaged.name
    assert tokenizer.special_tokens == packaged.special_tokens
    ids = range(packaged.vocab_size)
    assert [tokenizer.token_bytes(i) for i in ids] == [packaged.token_bytes(i) for i in ids]


def test_published_gpt2_files(gpt2_directory):
    check_golden(Tokenizer.from_directory(gpt2_directory, 50257), "gpt2")


def test_published_gpt_oss_file(gpt_oss_directory):
    check_golden(Tokenizer.from_directory(gpt_oss_directory, 201088), "o200k_harmony")


def test_merges_alone_lead_to_the_published_ranks(gpt2_directory, monkeypatch):
    monkeypatch.setattr(cgpt.tokenizer.vocabulary, "_published_name", lambda tokens, ids: None)
    vocabulary = read_directory(gpt2_directory, 50257)
    assert vocabulary.tokens == read_published("gpt2").tokens
    assert vocabulary.ids == list(range(50256))
    assert [*vocabulary.added] == ["<|endoftext|>"] and vocabulary.added["<|endoftext|>"].id == 50256


@pytest.mark.parametrize("name, vocab_size", [("demo-gpt2", 2048), ("demo-gpt-oss", 528)])
def test_demo_tokenizers(name, vocab_size):
    tokenizer = Tokenizer.from_directory(DEMO / name, vocab_size)
    data = golden("demo.json.xz")
    for text, ids in zip(data["texts"], data[name], strict=True):
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == text
    assert tokenizer.name == name


def test_both_layouts_of_demo_gpt2_agree(tmp_path):
    for file in ("vocab.json", "merges.txt"):
        (tmp_path / file).write_bytes((DEMO / "demo-gpt2" / file).read_bytes())
    one, two = Tokenizer.from_directory(DEMO / "demo-gpt2", 2048), Tokenizer.from_directory(tmp_path, 2048)
    for text in golden("demo.json.xz")["texts"]:
        assert one.encode(text) == two.encode(text)
    assert one.special_tokens == two.special_tokens == {"<|endoftext|>": 2047}


def test_unnamed_ids_are_reserved():
    tokenizer = Tokenizer.from_directory(DEMO / "demo-gpt-oss", 528)
    assert tokenizer.decode([514, 515, 527]) == "<|call|><|reserved_515|><|reserved_527|>"
    assert tokenizer.encode("<|reserved_527|>", allowed_special="all") == [527]


def test_a_directory_without_files(tmp_path):
    assert Tokenizer.from_directory(tmp_path, 50257).name == "gpt2"
    assert Tokenizer.from_directory(tmp_path, 201088).name == "o200k_harmony"
    with pytest.raises(TokenizerError, match="neither tokenizer.json nor vocab.json.*1000 tokens"):
        Tokenizer.from_directory(tmp_path, 1000)
    for size in (0, -1, 1 << 40, 2.0, None, True):
        with pytest.raises(TokenizerError, match="vocab_size"):
            Tokenizer.from_directory(tmp_path, size)


# --------------------------------------------------------------------------------------- small vocabularies


def reference(word, content):
    """BPE of one pre-token, step by step as Hugging Face's tokenizers defines it."""
    model = content["model"]
    parts = [ALPHABET[byte] for byte in word.encode()]
    if model["ignore_merges"] and "".join(parts) in model["vocab"]:
        return [model["vocab"]["".join(parts)]]
    ranks = {tuple(merge): rank for rank, merge in enumerate(model["merges"])}
    while True:
        pairs = [(ranks[pair], i) for i, pair in enumerate(zip(parts, parts[1:])) if pair in ranks]  # noqa: B905
        if not pairs:
            return [model["vocab"][part] for part in parts]
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


@st.composite
def vocabularies(draw):
    """Merges in any order, several for one token, ids in any order, tokens that no merge makes."""
    letters = draw(st.sampled_from(["ab", "abc"]))
    words, merges = list(letters), []
    for _ in range(draw(st.integers(0, 14))):
        pair = draw(st.sampled_from(words)), draw(st.sampled_from(words))
        if len("".join(pair)) <= 8:
            merges.append(" ".join(pair))
            words.append("".join(pair))
    merges = draw(st.permutations(merges)) if draw(st.booleans()) else merges
    more = draw(st.lists(st.text(letters, min_size=3, max_size=8), max_size=3))
    content = small(merges, more, ignore_merges=draw(st.booleans()))
    ids = list(range(len(content["model"]["vocab"])))
    draw(st.randoms()).shuffle(ids)
    content["model"]["vocab"] = dict(zip(content["model"]["vocab"], ids, strict=True))
    return content, [*words, *more]


@settings(deadline=None, max_examples=400)
@given(case=vocabularies(), data=st.data())
def test_small_vocabularies_encode_as_their_merges_say(tmp_path_factory, case, data):
    content, words = case
    try:
        tokenizer = load(tmp_path_factory.getbasetemp(), content)
    except TokenizerError as refusal:
        assert content["model"]["ignore_merges"] and "no merge joins" in str(refusal)
        return
    texts = data.draw(st.lists(st.text("abc", min_size=1, max_size=16), min_size=10, max_size=10))
    for word in (*words, *texts):
        assert tokenizer.encode(word) == reference(word, content)
        assert tokenizer.decode(tokenizer.encode(word)) == word


def test_merges_that_ranks_cannot_express(tmp_path):
    with pytest.raises(TokenizerError, match="no merge joins"):
        load(tmp_path, small(["a b"], ["abc"], ignore_merges=True))
    tokenizer = load(tmp_path, small(["a b"], ["abc"], ignore_merges=False))
    assert tokenizer.encode("abc") == reference("abc", small(["a b"], ["abc"], ignore_merges=False))
    assert tokenizer.decode([small(["a b"], ["abc"])["model"]["vocab"]["abc"]]) == "abc"


def test_added_tokens_that_are_not_special_are_always_recognised(tmp_path):
    content = small()
    content["added_tokens"] += [
        {"id": 300, "content": "ba cd"},
        {"id": 301, "content": "ba", "special": False},
    ]
    tokenizer = load(tmp_path, content)
    assert tokenizer.encode("xba cdba<|end|>")[:3] == [*tokenizer.encode("x"), 300, 301]
    assert tokenizer.encode("ba<|end|>", allowed_special="all") == [301, content["added_tokens"][0]["id"]]
    assert tokenizer.decode([300, 301]) == "ba cdba"
    assert "ba" not in tokenizer.special_tokens


def test_special_tokens_of_vocab_json(tmp_path):
    content = small(more=["<|x y|>", "[PAD]"])["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(content["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\r\na b\r\nab c\r\n")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<mask>": 300}))
    tokenizer = Tokenizer.from_directory(tmp_path, 301)
    assert {"<|x y|>", "[PAD]", "<mask>"} <= tokenizer.special_tokens.keys()
    assert tokenizer.encode("<mask>abc", allowed_special={"<mask>"}) == [300, content["vocab"]["abc"]]
    assert tokenizer.decode([content["vocab"]["<|x y|>"]]) == "<|x y|>"
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(TokenizerError, match=r"merges.txt: no merge makes the token 'abc'.*cut short"):
        Tokenizer.from_directory(tmp_path, 301)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(TokenizerError, match="merges.txt: No such file"):
        Tokenizer.from_directory(tmp_path, 301)
