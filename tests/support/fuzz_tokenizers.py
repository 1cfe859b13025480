"""Damaged tokenizer files: each must load, and then give back what it takes, or be refused with a TokenizerError.

test_tokenizer_damage.py runs the first ones, `python bench/fuzz.py tokenizers` as many as there is time for.
"""

import json
import random
import shutil
import warnings
from contextlib import contextmanager
from copy import deepcopy

from cgpt.errors import InputError, TokenizerError
from cgpt.tokenizer.files import read_directory
from cgpt.tokenizer.tokenizer import Tokenizer
from cgpt.tokenizer.vocabulary import TextSteps

from support.fuzz import scratch, write
from support.tokenizer_cases import ALPHABET, BYTE_LEVEL, O200K, TEXT, small, special, template

VOCAB_SIZE = 300
JUNK = (
    [None, True, False, 0, -1, 1, 255, 299, 300, 2**31, 2**64, 10**4000, 0.5, 1e308]
    + ["", "a", "b c", "Ġ", " ", "中", "\ud800", "\x00", "<|end|>", "BPE", "A" * 300]
    + [[], [[]], ["a"], ["a", "b"], {}, {"a": 1}, ALPHABET, O200K]
)
NESTED = "NESTED"


def tokenizer_json(rng):
    content = small(["a b", "ab c", "b c"], ["acca", "Ġabc"], ignore_merges=rng.random() < 0.5)
    content["pre_tokenizer"] = deepcopy(O200K if rng.random() < 0.5 else BYTE_LEVEL)
    if rng.random() < 0.3:
        content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}
        content["post_processor"] = template(special("<|end|>"), TEXT, **{"<|end|>": [259]})
    if rng.random() < 0.5:
        content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
    return {"tokenizer.json": content}


def vocab_and_merges(rng):
    content = small(["a b", "ab c"], ["<|x|>"])
    vocab = content["model"]["vocab"]
    files = {
        "vocab.json": vocab,
        "merges.txt": "#version: 0.2\na b\nab c\n",
        "tokenizer_config.json": {"a": [1]},
    }
    return files | ({"added_tokens.json": {"<y>": 298}} if rng.random() < 0.5 else {})


def nodes(value):
    """Every (container, key) below `value`, but of a vocabulary, which has many, only some."""
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        for key in keys if len(keys) < 20 else keys[:3] + keys[97:101] + keys[-5:]:
            yield value, key
            yield from nodes(value[key])


def damage_value(content, rng):
    container, key = rng.choice(list(nodes(content)))
    other, other_key = rng.choice(list(nodes(content)))
    change = rng.randrange(5)
    if change == 0:
        container.pop(key)
    elif change == 1:
        container[key] = deepcopy(other[other_key])
    elif change == 2 and isinstance(container, dict):
        container[rng.choice([j for j in JUNK if isinstance(j, str)])] = container.pop(key)
    else:
        container[key] = deepcopy(rng.choice([*JUNK, NESTED]))


def damage_bytes(data, rng):
    start = rng.randrange(len(data) + 1)
    end = min(len(data), start + rng.choice([0, 1, 1, 2, 5, 100]))
    new = rng.choice([b"", bytes([rng.randrange(256)]), b'"', b"]", b"\xff", b" ", b"1" * 5000, data[:40]])
    return rng.choice([data[:start] + new + data[end:], data[:start], data[start:]])


def damaged(rng):
    """The files of a tokenizer, with one to three things wrong."""
    files = rng.choice([tokenizer_json, vocab_and_merges])(rng)
    for _ in range(rng.randint(1, 3)):
        content = rng.choice([content for content in files.values() if not isinstance(content, str)])
        if content and rng.random() < 0.7:
            damage_value(content, rng)
    deep = "[" * rng.choice([10, 950, 100_000])
    texts = {}
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        texts[name] = text.replace(f'"{NESTED}"', deep + "]" * len(deep)).encode()
    if rng.random() < 0.25:
        name = rng.choice(list(texts))
        texts[name] = damage_bytes(texts[name], rng)
    return texts


def drive(folder, rng):
    vocabulary = read_directory(folder, VOCAB_SIZE)
    tokenizer = Tokenizer(vocabulary, VOCAB_SIZE)
    text = "abc abab\n <|end|> ¡中 \x00" + chr(rng.randrange(0xD800))
    plain = vocabulary.steps == TextSteps(vocabulary.steps.pattern)
    plain = plain and not any(token.lstrip or token.rstrip for token in vocabulary.added.values())
    for allowed in ((), "all"):
        came_back = tokenizer.decode(tokenizer.encode(text, allowed_special=allowed))
        assert came_back == text or not plain
    tokenizer.decode_bytes(range(VOCAB_SIZE))


def run_case(seed, folder):
    """Writes the files of one case into `folder`, reads them, and says what came of it."""
    rng = random.Random(seed)
    write(folder, damaged(rng))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            drive(folder, rng)
    except InputError as refusal:
        assert "the text holds" in str(refusal)
        return "text refused"
    except TokenizerError as refusal:
        assert str(folder) in str(refusal) and len(str(refusal)) < 1000
        return "refused"
    except BaseException as problem:
        raise AssertionError(f"run_case({seed}) fails") from problem
    finally:
        shutil.rmtree(folder)
    return "loaded"


@contextmanager
def cases():
    """What bench/fuzz.py runs: a function of the seed."""
    with scratch() as folder:
        yield lambda seed: [run_case(seed, folder)]
