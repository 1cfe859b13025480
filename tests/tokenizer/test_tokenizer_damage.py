"""Tokenizer files that are damaged, or ask for what is not supported: a TokenizerError each, nothing else."""

import json
import os
import re
from collections import Counter
from copy import deepcopy

import pytest

from cgpt.errors import InputError, TokenizerError
from cgpt.tokenizer import files
from cgpt.tokenizer.pretokenizer import PUBLISHED_PATTERNS
from cgpt.tokenizer.tokenizer import Tokenizer

from support.fuzz_tokenizers import VOCAB_SIZE, run_case
from support.tokenizer_cases import BYTE_LEVEL, O200K, TEXT, load, small, special, template


def put(*path_and_value):
    """A change of one value in a tokenizer.json."""
    *path, last, value = path_and_value

    def change(content):
        for key in path:
            content = content[key]
        content[last] = value

    return change


def without(key):
    return lambda content: content.pop(key)


REFUSED = {
    "the model type is 'Unigram'": put("model", "type", "Unigram"),
    "dropout is 0.1": put("model", "dropout", 0.1),
    "continuing_subword_prefix is '##'": put("model", "continuing_subword_prefix", "##"),
    "end_of_word_suffix is '</w>'": put("model", "end_of_word_suffix", "</w>"),
    "ignore_merges is 'yes'": put("model", "ignore_merges", "yes"),
    "normalizer {'type': 'Strip'}": put("normalizer", {"type": "Strip"}),
    "normalizer {'type': 'Nmt'}": put(
        "normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Nmt"}]}
    ),
    "post_processor {'type': 'TemplateProcessing'}": put("post_processor", {"type": "TemplateProcessing"}),
    "post_processor {'type': 'BertProcessing'}": put(
        "post_processor", {"type": "Sequence", "processors": [BYTE_LEVEL, {"type": "BertProcessing"}]}
    ),
    "post_processor {'type': 'TemplateProcessing', 'single': [{'Sequence'": put(
        "post_processor", template(TEXT, special("<|end|>"), **{"<|end|>": [258]})
    ),
    "<|end|> is None, which is not what belongs there": put("post_processor", template(special("<|end|>"), TEXT)),
    "begin with '<|end|>', whose ids [300] the model does not have": put(
        "post_processor", template(special("<|end|>"), TEXT, **{"<|end|>": [300]})
    ),
    "begin with '<|end|>', whose ids 258 the model does not have": put(
        "post_processor", template(special("<|end|>"), TEXT, **{"<|end|>": 258})
    ),
    "decoder {'type': 'WordPiece'}": put("decoder", {"type": "WordPiece"}),
    "decoder 3": put("decoder", 3),
    "pre_tokenizer {'type': 'Whitespace'}": put("pre_tokenizer", {"type": "Whitespace"}),
    "pre_tokenizer None": put("pre_tokenizer", None),
    "pre_tokenizer {'type': 'Sequence', 'pretokenizers': 7}": put(
        "pre_tokenizer", {"type": "Sequence", "pretokenizers": 7}
    ),
    "pre_tokenizer {'type': 'ByteLevel'}": put("pre_tokenizer", {"type": "ByteLevel"}),
    "pre_tokenizer {'type': 'Sequence', 'pretokenizers': [{": put(
        "pre_tokenizer", deepcopy(O200K) | {"pretokenizers": [BYTE_LEVEL] * 2}
    ),
    "model is None": without("model"),
    "added_tokens is None": without("added_tokens"),
    "vocab is []": put("model", "vocab", []),
    "merges is {}": put("model", "merges", {}),
    "merge 1 is 'a b c'": put("model", "merges", ["a b", "a b c"]),
    "merge 0 is 'ab'": put("model", "merges", ["ab"]),
    "merge 0 is ['a', 1]": put("model", "merges", [["a", 1]]),
    "merge 0, ['x', 'y'], leaves the vocabulary": put("model", "merges", [["x", "y"]]),
    "'a' must be 0 to 299, found 300": put("model", "vocab", "a", 300),
    "'a' must be 0 to 299, found -1": put("model", "vocab", "a", -1),
    "'a' must be 0 to 299, found 1.0": put("model", "vocab", "a", 1.0),
    "'a' must be 0 to 299, found True": put("model", "vocab", "a", True),
    "'a' must be 0 to 299, found 1000000000000000000000": put("model", "vocab", "a", 10**21),
    "'a' and 'b' share an id": lambda content: put("model", "vocab", "b", content["model"]["vocab"]["a"])(content),
    "'<|end|>' must be 0 to 299, found None": put("added_tokens", 0, {"content": "<|end|>"}),
    "'!' has two ids": put("added_tokens", 0, {"content": "!", "id": 299}),
    "not an object with a content": put("added_tokens", ["<|end|>"]),
    "lists '<x>' twice": put("added_tokens", [{"content": "<x>", "id": 298}, {"content": "<x>", "id": 299}]),
    "lstrip is 'yes'": put("added_tokens", 0, "lstrip", "yes"),
    "not valid Unicode": put("added_tokens", 0, "content", "\ud800"),
    "one of the tokens is empty": put("added_tokens", 0, "content", ""),
    "'a b' is not spelled in GPT-2's byte alphabet": put("model", "vocab", "a b", 299),
    "'中' is not spelled": put("model", "vocab", "中", 299),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refused_by_name(tmp_path, reason):
    content = small()
    load(tmp_path, content, VOCAB_SIZE)
    REFUSED[reason](content)
    with pytest.raises(TokenizerError, match=f"tokenizer.json.*{re.escape(reason)}"):
        load(tmp_path, content, VOCAB_SIZE)


def test_no_other_pattern_is_run(tmp_path):
    for regex in (
        r"(a*)*b",
        PUBLISHED_PATTERNS["o200k"] + "|x",
        PUBLISHED_PATTERNS["gpt2"][1:],
        "",
        None,
        ["\\s"],
    ):
        content = small() | {"pre_tokenizer": deepcopy(O200K)}
        load(tmp_path, content, VOCAB_SIZE)
        content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = regex
        with pytest.raises(TokenizerError, match="the pre_tokenizer .* is not supported"):
            load(tmp_path, content, VOCAB_SIZE)


def test_tokenizer_config_that_cannot_be_used(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_prefix_space": "no"}))
    with pytest.raises(TokenizerError, match="tokenizer_config.json: add_prefix_space is 'no'"):
        load(tmp_path, small(), VOCAB_SIZE)
    vocab_and_merges_in(tmp_path)
    for config, wrong in (
        ({"add_eos_token": True}, "add_eos_token is True, which cgpt does not support"),
        ({"add_bos_token": 1}, "add_bos_token is 1"),
        ({"add_bos_token": True}, r"begin with '<\|endoftext\|>', whose ids \[None\] the model does not have"),
        ({"added_tokens_decoder": [1]}, r"added_tokens_decoder is \[1\]"),
        ({"added_tokens_decoder": {"x": {"content": "<x>"}}}, "the id of '<x>' must be"),
        ({"added_tokens_decoder": {"1": 7}}, "added_tokens holds 7"),
    ):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        with pytest.raises(TokenizerError, match=wrong):
            Tokenizer.from_directory(tmp_path, VOCAB_SIZE)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"])
def test_files_in_other_encodings_are_named_as_that(tmp_path, file):
    if file == "tokenizer.json":
        load(tmp_path, small(), VOCAB_SIZE)
    else:
        vocab_and_merges_in(tmp_path)
        (tmp_path / "tokenizer_config.json").write_text("{}")
    text = (tmp_path / file).read_text()
    for encoding, kind in {"utf-8-sig": "byte order mark", "utf-16": "UTF-16", "utf-16-le": "UTF-16"}.items():
        (tmp_path / file).write_text(text, encoding=encoding)
        with pytest.raises(TokenizerError, match=f"{file}: .*{kind}.*save it "):
            Tokenizer.from_directory(tmp_path, VOCAB_SIZE)


def test_keys_that_appear_twice_are_named(tmp_path):
    load(tmp_path, small(), VOCAB_SIZE)
    (tmp_path / "tokenizer_config.json").write_text('{"a": 1, "a": 2}')
    with pytest.raises(TokenizerError, match="tokenizer_config.json: .*the key 'a' appears twice; keep one"):
        Tokenizer.from_directory(tmp_path, VOCAB_SIZE)


def vocab_and_merges_in(directory):
    (directory / "tokenizer.json").unlink(missing_ok=True)
    (directory / "vocab.json").write_text(json.dumps(small()["model"]["vocab"]))
    (directory / "merges.txt").write_text("a b\nab c\n")


def test_files_that_are_no_files(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.mkdir()
    with pytest.raises(TokenizerError, match="tokenizer.json: is a directory"):
        Tokenizer.from_directory(tmp_path, VOCAB_SIZE)
    path.rmdir()
    os.mkfifo(path)  # reading it would wait for ever
    with pytest.raises(TokenizerError, match="not a regular file"):
        Tokenizer.from_directory(tmp_path, VOCAB_SIZE)
    path.unlink()
    path.symlink_to("nowhere")
    with pytest.raises(TokenizerError, match="No such file"):
        Tokenizer.from_directory(tmp_path, VOCAB_SIZE)


def test_texts_that_are_no_json(tmp_path):
    for text in (
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"model": ' + b"9" * 5000 + b"}",
        b'{"model": NaN}',
    ):
        (tmp_path / "tokenizer.json").write_bytes(text)
        with pytest.raises(TokenizerError, match="tokenizer.json"):
            Tokenizer.from_directory(tmp_path, VOCAB_SIZE)
    for file, text in {"vocab.json": b"[1]", "merges.txt": b"\xff"}.items():
        (tmp_path / "tokenizer.json").unlink(missing_ok=True)
        (tmp_path / "vocab.json").write_text(json.dumps(small()["model"]["vocab"]))
        (tmp_path / "merges.txt").write_text("a b\nab c\n")
        Tokenizer.from_directory(tmp_path, VOCAB_SIZE)
        (tmp_path / file).write_bytes(text)
        with pytest.raises(TokenizerError, match=file):
            Tokenizer.from_directory(tmp_path, VOCAB_SIZE)


def test_deep_nesting(tmp_path):
    """Too deep for the parser (how deep depends on the Python), or else the message can still show it."""
    for depth in (*range(900, 1000, 3), *range(1400, 1500, 3), *range(9800, 9950, 3), 100_000):
        text = json.dumps(small() | {"pre_tokenizer": "DEEP"})
        (tmp_path / "tokenizer.json").write_text(text.replace('"DEEP"', "[" * depth + "]" * depth))
        with pytest.raises(TokenizerError, match="nested too deeply|pre_tokenizer"):
            Tokenizer.from_directory(tmp_path, VOCAB_SIZE)


def test_absurd_sizes(tmp_path, monkeypatch):
    content = small(more=["a" * 9000])
    with pytest.raises(TokenizerError, match="tokens too long"):
        load(tmp_path, content, VOCAB_SIZE)
    monkeypatch.setattr(files, "MAX_MERGES_BYTES", 5)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(small()["model"]["vocab"]))
    (tmp_path / "merges.txt").write_text("a b\nab c\n")
    with pytest.raises(TokenizerError, match="merges.txt: has more than 5 bytes"):
        Tokenizer.from_directory(tmp_path, VOCAB_SIZE)


def test_many_combining_marks_in_a_row(tmp_path):
    """Normal forms take the square of their number: minutes for a few hundred thousand."""
    content = small(["a b"], [])
    content["normalizer"] = {"type": "NFC"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = Tokenizer.from_directory(tmp_path, VOCAB_SIZE)
    assert tokenizer.encode("a" + "\u0301" * 1000)
    with pytest.raises(InputError, match="more than 1000 combining marks"):
        tokenizer.encode("a" + "\u0316\u0301" * 500 + "\u0301")


def test_damaged_files_load_or_are_refused(tmp_path):
    outcomes = Counter(run_case(seed, tmp_path / "case") for seed in range(4000))
    assert min(outcomes["loaded"], outcomes["refused"]) > 500 and outcomes["text refused"] > 20, outcomes
