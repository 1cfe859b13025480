"""/v1/responses beside the types of OpenAI's SDK, which parses answers without checking them; and what goes back in."""

import json

import openai
import pydantic
import pytest
from openai.types.responses import Response, ResponseItem, ResponseStreamEvent

import cgpt
from cgpt.chat.turn import Turn
from cgpt.errors import KernelError
from cgpt.serve.limits import Limits

from support.chat_cases import CALL, FINAL, scripted
from support.serve_cases import serving, wait_for

ADD, WEATHER = "Please compute 10 + 5.", "How is the weather in Chicago?"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FORCED = {"type": "function", "name": "get_weather"}
FUNCTION = FORCED | {"description": "Gets the weather in a city.", "parameters": SCHEMA}
ALLOWED = {"type": "allowed_tools", "mode": "auto", "tools": [FORCED]}
PATH = "/v1/responses"
EVENT = pydantic.TypeAdapter(ResponseStreamEvent)
# What is sent beyond the types: "store", as OpenAI does; and "name", which other versions of them demand.
MORE = {"store", "name"}


@pytest.fixture(scope="module")
def model():
    return cgpt.load("demo-gpt-oss", precision="exact")


@pytest.fixture(scope="module")
def served(model):
    with serving(model, limits=Limits(max_tokens=400)) as served:
        yield served


@pytest.fixture(scope="module")
def client(served):
    return served.client()


def ask(client, given=WEATHER, **options):
    return client.responses.create(model="demo", input=given, temperature=0, **options)


def undeclared(value):
    """The names of fields that the types of `value`, and of all in it, do not have."""
    found = set()
    if isinstance(value, pydantic.BaseModel):
        found |= set(value.model_extra or ())
        value = [getattr(value, name) for name in type(value).model_fields]
    if isinstance(value, list):
        found |= {name for one in value for name in undeclared(one)}
    return found


BODIES = {
    "an answer": {"input": ADD},
    "a call": {"input": WEATHER, "tools": [FUNCTION]},
    "a forced call": {"input": WEATHER, "tools": [FUNCTION], "tool_choice": FORCED},
    "cut": {"input": ADD, "max_output_tokens": 6, "instructions": "Be brief.", "metadata": {"a": "b"}},
    "accepted": {
        "input": [{"role": "user", "content": [{"type": "input_text", "text": ADD}]}],
        "store": False,
        "user": "u",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "low", "summary": "auto"},
        "service_tier": "auto",
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "include": ["reasoning.encrypted_content"],
        "truncation": "disabled",
        "background": False,
        "top_p": 0.9,
        "prompt_cache_options": {"mode": "implicit"},
    },
}


@pytest.mark.parametrize("name", BODIES)
def test_answers_are_what_the_types_declare(served, name):
    status, _, answer = served.post(PATH, {"temperature": 0, **BODIES[name]})
    assert status == 200, answer
    found = Response.model_validate(answer)
    assert (
        undeclared(found) <= MORE
        and found.store is (BODIES[name].get("store") is not False)
        and found.parallel_tool_calls is False
    )
    assert found.status == ("incomplete" if name == "cut" else "completed")
    assert (found.completed_at is None) == (found.incomplete_details is not None) == (name == "cut")
    assert found.usage.total_tokens == found.usage.input_tokens + found.usage.output_tokens
    if name == "cut":
        assert (found.metadata, found.instructions) == ({"a": "b"}, "Be brief.")
    if name == "accepted":
        assert found.reasoning.effort == "low" and found.top_p == 0.9


@pytest.mark.parametrize("name", BODIES)
def test_events_are_what_the_types_declare(served, name):
    status, headers, text = served.post(PATH, {"temperature": 0, "stream": True, **BODIES[name]})
    assert status == 200 and headers["content-type"].startswith("text/event-stream") and "[DONE]" not in text
    blocks = [dict(line.split(": ", 1) for line in block.split("\n")) for block in text.strip().split("\n\n")]
    events = [EVENT.validate_python(json.loads(block["data"])) for block in blocks]
    assert [event.type for event in events] == [block["event"] for block in blocks]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert {name for event in events for name in undeclared(event)} <= MORE
    last = events[-1].response
    assert {event.response.id for event in events if hasattr(event, "response")} == {last.id}
    added = [event.item for event in events if event.type == "response.output_item.added"]
    assert [event.item for event in events if event.type == "response.output_item.done"] == last.output
    assert [item.id for item in added] == [item.id for item in last.output]
    assert len({item.id for item in added}) == len(added)
    for event in events:
        if hasattr(event, "item_id"):
            assert event.item_id == last.output[event.output_index].id
    for i, item in enumerate(last.output):
        deltas = "".join(e.delta for e in events if e.type.endswith(".delta") and e.output_index == i)
        (whole,) = [
            getattr(e, "text", None) or getattr(e, "arguments", "")
            for e in events
            if e.type.endswith(("text.done", "arguments.done")) and e.output_index == i
        ]
        assert deltas == whole == (item.arguments if item.type == "function_call" else item.content[0].text) != ""


# --------------------------------------------------------------------------------------------- what goes back in

THOUGHT = "<|channel|>analysis<|message|>I plan.<|end|>"
PREAMBLE = "<|start|>assistant<|channel|>commentary<|message|>I look it up.<|end|>"
LOOK_UP = '<|start|>assistant to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>{"city": "x"}'
RESULT = "<|start|>functions.get_weather to=assistant<|channel|>commentary<|message|>It rains.<|end|>"


@pytest.mark.parametrize("told", [True, False])
def test_the_model_sees_what_it_wrote(monkeypatch, model, client, told):
    """Reasoning, preamble and call come back into the prompt as they were; the preamble even where a client drops its
    phase: it is no final answer, and no reason to forget the reasoning."""
    said = f"{THOUGHT}{PREAMBLE}<|start|>assistant{THOUGHT}{LOOK_UP}<|call|>"
    prompts = scripted(monkeypatch, model, said, FINAL.format("Wet."))
    done = ask(client, tools=[FUNCTION])
    assert [item.type for item in done.output] == ["reasoning", "message", "reasoning", "function_call"]
    assert (done.output[1].phase, done.output_text) == ("commentary", "I look it up.")
    items = [item.model_dump(exclude_none=True) for item in done.output]
    if not told:
        del items[1]["phase"]
    result = {"type": "function_call_output", "call_id": done.output[3].call_id}
    output = [{"type": "input_text", "text": "It rains."}]
    given = [{"role": "user", "content": WEATHER}, *items, {**result, "output": output}]
    again = ask(client, given, tools=[FUNCTION])
    assert prompts[1] == f"{prompts[0]}{said}{RESULT}<|start|>assistant"
    assert again.output_text == "Wet." and again.output[0].phase == "final_answer"


def test_a_preamble_alone_stays_one(monkeypatch, model, client):
    prompts = scripted(monkeypatch, model, FINAL.format("Hm."))
    said = {"role": "assistant", "content": "I look it up.", "phase": "commentary"}
    ask(client, [{"role": "user", "content": WEATHER}, said, {"role": "user", "content": "So?"}])
    assert f"{WEATHER}<|end|>{PREAMBLE}<|start|>user<|message|>So?" in prompts[0]


def test_an_answer_before_the_question_stays_one(monkeypatch, model, client):
    prompts = scripted(monkeypatch, model, FINAL.format("Hm."))
    call = {"type": "function_call", "call_id": "c", "name": "get_weather", "arguments": "{}"}
    turn = [{"role": "user", "content": ADD}, {"role": "assistant", "content": "15"}]
    result = {"type": "function_call_output", "call_id": "c", "output": "x"}
    ask(client, [*turn, {"role": "user", "content": "?"}, call, result])
    assert "<|start|>assistant<|channel|>final<|message|>15<|end|>" in prompts[0]


def test_calls_are_one_at_a_time(monkeypatch, model, client):
    scripted(monkeypatch, model, CALL.format("{}"))
    done = ask(client, tools=[FUNCTION], parallel_tool_calls=True)
    assert [item.type for item in done.output] == ["function_call"] and done.parallel_tool_calls is False


def test_the_stream_helper_gathers_what_was_sent(monkeypatch, model, client):
    scripted(monkeypatch, model, f"{THOUGHT}{PREAMBLE}{LOOK_UP}<|call|>")
    with client.responses.stream(model="demo", input=WEATHER, temperature=0, tools=[FUNCTION]) as stream:
        events = list(stream)
        done = stream.get_final_response()
    assert [item.type for item in done.output] == ["reasoning", "message", "function_call"]
    snapshots = {event.type: event.snapshot for event in events if hasattr(event, "snapshot")}
    assert snapshots["response.function_call_arguments.delta"] == done.output[2].arguments == '{"city": "x"}'
    assert snapshots["response.output_text.delta"] == done.output_text == "I look it up."


def test_allowed_tools(monkeypatch, model, client):
    prompts = scripted(monkeypatch, model, FINAL.format("a"), *[LOOK_UP[LOOK_UP.index("{") :] + "<|call|>"] * 2)
    other = FUNCTION | {"name": "other"}
    assert ask(client, tools=[other, FUNCTION], tool_choice=ALLOWED).output_text == "a"
    assert "type get_weather = " in prompts[0] and "type other = " not in prompts[0]
    done = ask(client, tools=[other, FUNCTION], tool_choice=ALLOWED | {"mode": "required"})
    assert done.output[0].name == "get_weather" and prompts[1].endswith("<|message|>")
    functions = [{"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}]
    named = {"mode": "required", "tools": [{"type": "function", "function": {"name": "get_weather"}}]}
    chat = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": WEATHER}],
        tools=functions,
        tool_choice={"type": "allowed_tools", "allowed_tools": named},
    )
    assert chat.choices[0].message.tool_calls[0].function.name == "get_weather"


def test_an_answer_as_an_object(client):
    pytest.importorskip("llguidance")

    class Sum(pydantic.BaseModel):
        is_even: bool

    done = client.responses.parse(model="demo", input=ADD, temperature=0, text_format=Sum, max_output_tokens=300)
    assert isinstance(done.output_parsed, Sum) and done.text.format.type == "json_schema"


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"given": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].id"),
        ({"tools": [{"type": 3}]}, "tools[0].type"),
        ({"tools": [FUNCTION], "tool_choice": ALLOWED | {"tools": []}}, "tool_choice"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tools": [FUNCTION], "tool_choice": ALLOWED | {"mode": "none"}}, "tool_choice.mode"),
        ({"tools": [FUNCTION | {"name": "f"}], "tool_choice": ALLOWED}, "tool_choice"),
        ({"reasoning": {"effort": "extreme"}}, "reasoning.effort"),
    ],
)
def test_what_is_refused_is_named(client, options, param):
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, **options)
    assert refused.value.param == param and refused.value.type == "invalid_request_error"
    kept = param in ("previous_response_id", "conversation", "input[0].id")
    assert ("kept here" in refused.value.message and "send the whole" in refused.value.message) == kept


# ------------------------------------------------------------------------------------------------ what is remembered


@pytest.fixture
def called(monkeypatch, model, client):
    """A response with a call, the prompts, and the user's item and the result for what follows it."""
    prompts = scripted(monkeypatch, model, THOUGHT + LOOK_UP + "<|call|>", FINAL.format("Wet."))
    user = {"role": "user", "content": WEATHER}

    def called(**options):
        done = ask(client, [user], tools=[FUNCTION], **options)
        return done, {"type": "function_call_output", "call_id": done.output[-1].call_id, "output": "It rains."}

    return called, prompts, user


def same_turn(prompts):
    return prompts[1] == f"{prompts[0]}{THOUGHT}{LOOK_UP}<|call|>{RESULT}<|start|>assistant"


def test_a_response_goes_on_from_the_one_before(called, client):
    call, prompts, _ = called
    done, result = call()
    again = ask(client, [result], tools=[FUNCTION], previous_response_id=done.id)
    assert again.output_text == "Wet." and again.previous_response_id == done.id and same_turn(prompts)


def test_items_may_be_named_instead_of_sent(called, client):
    call, prompts, user = called
    done, result = call()
    named = [{"type": "item_reference", "id": item.id} for item in done.output]
    assert ask(client, [user, *named, result], tools=[FUNCTION]).output_text == "Wet." and same_turn(prompts)


@pytest.mark.parametrize("store", [True, False])
def test_reasoning_that_a_client_drops_is_put_back(called, client, store):
    """Unless nothing was to be stored."""
    call, prompts, user = called
    done, result = call(store=store)
    ask(client, [user, done.output[-1].model_dump(exclude_none=True), result], tools=[FUNCTION])
    assert same_turn(prompts) == store


def test_reasoning_goes_out_and_back_as_encrypted_content(called, client):
    call, prompts, user = called
    done, result = call(store=False, include=["reasoning.encrypted_content"])
    thought, said = (item.model_dump(exclude_none=True) for item in done.output)
    del thought["content"]
    assert "I plan." not in thought["encrypted_content"]
    ask(client, [user, thought, said, result], tools=[FUNCTION])
    assert same_turn(prompts)


def test_encrypted_content_of_others_is_no_reasoning(monkeypatch, model, client):
    prompts = scripted(monkeypatch, model, *[FINAL.format("Hm.")] * 3)
    for content in ("gAAAA???", "/w==", ""):
        ask(
            client,
            [{"type": "reasoning", "summary": [], "encrypted_content": content}, {"role": "user", "content": "a"}],
        )
        assert "analysis<|message|>" not in prompts.pop()


def test_a_response_is_got_and_deleted(client):
    done = ask(client, ADD)
    assert client.responses.retrieve(done.id).to_dict() == done.to_dict()
    client.responses.delete(done.id)
    for gone in (done.id, done.output[0].id, "resp_1"):
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(gone)
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(done.id)
    with pytest.raises(openai.BadRequestError):
        ask(client, [{"type": "item_reference", "id": done.output[0].id}])
    kept = ask(client, ADD, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(kept.id)


def test_what_a_response_answers_is_listed(called, client):
    """The whole conversation, as OpenAI's types have it; the newest item first, unless asked otherwise."""
    called, result = called[0]()
    asked = [result, {"role": "assistant", "content": "Hm."}, {"role": "user", "content": ADD, "id": "mine", "x": 1}]
    last = ask(client, asked, previous_response_id=called.id, tools=[FUNCTION])
    listed = client.responses.input_items.list
    items = [*listed(last.id, order="asc")]
    for item in items:
        pydantic.TypeAdapter(ResponseItem).validate_python(item.to_dict())
    assert [item.type for item in items] == [
        "message", *(item.type for item in called.output), "function_call_output", "message", "message"
    ]  # fmt: skip
    assert [item.id for item in items[1:-3]] == [item.id for item in called.output] and items[-1].id == "mine"
    assert (items[0].role, items[0].content[0].type, items[0].content[0].text) == ("user", "input_text", WEATHER)
    assert (items[-2].role, items[-2].content[0].type, items[-3].output) == ("assistant", "output_text", "It rains.")
    assert [*listed(last.id)] == items[::-1] == [*listed(last.id, limit=2)]
    page = listed(last.id, after="mine", limit=1)
    assert (page.data, page.first_id, page.last_id, page.has_more) == ([items[-2]], items[-2].id, items[-2].id, True)
    assert (listed(last.id, after=items[0].id).data, listed(last.id, limit=100).has_more) == ([], False)
    for name, value in {"limit": 0, "order": "up", "after": "no"}.items():
        with pytest.raises(openai.BadRequestError, match=name):
            listed(last.id, **{name: value})
    with pytest.raises(openai.NotFoundError):
        listed("resp_1")


def test_the_oldest_items_go_where_not_all_fit(monkeypatch, model, client):
    """Instructions stay, a call goes with its result and what led to it, and the last item stays."""
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    items = [
        {"role": "system", "content": "brief"},
        {"role": "user", "content": "one"},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "is left out of a finished turn"}]},
        {"role": "assistant", "content": "two"},
        {"role": "developer", "content": "kind"},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "three"}]},
        call, call | {"call_id": "d"}, {"type": "function_call_output", "call_id": "c", "output": "four"},
        {"type": "function_call_output", "call_id": "d", "output": "five"},
        {"role": "user", "content": "six"},
        {"role": "user", "content": "seven"},
    ]  # fmt: skip
    words, left = "brief one two kind three to=functions.f four five six seven".split(), []
    prompts = scripted(monkeypatch, model, *[FINAL.format("a")] * 1000)
    context = whole = ask(client, items, max_output_tokens=5).usage.input_tokens
    monkeypatch.setattr(type(model.transformer), "context_length", property(lambda _: context))
    while True:
        try:
            found = ask(client, items, max_output_tokens=5, truncation="auto")
        except openai.BadRequestError as problem:
            assert "shorten the prompt" in str(problem)
            break
        assert found.truncation == "auto"
        room = 5 if context < whole and "six" in prompts[-1] else 0  # for the answer, where more may go
        assert found.usage.input_tokens <= context - room
        left.append(" ".join(word for word in words if word in prompts[-1]))
        context -= 1
    middle = "three to=functions.f four five"
    assert [*dict.fromkeys(left)] == [
        f"brief one two kind {middle} six seven",
        f"brief two kind {middle} six seven",
        f"brief kind {middle} six seven",
        "brief kind six seven",
        "brief kind seven",
    ]
    context = whole - 1
    with pytest.raises(openai.BadRequestError, match="shorten the prompt"):
        ask(client, items, max_output_tokens=5)


@pytest.mark.parametrize("after", [0, 5])
def test_failures(monkeypatch, served, client, after, caplog):
    """Before the first event they are an answer of their own; later ones an event."""
    advance = Turn.advance

    def failing(turn, event):
        if event.num_ids > after:
            raise KernelError("the machine is on fire")
        return advance(turn, event)

    monkeypatch.setattr(Turn, "advance", failing)
    with pytest.raises(openai.InternalServerError, match="a defect of the server: KernelError"):
        ask(client, ADD)
    if after == 0:
        with pytest.raises(openai.InternalServerError, match="a defect of the server: KernelError"):
            ask(client, ADD, stream=True)
    else:
        events = list(ask(client, ADD, stream=True))
        EVENT.validate_python(events[-1].to_dict())
        assert events[-1].type == "response.failed" and events[-2].type == "response.output_item.done"
        found = events[-1].response
        assert (found.status, found.error.code) == ("failed", "server_error") and "KernelError" in found.error.message
        assert found.output[0].status == "incomplete" and found.output[0].content[0].text != ""
    assert "on fire" in caplog.text
    wait_for(lambda: served.engine.running == 0)
