"""Answers and arguments that are kept to a JSON schema, while the reasoning stays free."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cgpt
from cgpt.chat import grammar
from cgpt.chat.grammar import GrammarCompiler, TurnConstraint, TurnGrammar
from cgpt.chat.messages import Tool
from cgpt.chat.parse import parse
from cgpt.chat.turn import Turn
from cgpt.errors import ChatError, InputError

from support.greedy import load_greedy
from support.serve_cases import serving

ADD = [{"role": "user", "content": "Please compute 10 + 5."}]
WEATHER = [{"role": "user", "content": "How is the weather in Chicago?"}]
SUM = {
    "type": "object",
    "properties": {"sum": {"type": "integer"}, "sure": {"enum": ["yes", "no"]}},
    "required": ["sum", "sure"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model():
    return load_greedy("demo-gpt-oss", precision="exact")


@pytest.fixture(scope="module")
def compiler(model):
    pytest.importorskip("llguidance")
    return GrammarCompiler(model)


@pytest.fixture(scope="module")
def client(model, compiler):
    with serving(model) as served:
        yield served.client()


def ask(client, messages=ADD, **options):
    options = {"temperature": 0, "max_tokens": 200} | options
    return client.chat.completions.create(model="demo", messages=messages, **options).choices[0]


def strict(parameters):
    function = {"name": "get_weather", "description": "Gets the weather in a city.", "parameters": parameters}
    return [{"type": "function", "function": function | {"strict": True}}]


def cities(*names):
    return {"type": "object", "properties": {"city": {"enum": list(names)}}, "required": ["city"]}


def test_the_answer_has_the_schema(client):
    form = {"type": "json_schema", "json_schema": {"name": "sum", "schema": SUM, "strict": True}}
    for seed in range(6):
        choice = ask(client, temperature=1.0, seed=seed, response_format=form)
        answer = json.loads(choice.message.content)
        assert isinstance(answer["sum"], int) and answer["sure"] in ("yes", "no") and len(answer) == 2
        assert choice.finish_reason == "stop"
    text = {"format": {"type": "json_schema", "name": "sum", "schema": SUM}}
    response = client.responses.create(model="demo", input="Please compute 10 + 5.", text=text)
    assert json.loads(response.output_text).keys() == {"sum", "sure"} and response.text.format.name == "sum"


def test_any_object(client):
    for seed in range(4):
        choice = ask(client, temperature=1.0, seed=seed, response_format={"type": "json_object"})
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content), dict)
        assert choice.message.content.startswith("{")


def test_the_reasoning_is_free(client):
    plain, kept = ask(client), ask(client, response_format={"type": "json_object"})
    assert kept.message.reasoning == plain.message.reasoning and plain.message.content == "15"


def test_arguments_have_the_schema_where_it_is_strict(client):
    choice = ask(client, WEATHER, tools=strict(cities("Paris", "Rome")))
    (call,) = choice.message.tool_calls
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome") and choice.finish_reason == "tool_calls"
    assert choice.message.reasoning == "I need the weather tool."
    forced = ask(client, WEATHER, tools=strict(cities("Oslo")), tool_choice="required")
    assert json.loads(forced.message.tool_calls[0].function.arguments)["city"] == "Oslo"
    two = strict(cities("Oslo")) + strict(cities("Rome"))
    two[1]["function"]["name"] = "get_wind"
    for seed in range(4):
        (call,) = ask(client, WEATHER, tools=two, tool_choice="required", temperature=2, seed=seed).message.tool_calls
        city = {"get_weather": "Oslo", "get_wind": "Rome"}[call.function.name]
        assert json.loads(call.function.arguments)["city"] == city
    loose = strict(cities("Oslo"))
    loose[0]["function"]["strict"] = False
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):  # forced, strict or not
        (call,) = ask(client, WEATHER, tools=loose, tool_choice=choice).message.tool_calls
        assert json.loads(call.function.arguments)["city"] == "Oslo"
    (call,) = ask(client, WEATHER, tools=loose).message.tool_calls
    assert json.loads(call.function.arguments)["city"] == "Chicago"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_forced_arguments_without_llguidance_are_free(client, monkeypatch, choice):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    tools = strict(cities("Oslo"))
    tools[0]["function"]["strict"] = False
    (call,) = ask(client, WEATHER, tools=tools, tool_choice=choice).message.tool_calls
    assert json.loads(call.function.arguments)["city"] == "Chicago"


def test_forced_arguments_have_the_named_properties_alone(model, compiler):
    """Where the schema does not say that there may be others, and neither that there may not."""
    for schema, is_open in ((cities("Oslo"), False), (cities("Oslo") | {"additionalProperties": True}, True)):
        constraint = TurnGrammar(compiler, [Tool("f", parameters=schema)], forced=["f"]).constraint()
        for token in model.tokenizer.encode('{"city": "Oslo"'):
            constraint.push(token)
        assert constraint.problem is None
        assert (model.tokenizer.encode(",")[0] in allowed_by(constraint, model)) == is_open


def test_forced_arguments_whose_schema_has_no_grammar(client):
    tools = strict({"type": "object", "properties": {"city": {"$ref": "http://x.invalid/"}}})
    with pytest.raises(openai.BadRequestError, match="no grammar"):
        ask(client, WEATHER, tools=tools, tool_choice="required")
    tools[0]["function"]["strict"] = False
    (call,) = ask(client, WEATHER, tools=tools, tool_choice="required").message.tool_calls
    assert isinstance(json.loads(call.function.arguments), dict)


def test_companions_are_not_kept_to_it(client, model):
    """Requests with and without a schema run in the same steps."""
    from concurrent.futures import ThreadPoolExecutor

    plain = ask(client).message.content
    with ThreadPoolExecutor(6) as pool:
        forms = [{"response_format": {"type": "json_object"}} if i % 2 else {} for i in range(6)]
        found = list(pool.map(lambda form: ask(client, **form).message.content, forms))
    assert found[::2] == [plain] * 3 and found[1::2] == [found[1]] * 3 and found[1].startswith("{")


@pytest.mark.parametrize(
    "form, message",
    [
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "number?"}}}, "no grammar"),
        ({"type": "json_schema", "json_schema": {"name": "a"}}, "schema is missing"),
        ({"type": "json_schema"}, "response_format.json_schema is missing"),
        ({"type": "xml"}, "response_format.type must be text, json_object"),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "http://x.invalid/"}}}, "no grammar"),
    ],
)
def test_schemas_that_cannot_be_kept(client, form, message):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, response_format=form)
    assert message in caught.value.message


def header(compiler, text="<|channel|>final<|message|>"):
    return compiler.tokenizer.encode(text, allowed_special="all")


def allowed_by(constraint, model):
    return np.flatnonzero(np.isfinite(constraint.mask(np.zeros(model.vocab_size, np.float32)))).tolist()


def test_only_what_the_grammar_allows_has_a_chance(model, compiler):
    """Followed by hand: reasoning free but for what would end it otherwise, then headers, the text, and its end."""
    special, encode = compiler.special, model.tokenizer.encode
    constraint = TurnGrammar(compiler, answer_schema={"const": 15}).constraint()
    assert allowed_by(constraint, model) == [special.channel]
    for token in header(compiler, "<|channel|>analysis<|message|>"):
        assert token in allowed_by(constraint, model)
        constraint.push(token)
    text = set(range(model.vocab_size)) - set(model.tokenizer.special_tokens.values())
    assert set(allowed_by(constraint, model)) == text | {special.end}
    for token in [*encode("{"), special.end, special.start, *encode("assistant"), *header(compiler)]:
        assert token in allowed_by(constraint, model)
        constraint.push(token)
    for digit in "15":
        assert encode(digit)[0] in allowed_by(constraint, model)
        assert special.return_ not in allowed_by(constraint, model)
        constraint.push(encode(digit)[0])
    assert allowed_by(constraint, model) == [special.return_]
    constraint.push(special.return_)
    logits = np.zeros(model.vocab_size, np.float32)
    assert constraint.mask(logits) is logits and constraint.problem is None


def test_nothing_is_constrained_where_nothing_is_asked_for(compiler):
    grammar = TurnGrammar(compiler, [Tool("f")])
    assert grammar.constraint() is None and grammar.rules.offered == {"functions.f"}
    assert not grammar.rules.has_schema and grammar.rules.prefix == ()


def test_forced_calls_share_a_prefix(model, compiler):
    """Of one tool all of its header, of several what they have in common; then one of the tools must follow."""
    tools = [Tool(name) for name in ("get_w", "get_wind", "ask")]
    one = TurnGrammar(compiler, tools, forced=["ask"])
    call = "<|channel|>commentary to=functions.{} <|constrain|>json<|message|>"
    assert list(one.rules.prefix) == header(compiler, call.format("ask"))
    several = TurnGrammar(compiler, tools, forced=["get_w", "get_wind", "ask"])
    prefix = list(several.rules.prefix)
    assert len(prefix) > 3 and header(compiler, call.format("get_w"))[: len(prefix)] == prefix
    for name in ("get_w", "get_wind", "ask"):
        constraint = several.constraint()
        for token in header(compiler, call.format(name))[len(prefix) :]:
            assert token in allowed_by(constraint, model) and len(allowed_by(constraint, model)) <= 3
            constraint.push(token)
        assert model.tokenizer.encode("{")[0] in allowed_by(constraint, model)


def test_a_grammar_that_gives_up_ends_the_message(model, compiler):
    for wrong in ("x", "<|start|>"):
        constraint = TurnGrammar(compiler, answer_schema=SUM).constraint()
        for token in header(compiler, f"<|channel|>final<|message|>{wrong}"):
            constraint.push(token)  # the last one is what the mask would not have let through
        assert allowed_by(constraint, model) == [compiler.special.return_] and constraint.problem


def test_a_request_whose_grammar_gives_up_is_told(client, monkeypatch):
    monkeypatch.setattr(
        TurnConstraint, "problem", property(lambda self: "too complex", lambda self, value: None), raising=False
    )
    with pytest.raises(openai.BadRequestError, match="could not be kept to its schema: too complex"):
        ask(client, response_format={"type": "json_object"})
    with pytest.raises(openai.BadRequestError, match="too complex"):
        client.chat.completions.create(
            model="demo", messages=ADD, response_format={"type": "json_object"}, stream=True, max_tokens=20
        )


def test_every_id_is_the_same_word_for_both(model, compiler):
    """llguidance's idea of each ordinary token is the tokenizer's; FF, in no text, is what it marks special ones by."""
    special, (_, words) = set(model.tokenizer.special_tokens.values()), compiler._llguidance
    for i in set(range(model.vocab_size)) - special:
        raw = model.tokenizer.token_bytes(i)
        assert words.decode_bytes([i]) == raw or raw == b"\xff"
    assert all(words.is_special_token(i) for i in special)
    assert parse(model.tokenizer, [compiler.special.return_]) == []


def test_without_what_it_needs(model, monkeypatch):
    with pytest.raises(ChatError):
        TurnGrammar(GrammarCompiler(cgpt.load("demo-gpt2")))
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(InputError, match="pip install llguidance"):
        TurnGrammar(GrammarCompiler(model), answer_schema=SUM)


def chain(length, leaf):
    """A schema whose definitions stand for one another, some levels deeper each time."""
    defs = {f"d{i}": {"items": {"items": {"$ref": f"#/$defs/d{i + 1}"}}, "type": "array"} for i in range(length)}
    return {"$defs": defs | {f"d{length}": leaf}, "$ref": "#/$defs/d0"}


@pytest.mark.parametrize(
    "schema, message",
    [
        (chain(5000, {"type": "null"}), "different \\$refs are"),  # beyond the end of the stack
        ({"properties": {f"p{i}": True for i in range(30_000)}}, "4096 different keys at most"),  # the same
        ({"const": {f"p{i}": 1 for i in range(60_000)}}, "4096 different keys at most"),
        ({"$ref": "#"}, "nothing that ends keeps to it"),
        (chain(2, {"$ref": "#/$defs/d0"}) | {"minItems": 1}, None),
        ({"$ref": "file:///etc/hostname"}, "not present in a registry"),
        ({"enum": []}, "Unsatisfiable"),
        ({"type": "integer", "multipleOf": 999_999_999}, "fuel exhausted"),
        ({"const": "\ud800"}, "hex escape"),
    ],
)
def test_schemas_that_would_take_the_server_down_are_refused(compiler, schema, message):
    if message is None:
        assert not compiler.compile(schema).is_error()
        return
    with pytest.raises(InputError, match=f"no grammar can be made of the schema: .*{message}"):
        compiler.compile(schema)


LEAVES = st.sampled_from(
    [{"type": "null"}, {"type": "boolean"}, {"enum": [1, "a", None]}, {"const": {"a": [1]}}, {"$ref": "#/$defs/d"},
     {"type": "string", "pattern": "^(a+)+b{2,3}$"}, {"type": "string", "maxLength": 3}, {"type": "bogus"},
     {"$ref": "#"}, {"type": "integer", "minimum": -3, "maximum": 40},
     {"type": "string", "format": "date"}, {"not": {}}, True, False]
)  # fmt: skip
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda a, b: {"type": "object", "properties": {"a": a, "b": b}, "required": ["a"]}, inner, inner),
        st.builds(lambda a, n: {"type": "array", "items": a, "maxItems": n}, inner, st.integers(0, 2)),
        st.builds(lambda key, a, b: {key: [a, b]}, st.sampled_from(["anyOf", "allOf", "oneOf"]), inner, inner),
        st.builds(lambda a: {"type": "object", "additionalProperties": a, "maxProperties": 1}, inner),
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(SCHEMAS, SCHEMAS, st.randoms(use_true_random=False))
def test_any_schema_is_refused_or_kept(compiler, schema, other, random):
    """A text of tokens at random among those that may come is JSON where it may end."""
    body = schema | {"$defs": {"d": other}} if isinstance(schema, dict) else schema
    try:
        constraint = TurnGrammar(compiler, answer_schema=body).constraint()
    except InputError:
        return
    logits, ids = np.zeros(compiler.tokenizer.vocab_size, np.float32), []
    for token in header(compiler):
        constraint.push(token)
    for _ in range(60):
        allowed = np.flatnonzero(np.isfinite(constraint.mask(logits))).tolist()
        end = compiler.special.return_
        token = end if end in allowed else random.choice(allowed)
        if token == end:
            break
        ids.append(token)
        constraint.push(token)
    else:
        return  # it may go on for ever
    if not constraint.problem:
        json.loads(compiler.tokenizer.decode(ids))


# ------------------------------------------------------------------------------- whatever the model would rather write

TOOLS = [Tool("sum", parameters=SUM), Tool("loose", parameters=SUM), Tool("get_wind")]
ASKED = [
    {"answer_schema": SUM},
    {"answer_schema": SUM, "strict": ["sum", "get_wind"]},
    {"strict": ["sum"]},
    {"forced": ["loose"]},
    {"forced": ["sum", "loose"], "answer_schema": SUM},
]


def written(model, grammar, random, length):
    """Ids that the constraint allows: at random, and special tokens more often than any model would write them."""
    constraint, ids = grammar.constraint(), []
    special = set(model.tokenizer.special_tokens.values())
    stops = {*model.eos_token_ids, *grammar.special.stops}
    while len(ids) < length:
        allowed = allowed_by(constraint, model)
        marks = [token for token in allowed if token in special]
        ids.append(random.choice(marks if marks and random.random() < 0.5 else allowed))
        constraint.push(ids[-1])
        assert constraint.problem is None
        if ids[-1] in stops:
            return ids, "stop"
    return ids, "length"


def is_sum(text):
    found = json.loads(text)
    return found.keys() == {"sum", "sure"} and isinstance(found["sum"], int) and found["sure"] in ("yes", "no")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from(ASKED), st.randoms(use_true_random=False), st.integers(1, 80))
def test_nothing_that_does_not_conform_comes_out(model, compiler, asked, random, length):
    """Whatever is written under the constraint, the turn shows conforming answers and arguments, and parts of these
    where the length cuts them."""
    grammar = TurnGrammar(compiler, TOOLS, **asked)
    ids, reason = written(model, grammar, random, length)
    turn = Turn(model, SimpleNamespace(ids=ids, constraint=None), grammar.rules)
    deltas = turn.advance(SimpleNamespace(num_ids=len(ids), finish_reason=reason))
    assert not turn.parser.repairs or reason == "length" or "answer_schema" not in asked
    for_user = "".join(delta.text for delta in deltas if delta.is_for_user)
    called = {delta.name for delta in deltas if delta.kind == "call"}
    assert called <= {"sum", "loose", "get_wind"}
    arguments = "".join(delta.text for delta in deltas if delta.kind == "call")
    kept = [(for_user, "answer_schema" in asked)]
    kept += [(arguments, bool(called & {*asked.get("strict", ()), *asked.get("forced", ())} - {"get_wind"}))]
    for text, has_schema in kept:
        if has_schema and turn.finish_reason == "length":
            assert compiler.compile(SUM).consume_tokens(model.tokenizer.encode(text))
        elif has_schema and (text or not called):
            assert is_sum(text)
    if "forced" in asked:
        assert called <= set(asked["forced"]) and for_user == "" and (called or reason == "length")
    if "answer_schema" in asked and reason == "stop":
        assert bool(for_user) != bool(called) and {delta.kind for delta in deltas} <= {"reasoning", "answer", "call"}
    if called and reason == "stop":
        assert turn.finish_reason == "tool_calls"


@pytest.mark.parametrize("likely", ["commentary", "<|start|>", "<|call|>", "<|endoftext|>", "<|return|>", " to", "x"])
def test_the_server_lets_nothing_else_out(client, model, likely):
    """A request whose bias makes the model want another header, or another end."""
    (token,) = model.tokenizer.encode(likely, allowed_special="all")
    options = {"temperature": 1.0, "logit_bias": {str(token): 20}, "max_tokens": 300}
    form = {"type": "json_schema", "json_schema": {"name": "sum", "schema": SUM, "strict": True}}
    for seed in range(3):
        choice = ask(client, WEATHER, response_format=form, seed=seed, **options)
        assert choice.finish_reason == "length" or is_sum(choice.message.content)
        assert not choice.message.tool_calls
        choice = ask(client, WEATHER, tools=strict(cities("Oslo")), seed=seed, **options)
        for call in choice.message.tool_calls or ():
            assert call.function.name == "get_weather"
            assert choice.finish_reason == "length" or json.loads(call.function.arguments)["city"] == "Oslo"


def test_a_schema_wins_over_a_call_that_was_not_offered(client):
    """The question asks for a tool, which the request has none of."""
    form = {"type": "json_schema", "json_schema": {"name": "sum", "schema": SUM, "strict": True}}
    for seed in range(4):
        choice = ask(client, WEATHER, temperature=0.7, seed=seed, response_format=form)
        assert choice.finish_reason == "stop" and is_sum(choice.message.content)


def test_a_model_without_eos_ids_chats(model):
    endless = SimpleNamespace(tokenizer=model.tokenizer, transformer=SimpleNamespace(eos_token_ids=()))
    assert TurnGrammar(GrammarCompiler(endless)).constraint() is None
    pytest.importorskip("llguidance")
    assert TurnGrammar(GrammarCompiler(endless), answer_schema=SUM).constraint() is not None
    plain = cgpt.load("demo-gpt2").tokenizer
    endless = SimpleNamespace(tokenizer=plain, transformer=SimpleNamespace(eos_token_ids=()))
    with pytest.raises(InputError, match="eos_token_id"):
        GrammarCompiler(endless).compile(SUM)


def test_what_was_compiled_is_kept(compiler, monkeypatch):
    """By the schema's text, the order of its properties too; the newest, and why there is none."""
    compiled, original = [], GrammarCompiler._matcher_or_problem
    noted = lambda self, key: compiled.append(key) or original(self, key)  # noqa: E731
    monkeypatch.setattr(GrammarCompiler, "_matcher_or_problem", noted)

    def is_new(schema):
        compiled.clear()
        compiler.compile(json.loads(json.dumps(schema)))
        return bool(compiled)

    schema, turned = ({"type": "object", "properties": dict.fromkeys(names, True)} for names in ("xy", "yx"))
    assert [is_new(one) for one in (schema, schema, turned, schema, turned)] == [True, False, True, False, False]
    monkeypatch.setattr(grammar, "CACHE_ENTRIES", 3)
    assert all(is_new({"const": i}) for i in (1234, 1235)) and not is_new(turned)
    assert is_new({"const": 1236}) and is_new(schema) and not is_new(turned)
    monkeypatch.setattr(grammar, "CACHE_TEXT", 3)
    compiler.compile(schema)
    assert all(is_new(one) for one in (schema, schema, turned))
    monkeypatch.setattr(grammar, "CACHE_TEXT", 1000)
    for expected in (True, False):
        with pytest.raises(InputError, match="Unsatisfiable"):
            is_new({"enum": ["a", {}], "type": "null"})
        assert bool(compiled) == expected


def test_the_schemas_of_a_turn_are_bounded_in_time(compiler, monkeypatch):
    tools = [Tool(f"f{i}", parameters={"const": i}) for i in range(3)]
    TurnGrammar(compiler, tools, strict=["f0", "f1", "f2"])
    monkeypatch.setattr(grammar, "MAX_SECONDS", -1.0)
    with pytest.raises(InputError, match="as far as f1"):
        TurnGrammar(compiler, tools, strict=["f1", "f2"])
    TurnGrammar(compiler, tools)
