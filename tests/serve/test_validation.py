"""What a client is told of a body that is wrong: which field, and nothing in pydantic's words."""

import pytest

from cgpt.serve.errors import ApiError
from cgpt.serve.openai.chat import ChatRequest
from cgpt.serve.openai.completions import CompletionRequest
from cgpt.serve.openai.responses import ResponseRequest
from cgpt.serve.validation import validate

BOUNDS = {
    "models": ["demo"], "max_token_id": 99, "max_tokens": 50, "max_token_limit": 50, "unlimited": None, "strict": True,
    "n": 4, "requests": 8, "logprobs": 5, "stops": 2,
    "stop_length": 9, "logit_biases": 3, "messages": 4, "tools": 2, "schema_depth": 4,
}  # fmt: skip
DEEP = {"a": {"b": {"c": {"d": {}}}}}
SCHEMA = {"type": "json_schema"}
SAID = {"role": "user", "content": "a"}


def chat(*messages, **fields):
    return ChatRequest, {"messages": [*messages] or [SAID], **fields}


def respond(*items, **fields):
    return ResponseRequest, {"input": [*items] or "a", **fields}


def function(**fields):
    return {"type": "function", "function": {"name": "f", **fields}}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        # Keys that look like the tags by which the members of a union are told apart.
        (chat({"role": "user", "content": [{"type": "x", "text": "a"}]}), "messages[0].content[0].type"),
        (chat({"role": "assistant", "assistant": "a", "content": 3}), "messages[0].content"),
        (chat({"role": "user", "list": [], "content": ["a"]}), "messages[0].content[0]"),
        (chat(SAID, {"role": "tool", "tool": "a", "text": "a"}), "messages[1].tool_call_id"),
        (chat(SAID, {"content": "a"}), "messages[1].role"),
        (respond({"type": "reasoning", "reasoning": "a", "content": 3}), "input[0].content"),
        (respond({"role": "user", "text": "a", "content": [{"type": "text"}]}), "input[0].content[0].text"),
        (respond({"type": "function_call_output", "output": []}), "input[0].call_id"),
        (chat(response_format=SCHEMA | {"json_schema": {"schema": 3}}), "response_format.json_schema.schema"),
        (chat(response_format=SCHEMA), "response_format.json_schema"),
        (respond(text={"format": SCHEMA | {"json_schema": {}}}), "text.format.schema"),
        # Each error names its field as all others do.
        (chat(tools=[function(), function(parameters=DEEP)]), "tools[1].function.parameters"),
        (respond(tools=[{"name": "f", "parameters": DEEP}]), "tools[0].parameters"),
        (respond(text={"format": {"type": "json_schema", "schema": DEEP}}), "text.format.schema"),
        (chat(tools=[3]), "tools[0]"),
        (chat(tempratur=1), "tempratur"),
        (chat(stream=True, stream_options={"usage": True}), "stream_options.usage"),
        (chat(logit_bias={"1": 2, "3": 101}), "logit_bias.3"),
        (chat(max_tokens=3, max_completion_tokens=4), "max_tokens"),
        (chat(tool_choice={"type": "function", "function": {}}, tools=[function()]), "tool_choice.function.name"),
        ((CompletionRequest, {}), "prompt"),
        ((CompletionRequest, {"prompt": "a", "n": 3, "best_of": 2}), "best_of"),
    ],
)  # fmt: skip
def test_the_field_that_is_wrong_is_named(body, param):
    with pytest.raises(ApiError) as refused:
        validate(*body, BOUNDS)
    assert refused.value.param == param and str(refused.value).startswith(param)
    assert "Input should" not in str(refused.value) and "pydantic" not in str(refused.value)


def test_a_wrong_value_says_more_than_a_missing_one():
    with pytest.raises(ApiError, match=r"tools\[0\].type must be function"):
        validate(*respond(tools=[{"type": "web_search"}]), BOUNDS)


def test_the_first_wrong_entry_ends_the_reading():
    """A body may hold a million of them."""
    read = []

    class Part(dict):
        def get(self, key, default=None):
            read.append(key)
            return super().get(key, default)

    for body in (chat(*[{"role": "user", "content": [Part(type="x") for _ in range(50)]}] * 4), respond(*[Part()] * 4)):
        with pytest.raises(ApiError):
            validate(*body, BOUNDS)
        assert 0 < len(read) < 5
        read.clear()


def test_long_values_are_shortened():
    with pytest.raises(ApiError) as refused:
        validate(*chat(temperature="hot" * 1000), BOUNDS)
    assert len(str(refused.value)) < 200
    with pytest.raises(ApiError) as refused:
        validate(*chat(**{"k" * 1000: 1}), BOUNDS)
    assert len(str(refused.value)) < 200


def test_null_is_as_good_as_absent():
    body = validate(
        ChatRequest, {"messages": [SAID | {"name": None}], "n": None, "stop": None, "made_up": None}, BOUNDS
    )
    assert body == validate(ChatRequest, {"messages": [SAID]}, BOUNDS) and (body.n, body.stop) == (1, [])
    assert validate(*chat(logit_bias={"1": None, "2": 3}), BOUNDS).logit_bias == {2: 3.0}


def test_true_is_no_number():
    for fields in ({"n": True}, {"temperature": False}, {"logit_bias": {"1": True}}, {"stream": 1}):
        with pytest.raises(ApiError):
            validate(*chat(**fields), BOUNDS)


def test_zero_is_an_option():
    """What is 0 is not dropped, whatever the default would be."""
    zero = {"temperature": 0, "top_logprobs": 0}
    given = {"include": ["message.output_text.logprobs"], "max_output_tokens": 1}
    params = validate(*respond(**zero, **given), BOUNDS).params(50)
    assert (params.temperature, params.logprobs, params.max_new_tokens) == (0, 0, 1)
    zero |= dict.fromkeys(("min_p", "presence_penalty", "frequency_penalty", "seed"), 0)
    params = validate(*chat(logprobs=True, **zero), BOUNDS).params(50)
    zero["logprobs"] = zero.pop("top_logprobs")
    assert {name: getattr(params, name) for name in zero} == zero
