"""Tokenizer files for the tests: the published ones, made again to the byte, and small ones."""

import hashlib
import json
from copy import deepcopy

from cgpt.tokenizer.pretokenizer import PUBLISHED_PATTERNS
from cgpt.tokenizer.tokenizer import Tokenizer
from cgpt.tokenizer.vocabulary import PUBLISHED, read_published

# GPT-2's byte alphabet, the other way round than cgpt.tokenizer.vocabulary has it, and written down independently.
PRINTABLE = [chr(c) for c in range(256) if chr(c).isprintable() and chr(c) != " "]
OTHERS = [c for c in range(256) if chr(c) not in PRINTABLE]
ALPHABET = [chr(256 + OTHERS.index(c)) if c in OTHERS else chr(c) for c in range(256)]


def spelled(token):
    return "".join(ALPHABET[byte] for byte in token)


def write(path, text, sha256):
    data = text.encode("utf-8")
    assert hashlib.sha256(data).hexdigest() == sha256  # the file is the published one, to the byte
    path.write_bytes(data)


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
ANY_CASE = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
O200K = {
    "type": "Sequence",
    "pretokenizers": [
        {
            "type": "Split",
            "pattern": {"Regex": PUBLISHED_PATTERNS["o200k"]},
            "behavior": "Isolated",
            "invert": False,
        },
        BYTE_LEVEL | {"use_regex": False},
    ],
}


def write_gpt2(directory):
    """GPT-2's vocab.json and merges.txt, out of the ranks."""
    tokens = read_published("gpt2").tokens
    names = {token: spelled(token) for token in tokens}
    ids = {name: i for i, name in enumerate(names.values())} | {"<|endoftext|>": 50256}
    write(
        directory / "vocab.json",
        json.dumps(ids),
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    )
    ranks = {token: rank for rank, token in enumerate(tokens)}
    lines = ["#version: 0.2"]
    for token in tokens[256:]:
        left, right = halves(token, ranks)
        lines.append(f"{names[left]} {names[right]}")
    write(
        directory / "merges.txt",
        "\n".join(lines) + "\n",
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    )


def halves(token, ranks):
    """The two tokens that BPE merges last into `token`."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        best = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], len(ranks)))
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts


def write_gpt_oss(directory):
    """gpt-oss's tokenizer.json, 28 MB, out of the ranks: every split of a token into two is a merge."""
    tokens = read_published("o200k_harmony").tokens
    names = {token: json.dumps(spelled(token), ensure_ascii=False) for token in tokens}
    ranks = {token: rank for rank, token in enumerate(tokens)}
    vocab = ",\n".join(f"      {name}: {i}" for i, name in enumerate(names.values()))
    merges = []
    for token in tokens:
        splits = [(token[:i], token[i:]) for i in range(1, len(token))]
        splits = [pair for pair in splits if pair[0] in ranks and pair[1] in ranks]
        for pair in sorted(splits, key=lambda pair: (ranks[pair[0]], ranks[pair[1]])):
            merges.append(f"      [\n        {names[pair[0]]},\n        {names[pair[1]]}\n      ]")

    special = PUBLISHED["o200k_harmony"].special
    special = {i: name for name, i in special.items()}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": special.get(i, f"<|reserved_{i}|>"), **flags} for i in range(199998, 200019)
        ],
        "normalizer": None,
        "pre_tokenizer": O200K,
        "post_processor": ANY_CASE | {"trim_offsets": False},
        "decoder": ANY_CASE,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": "VOCAB",
            "merges": "MERGES",
        },
    }
    text = json.dumps(content, indent=2)
    text = text.replace('"VOCAB"', "{\n" + vocab + "\n    }")
    text = text.replace('"MERGES"', "[\n" + ",\n".join(merges) + "\n    ]")
    write(
        directory / "tokenizer.json",
        text,
        "0614fe83cadab421296e664e1f48f4261fa8fef6e03e63bb75c20f38e37d07d3",
    )


def small(merges=("a b", "ab c"), more=(), **model):
    """A tokenizer.json of the 256 bytes, what the merges make, and `more`."""
    merges = [merge.split(" ") for merge in merges]
    names = dict.fromkeys([*ALPHABET, *("".join(merge) for merge in merges), *more])
    return {
        "added_tokens": [{"id": len(names), "content": "<|end|>", "special": True}],
        "normalizer": None,
        "pre_tokenizer": dict(BYTE_LEVEL),
        "post_processor": None,
        "decoder": dict(BYTE_LEVEL),
        "model": {"type": "BPE", "vocab": {n: i for i, n in enumerate(names)}, "merges": merges, **model},
    }


TEXT = {"Sequence": {"id": "A", "type_id": 0}}


def special(name):
    """The part of a template that is a special token, as TEXT is the text."""
    return {"SpecialToken": {"id": name, "type_id": 0}}


def template(*single, **ids):
    """A post_processor of these parts. ids: of each special token in it."""
    tokens = {name: {"id": name, "ids": numbers, "tokens": [name]} for name, numbers in ids.items()}
    return {"type": "TemplateProcessing", "single": deepcopy(list(single)), "pair": [], "special_tokens": tokens}


def load(directory, content, vocab_size=400):
    (directory / "tokenizer.json").write_text(json.dumps(content))
    return Tokenizer.from_directory(directory, vocab_size)
