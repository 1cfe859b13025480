"""Keeps a turn to JSON schemas: the final answer of a chat, and the arguments of calls. What the model thinks before
stays free. By llguidance, the extra [grammar].

A TurnConstraint knows where in the turn the model is, and says which ids may come next. Where a message begins these
are the headers in the forms that gpt-oss was trained on, each of a kind (cgpt.chat.turn.message_kind) that is allowed;
within a message, what its schema allows, or any text. Special tokens that would begin another message or end the turn
too early have no chance anywhere, so there is nothing for the parser to repair.
"""

from __future__ import annotations

import importlib.util
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from os.path import commonprefix
from typing import Any, Literal, Union

import numpy as np
import numpy.typing as npt

from cgpt.chat.messages import CHANNELS, CONSTRAIN, SpecialTokens, Tool
from cgpt.chat.parse import Header
from cgpt.chat.turn import Kind, TurnRules, message_kind
from cgpt.errors import InputError
from cgpt.fields import json_levels
from cgpt.generation.request import TextModel
from cgpt.models.base import Floats
from cgpt.tokenizer.tokenizer import Tokenizer

JSON_OPTIONS = {"whitespace_pattern": r"[ \n]{0,8}"}  # no endless blanks
MAX_NESTING = 1024  # llguidance goes down by recursion, and at some 1,500 levels beyond the end of the stack
MAX_KEYS = 4096  # different keys in a schema: llguidance goes down once for each, and takes the square of their number
MAX_TEXT = 16 << 10  # characters of a regular expression or grammar: 16,000 of "a?a?a?.." took 0.2 GB, 60,000 1.8 GB
MAX_SECONDS = 10.0  # of one core, for the schemas of a turn; the one that goes beyond may take a second
CACHE_TEXT, CACHE_ENTRIES = 2 << 20, 512  # characters, of which a compiled schema takes some hundred bytes each
NO_ARGUMENTS = {"type": "object", "additionalProperties": False}
CALL_TYPES = (f"{CONSTRAIN}json", "json", "code", None)  # content types that the model writes into headers
ANSWER_TYPES = (None, f"{CONSTRAIN}json", "json")


@dataclass(frozen=True)
class Grammar:
    """What a text must be, other than JSON of a schema. text: a regular expression, a JSON list of the texts to choose
    from, or a grammar in GBNF or Lark."""

    kind: Literal["regex", "choice", "grammar"]
    text: str


class GrammarCompiler:
    """Makes grammars of JSON schemas, and of others, for one model. InputError, with the first schema, where
    llguidance is not installed."""

    def __init__(self, model: TextModel) -> None:
        self.tokenizer = model.tokenizer
        self.eos_token_ids = frozenset(model.transformer.eos_token_ids)
        returns = [i for name, i in self.tokenizer.special_tokens.items() if name == "<|return|>"]
        self.end = min(self.eos_token_ids or returns, default=None)  # what llguidance takes for the end of a text
        self._compiled: OrderedDict[str | Grammar, Any] = OrderedDict()  # matchers, or why there is none; newest last
        self._lock = threading.Lock()

    @cached_property
    def special(self) -> SpecialTokens:
        """Harmony's tokens; ChatError where the vocabulary lacks them."""
        return SpecialTokens(self.tokenizer)

    @cached_property
    def _llguidance(self) -> Any:
        """The module, and its idea of the vocabulary, which takes a second for a large one."""
        try:
            import llguidance
        except ImportError:
            raise InputError("keeping to a schema needs llguidance: pip install llguidance") from None
        if self.end is None:
            raise InputError("no grammar can be made: the model has no token that ends a text (no eos_token_id)")
        words = llguidance.TokenizerWrapper(_Words(self.tokenizer, self.end))
        return llguidance, llguidance.LLTokenizer(words, n_vocab=self.tokenizer.vocab_size)

    def compile(self, schema: Any) -> Any:
        """The llguidance matcher of a schema or Grammar, at its beginning; InputError says what llguidance cannot do.

        All that takes long happens here, up to a second for thousands of properties: following a text copies it. What
        was compiled is kept for whoever asks next, the newest of it.
        """
        llguidance = self._llguidance[0]
        if (levels := _nesting(schema)) > MAX_NESTING:
            why = f"its levels times its different $refs are {levels}; at most {MAX_NESTING}"
            raise InputError(f"no grammar can be made of the schema: {why}")
        _require_small(schema)
        key = schema if isinstance(schema, Grammar) else json.dumps(schema)
        with self._lock:
            found = self._compiled.pop(key, None)
        if found is None:
            found = self._matcher_or_problem(key)
        with self._lock:
            if _length(key) <= CACHE_TEXT:
                self._compiled[key] = found
            while len(self._compiled) > CACHE_ENTRIES or sum(map(_length, self._compiled)) > CACHE_TEXT:
                self._compiled.popitem(last=False)
        if isinstance(found, llguidance.LLMatcher):
            return found.deep_copy()
        raise InputError(f"no grammar can be made of the schema: {found}")

    def _matcher_or_problem(self, key: str | Grammar) -> Any:
        """What a Grammar, or a schema as JSON text, is compiled to, or why it cannot be."""
        llguidance, words = self._llguidance
        try:
            if isinstance(key, Grammar):
                grammar = llguidance.grammar_from(key.kind, key.text)
            else:
                grammar = llguidance.LLMatcher.grammar_from_json_schema(key, overrides=JSON_OPTIONS)
            matcher = llguidance.LLMatcher(words, grammar, log_level=0)
            matcher.compute_bitmask()  # some find out here only that nothing can be written
            return _error(matcher) or matcher
        except ValueError as failed:
            return str(failed)[:300]


def _length(key: str | Grammar) -> int:
    return len(key.text if isinstance(key, Grammar) else key)


def _error(matcher: Any) -> str | None:
    """What a matcher had to give up for, without the dump of its state that follows; None if it did not."""
    if not matcher.is_error():
        return None
    problem = str(matcher.get_error() or "unknown").partition("\n<state>")[0][:300]
    return "nothing that ends keeps to it" if problem == "NoExtensionBias" else problem


def _require_small(grammar: Any) -> None:
    """Raises InputError for a schema or Grammar that might take llguidance beyond the end of the stack, which ends the
    process, or take more memory than there is. Rules that name the next one are as deep as there are rules."""
    if not isinstance(grammar, Grammar):
        objects = [one for level in json_levels(grammar) for one in level if isinstance(one, dict)]
        found = sum(len(one["pattern"]) for one in objects if isinstance(one.get("pattern"), str))
        if found > MAX_TEXT:
            raise InputError(f"the patterns of a schema have {MAX_TEXT} characters at most, found {found}")
        if (keys := len(set().union(*objects))) > MAX_KEYS:
            raise InputError(f"no grammar can be made of the schema: {MAX_KEYS} different keys at most, found {keys}")
        return
    if grammar.kind == "choice":
        return
    if len(grammar.text) > MAX_TEXT:
        raise InputError(f"a {grammar.kind} has {MAX_TEXT} characters at most, found {len(grammar.text)}")
    marks = sum(map(grammar.text.count, ":(["))  # of rules, JSON's keys, and groups
    if grammar.kind == "grammar" and marks > MAX_NESTING:
        raise InputError(f"a grammar has {MAX_NESTING} of the marks : ( [ at most, found {marks}")


def _nesting(schema: Any) -> int:
    """How deep a schema can be at most with its $refs followed, each of them once on the way down."""
    levels = list(json_levels(schema))
    objects = [one for level in levels for one in level if isinstance(one, dict)]
    refs = {one["$ref"] for one in objects if isinstance(one.get("$ref"), str)}
    return len(levels) * (len(refs) + 1)


class _Words:
    """A tokenizer as llguidance wants it."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, end: int) -> None:
        self.eos_token_id = end
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.special_tokens.values())
        self._encode = tokenizer.encode_part

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text.decode("utf-8") if isinstance(text, bytes) else text)


@dataclass(frozen=True)
class Content:
    """What a message may hold: what `matcher` allows, or any text where it is None. ends: the ids that may end it.
    forbidden: the other special tokens and ids that end a request."""

    matcher: Any
    ends: tuple[int, ...]
    forbidden: npt.NDArray[np.int64]


# Where a turn is: within a header, and then which ids may come and where they lead; within a content; or at its end.
State = Union["Trie", Content, None]
Trie = dict[int, State]


class TurnGrammar:
    """What one turn may consist of; shared by the choices of a request.

    rules: for the Turn that reads it. The prompt ends with rules.prefix: what all beginnings have in common, where a
    call is forced. start: the state after that. after_end: the state after a message that <|end|> has ended.
    matcher_end: the id that a matcher allows where its text is complete.
    """

    def __init__(
        self,
        compiler: GrammarCompiler,
        tools: Collection[Tool] = (),
        *,
        answer_schema: Any = None,
        strict: Collection[str] = (),
        forced: Collection[str] = (),
    ) -> None:
        """tools: those that are offered, as functions. answer_schema: of the final answer; None leaves it free. strict:
        names of tools whose arguments conform to their schemas. forced: names of tools one of which must be called at
        once; their arguments conform too, strict or not, wherever llguidance is installed (being any JSON object, if no
        grammar can be made of a schema that is not strict). InputError where a grammar cannot be made."""
        self.special, self.matcher_end, self._encode = compiler.special, compiler.end, compiler.tokenizer.encode_part
        self._answer = None if answer_schema is None else compiler.compile(answer_schema)
        kept = {*strict, *forced} if importlib.util.find_spec("llguidance") else strict
        self._arguments: dict[str, Any] = {}
        began = time.thread_time()
        for tool in [tool for tool in tools if tool.name in kept]:
            if time.thread_time() - began > MAX_SECONDS:
                raise InputError(
                    f"compiling the schemas of strict tools took {MAX_SECONDS:g} seconds, as far as {tool.name}; "
                    "offer fewer or smaller ones, or ask once more: what was compiled is kept"
                )
            self._arguments[f"functions.{tool.name}"] = _arguments(compiler, tool, tool.name in strict)
        stops = compiler.eos_token_ids.union(self.special.stops)
        self._markup = stops.union(compiler.tokenizer.special_tokens.values())
        self._stops = frozenset() if answer_schema is not None else stops  # what may end a turn without an answer
        self.is_free = answer_schema is None and not self._arguments and not forced
        self.rules = TurnRules(frozenset(f"functions.{tool.name}" for tool in tools), answer_schema is not None)
        headers = [] if self.is_free else list(self._headers())
        begin = [self.special.start, *self._encode("assistant")]
        self.after_end = _trie(
            [*((begin + ids, content) for ids, content in headers), *(([i], None) for i in self._stops)]
        )
        if forced:
            calls = [f"functions.{name}" for name in forced]
            headers = [(self._ids("commentary", name, CALL_TYPES[0]), self._content("call", name)) for name in calls]
            self.rules = replace(self.rules, prefix=tuple(commonprefix([ids for ids, _ in headers])))
        self.start = _trie((ids[len(self.rules.prefix) :], content) for ids, content in headers)

    def constraint(self) -> TurnConstraint | None:
        """The constraint of a request that begins now; None where nothing is to be constrained."""
        return None if self.is_free else TurnConstraint(self)

    def _headers(self) -> Iterator[tuple[list[int], Content]]:
        """The ids of each header that may come after <|start|>assistant, and what follows it."""
        offered = self.rules.offered
        for channel, recipient in product(CHANNELS, (None, *sorted(offered))):
            kind = message_kind(Header("assistant", None, channel, recipient), offered, self.rules.has_schema)
            if kind == "malformed" or (kind == "call" and channel != "commentary"):
                continue
            content = self._content(kind, recipient)
            types = CALL_TYPES if kind == "call" else ANSWER_TYPES if kind == "answer" else (None,)
            for content_type, is_first in product(types, (True, False) if recipient else (False,)):
                yield self._ids(channel, recipient, content_type, is_first), content

    def _ids(self, channel: str, recipient: str | None, content_type: str | None, is_first: bool = False) -> list[int]:
        """A header in the model's own form. is_first: the recipient stands before the channel, not behind it."""
        to = f" to={recipient}" if recipient else ""
        before, behind = (to, channel) if is_first else ("", channel + to)
        plain, constrain, constrained = f" {content_type or ''}".rstrip().partition(CONSTRAIN)
        ids = [*self._encode(before), self.special.channel, *self._encode(behind + plain)]
        if constrain:
            ids += [self.special.constrain, *self._encode(constrained)]
        return [*ids, self.special.message]

    def _content(self, kind: Kind, recipient: str | None) -> Content:
        if kind == "call":
            matcher, ends = self._arguments.get(recipient or ""), {self.special.call}
        elif kind == "answer" and self._answer is not None:
            matcher, ends = self._answer, {self.special.return_}
        else:
            matcher, ends = None, {self.special.end, *self._stops}
        return Content(matcher, tuple(ends), np.array(list(self._markup - ends), np.int64))


def _arguments(compiler: GrammarCompiler, tool: Tool, is_strict: bool) -> Any:
    """The matcher of the tool's arguments. Where it is not strict, they have no properties that the schema does not
    name, lest a model goes on inventing some; and they are any object, if the schema has no grammar."""
    schema = tool.parameters or NO_ARGUMENTS
    closed = [{"additionalProperties": False} | schema] if "properties" in schema else []
    *first, last = [schema] if is_strict else [*closed, schema, {"type": "object"}]
    for one in first:
        try:
            return compiler.compile(one)
        except InputError:
            pass
    return compiler.compile(last)


def _trie(paths: Iterable[tuple[list[int], State]]) -> State:
    """The state from which each path of ids leads to its state. No path is the beginning of another."""
    root: Trie = {}
    for ids, state in paths:
        if not ids:
            return state
        node = root
        for token_id in ids[:-1]:
            child = node.setdefault(token_id, {})
            assert isinstance(child, dict)
            node = child
        node[ids[-1]] = state
    return root


class TurnConstraint:
    """A LogitsConstraint: follows one turn, and says which ids may come next.

    problem: why a matcher had to give up, None as long as it holds; the message then ends.
    """

    def __init__(self, grammar: TurnGrammar) -> None:
        self.problem: str | None = None
        self._grammar = grammar
        self._enter(grammar.start)

    def mask(self, logits: Floats) -> Floats:
        """The float32 logits [V], -infinity for the ids that may not come; `logits` itself is not changed."""
        state = self._state
        if state is None:
            return logits
        if isinstance(state, dict):
            allowed = np.zeros(len(logits), bool)
            allowed[list(state)] = True
        elif self._matcher is None:
            allowed = np.ones(len(logits), bool)
            allowed[state.forbidden] = False
        else:
            allowed = self._matched(state, len(logits))
        return np.where(allowed, logits, np.float32(-np.inf))

    def _matched(self, state: Content, vocab_size: int) -> npt.NDArray[np.bool_]:
        """Which ids the matcher allows, [V]: text, and the message's end where the text is complete."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, count=vocab_size, bitorder="little").astype(bool)
        is_complete = allowed[self._grammar.matcher_end]
        allowed[state.forbidden] = False
        allowed[list(state.ends)] = is_complete
        if problem := _error(self._matcher) or (None if allowed.any() else "no token may come next"):
            self.problem = problem
            allowed[:] = False
            allowed[list(state.ends)] = True
        return allowed

    def push(self, token_id: int) -> None:
        """Takes the id that was chosen."""
        state = self._state
        if isinstance(state, dict) and token_id in state:
            self._enter(state[token_id])
        elif isinstance(state, Content) and token_id in state.ends:
            self._enter(self._grammar.after_end if token_id == self._grammar.special.end else None)
        elif isinstance(state, dict) or (state is not None and not self._consume(state, token_id)):
            self.problem = (self._matcher and _error(self._matcher)) or "a token came that was not allowed"
            self._enter({self._grammar.special.return_: None})

    def _consume(self, state: Content, token_id: int) -> bool:
        is_text = token_id not in state.forbidden
        return is_text and (self._matcher is None or bool(self._matcher.consume_token(token_id)))

    def _enter(self, state: State) -> None:
        self._state = state
        matcher = state.matcher if isinstance(state, Content) else None
        self._matcher: Any = matcher.deep_copy() if matcher is not None else None


class TextConstraint:
    """A LogitsConstraint: keeps a whole text, no turn, to a schema or Grammar, and lets it end when complete."""

    def __init__(self, compiler: GrammarCompiler, matcher: Any) -> None:
        """matcher: as compiler.compile() gives it; a copy follows the text."""
        self._matcher = matcher.deep_copy()
        self._ends = list(compiler.eos_token_ids)
        self._end = compiler.end
        self._special = list(compiler.tokenizer.special_tokens.values())

    def mask(self, logits: Floats) -> Floats:
        """The float32 logits [V], -infinity for the ids that may not come."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, count=len(logits), bitorder="little").astype(bool)
        is_complete = allowed[self._end]
        allowed[self._special] = False
        allowed[self._ends] = is_complete or not allowed.any()
        return np.where(allowed, logits, np.float32(-np.inf))

    def push(self, token_id: int) -> None:
        """Takes the id that was chosen."""
        if token_id not in self._ends:
            self._matcher.consume_token(token_id)
