"""/v1/messages and /v1/messages/count_tokens: Anthropic's API over the same turn as OpenAI's."""

import asyncio
import base64
import json
from itertools import groupby

import pytest

import cgpt
from cgpt.errors import NumericsError
from cgpt.generation.engine import Job
from cgpt.serve import stream
from cgpt.serve.limits import Limits
from cgpt.serve.openapi import IGNORED

from support.chat_cases import CALL, FINAL, scripted
from support.serve_cases import serving

MESSAGES, COUNT, CHAT = "/v1/messages", "/v1/messages/count_tokens", "/v1/chat/completions"
WEATHER = [{"role": "user", "content": "How is the weather in Chicago?"}]
ADD = [{"role": "user", "content": "Please compute 10 + 5."}]
GOOD = {"messages": WEATHER, "max_tokens": 100}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"name": "get_weather", "description": "Gets the weather.", "input_schema": SCHEMA}
FUNCTION = {"name": "get_weather", "description": "Gets the weather.", "parameters": SCHEMA}
THOUGHT = "<|channel|>analysis<|message|>I plan.<|end|><|start|>assistant"
PREAMBLE = "<|channel|>commentary<|message|>One moment.<|end|><|start|>assistant"
ENABLED = {"type": "enabled", "budget_tokens": 1024}
SEALED = base64.b64encode(b"I plan.").decode()


@pytest.fixture(scope="module")
def model():
    return cgpt.load("demo-gpt-oss", precision="exact")


@pytest.fixture(scope="module")
def served(model):
    with serving(model, limits=Limits(max_tokens=400), names=("demo", "claude-sonnet-4-5")) as served:
        yield served


@pytest.fixture(scope="module")
def strict(model):
    with serving(model, limits=Limits(max_tokens=400), strict=True) as served:
        yield served


def answer(served, path=MESSAGES, headers=(), **fields):
    """The answer of a request that must be taken; a message without its id and usage."""
    status, _, found = served.post(path, GOOD | fields, headers)
    assert status == 200, found
    return found


def refusal(served, status=400, path=MESSAGES, headers=(), **fields):
    """The error of a request that must be refused with this status."""
    found, _, body = served.post(path, GOOD | fields, headers)
    return error_of(found, body, status)


def error_of(found, body, status):
    assert found == status and set(body) == {"type", "error"} and body["type"] == "error", body
    assert set(body["error"]) == {"type", "message", "details"}
    return body["error"]


def events_of(text):
    """The events of a stream, each of which has its name once more inside."""
    blocks = [block.split("\n") for block in text.split("\n\n") if block and not block.startswith(":")]
    found = [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]
    assert all(data["type"] == name for name, data in found)
    return [data for _, data in found]


def message_of(events):
    """The message that a client makes of the events."""
    first, *middle, delta, last = [event for event in events if event["type"] != "ping"]
    assert [first["type"], delta["type"], last] == ["message_start", "message_delta", {"type": "message_stop"}]
    message = first["message"]
    assert message["content"] == [] and message["stop_reason"] is None
    for event in middle:
        content, kind = message["content"], event["type"]
        if kind == "content_block_start":
            assert event["index"] == len(content)
            content.append(event["content_block"])
            text = ""
        elif kind == "content_block_delta":
            assert event["index"] == len(content) - 1
            kind, part = event["delta"].values()
            key = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}.get(kind)
            if key:
                content[-1][key] += part
            else:
                text += part
        else:
            assert kind == "content_block_stop" and event["index"] == len(content) - 1
            if content[-1]["type"] == "tool_use":
                content[-1]["input"] = json.loads(text)
    return message | delta["delta"] | {"usage": delta["usage"]}


def said(message):
    return {key: value for key, value in message.items() if key not in ("id", "usage")}


# ----------------------------------------------------------------------------------------------------- the answer


def test_a_stream_has_anthropics_events(monkeypatch, model, served):
    turn = THOUGHT + PREAMBLE + CALL.format('{"city": "Rome"}')
    scripted(monkeypatch, model, turn, turn)
    whole = answer(served, tools=[TOOL], thinking=ENABLED)
    call = whole["content"][2]
    assert whole["content"] == [
        {"type": "thinking", "thinking": "I plan.", "signature": SEALED},
        {"type": "text", "text": "One moment."},
        {"type": "tool_use", "id": call["id"], "name": "get_weather", "input": {"city": "Rome"}},
    ]
    assert (whole["type"], whole["role"], whole["model"]) == ("message", "assistant", "demo")
    assert (whole["stop_reason"], whole["stop_sequence"]) == ("tool_use", None)
    events = events_of(answer(served, tools=[TOOL], thinking=ENABLED, stream=True))
    streamed = message_of(events)
    assert streamed["content"][2]["id"] != call["id"]
    streamed["content"][2]["id"] = call["id"]
    assert said(streamed) == said(whole)
    kinds = [event.get("delta", {}).get("type", event["type"]) for event in events]
    block = ["content_block_start", "{}_delta", "content_block_stop"]
    assert [kind for kind, _ in groupby(kinds)] == [
        "message_start",
        *("content_block_start", "thinking_delta", "signature_delta", "content_block_stop"),
        *(part.format("text") for part in block),
        *(part.format("input_json") for part in block),
        *("message_delta", "message_stop"),
    ]


def test_usage_has_the_cache_apart(monkeypatch, model, served):
    scripted(monkeypatch, model, *[THOUGHT + FINAL.format("It rains.")] * 3)
    asked = {"messages": [{"role": "user", "content": "How is the weather in Zagreb, and in Rome?"}]}
    first, again = answer(served, **asked)["usage"], answer(served, **asked)["usage"]
    count = answer(served, COUNT, **asked)
    for usage in (first, again):
        assert usage["input_tokens"] + usage["cache_read_input_tokens"] == count["input_tokens"]
        assert usage["cache_creation_input_tokens"] == 0
        assert 0 < usage["output_tokens_details"]["thinking_tokens"] < usage["output_tokens"]
    assert again["cache_read_input_tokens"] > first["cache_read_input_tokens"] and again["input_tokens"] > 0
    events = events_of(answer(served, stream=True, **asked))
    begin, end = events[0]["message"]["usage"], events[-2]["usage"]
    assert end == again and begin["cache_read_input_tokens"] == end["cache_read_input_tokens"]


@pytest.mark.parametrize(
    ("fields", "said", "reason", "text", "stop"),
    [
        ({}, "a b c", "end_turn", "a b c", None),
        ({"stop_sequences": ["x", "c"]}, "a b c d", "stop_sequence", "a b ", "c"),
        ({"stop_sequences": ["b c", " c"]}, "a b c d", "stop_sequence", "a ", "b c"),
        ({"stop_sequences": ["plan"]}, "a b", "end_turn", "a b", None),  # thinking may hold it
        ({"max_tokens": 12}, "a b c d e f g", "max_tokens", None, None),
    ],
)
def test_why_a_message_ends(monkeypatch, model, served, fields, said, reason, text, stop):
    scripted(monkeypatch, model, *[THOUGHT + FINAL.format(said)] * 2)
    for found in (answer(served, **fields), message_of(events_of(answer(served, stream=True, **fields)))):
        assert (found["stop_reason"], found["stop_sequence"]) == (reason, stop)
        if text is not None:
            assert found["content"] == [{"type": "text", "text": text}]


def test_text_before_a_call_comes_before_it(monkeypatch, model, served):
    """Whole, though its end might have been the beginning of a stop sequence."""
    scripted(monkeypatch, model, *[PREAMBLE + CALL.format("{}")] * 2)
    fields = {"tools": [TOOL], "stop_sequences": ["moment. Please"]}
    for found in (answer(served, **fields), message_of(events_of(answer(served, stream=True, **fields)))):
        assert [block.get("text", block["type"]) for block in found["content"]] == ["One moment.", "tool_use"]


def test_a_limit_that_is_too_high_is_the_servers(served, strict):
    assert answer(served, max_tokens=10**6, min_tokens=400, temperature=0)["usage"]["output_tokens"] <= 400
    assert "max_tokens" in refusal(strict, max_tokens=10**6)["message"]
    assert "max_tokens" in refusal(served, max_tokens=0)["message"]


def test_thinking_is_shown_to_who_asks(monkeypatch, model, served):
    text = {"type": "text", "text": "a"}
    scripted(monkeypatch, model, *[THOUGHT + FINAL.format("a")] * 8)
    for options, shown in (
        (None, []),
        ({"type": "disabled"}, []),
        ({"type": "adaptive"}, [{"type": "thinking", "thinking": "I plan.", "signature": SEALED}]),
        (ENABLED | {"display": "omitted"}, [{"type": "thinking", "thinking": "", "signature": SEALED}]),
    ):
        assert answer(served, thinking=options)["content"] == [*shown, text]
        assert message_of(events_of(answer(served, thinking=options, stream=True)))["content"] == [*shown, text]


def test_arguments_that_are_no_json(monkeypatch, model, served):
    """A client would fail at them; sent back, they are what the model wrote."""
    wrong = ['{"city": "Rome"', "[1]", '{"a": NaN}', '{"a": 1e999}']
    turns = [turn for one in wrong for turn in (CALL.format(one), CALL.format(one), FINAL.format("a"))]
    prompts = scripted(monkeypatch, model, *turns)
    for arguments in wrong:
        found = answer(served, tools=[TOOL])
        assert found["content"][0]["input"] == {"INVALID_JSON": arguments}
        streamed = message_of(events_of(answer(served, tools=[TOOL], stream=True)))
        assert streamed["content"][0]["input"] == {"INVALID_JSON": arguments}
        answer(served, messages=after(found))
        assert f"<|message|>{arguments}<|call|>" in prompts[-1]


def test_arguments_come_at_once_for_who_asks(monkeypatch, model, served):
    arguments = '{"city": "Rome", "a": "' + "b" * 40
    scripted(monkeypatch, model, *[CALL.format(arguments)] * 2)
    for eager, fewest in ((True, 5), (False, 1)):
        events = events_of(answer(served, tools=[TOOL | {"eager_input_streaming": eager}], stream=True))
        parts = [event["delta"]["partial_json"] for event in events if event["type"] == "content_block_delta"]
        assert (len(parts) >= fewest) and (len(parts) == 1) == (not eager)
        assert ("".join(parts) == arguments) == eager


# ------------------------------------------------------------------------------------------------ the conversation


def after(message, result="It rains.", **more):
    """The conversation with a call and its result."""
    ids = [block["id"] for block in message["content"] if block["type"] == "tool_use"]
    results = [{"type": "tool_result", "tool_use_id": one, "content": result} | more for one in ids]
    return [*WEATHER, {"role": "assistant", "content": message["content"]}, {"role": "user", "content": results}]


def test_the_prompt_is_that_of_a_chat(monkeypatch, model, served):
    """Whatever form its parts have."""
    prompts = scripted(monkeypatch, model, *[FINAL.format("a")] * 9)
    function = {"name": "get_weather", "arguments": '{"city":"Zürich"}'}
    call = {"id": "c", "type": "function", "function": function}
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "system", "content": "Be kind."},
        *WEATHER,
        {"role": "assistant", "reasoning": "I plan.", "content": "One moment.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "error: It rains.\n\nA lot."},
        {"role": "user", "content": "Sure?\n\nReally?"},
        {"role": "developer", "content": "Be quick."},
    ]
    tools = [{"type": "function", "function": FUNCTION}]
    served.post(CHAT, {"messages": chat, "tools": tools, "reasoning_effort": "low"})

    def text(value):
        return {"type": "text", "text": value, "cache_control": {"type": "ephemeral"}}

    use = {"type": "tool_use", "id": "c", "name": "get_weather", "input": {"city": "Zürich"}}
    thinking = {"type": "thinking", "thinking": "I plan.", "signature": "whatever"}
    results = [[text("It rains."), text("A lot.")], "It rains.\n\nA lot."]
    for number, signature in enumerate((thinking, thinking | {"thinking": "", "signature": SEALED})):
        result = {"type": "tool_result", "tool_use_id": "c", "content": results[number], "is_error": True}
        billing = [text("x-anthropic-billing-header: cc_version=2.1.197.a32;")] * number
        answer(
            served,
            system=[[text("Be brief."), text("Be kind.")], [*billing, text("Be brief.\n\nBe kind.")]][number],
            messages=[
                {"role": "user", "content": [[text(WEATHER[0]["content"])], WEATHER[0]["content"]][number]},
                {"role": "assistant", "content": [signature, text("One moment."), use]},
                {"role": "user", "content": [result, text("Sure?"), text("Really?")]},
                {"role": "system", "content": "Be quick."},
            ],
            tools=[[TOOL], [TOOL | {"type": "custom", "defer_loading": False}]][number],
            thinking={"type": "disabled"},
        )
    assert len(set(prompts)) == 1 and len(prompts) == 3 and "I plan." in prompts[0]


def test_reasoning_and_arguments_that_a_client_does_not_have_are_put_back(monkeypatch, model, served):
    """As the model wrote them: other text of the same JSON would have to be read anew."""
    arguments = '{ "city":\t"Rome", "n": 1.50 }'
    header = " to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>"  # as it is rendered
    turn = f"{THOUGHT}{header}{arguments}<|call|>"
    prompts = scripted(monkeypatch, model, *[turn, FINAL.format("a")] * 3)
    for tampered in (False, True):
        found = answer(served, tools=[TOOL])
        assert [block["type"] for block in found["content"]] == ["tool_use"]
        if tampered:
            found["content"][0]["input"]["city"] = "Oslo"
        again = answer(served, tools=[TOOL], messages=after(found))
        kept = "" if tampered else f"<|message|>{arguments}<|call|>"
        assert kept in prompts[-1] and ("Oslo" in prompts[-1]) == tampered and "I plan." in prompts[-1]
        if not tampered:
            assert again["usage"]["cache_read_input_tokens"] >= total(found["usage"]) - 2
    found = answer(served, tools=[TOOL], store=False)
    answer(served, tools=[TOOL], messages=after(found))
    assert "I plan." not in prompts[-1] and '{"city":"Rome","n":1.5}' in prompts[-1]


def total(usage):
    return sum(usage[name] for name in ("input_tokens", "cache_read_input_tokens", "output_tokens"))


def test_efforts(monkeypatch, model, served):
    asked = [
        ({}, "medium"),
        ({"thinking": {"type": "disabled"}}, "low"),
        ({"thinking": {"type": "adaptive"}}, "medium"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "low"),
        ({"thinking": {"type": "enabled", "budget_tokens": 5000}}, "medium"),
        ({"thinking": {"type": "enabled", "budget_tokens": 31999}}, "high"),
        ({"output_config": {"effort": "xhigh"}}, "high"),
        ({"output_config": {"effort": "low"}, "thinking": {"type": "adaptive"}}, "low"),
    ]
    prompts = scripted(monkeypatch, model, *[FINAL.format("a")] * len(asked))
    for fields, _ in asked:
        answer(served, **fields)
    assert [f"Reasoning: {own}\n" in prompt for prompt, (_, own) in zip(prompts, asked, strict=True)] == [True] * 8


def test_which_tools_are_called(monkeypatch, model, served):
    other = TOOL | {"name": "get_time"}
    arguments = '{"city": "x"}<|call|>'
    prompts = scripted(monkeypatch, model, FINAL.format("a"), arguments, "get_time" + CALL[CALL.index(" <|con") :])
    answer(served, tools=[TOOL, other], tool_choice={"type": "none"})
    assert "get_weather" not in prompts[0]
    choice = {"type": "tool", "name": "get_time", "disable_parallel_tool_use": True}
    found = answer(served, tools=[TOOL, other], tool_choice=choice)["content"]
    assert [(block["type"], block["name"], block["input"]) for block in found] == [
        ("tool_use", "get_time", {"city": "x"})
    ]
    for wrong in ({"type": "tool", "name": "nobody"}, {"type": "tool"}, {"type": "required"}):
        assert "tool_choice" in refusal(served, tools=[TOOL], tool_choice=wrong)["message"]
    assert "tool_choice" in refusal(served, tool_choice={"type": "any"})["message"]


def test_any_tool_must_be_called(served):
    asked = {"messages": ADD, "tools": [TOOL], "temperature": 0}
    assert answer(served, **asked)["stop_reason"] == "end_turn"
    found = answer(served, **asked, tool_choice={"type": "any"})
    assert [block["type"] for block in found["content"]] == ["tool_use"] and found["stop_reason"] == "tool_use"


def test_an_answer_of_a_schema(served):
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"n": {"const": 7}}, "required": ["n"], "additionalProperties": False}
    form = {"type": "json_schema", "schema": schema}
    for fields in ({"output_config": {"format": form}}, {"output_format": form}):
        found = answer(served, max_tokens=300, temperature=0, **fields)
        assert json.loads(found["content"][0]["text"]) == {"n": 7}


# ---------------------------------------------------------------------------------------------- left out and refused


LEFT_OUT = [
    ({"context_management": {"edits": []}, "inference_geo": "us"}, "context_management, inference_geo"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}, TOOL]}, "tools.web_search_20250305"),
    ({"output_config": {"task_budget": 1}}, "output_config.task_budget"),
    (
        {"messages": [{"role": "user", "content": [{"type": "container_upload", "file_id": "x"}]}]},
        "container_upload",
    ),
]


@pytest.mark.parametrize(("fields", "named"), LEFT_OUT)
def test_what_means_nothing_here_is_left_out_by_name(served, strict, fields, named):
    for path in (MESSAGES, COUNT):
        assert served.post(path, GOOD | fields | {"max_tokens": 2})[1][IGNORED] == named
        refusal(strict, path=path, **fields)


def test_nothing_else_is_named(served):
    fields = {"metadata": {"user_id": "u"}, "service_tier": "auto", "cache_control": {"type": "ephemeral"}, "top_k": 5}
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "x,y"}
    status, found, _ = served.post(f"{MESSAGES}?beta=true", GOOD | fields | {"max_tokens": 2, "top_p": 0.9}, headers)
    assert status == 200 and IGNORED not in found and found["request-id"] == found["x-request-id"]


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ([{"type": "image", "source": {}}], "messages[0].content[0].type"),
        ([{"type": "document", "source": {}}], "messages[0].content[0].type"),
        ([{"type": "tool_result", "tool_use_id": "c", "content": [{"type": "image"}]}], "content[0].content[0].type"),
        ([{"type": "tool_result", "tool_use_id": "c", "content": "a"}], "messages[0].content[0].tool_use_id 'c' is no"),
        ([{"type": "thinking", "thinking": "a"}], "messages[0].content[0].type"),
    ],
)
def test_content_that_cannot_be_read_is_refused_by_name(served, content, where):
    found = refusal(served, messages=[{"role": "user", "content": content}])
    assert found["type"] == "invalid_request_error" and where in found["message"]


def test_what_would_change_the_answer_is_refused(served):
    prefilled = [*WEATHER, {"role": "assistant", "content": "It is"}]
    assert "must not end with one of the assistant" in refusal(served, messages=prefilled)["message"]
    kept = refusal(served, thread={"type": "create"})  # by this code Anthropic's client goes on without
    assert kept["details"] == {"error_code": "thread_unsupported_request"}


def test_redacted_thinking_is_passed_over(monkeypatch, model, served):
    prompts = scripted(monkeypatch, model, *[FINAL.format("a")] * 2)
    text = {"type": "text", "text": "Well."}
    for blocks in ([text], [{"type": "redacted_thinking", "data": "x"}, text]):
        answer(served, messages=[*WEATHER, {"role": "assistant", "content": blocks}, *WEATHER])
    assert prompts[0] == prompts[1]


# ----------------------------------------------------------------------------------------------------------- errors


def test_errors_have_anthropics_shape(served):
    kinds = {
        404: refusal(served, 404, model="claude-opus-4-1"),
        415: refusal(served, 415, headers={"Content-Type": "text/plain"}),
        405: error_of(*served.ask("GET", MESSAGES)[::2], 405),
        413: refusal(served, 413, system="a" * (5 << 20)),
    }
    assert {status: error["type"] for status, error in kinds.items()} == {
        404: "not_found_error",
        405: "invalid_request_error",
        413: "request_too_large",
        415: "invalid_request_error",
    }
    assert error_of(*served.ask("GET", "/v1/messages/batches")[::2], 404)["type"] == "not_found_error"
    assert set(served.ask("GET", "/v1/messagesx")[2]["error"]) == {"message", "type", "param", "code"}
    assert refusal(served, headers={"Host": "example.com"}, status=403)["type"] == "permission_error"


def test_a_prompt_that_is_too_long_is_told_in_anthropics_words(served, model):
    long = [{"role": "user", "content": "1" * model.transformer.context_length}]
    error = refusal(served, messages=long)
    assert error["type"] == "invalid_request_error" and error["message"].startswith("prompt is too long: ")
    assert answer(served, COUNT, messages=long)["input_tokens"] > model.transformer.context_length


def test_a_model_that_cannot_chat():
    with serving(cgpt.load("demo-gpt2")) as served:
        for path in (MESSAGES, COUNT):
            error = refusal(served, path=path)
            assert "harmony" in error["message"] and error["details"] == {"error_code": "model_has_no_chat"}


def test_the_key_comes_under_either_name(model):
    with serving(model, key="k") as served:
        for headers in ({"x-api-key": "k"}, {"Authorization": "Bearer k"}, {"x-api-key": "k", "Authorization": "x"}):
            answer(served, COUNT, headers)
            assert served.ask("GET", "/v1/models", headers=headers)[0] == 200
        for headers in ({}, {"x-api-key": "K"}, {"x-api-key": "\xff"}, {"Authorization": "Basic k"}):
            assert refusal(served, 401, headers=headers)["type"] == "authentication_error"


def test_a_failure_in_the_middle_of_a_stream_is_an_event(monkeypatch, model, served):
    step, steps = model.transformer.step, []

    def failing(*given, **more):
        steps.append(0)
        if len(steps) > 4:
            raise NumericsError("it broke")
        return step(*given, **more)

    monkeypatch.setattr(model.transformer, "step", failing)
    events = events_of(answer(served, stream=True, thinking=ENABLED))
    assert events[0]["type"] == "message_start" and events[-1]["type"] == "error"
    assert events[-1]["error"]["type"] == "api_error" and "it broke" in events[-1]["error"]["message"]


def test_a_client_that_waits_is_pinged(monkeypatch, served):
    """Once the message has begun; before, as in other streams, comments do."""

    async def events():
        await asyncio.sleep(0.05)
        yield "message_start", {}
        await asyncio.sleep(0.05)
        yield "message_stop", {}

    async def text():
        coming = events()
        generated = stream.Generated(Job(served.engine, []), coming, done=False, idle="event: ping\n\n")
        first = asyncio.ensure_future(anext(coming, None))
        return [part async for part in stream._framed(first, coming, generated)]

    monkeypatch.setattr(stream, "COMMENT_SECONDS", 0.01)
    parts = asyncio.run(text())
    assert [part for part, _ in groupby(parts)] == [
        ": keep-alive\n\n",
        "event: message_start\ndata: {}\n\n",
        "event: ping\n\n",
        "event: message_stop\ndata: {}\n\n",
    ]


# ------------------------------------------------------------------------------------------------- Anthropic's client


def test_models_are_listed_for_both_kinds_of_client(served):
    found = served.ask("GET", "/v1/models")[2]
    assert (found["first_id"], found["last_id"], found["has_more"]) == ("demo", "claude-sonnet-4-5", False)
    assert {card["type"] for card in found["data"]} == {"model"} and found["data"][0]["display_name"] == "demo"
    assert answer(served, COUNT, model="claude-sonnet-4-5")


GREEDY = {"extra_body": {"temperature": 0}}


@pytest.fixture
def anthropic(served):
    """The client's module, and a function that makes one."""
    module = pytest.importorskip("anthropic")

    def make(kind=module.Anthropic):
        return kind(base_url=served.url, api_key="none", max_retries=0)

    return module, make


def test_anthropics_client(anthropic):
    module, make = anthropic
    client = make()
    fields = {"model": "demo", "max_tokens": 400, "messages": ADD, "thinking": {"type": "adaptive"}} | GREEDY
    whole = client.messages.create(**fields)
    assert [block.type for block in whole.content] == ["thinking", "text"] and whole.content[1].text == "15"
    with client.messages.stream(**fields) as events:
        final = events.get_final_message()
    assert [block.model_dump(include={"text", "thinking", "signature"}) for block in final.content] == [
        block.model_dump(include={"text", "thinking", "signature"}) for block in whole.content
    ]
    assert final.stop_reason == "end_turn" and final.usage.output_tokens == whole.usage.output_tokens
    count = client.messages.count_tokens(model="demo", messages=ADD)
    assert count.input_tokens == final.usage.input_tokens + final.usage.cache_read_input_tokens
    assert [one.id for one in client.models.list()] == ["demo", "claude-sonnet-4-5"]
    with pytest.raises(module.NotFoundError, match="there is no model"):
        client.messages.create(**fields | {"model": "claude-3"})

    async def ask():
        async with make(module.AsyncAnthropic) as client, client.messages.stream(**fields) as events:
            return [text async for text in events.text_stream]

    assert "".join(asyncio.run(ask())) == "15"


def test_anthropics_tool_runner(anthropic):
    module, make = anthropic

    @module.beta_tool
    def get_weather(city: str) -> str:
        """Gets the weather in a city."""
        return '{"temperature": 7, "sky": "sunny"}'

    asked = [{"role": "user", "content": "What is the weather in Rome?"}]
    for streams in (False, True):
        runner = make().beta.messages.tool_runner(
            model="demo", max_tokens=300, tools=[get_weather], messages=asked, stream=streams, **GREEDY
        )
        found = [one.get_final_message() if streams else one for one in runner]
        assert [one.stop_reason for one in found] == ["tool_use", "end_turn"]
        assert found[1].content[-1].text == "It is 7 degrees and sunny in Rome."
