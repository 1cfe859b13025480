"""Answers and arguments that are kept to a JSON schema, while the reasoning stays free."""

import json
import sys

import numpy as np
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cgpt
from cgpt.chat.grammar import Beginning, Grammars, Guide
from cgpt.chat.parse import parse
from cgpt.errors import ChatError, InputError

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
    return cgpt.load("demo-gpt-oss", precision="exact")


@pytest.fixture(scope="module")
def grammars(model):
    pytest.importorskip("llguidance")
    return Grammars(model.tokenizer)


@pytest.fixture(scope="module")
def client(model, grammars):
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
    free = strict(cities("Oslo"))
    free[0]["function"]["strict"] = False
    choice = ask(client, WEATHER, tools=free, tool_choice="required")
    assert json.loads(choice.message.tool_calls[0].function.arguments)["city"] != "Oslo"


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
        ({"type": "json_schema"}, "response_format.type must be text, json_object or json_schema with a schema"),
        ({"type": "xml"}, "response_format.type must be text, json_object"),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "http://x.invalid/"}}}, "no grammar"),
    ],
)
def test_schemas_that_cannot_be_kept(client, form, message):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, response_format=form)
    assert message in caught.value.message


def seed(grammars):
    """The ids that begin the final message."""
    return [grammars.special.channel, *grammars.tokenizer.encode("final"), grammars.special.message]


def test_only_what_the_grammar_allows_has_a_chance(model, grammars):
    """Followed by hand: header free, then only the text, then only the end."""
    special, encode = grammars.special, model.tokenizer.encode
    guide = Guide(grammars, grammars.compile({"const": 15}), {}, [])
    logits = np.zeros(model.vocab_size, np.float32)

    def allowed():
        return np.flatnonzero(np.isfinite(guide.mask(logits))).tolist()

    for token in [
        special.channel,
        *encode("analysis"),
        special.message,
        *encode("{"),
        special.end,
        special.start,
        *encode("assistant"),
        special.channel,
        *encode("final"),
    ]:
        assert guide.mask(logits) is logits
        guide.push(token)
    guide.push(special.message)
    for digit in "15":
        assert encode(digit)[0] in allowed() and special.return_ not in allowed()
        guide.push(encode(digit)[0])
    assert allowed() == [special.return_]
    guide.push(special.return_)
    assert guide.mask(logits) is logits and guide.problem is None


def test_one_of_several_beginnings():
    guide, logits = Beginning([[1, 2, 3, 5], [1, 2, 4], [1, 2, 3, 6, 7]]), np.zeros(9, np.float32)
    assert guide.seed == [1, 2] and guide.problem is None
    for token, expected in ((3, [3, 4]), (6, [5, 6]), (7, [7])):
        assert np.flatnonzero(np.isfinite(guide.mask(logits))).tolist() == expected
        guide.push(token)
    assert guide.mask(logits) is logits
    assert Beginning([]).seed == []


def test_a_grammar_that_gives_up_ends_the_message(model, grammars):
    special = grammars.special
    guide = Guide(grammars, grammars.compile(SUM), {}, seed(grammars))
    guide.push(model.tokenizer.encode("x")[0])  # what the mask would not have let through
    assert np.flatnonzero(np.isfinite(guide.mask(np.zeros(model.vocab_size, np.float32)))).tolist() == [special.return_]
    assert guide.problem


def test_a_request_whose_grammar_gives_up_is_told(client, monkeypatch):
    monkeypatch.setattr(Guide, "problem", property(lambda self: "too complex", lambda self, value: None), raising=False)
    with pytest.raises(openai.BadRequestError, match="could not be kept to its schema: too complex"):
        ask(client, response_format={"type": "json_object"})
    with pytest.raises(openai.BadRequestError, match="too complex"):
        client.chat.completions.create(
            model="demo", messages=ADD, response_format={"type": "json_object"}, stream=True, max_tokens=20
        )


def test_every_id_is_the_same_word_for_both(model, grammars):
    """llguidance's idea of each ordinary token is the tokenizer's; FF, in no text, is what it marks special ones by."""
    special = set(model.tokenizer.special_tokens.values())
    for i in set(range(model.vocab_size)) - special:
        raw = model.tokenizer.token_bytes(i)
        assert grammars._words.decode_bytes([i]) == raw or raw == b"\xff"
    assert all(grammars._words.is_special_token(i) for i in special)
    assert parse(model.tokenizer, [grammars.special.return_]) == []


def test_without_what_it_needs(model, monkeypatch):
    with pytest.raises(ChatError):
        Grammars(cgpt.load("demo-gpt2").tokenizer)
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(InputError, match=r"pip install 'cgpt\[grammar\]'"):
        Grammars(model.tokenizer)


def chain(length, leaf):
    """A schema whose definitions stand for one another, some levels deeper each time."""
    defs = {f"d{i}": {"items": {"items": {"$ref": f"#/$defs/d{i + 1}"}}, "type": "array"} for i in range(length)}
    return {"$defs": defs | {f"d{length}": leaf}, "$ref": "#/$defs/d0"}


@pytest.mark.parametrize(
    "schema, message",
    [
        (chain(5000, {"type": "null"}), "different \\$refs are"),  # beyond the end of the stack
        ({"$ref": "#"}, "nothing that ends keeps to it"),
        (chain(2, {"$ref": "#/$defs/d0"}) | {"minItems": 1}, None),
        ({"$ref": "file:///etc/hostname"}, "not present in a registry"),
        ({"enum": []}, "Unsatisfiable"),
        ({"type": "integer", "multipleOf": 999_999_999}, "fuel exhausted"),
        ({"const": "\ud800"}, "hex escape"),
    ],
)
def test_schemas_that_would_take_the_server_down_are_refused(grammars, schema, message):
    if message is None:
        assert not grammars.compile(schema).is_error()
        return
    with pytest.raises(InputError, match=f"no grammar can be made of the schema: .*{message}"):
        grammars.compile(schema)


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
def test_any_schema_is_refused_or_kept(grammars, schema, other, random):
    """A text of tokens at random among those that may come is JSON where it may end."""
    body = schema | {"$defs": {"d": other}} if isinstance(schema, dict) else schema
    try:
        guide = Guide(grammars, grammars.compile(body), {}, seed(grammars))
    except InputError:
        return
    logits, ids = np.zeros(grammars.tokenizer.vocab_size, np.float32), []
    for _ in range(60):
        allowed = np.flatnonzero(np.isfinite(guide.mask(logits))).tolist()
        end = grammars.special.return_
        token = end if end in allowed else random.choice(allowed)
        if token == end:
            break
        ids.append(token)
        guide.push(token)
    else:
        return  # it may go on for ever
    if not guide.problem:
        json.loads(grammars.tokenizer.decode(ids))
