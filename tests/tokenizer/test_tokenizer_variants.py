"""Tokenizer files as people have them: what transformers does with each, and what cannot be read, by name."""

import json
import lzma
import re
import shutil
from pathlib import Path

import pytest

import cgpt.tokenizer.vocabulary
from cgpt.errors import InputError, TokenIdError, TokenizerError
from cgpt.tokenizer.tokenizer import StreamDecoder, Tokenizer

from support.tokenizer_cases import BYTE_LEVEL, TEXT, load, small, special, template

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer"
DEMO = Path(cgpt.__file__).parent / "demo"


@pytest.mark.filterwarnings("error")
def test_variants_encode_as_tokenizers_has_it(tmp_path):
    encoded = refused = 0
    for case in json.loads(lzma.decompress((GOLDEN / "variants.json.xz").read_bytes())):
        content = json.loads((DEMO / case["base"] / "tokenizer.json").read_text()) | case["files"]
        model, lacks = content["model"], set(case["lacks"])
        if case["base"] == "demo-gpt2":
            names = [name for name in model["vocab"] if name != "<|endoftext|>" and not lacks & set(name)]
            model["vocab"] = {name: i for i, name in enumerate(names)}
            model["merges"] = [merge for merge in model["merges"] if not lacks & set("".join(merge))]
        tokenizer = load(tmp_path, content, case["vocab_size"])
        for text, ids, alone in zip(case["texts"], case["ids"], case["without_prefix"], strict=True):
            try:
                assert tokenizer.encode(text, allowed_special="all") == ids
                assert tokenizer.encode(text, allowed_special="all", add_special_tokens=False) == alone
                encoded += 1
            except InputError as refusal:
                assert lacks and re.search("the text holds .*no token for its byte 0x", str(refusal))
                refused += 1
    assert (encoded, refused) == (1360, 240)


def test_a_token_beyond_the_rows_is_left_out_with_a_warning(tmp_path):
    content = small()
    content["added_tokens"] += [
        {"id": 300, "content": "[PAD]", "special": True},
        {"id": 301, "content": "new word", "special": False},
    ]
    with pytest.warns(UserWarning, match=r"ids 0 to 299; left out 2 beyond: '\[PAD\]' \(300\), 'new word' \(301\)"):
        tokenizer = load(tmp_path, content, 300)
    assert "[PAD]" not in tokenizer.special_tokens and "<|end|>" in tokenizer.special_tokens
    assert tokenizer.decode(tokenizer.encode("a [PAD]")) == "a [PAD]"  # ordinary text
    for text, allowed in (("a [PAD]", "all"), ("[PAD]", ["[PAD]"]), ("a new word", ())):
        with pytest.raises(TokenIdError, match="the text holds .*and the model has rows for 0 to 299"):
            tokenizer.encode(text, allowed_special=allowed)
    with pytest.raises(TokenIdError):
        tokenizer.decode([300])


@pytest.mark.parametrize("where", ["vocab.json", "added_tokens.json"])
def test_a_token_beyond_the_rows_in_two_files(tmp_path, where):
    vocab = small()["model"]["vocab"]
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[PAD]": 300} if where == "added_tokens.json" else {}))
    (tmp_path / "vocab.json").write_text(json.dumps(vocab | ({"[PAD]": 300} if where == "vocab.json" else {})))
    (tmp_path / "merges.txt").write_text("a b\nab c\n")
    with pytest.warns(UserWarning, match=r"\[PAD\]"):
        assert Tokenizer.from_directory(tmp_path, 300).encode("abc") == [257]


def test_a_vocabulary_that_lacks_bytes_refuses_only_the_text_that_needs_them(tmp_path):
    content = small()
    for name in ("A", "Ã"):
        content["model"]["vocab"].pop(name)
    tokenizer = load(tmp_path, content)
    assert tokenizer.encode("abc b") == [content["model"]["vocab"][name] for name in ("abc", "Ġ", "b")]
    with pytest.raises(InputError, match="the text holds 'A', and the vocabulary has no token for its byte 0x41"):
        tokenizer.encode("abc A")
    with pytest.raises(InputError, match="the text holds 'é', .* 0xc3"):
        tokenizer.encode("abc é")


def test_a_template_that_adds_nothing_or_puts_tokens_first(tmp_path):
    content = small()
    end = content["added_tokens"][0]["id"]
    plain = load(tmp_path, content).encode("abc")
    first = template(special("<|end|>"), TEXT, **{"<|end|>": [end]})
    for post_processor, prefix in (
        (template(TEXT), []),
        ({"type": "Sequence", "processors": [BYTE_LEVEL]}, []),
        (first, [end]),
        ({"type": "Sequence", "processors": [BYTE_LEVEL, first]}, [end]),
    ):
        tokenizer = load(tmp_path, content | {"post_processor": post_processor})
        assert tokenizer.encode("abc") == [*prefix, *plain]
        assert tokenizer.encode_part("abc") == tokenizer.encode("abc", add_special_tokens=False) == plain
        assert tokenizer.encode("") == prefix


def test_of_two_tokens_that_normalize_to_one_the_first_counts(tmp_path):
    content = small() | {"normalizer": {"type": "Lowercase"}}
    for token_id, name in ((300, "FOO"), (301, "foo")):
        content["added_tokens"].append({"id": token_id, "content": name, "normalized": True})
    assert load(tmp_path, content).encode("fooFoo") == [300, 300]


def test_blanks_belong_to_the_token_that_took_them_first(tmp_path):
    content = small()
    flags = {"lstrip": True, "rstrip": True}
    content["added_tokens"] += [{"id": 300, "content": "99", **flags}, {"id": 301, "content": "\n\n", **flags}]
    assert load(tmp_path, content).encode("99\n\n99 \n\n") == [300, 300]  # by tokenizers 0.23.3 too


def demo_gpt2(directory, *files, **config):
    """demo-gpt2's tokenizer files, with a tokenizer_config.json of these values."""
    for file in files:
        shutil.copy(DEMO / "demo-gpt2" / file, directory)
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.from_directory(directory, 2048)


@pytest.mark.parametrize("files", [["tokenizer.json"], ["vocab.json", "merges.txt"]])
def test_tokenizer_config_adds_a_prefix_space(tmp_path, files):
    plain, spaced = demo_gpt2(tmp_path, *files), demo_gpt2(tmp_path, *files, add_prefix_space=True)
    assert spaced.encode("hi") == spaced.encode(" hi") == plain.encode(" hi") != plain.encode("hi")
    assert spaced.encode("\nhi") == plain.encode(" \nhi")
    assert spaced.encode("a<|endoftext|>b", allowed_special="all") == plain.encode(
        " a<|endoftext|> b", allowed_special="all"
    )
    assert spaced.encode("") == []


def test_tokenizer_config_overrides_the_prefix_space_of_tokenizer_json(tmp_path):
    content = small() | {"pre_tokenizer": BYTE_LEVEL | {"add_prefix_space": True}}
    assert load(tmp_path, content).encode("a") == load(tmp_path, content).encode(" a")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_prefix_space": False}))
    assert load(tmp_path, content).encode("a") == load(tmp_path, small()).encode("a")


def test_add_bos_token_counts_where_there_is_no_tokenizer_json(tmp_path):
    """As in transformers 4 and 5: tokenizer.json's post_processor has the last word."""
    assert demo_gpt2(tmp_path, "vocab.json", "merges.txt", add_bos_token=True).encode("hi") == [2047, 376]
    bos = {"content": "!", "lstrip": False}
    assert demo_gpt2(tmp_path, add_bos_token=True, bos_token=bos).encode("hi") == [0, 376]
    assert demo_gpt2(tmp_path, "tokenizer.json", add_bos_token=True).encode("hi") == [376]


def test_special_tokens_of_vocab_json_by_any_name(tmp_path):
    demo_gpt2(tmp_path, "vocab.json", "merges.txt")
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    vocab.pop("<|endoftext|>")
    for name in ("__bos__", "PAD", "|end|", "<s>"):
        (tmp_path / "vocab.json").write_text(json.dumps(vocab | {name: 2047}))
        tokenizer = Tokenizer.from_directory(tmp_path, 2048)
        assert tokenizer.special_tokens == {name: 2047}
        assert tokenizer.encode(f"hi{name}", allowed_special="all") == [376, 2047]
    (tmp_path / "vocab.json").write_text(json.dumps(vocab | {"hiROMEO": 2047}))  # might be of a merge that was cut off
    assert len(Tokenizer.from_directory(tmp_path, 2048).encode("hiROMEO", allowed_special="all")) == 1
    (tmp_path / "vocab.json").write_text(json.dumps(vocab | {"hithe": 2047}))
    with pytest.raises(TokenizerError, match="no merge makes the token 'hithe'.*special_tokens_map.json"):
        Tokenizer.from_directory(tmp_path, 2048)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": ["hithe"]}))
    assert Tokenizer.from_directory(tmp_path, 2048).special_tokens == {"hithe": 2047}


def test_flags_of_added_tokens_in_tokenizer_config(tmp_path):
    entry = {"content": "<|endoftext|>", "lstrip": True, "special": True}
    tokenizer = demo_gpt2(tmp_path, "vocab.json", "merges.txt", added_tokens_decoder={"2047": entry})
    assert tokenizer.encode("hi \n<|endoftext|> hi", allowed_special="all") == [376, 2047, *tokenizer.encode(" hi")]


@pytest.mark.parametrize(
    "file, kind",
    {"vocab.txt": "WordPiece", "spiece.model": "SentencePiece", "tokenizer.model": "SentencePiece"}.items(),
)
def test_tokenizers_of_other_kinds_are_named(tmp_path, file, kind):
    (tmp_path / file).write_bytes(b"[PAD]\n")
    for vocab_size in (50257, 201088, 300):
        with pytest.raises(TokenizerError, match=f"{file}: is a {kind}.*works with token ids"):
            Tokenizer.from_directory(tmp_path, vocab_size)
    assert load(tmp_path, small()).encode("abc") == [257]  # beside a tokenizer.json it is not looked at


def test_output_without_special_tokens(tmp_path):
    tokenizer = load(tmp_path, small())
    ids = tokenizer.encode("ab<|end|>c<|reserved_300|>", allowed_special="all")
    assert tokenizer.decode(ids) == "ab<|end|>c<|reserved_300|>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "abc"
    decoder = StreamDecoder(tokenizer, skip_special_tokens=True)
    assert [decoder.push(token_id) for token_id in ids] == ["ab", "", "c", ""]
    for wrong in ([1], None):
        with pytest.raises(TokenIdError, match="must be an integer"):
            tokenizer.decode([wrong], skip_special_tokens=True)
        with pytest.raises(TokenIdError, match="must be an integer"):
            decoder.push(wrong)


def test_finds_the_name_of_a_special_token(tmp_path):
    tokenizer = load(tmp_path, small())
    assert tokenizer.find_special_token("a <|end|> b") == "<|end|>"
    assert tokenizer.find_special_token("a <|end | b") is None
