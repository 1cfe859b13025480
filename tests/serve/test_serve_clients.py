"""What OpenAI's clients and those of other servers send: taken where it can be, left out by name where it means nothing
here, refused by name where it would change the answer."""

import gzip
import http.client
import json
import re
import threading
import time
from dataclasses import replace

import pytest

import cgpt
from cgpt.serve import stream
from cgpt.serve.conversation import Conversation
from cgpt.serve.limits import Limits
from cgpt.serve.openai import completions
from cgpt.serve.openapi import IGNORED
from cgpt.serve.store import Store, Thought

from support.chat_cases import CALL, FINAL, scripted
from support.serve_cases import serving

ADD = [{"role": "user", "content": "Please compute 10 + 5."}]
WEATHER = [{"role": "user", "content": "How is the weather in Chicago?"}]
CHAT, RESPONSES, COMPLETIONS = "/v1/chat/completions", "/v1/responses", "/v1/completions"
GOOD = {
    CHAT: {"messages": ADD, "max_tokens": 5},
    RESPONSES: {"input": "a", "max_output_tokens": 5},
    COMPLETIONS: {"prompt": "a", "max_tokens": 5},
}
FUNCTION = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
TOOL = {"type": "function", "function": FUNCTION}


@pytest.fixture(scope="module")
def model():
    return cgpt.load("demo-gpt-oss", precision="exact")


@pytest.fixture(scope="module")
def served(model):
    with serving(model, limits=Limits(max_tokens=400, body_bytes=100_000), names=("demo", "gpt-4o")) as served:
        yield served


@pytest.fixture(scope="module")
def strict(model):
    with serving(model, limits=Limits(max_tokens=400), strict=True) as served:
        yield served


def answer(served, path, fields):
    """The headers and the answer of a request that must be taken."""
    status, headers, found = served.post(path, GOOD[path] | fields)
    assert status == 200, found
    return headers, found


# ------------------------------------------------------------------------------------------------------- left out


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        (CHAT, {"provider": {"only": ["x"]}, "think": True}, "provider, think"),
        (COMPLETIONS, {"mirostat": 0}, "mirostat"),
        (RESPONSES, {"context_management": []}, "context_management"),
        (CHAT, {"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        (CHAT, {"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs.enable_thinking"),
        (CHAT, {"tools": [{"type": "custom", "custom": {"name": "x"}}, TOOL]}, "tools.custom"),
        (RESPONSES, {"tools": [{"type": "web_search"}, {"type": "mcp"}]}, "tools.mcp, tools.web_search"),
        (RESPONSES, {"input": [{"type": "compaction", "encrypted_content": "x"}]}, "compaction"),
        (CHAT, {"a\r\nb": 1, "\ud800": 1, "c" * 500: 1}, f"a%0D%0Ab, {'c' * 64}, %3F"),
    ],
)  # fmt: skip
def test_what_means_nothing_here_is_left_out_by_name(served, strict, path, fields, named):
    assert answer(served, path, fields)[0][IGNORED] == named
    assert (
        "must be" in (error := strict.refused(path, GOOD[path] | fields))["message"]
        or "no such key" in error["message"]
    )


def test_it_is_logged_once(served, caplog):
    caplog.set_level("INFO", "cgpt.serve")
    for _ in range(3):
        answer(served, CHAT, {"made_up_once": 1})
    assert caplog.text.count("left out made_up_once") == 1


def test_nothing_else_is_named(served):
    for path in GOOD:
        assert (
            IGNORED not in answer(served, path, {"user": "u", "metadata": {}, "cache_prompt": True, "made_up": None})[0]
        )


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"audio": {"voice": "alloy"}}),
        (CHAT, {"modalities": ["text", "audio"]}),
        (COMPLETIONS, {"images": ["x"]}),
        (CHAT, {"documents": [{"text": "a"}]}),
        (CHAT, {"use_beam_search": True}),
        (CHAT, {"bad_words": ["a"]}),
        (RESPONSES, {"conversation": "conv_1"}),
        (RESPONSES, {"prompt": {"id": "x"}}),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(served, path, fields):
    assert served.refused(path, GOOD[path] | fields)["param"] == next(iter(fields))


def test_parts_that_are_no_text_are_refused(served):
    for part in ("image_url", "input_audio", "file"):
        messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": part, part: {}}]}]
        assert served.refused(CHAT, {"messages": messages})["param"] == "messages[0].content[1].type"


# --------------------------------------------------------------------------------------------- limits and options


def test_a_limit_that_is_too_high_is_the_servers(served, strict):
    for path, name in ((CHAT, "max_tokens"), (CHAT, "max_completion_tokens"), (RESPONSES, "max_output_tokens")):
        for limit in (401, 131072, -1):
            body = {key: value for key, value in GOOD[path].items() if key != "max_tokens"} | {name: limit}
            _, found = served.post(path, body)[1:]
            assert found["usage"]["total_tokens"] and found.get("max_output_tokens", 400) == 400
            strict.refused(path, body)
    _, found = answer(served, COMPLETIONS, {"max_tokens": 10**9, "ignore_eos": True})
    assert found["usage"]["completion_tokens"] == 400


def test_efforts_of_other_models(monkeypatch, model, served):
    asked = {
        "none": "low", "minimal": "low", "LOW": "low", "Medium": "medium", "high": "high", "xhigh": "high",
        "max": "high",
    }  # fmt: skip
    prompts = scripted(monkeypatch, model, *[FINAL.format("a")] * 4 * len(asked))
    for effort, own in asked.items():
        answer(served, CHAT, {"reasoning_effort": effort})
        answer(served, CHAT, {"reasoning": {"effort": effort}})
        answer(served, CHAT, {"chat_template_kwargs": {"reasoning_effort": effort}})
        answer(served, RESPONSES, {"reasoning": {"effort": effort}})
        assert [f"Reasoning: {own}\n" in prompt for prompt in prompts] == [True] * 4
        prompts.clear()


def test_top_k_may_be_off(served):
    found = [answer(served, COMPLETIONS, {"seed": 1, **more})[1] for more in ({}, {"top_k": 0}, {"top_k": -1})]
    assert len({one["choices"][0]["text"] for one in found}) == 1


def test_ends_can_be_forbidden_and_added(monkeypatch, model, served):
    end = model.eos_token_ids[0]
    bias = {"logit_bias": {str(end): 100}}
    assert answer(served, COMPLETIONS, bias)[1]["usage"]["completion_tokens"] == 1
    assert answer(served, COMPLETIONS, bias | {"min_tokens": 3})[1]["usage"]["completion_tokens"] == 4
    assert answer(served, COMPLETIONS, bias | {"ignore_eos": True})[1]["usage"]["completion_tokens"] == 5
    plain = answer(served, COMPLETIONS, {"temperature": 0, "logprobs": 0})[1]["choices"][0]
    second = model.tokenizer.encode(plain["text"])[1]
    cut = answer(served, COMPLETIONS, {"temperature": 0, "stop_token_ids": [second]})[1]["choices"][0]
    assert (cut["finish_reason"], plain["text"].startswith(cut["text"])) == ("stop", True)
    for fields in ({"ignore_eos": True}, {"min_tokens": 60}):
        used = answer(served, CHAT, {"max_tokens": 60, "temperature": 0} | fields)[1]["usage"]
        assert (
            used["completion_tokens"]
            > answer(served, CHAT, {"max_tokens": 60, "temperature": 0})[1]["usage"]["completion_tokens"]
        )
    eleven = model.tokenizer.encode("1")[0]
    stopped = answer(served, CHAT, {"max_tokens": 60, "temperature": 0, "stop_token_ids": [eleven]})[1]["choices"][0]
    assert stopped["finish_reason"] == "stop" and "1" not in (stopped["message"]["content"] or "")


def test_usage_so_far(served):
    options = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    for path in (COMPLETIONS, CHAT):
        text = answer(served, path, options)[1]
        chunks = [json.loads(block[6:]) for block in text.split("\n\n") if block.startswith("data: {")]
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
        assert counts == sorted(counts) and counts[-1] == 5


def test_a_schema_beside_json_object(served):
    pytest.importorskip("llguidance")
    schema = {"properties": {"n": {"const": 7}}, "required": ["n"], "additionalProperties": False}
    form = {"type": "json_object", "schema": {"type": "object"} | schema}
    found = answer(served, CHAT, {"response_format": form, "max_tokens": 300})[1]
    assert json.loads(found["choices"][0]["message"]["content"])["n"] == 7


SEVEN = {"type": "object", "properties": {"n": {"const": 7}}, "required": ["n"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"structured_outputs": {"choice": ["red", "blue"]}}, "red|blue"),
        ({"guided_choice": ["red", "blue"]}, "red|blue"),
        ({"guided_regex": "[0-9]{3}-x"}, "[0-9]{3}-x"),
        ({"structured_outputs": {"regex": "[ab]{2}"}}, "[ab]{2}"),
        ({"guided_json": SEVEN}, r'\{\s*"n"\s*:\s*7\s*\}'),
        ({"structured_outputs": {"json": json.dumps(SEVEN)}}, r'\{\s*"n"\s*:\s*7\s*\}'),
        ({"guided_grammar": 'root ::= "yes" | "no"'}, "yes|no"),
        ({"structured_outputs": {"grammar": 'start: "yes" | "no"'}}, "yes|no"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": SEVEN}}}, r'\{\s*"n"\s*:\s*7\s*\}'),
    ],
)
def test_what_an_answer_must_be(served, fields, pattern):
    pytest.importorskip("llguidance")
    found = answer(served, COMPLETIONS, fields | {"max_tokens": 60})[1]["choices"][0]
    assert re.fullmatch(pattern, found["text"]) and found["finish_reason"] == "stop"
    found = answer(served, CHAT, fields | {"max_tokens": 300, "temperature": 0})[1]["choices"][0]
    assert re.fullmatch(pattern, found["message"]["content"]) and found["finish_reason"] == "stop"
    if "response_format" not in fields:
        found = answer(served, RESPONSES, fields | {"max_output_tokens": 300, "temperature": 0})[1]
        assert re.fullmatch(pattern, found["output"][-1]["content"][0]["text"])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_json": "no"}, "guided_json"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "structured_outputs"),
        ({"guided_regex": "("}, None),
        ({"guided_grammar": "((("}, None),
    ],
)
def test_grammars_that_are_wrong(served, fields, param):
    for path in GOOD:
        assert served.refused(path, GOOD[path] | fields)["param"] == param


# ------------------------------------------------------------------------------------------------------- messages


def test_other_forms_of_messages(monkeypatch, model, served):
    prompts = scripted(monkeypatch, model, *[FINAL.format("a")] * 5)
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    plain = [*ADD, {"role": "assistant", "reasoning": "Hm.", "content": "Yes", "tool_calls": [call]}]
    plain.append({"role": "tool", "tool_call_id": "c", "content": "7"})
    user, said, result = plain
    answer(served, CHAT, {"messages": plain})
    old = {"role": "assistant", "content": "Yes", "function_call": call["function"]}
    parts = [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Yes"}]
    for messages in (
        [user, said | {"tool_calls": [call | {"function": {"name": "f", "arguments": {"a": 1}}}]}, result],
        [user, said | {"reasoning": None, "content": parts}, result],
        [{"role": "user", "content": [{"type": "input_text", "text": user["content"]}]}, said, result],
        [user, old | {"reasoning_content": "Hm."}, {"role": "function", "name": "f", "content": "7"}],
    ):  # fmt: skip
        answer(served, CHAT, {"messages": messages})
    assert len(set(prompts)) == 1 and len(prompts) == 5


def test_the_old_form_of_calls(monkeypatch, model, served):
    body = {"messages": WEATHER, "functions": [FUNCTION], "max_tokens": 50}
    scripted(monkeypatch, model, *[CALL.format('{"city": "x"}')] * 2, '{"city": "x"}<|call|>')
    expected = {"name": "get_weather", "arguments": '{"city": "x"}'}
    for more in ({}, {"stream": True}, {"function_call": {"name": "get_weather"}}):
        found = answer(served, CHAT, body | more)[1]
        if isinstance(found, str):
            chunks = [
                json.loads(block[6:])["choices"][0] for block in found.split("\n\n") if block.startswith("data: {")
            ]
            parts = [chunk["delta"]["function_call"] for chunk in chunks if "function_call" in chunk["delta"]]
            made = {"name": parts[0]["name"], "arguments": "".join(part["arguments"] for part in parts)}
            reason = chunks[-1]["finish_reason"]
        else:
            made, reason = found["choices"][0]["message"]["function_call"], found["choices"][0]["finish_reason"]
        assert (made, reason) == (expected, "function_call")


def test_calls_of_other_kinds_in_a_conversation(monkeypatch, model, served):
    prompts = scripted(monkeypatch, model, FINAL.format("a"))
    items = [
        {"role": "user", "content": "a"},
        {"type": "custom_tool_call", "call_id": "c", "name": "apply_patch", "input": "*** x"},
        {"type": "custom_tool_call_output", "call_id": "c", "output": "done"},
        {"type": "local_shell_call", "call_id": "d", "action": {"command": ["ls"]}, "status": "completed"},
        {"type": "local_shell_call_output", "id": "d", "output": "a.py"},
    ]
    answer(served, RESPONSES, {"input": items})
    for text in ("to=functions.apply_patch", "*** x", "done", "to=functions.local_shell", '{"command":["ls"]}', "a.py"):
        assert text in prompts[0]


def test_functions_in_a_namespace(monkeypatch, model, served):
    called = CALL.replace("get_weather", "mcp__files__read").format("{}")
    prompts = scripted(monkeypatch, model, called, FINAL.format("a"))
    inner = [{"type": "function", "name": "read", "parameters": {"type": "object"}}, {"type": "custom", "name": "x"}]
    tools = [{"type": "namespace", "name": "mcp__files", "tools": inner}, {"type": "function", "name": "read"}]
    headers, found = answer(served, RESPONSES, {"tools": tools, "max_output_tokens": 60})
    item = found["output"][-1]
    assert (item["namespace"], item["name"], headers[IGNORED]) == ("mcp__files", "read", "tools.custom")
    result = {"type": "function_call_output", "call_id": item["call_id"], "output": "It is."}
    answer(served, RESPONSES, {"tools": tools, "input": [{"role": "user", "content": "a"}, item, result]})
    assert "type mcp__files__read = " in prompts[0] and "type read = " in prompts[0]
    assert "<|start|>functions.mcp__files__read to=assistant" in prompts[1]


# -------------------------------------------------------------------------------------------------- small endpoints


def test_other_names_of_the_model(served):
    assert [card["id"] for card in served.ask("GET", "/v1/models")[2]["data"]] == ["demo", "gpt-4o"]
    for name in ("gpt-4o", ""):
        assert answer(served, CHAT, {"model": name})[1]["model"] == "demo"
    assert served.ask("GET", "/v1/models/gpt-4o")[2]["id"] == "gpt-4o"
    assert served.refused(CHAT, GOOD[CHAT] | {"model": "gpt-5"}, 404)["code"] == "model_not_found"


def test_the_number_of_a_request_comes_back(served):
    assert served.ask("GET", "/health", headers={"x-request-id": "abc-1"})[1]["x-request-id"] == "abc-1"
    numbers = {served.ask("GET", "/health", headers={"x-request-id": "a b" * 99})[1]["x-request-id"] for _ in range(2)}
    assert len(numbers) == 2 and all(len(number) == 32 for number in numbers)


def test_bodies_may_be_packed(served):
    packed = {"Content-Encoding": "gzip"}
    good = gzip.compress(json.dumps(GOOD[CHAT]).encode())
    assert served.post(CHAT, good, packed)[0] == 200
    for body, headers, status in (
        (gzip.compress(b" " * 50_000_000), packed, 413),
        (b"no gzip", packed, 400),
        (good[:-9], packed, 400),
        (good + good, packed, 400),
        (good, {"Content-Encoding": "br"}, 415),
    ):
        assert served.post(CHAT, body, headers)[0] == status


def test_remote_tokenizers(served, model):
    found = served.ask("GET", "/tokenizer_info")[2]
    names = [found[name] for name in ("bos_token", "eos_token", "pad_token")]
    assert names == ["<|startoftext|>", "<|return|>", "<|endoftext|>"]
    for name in names:  # lm-eval takes the first id of what it gets
        body = {"prompt": name, "add_special_tokens": False}
        assert served.post("/tokenize", body)[2]["tokens"] == [model.tokenizer.special_tokens[name]]
        for more in ({"special": False}, {"prompt": f"{name} "}):
            tokens = served.post("/tokenize", body | more)[2]["tokens"]
            assert tokens == model.tokenizer.encode((body | more)["prompt"]) and len(tokens) > 1


def test_tokens_by_their_ids(served, model):
    asked = {
        COMPLETIONS: {"logprobs": 2, "echo": True, "prompt": "aé"},
        CHAT: {"logprobs": True, "top_logprobs": 2, "max_tokens": 60},
        RESPONSES: {"input": "Please compute 10 + 5.", "top_logprobs": 2, "max_output_tokens": 60},
    }
    for path, fields in asked.items():
        logs = []
        for more in ({}, {"return_tokens_as_token_ids": True}):
            headers, found = answer(served, path, fields | more | {"temperature": 0})
            assert IGNORED not in headers
            if path == RESPONSES:
                logs.append(found["output"][-1]["content"][0]["logprobs"])
            elif path == CHAT:
                logs.append(found["choices"][0]["logprobs"]["content"])
            else:
                log = found["choices"][0]["logprobs"]
                tops = [top and [*top.items()] for top in log["top_logprobs"]]
                logs.append([{"token": one, "top": top} for one, top in zip(log["tokens"], tops, strict=True)])
        for plain, by_id in zip(*logs, strict=True):
            for one, other in zip(*([log, *log.get("top_logprobs", ())] for log in (plain, by_id)), strict=True):
                name, number = other["token"].split(":")
                raw = model.tokenizer.token_bytes(int(number))
                assert name == "token_id" and other.get("bytes", list(raw)) == list(raw) == one.get("bytes", list(raw))
                assert one["token"] in (raw.decode("utf-8", "replace"), "bytes:" + "".join(f"\\x{x:02x}" for x in raw))
            assert all(name.startswith("token_id:") for name, _ in by_id.get("top") or ())


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_can_be_left_out(monkeypatch, model, served, stream):
    thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    prompts = scripted(monkeypatch, model, *[thought + CALL.format("{}")] * 2, FINAL.format("a"))
    for shown in (True, False):
        body = {"tools": [TOOL], "max_tokens": 60, "include_reasoning": shown, "stream": stream}
        headers, found = answer(served, CHAT, body | ({"stream_options": {"include_usage": True}} if stream else {}))
        assert IGNORED not in headers
        assert ("reasoning_content" in json.dumps(found)) == shown
    call = re.search(r"call_[0-9a-f]{32}", json.dumps(found))[0]
    said = {"role": "assistant", "tool_calls": [{"id": call, "function": FUNCTION | {"arguments": "{}"}}]}
    answer(served, CHAT, {"messages": [*ADD, said, {"role": "tool", "tool_call_id": call, "content": "7"}]})
    assert "analysis<|message|>Hm." in prompts[-1]  # it is put back all the same


# --------------------------------------------------------------------------------------- what is sent while one waits


@pytest.mark.parametrize("path", GOOD)
def test_a_stream_begins_before_its_first_token(served, model, monkeypatch, path):
    """The head and comments come while the prompt is read, and the events are the same."""
    expected = answer(served, path, {"stream": True, "temperature": 0})[1]
    go, step = threading.Event(), model.transformer.step
    monkeypatch.setattr(model.transformer, "step", lambda *a, **h: go.wait(20) and step(*a, **h))
    monkeypatch.setattr(stream, "HEAD_SECONDS", 0.01)
    monkeypatch.setattr(stream, "COMMENT_SECONDS", 0.01)
    connection = http.client.HTTPConnection(served.host, served.port, timeout=20)
    body = json.dumps(GOOD[path] | {"stream": True, "temperature": 0})
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200
    comments = [response.readline() for _ in range(6)]
    assert comments == [b": keep-alive\n", b"\n"] * 3
    go.set()
    text = response.read().decode().replace(": keep-alive\n\n", "")
    connection.close()
    assert text.count("data: ") == expected.count("data: ") and text.endswith(expected[-10:])


def test_reasoning_that_a_client_drops_is_put_back(monkeypatch, model, served):
    thought = "<|channel|>analysis<|message|>I plan.<|end|>"
    prompts = scripted(monkeypatch, model, *[f"{thought}<|start|>assistant{CALL.format('{}')}", FINAL.format("a")] * 3)
    for number, store in enumerate((None, None, False)):
        body = {"messages": WEATHER, "tools": [TOOL], "max_tokens": 50, "store": store}
        said = answer(served, CHAT, body)[1]["choices"][0]["message"]
        result = {"role": "tool", "tool_call_id": said["tool_calls"][0]["id"], "content": "It rains."}
        if number:
            del said["reasoning"], said["reasoning_content"]
        answer(served, CHAT, body | {"messages": [*WEATHER, said, result]})
    assert prompts[1] == prompts[3] != prompts[5] and "I plan." in prompts[3] and "I plan." not in prompts[5]


# ------------------------------------------------------------------------------------------------------ the store


def test_a_store_keeps_within_its_bounds():
    store = Store(3 * Store.OVERHEAD + 30, 10, 60)
    for key in "abc":
        store.put(key, Thought(key), 10)
    assert store.get("a", Thought) == Thought("a")  # used last
    store.put("d", Thought("d"), 10)
    assert [store.get(key, Thought) is None for key in "abcd"] == [False, True, False, False]
    store.put("e", Thought("e" * 9999), 9999)
    assert store.get("d", Thought) == Thought("d")  # what is too large takes no other's place
    assert store.get("e", Thought) is None and store.nbytes <= 3 * Store.OVERHEAD + 30
    store.put("f", Thought("f"), 10)
    store.put("f", Thought("g"), 10)
    assert store.get("f", Thought) == Thought("g") and store.get("f", str) is None
    store.drop("f")
    assert store.get("f", Thought) is None
    late = Store(10**9, 10, max_seconds=-1)
    late.put("a", Thought("a"), 1)
    assert late.get("a", Thought) is None and len(late) == late.nbytes == 0
    many = Store(10**9, 2, 60)
    for key in "abc":
        many.put(key, Thought(key), 1)
    assert len(many) == 2 and many.get("a", Thought) is None


# ------------------------------------------------------------------------------------------------------ what it costs


@pytest.mark.parametrize(
    "grammar",
    [
        {"guided_grammar": "start: a0\n" + "".join(f"a{i}: a{i + 1}\n" for i in range(3000)) + 'a3000: "x"'},
        {"guided_grammar": "start: " + "(" * 2000 + '"a"' + ")" * 2000},
        {"guided_regex": "a?" * 30_000},
        {"guided_json": {"type": "string", "pattern": "a?" * 30_000}},
    ],
)
def test_grammars_that_would_take_the_server_down_are_refused(served, grammar):
    pytest.importorskip("llguidance")
    assert "at most" in served.refused("/v1/completions", {"prompt": "a", **grammar})["message"]


def test_a_schema_in_a_text_is_counted_too(model):
    with serving(model, limits=Limits(values=100)) as few:
        asked = {"prompt": "a", "max_tokens": 1, "guided_json": json.dumps({"enum": [0] * 200})}
        assert few.refused("/v1/completions", asked)["param"] == "guided_json"


def test_functions_of_namespaces_count_as_tools(served):
    tools = [
        {"type": "namespace", "name": name, "tools": [{"type": "function", "name": f"f{i}"} for i in range(100)]}
        for name in "ab"
    ]
    assert served.post("/v1/responses", {"input": "a", "tools": tools[:1], "max_output_tokens": 1})[0] == 200
    assert served.refused("/v1/responses", {"input": "a", "tools": tools})["param"] == "tools"


def test_an_item_is_named_once(served):
    first = served.post("/v1/responses", {"input": "a", "max_output_tokens": 5})[2]["output"][0]
    twice = [{"type": "item_reference", "id": first["id"]}] * 2
    assert served.refused("/v1/responses", {"input": twice})["param"] == "input[1].id"
    assert served.post("/v1/responses", {"input": twice[:1], "max_output_tokens": 1})[0] == 200


def test_many_calls_in_one_turn_take_no_long():
    talk = Conversation()
    talk.add("user", "a")
    talk.add_said("one moment", "final")
    began = time.perf_counter()
    for number in range(10_000):
        talk.add_call(str(number), "f", "{}")
    assert time.perf_counter() - began < 2  # 5 s where each looked at all before it
    talk.add_said("another", "final")
    talk.add_call("last", "f", "{}")
    assert {one.channel for one in talk.messages[1:]} == {"commentary"}


def test_what_a_prompt_begins_with_can_be_left_out(served, model, monkeypatch):
    steps = model.tokenizer._steps
    monkeypatch.setattr(model.tokenizer, "_steps", replace(steps, prefix_ids=(7,)))
    counts = [
        served.post("/tokenize", {"prompt": "hi", **more})[2]["count"] for more in ({}, {"add_special_tokens": False})
    ]
    assert counts[0] == counts[1] + 1


def test_choices_are_made_beside_the_event_loop(served, monkeypatch):
    threads = []
    monkeypatch.setattr(completions, "TokenLog", lambda *_: threads.append(threading.current_thread()))
    served.post("/v1/completions", {"prompt": "a", "max_tokens": 1, "echo": True, "logprobs": 1})
    served.post("/v1/responses", {"input": "a", "max_output_tokens": 1})
    assert [one.name.startswith("AnyIO") for one in threads] == [True]
