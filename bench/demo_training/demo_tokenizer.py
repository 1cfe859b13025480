"""The small byte-level BPE of demo-gpt-oss, in the layout of gpt-oss's tokenizer.json.

python demo_tokenizer.py OUT_DIR           # write tokenizer.json and tokenizer_config.json
"""

import json
import os
import re
import sys
from collections import Counter
from functools import lru_cache

from demo_harmony import GENERATION_PROMPT, SPECIALS, render_message
from demo_problems import LETTERS, Source
from demo_tasks import make_chat

VOCAB_SIZE = 528  # of the model; the tokenizer names fewer ids, as the real one does
O200K = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


def byte_alphabet():
    """GPT-2's byte -> printable character table, in the order of its first 256 ids."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in keep]
    return {b: chr(b) for b in keep} | {b: chr(256 + i) for i, b in enumerate(rest)}


def word_tokens(pre, chats, seed):
    """Pre-tokens without digits that occur in one chat of 300 or more often, the most frequent first."""
    s, count = Source(seed, "vocabulary"), Counter()
    for _ in range(chats):
        c = make_chat(s)
        for m in c.messages + c.target:
            for piece in render_message(m):
                if piece not in SPECIALS:
                    count.update(t for t, _ in pre.pre_tokenize_str(piece))
    ranked = sorted(count.items(), key=lambda p: (-p[1], p[0]))
    return [t for t, n in ranked if n >= chats // 300 and len(t) > 1 and not re.search(r"\d", t)]


def all_splits(tokens, count):
    """Every split of the tokens after the first `count` into two earlier ones, in the order of the tokens."""
    rank, merges = {t: i for i, t in enumerate(tokens)}, []
    for t in tokens[count:]:
        splits = [(t[:i], t[i:]) for i in range(1, len(t))]
        splits = [p for p in splits if max(rank.get(x, len(tokens)) for x in p) < rank[t]]
        merges += sorted(splits, key=lambda p: (rank[p[0]], rank[p[1]]))
    return merges


def build_tokenizer(chats=20000, seed=0):
    """A tokenizer built rather than learned: the frequent pre-tokens of the chats' fixed wording are one
    token each, while the words and numbers of the problems stay single letters and digits.  As in the real
    file ignore_merges is true (a pre-token that is in the vocabulary is one token, which here is how most
    words are reached) and merges list EVERY split of a token into two others; so this is exactly tiktoken's
    rank-based BPE."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    pre = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(O200K), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokens = list(byte_alphabet().values())  # ids 0..255
    tokens += ["\u0120" + c for c in LETTERS]  # " a" .. " z", for spelled words
    words = [t for t in word_tokens(pre, chats, seed) if t not in tokens]
    tokens += words[: VOCAB_SIZE - len(SPECIALS) - len(tokens)]
    vocab = {t: i for i, t in enumerate(tokens)}
    tok = Tokenizer(models.BPE(vocab=vocab, merges=all_splits(tokens, 256), ignore_merges=True))
    tok.pre_tokenizer = pre
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.ByteLevel(add_prefix_space=True, trim_offsets=False, use_regex=True)
    names = [n or f"<|reserved_{len(tokens) + i}|>" for i, n in enumerate(SPECIALS)]
    tok.add_special_tokens([AddedToken(n, normalized=False, special=True) for n in names])
    return tok


def tokenizer_config(tok):
    """tokenizer_config.json with the keys of the real one."""
    flags = dict(lstrip=False, normalized=False, rstrip=False, single_word=False, special=True)
    added = sorted(tok.get_added_tokens_decoder().items())
    added = {str(i): dict(content=t.content, **flags) for i, t in added}
    return dict(
        added_tokens_decoder=added,
        bos_token="<|startoftext|>",
        clean_up_tokenization_spaces=False,
        eos_token="<|return|>",
        extra_special_tokens={},
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=131072,
        pad_token="<|endoftext|>",
        tokenizer_class="PreTrainedTokenizerFast",
    )


class Encoder:
    """Chats to token ids, special tokens by id and every text between them on its own."""

    def __init__(self, tok):
        self.tok = tok
        self.special = {n: tok.token_to_id(n) for n in SPECIALS if n}
        self.text = lru_cache(50000)(lambda t: tuple(tok.encode(t, add_special_tokens=False).ids))

    def pieces(self, pieces):
        out = []
        for p in pieces:
            out += [self.special[p]] if p in self.special else self.text(p)
        return out

    def prompt(self, chat):
        """ids up to and including <|start|>assistant"""
        return self.pieces([p for m in chat.messages for p in render_message(m)] + GENERATION_PROMPT)

    def target(self, chat):
        """ids that follow the prompt, up to <|return|> or <|call|>"""
        return self.pieces([p for m in chat.target for p in render_message(m)][2:])

    def decode(self, ids):
        return self.tok.decode(list(ids), skip_special_tokens=False)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    os.makedirs(sys.argv[1], exist_ok=True)
    tok = build_tokenizer()
    tok.save(os.path.join(sys.argv[1], "tokenizer.json"))
    with open(os.path.join(sys.argv[1], "tokenizer_config.json"), "w") as f:
        json.dump(tokenizer_config(tok), f, indent=2, ensure_ascii=False)
        f.write("\n")


if __name__ == "__main__":
    main()
