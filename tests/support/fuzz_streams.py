"""Token streams by the thousand: any ids through a turn, and what a constraint lets through, as a turn reads it.

test_turn.py and test_grammar.py have the same properties by hypothesis; `python bench/fuzz.py streams` runs as many as
there is time for.
"""

import json
import random
from contextlib import contextmanager
from functools import lru_cache
from types import SimpleNamespace

import numpy as np

import cgpt
from cgpt.chat.grammar import GrammarCompiler, TurnGrammar
from cgpt.chat.messages import Tool
from cgpt.chat.parse import Parser
from cgpt.chat.turn import Turn, TurnRules, message_kind
from cgpt.errors import InputError

BITS = [
    "<|channel|>", "<|start|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>", "<|constrain|>", "assistant",
    "user", "analysis", "commentary", "final", "finals", " to=functions.f", " to=functions.g", " to=user", " to=",
    "json", " json", " ", "\n", "é", "{}", "stop", "<|endoftext|>", "functions.f", "assistant:bob",
    "<|channel|>final<|message|>", "<|channel|>analysis<|message|>", "<|end|><|start|>assistant",
    "<|start|>user<|message|>", "<|channel|>commentary to=functions.f <|constrain|>json<|message|>",
]  # fmt: skip
OFFERED = frozenset({"functions.f", "python"})
GRAMMAR_CASES = 400  # consecutive seeds that share a grammar, as compiling it takes longer than they do
CONSTRAINED = 0.1  # of the cases
MAX_IDS = 60


def any_schema(rng, depth=3):
    """A schema that may be kept, or that cannot be."""
    leaves = [
        {"type": "null"}, {"type": "boolean"}, {"enum": [1, "a", None]}, {"const": {"a": [1]}}, {"$ref": "#/$defs/d"},
        {"type": "string", "pattern": "^(a+)+b{2,3}$"}, {"type": "string", "maxLength": 3}, {"type": "bogus"},
        {"$ref": "#"}, {"type": "integer", "minimum": -3, "maximum": 40}, {"type": "number"}, {"type": "string"},
        {"type": "string", "format": "date"}, {"not": {}}, True, False, {},
    ]  # fmt: skip
    if depth == 0 or rng.random() < 0.3:
        return rng.choice(leaves)
    inner = [any_schema(rng, depth - 1) for _ in range(3)]
    return rng.choice(
        [
            {"type": "object", "properties": dict(zip("abc", inner, strict=True)), "required": ["a"]},
            {"type": "object", "properties": dict(zip("abc", inner, strict=True)), "additionalProperties": False},
            {"type": "array", "items": inner[0], "maxItems": rng.randrange(3)},
            {"type": "array", "prefixItems": inner},
            {rng.choice(["anyOf", "allOf", "oneOf"]): inner[:2]},
            {"type": "object", "additionalProperties": inner[0], "maxProperties": 1},
        ]
    )


class Streams:
    """Runs the cases, on the tokenizer of demo-gpt-oss."""

    def __init__(self):
        self.model = cgpt.load("demo-gpt-oss", threads=1)
        self.tokenizer, self.compiler = self.model.tokenizer, GrammarCompiler(self.model)
        self.bits = [self.tokenizer.encode(bit, allowed_special="all") for bit in BITS]
        self.special = set(self.tokenizer.special_tokens.values())
        self.zeros = np.zeros(self.tokenizer.vocab_size, np.float32)
        self.grammar = lru_cache(4)(self._grammar)

    def case(self, seed):
        rng = random.Random(seed)
        return self.constrained(rng, seed // GRAMMAR_CASES) if rng.random() < CONSTRAINED else self.free(rng)

    def free(self, rng):
        """Any ids: the turn shows what the parser finds, without what is malformed, in whatever parts they come."""
        ids = []
        for _ in range(rng.randint(1, 16)):
            ids += rng.choice(self.bits) if rng.random() < 0.8 else [rng.randint(-1, self.tokenizer.vocab_size)]
        parser = Parser(self.tokenizer, rng.choice([None, "assistant"]))
        texts = {}
        for delta in parser.push_all(ids) + parser.finish():
            texts[delta.index] = texts.get(delta.index, "") + delta.text
        assert list(texts.values()) == [message.content for message in parser.messages] and parser.partial is None
        prefix = tuple(rng.choice(self.bits)) if rng.random() < 0.2 else ()
        stops = ["stop"] if rng.random() < 0.2 else []
        silent = frozenset(rng.choice(self.bits)) if rng.random() < 0.2 else frozenset()
        rules = TurnRules(OFFERED, rng.random() < 0.5, prefix, silent)
        turn, shown = self.read(ids, rules, stops, rng, rng.choice(["stop", "length"]))
        kinds = [message_kind(message, OFFERED, rules.has_schema) for message in turn.parser.messages]
        expected = [m.content for m, k in zip(turn.parser.messages, kinds, strict=True) if k != "malformed"]
        found = [text for _, text, _ in shown]
        if not stops:
            assert found == expected[: len(found)] and not any(expected[len(found) :])
        assert {name for _, _, name in shown} <= {None, "f", "python"}
        assert turn.finish_reason
        assert "stop" not in "".join(text for kind, text, _ in shown if kind in ("answer", "preamble")) or not stops
        return f"turn: {turn.finish_reason}"

    def read(self, ids, rules, stops, rng, reason):
        """A turn of these ids, which come in parts, and (kind, text, name) of each item that it shows."""
        turn = Turn(self.model, SimpleNamespace(ids=ids, constraint=None), rules, stops)
        items, at = {}, 0
        while at < len(ids) and not turn.finish_reason:
            at = min(len(ids), at + rng.choice([1, 1, 2, 5, 100]))
            event = SimpleNamespace(num_ids=at, finish_reason=reason if at == len(ids) else None)
            for delta in turn.advance(event):
                kind, text, name = items.get(delta.item, (delta.kind, "", delta.name))
                assert (kind, name) == (delta.kind, delta.name)
                items[delta.item] = kind, text + delta.text, name
        turn.close()
        assert list(items) == list(range(len(items)))
        return turn, list(items.values())

    def _grammar(self, number):
        """A TurnGrammar with what was asked for, None where it cannot be made."""
        rng = random.Random(number)
        schemas = [any_schema(rng) for _ in range(3)]
        schemas = [one | {"$defs": {"d": {"type": "integer"}}} if isinstance(one, dict) else one for one in schemas]
        tools = [Tool(name, parameters=one) for name, one in zip("fg", schemas, strict=False) if isinstance(one, dict)]
        names = [tool.name for tool in tools]
        asked = {"strict": rng.sample(names, rng.randint(0, len(names)))}
        if rng.random() < 0.6:
            asked["answer_schema"] = schemas[2]
        if names and rng.random() < 0.3:
            asked["forced"] = rng.sample(names, rng.randint(1, len(names)))
        try:
            return TurnGrammar(self.compiler, tools, **asked), asked
        except InputError:
            return None, asked

    def constrained(self, rng, number):
        """Ids that the constraint allows, special ones more often than any model would write them: answers and
        arguments that are complete are JSON, and nothing is there to be mended. At times one that is not allowed."""
        grammar, asked = self.grammar(number)
        constraint = grammar and grammar.constraint()
        if constraint is None:
            return "constrained: nothing to keep to" if grammar else "constrained: refused"
        ids, reason, breaks = [], "length", rng.random() < 0.1
        stops = {*self.model.eos_token_ids, *grammar.special.stops}
        length = rng.randint(1, MAX_IDS)
        while len(ids) < length and reason == "length":
            allowed = np.flatnonzero(np.isfinite(constraint.mask(self.zeros))).tolist()
            assert allowed
            marks = [token for token in allowed if token in self.special]
            ids.append(rng.choice(marks if marks and rng.random() < 0.5 else allowed))
            if breaks and rng.random() < 0.1:
                ids[-1] = rng.randrange(self.tokenizer.vocab_size)
            constraint.push(ids[-1])
            reason = "stop" if ids[-1] in stops else "length"
        turn, shown = self.read(ids, grammar.rules, (), rng, reason)
        if breaks or constraint.problem:
            return "constrained: broken"
        kept = {*asked["strict"], *asked.get("forced", ())}
        assert {name for _, _, name in shown} <= {None, "f", "g"}
        if reason == "stop":
            for kind, text, name in shown:
                if (kind == "answer" and "answer_schema" in asked) or (kind == "call" and name in kept):
                    json.loads(text)
            assert not turn.parser.repairs or "answer_schema" not in asked
        if "forced" in asked:
            assert all(kind == "call" and name in asked["forced"] for kind, _, name in shown)
        return f"constrained: {turn.finish_reason}"


@contextmanager
def cases():
    """What bench/fuzz.py runs: a function of the seed."""
    streams = Streams()
    yield lambda seed: [streams.case(seed)]
