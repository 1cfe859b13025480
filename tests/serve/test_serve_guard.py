"""Who may ask the server, how much, and how slowly; that nothing asked gives a 500 or stops it; how it ends."""

import asyncio
import contextlib
import http.client
import json
import logging
import re
import socket
import time

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cgpt
from cgpt.serve import server
from cgpt.serve.app import ENDPOINTS
from cgpt.serve.limits import Limits

from support.serve_cases import serving, wait_for

ASK = {"prompt": "a", "max_tokens": 1}


@pytest.fixture(scope="module")
def model():
    return cgpt.load("demo-gpt2")


@pytest.fixture(scope="module")
def served(model):
    with serving(model, limits=Limits(body_bytes=2000, body_seconds=0.3, head_seconds=0.3)) as served:
        yield served


@pytest.fixture(scope="module")
def chatting():
    with serving(cgpt.load("demo-gpt-oss"), limits=Limits(body_bytes=2000, max_tokens=20)) as served:
        yield served


@pytest.mark.parametrize(
    "host, status",
    [
        ("localhost:8000", 200), ("LOCALHOST", 200), ("app.localhost", 200), ("127.0.0.1", 200), ("[::1]:80", 200),
        ("192.168.1.7:8000", 200), ("evil.example", 403), ("evil.example:8000", 403), ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403), ("", 403), ("[::1", 403), ("[evil]:1", 403),
        ("localhost.:80", 200), ("localhost..", 403), ("localhost:evil", 403), ("evil.example@localhost", 403),
        ("localhost/evil.example", 403), ("localhost?evil.example", 403), ("local\thost", 403), ("127.1", 403),
    ],
)  # fmt: skip
def test_the_host_must_be_ours(served, host, status):
    """A page whose name was pointed here after it was loaded sends that name."""
    assert served.ask("GET", "/health", headers={"Host": host})[0] == status
    assert served.ask("GET", "/", headers={"Host": host})[0] == status


def test_other_names_where_allowed(model):
    with serving(model, hosts=("box.example",)) as served:
        assert served.ask("GET", "/health", headers={"Host": "BOX.example.:8000"})[0] == 200
        _, _, answer = served.ask("GET", "/health", headers={"Host": "other.example"})
        assert answer["error"]["code"] == "host_not_allowed" and "--allow-host" in answer["error"]["message"]


def test_pages_of_other_sites_may_not_ask(served):
    own = f"http://{served.host}:{served.port}"
    for origin, status in ((own, 200), ("https://evil.example", 403), ("null", 403), (own + "1", 403)):
        found, headers, _ = served.post("/v1/completions", ASK, {"Origin": origin})
        assert found == status and "access-control-allow-origin" not in headers
    status, headers, _ = served.ask("OPTIONS", "/v1/completions", headers={"Origin": "https://evil.example"})
    assert status == 403 and "access-control-allow-origin" not in headers
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):  # which need no asking before
        assert served.post("/v1/completions", ASK, {"Content-Type": kind})[0] == 415


def test_cors_where_asked_for(model):
    friend = {"Origin": "https://friend.example"}
    with serving(model, origins=("https://friend.example",), key="k") as served:
        before = friend | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        status, headers, _ = served.ask("OPTIONS", "/v1/completions", headers=before)
        assert status == 200 and headers["access-control-allow-origin"] == "https://friend.example"
        for key, expected in (("k", 200), ("wrong", 401)):
            status, headers, _ = served.post("/v1/completions", ASK, friend | {"Authorization": f"Bearer {key}"})
            assert status == expected and headers["access-control-allow-origin"] == "https://friend.example"
        foe = {"Origin": "https://evil.example", "Authorization": "Bearer k"}
        status, headers, _ = served.post("/v1/completions", ASK, foe)
        assert status == 403 and "access-control-allow-origin" not in headers


def test_the_key(model):
    with serving(model, key="sécret") as served:
        for header in (None, "Bearer", "Bearer wrong", "Basic sécret", "sécret", "Bearer sécret2", "Bearer \xff"):
            headers = {"Authorization": header.encode()} if header else {}
            for path in ("/v1/completions", "/v1/models", "/metrics", "/x"):
                status, answered, answer = served.post(path, ASK, headers)
                assert status == 401 and answer["error"]["code"] == "invalid_api_key"
                assert answered["www-authenticate"] == "Bearer"
        assert served.ask("GET", "/health")[0] == served.ask("GET", "/")[0] == 200
        assert served.post("/v1/completions", ASK, {"Authorization": "bearer sécret".encode()})[0] == 200
        with pytest.raises(openai.AuthenticationError):
            served.client("wrong").models.list()


def test_bodies_are_bounded(served):
    body = json.dumps({"prompt": "a" * 2000}).encode()
    assert "at most 2000 are read" in served.refused("/v1/completions", body, 413)["message"]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:1500], body[1500:])) + b"0\r\n\r\n"
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    assert talk(served, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks).startswith(b"HTTP/1.1 413")
    assert talk(served, head + b"Content-Length: " + b"9" * 20 + b"\r\n\r\n").startswith(b"HTTP/1.1 413")


def talk(served, data, wait=5.0):
    """What the server answers to these bytes until it closes or is silent for `wait` seconds."""
    with socket.create_connection((served.host, served.port)) as connection:
        connection.settimeout(wait)
        connection.sendall(data)
        answer = b""
        try:
            while b"\r\n\r\n" not in answer and (part := connection.recv(65536)):
                answer += part
        except TimeoutError:
            pass
        return answer


@pytest.mark.parametrize("data", [b"", b"POST /v1/comp", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "])
def test_a_head_that_does_not_come_ends_the_connection(served, data):
    began = time.monotonic()
    assert talk(served, data, 10) == b"" and time.monotonic() - began < 5


def test_a_head_that_comes_drop_by_drop_does_too(served):
    with socket.create_connection((served.host, served.port)) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(9000).startswith(b"HTTP/1.1 200")
        with pytest.raises(ConnectionError):  # the second head of the connection
            for _ in range(100):
                connection.sendall(b"G")
                time.sleep(0.05)


def test_a_body_that_does_not_come_is_given_up(served):
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    assert talk(served, head + b"Content-Length: 50\r\n\r\n{").startswith(b"HTTP/1.1 408")


def test_an_answer_may_take_longer_than_a_head(model, monkeypatch):
    step = model.transformer.step
    monkeypatch.setattr(model.transformer, "step", lambda *a, **h: time.sleep(0.02) or step(*a, **h))
    with serving(model, limits=Limits(head_seconds=0.5)) as served:
        chunks = list(served.client().completions.create(model="demo", prompt="a", max_tokens=40, stream=True))
        assert chunks[-1].choices[0].finish_reason in ("length", "stop")


NASTY = [
    b"", b"{", b"[]", b"null", b'"a"', b"\xff\xfe", b'{"prompt": "a", "prompt": "b"}', b'{"prompt": NaN}',
    b'{"prompt": "a", "seed": ' + b"9" * 1500 + b"}", b'{"prompt": "a", "temperature": 1e999}', b"[" * 1900,
    b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}", b'{"prompt": "a", "logit_bias": {"\\u0661": 1}}',
    b'{"prompt": "a", "\\ud800": 1}', b'{"model": "\\ud800"}', b'{"prompt": {"a": 1}}', b'{"prompt": [true]}',
    b'{"prompt": "a", "stop": {"a": "b"}}', b'{"prompt": "a", "suffix": {}}', b'{"prompt": "a", "stream_options": []}',
    b'{"input": "a", "metadata": {"a": 1e999}}', b'{"input": "a", "metadata": ' + b"[" * 100 + b"]" * 100 + b"}",
    b'{"input": "a", "background": 0}', b'{"prompt": [1.5]}',
]  # fmt: skip


PATHS = ["/v1/completions", "/tokenize", "/detokenize", "/v1/chat/completions", "/v1/responses"]


@pytest.fixture(scope="module")
def strict():
    with serving(cgpt.load("demo-gpt-oss"), limits=Limits(max_tokens=3), strict=True) as served:
        yield served


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("body", NASTY, ids=range(len(NASTY)))
def test_bodies_that_are_wrong_are_refused(strict, path, body):
    status, _, answer = strict.post(path, body)
    assert status in (400, 404) and answer["error"]["message"]


def test_a_whole_number_may_have_a_point(chatting):
    body = {"prompt": [1.0, 2.0], "max_tokens": 1.0, "temperature": 0.0}
    assert chatting.post("/v1/completions", body)[0] == 200


def test_no_part_of_an_answer_waits_for_the_acknowledgement_of_the_one_before(served):
    with server.listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        assert listening.accept()[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 600) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
TEXT = st.sampled_from(["a", "", "<|start|>", "\ud800", "{}", "f", "auto", "none", "low", "text"]) | st.text(max_size=4)
PARTS = st.fixed_dictionaries({"type": st.sampled_from(["text", "input_text", "x"])}, optional={"text": TEXT | JSON})
CONTENT = TEXT | st.lists(PARTS, max_size=2) | JSON
FUNCTIONS = st.fixed_dictionaries({}, optional={"name": TEXT, "arguments": TEXT, "parameters": JSON})
CALLS = st.fixed_dictionaries({}, optional={"id": TEXT, "type": st.just("function"), "function": FUNCTIONS})
KINDS = st.sampled_from(["message", "reasoning", "function_call", "function_call_output", "function"])
ITEMS = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system", "developer"]), "content": CONTENT},
    optional={
        "type": KINDS,
        "tool_call_id": TEXT,
        "tool_calls": st.lists(CALLS, max_size=2),
        "reasoning": TEXT,
        "name": TEXT,
        "call_id": TEXT,
        "arguments": TEXT,
        "output": CONTENT,
        "function": FUNCTIONS,
    },
)
FIELDS = {one.path: set(one.takes.model_fields) for one in ENDPOINTS if one.takes}
GOOD = {
    PATHS[0]: {"prompt": "a", "max_tokens": 2},
    PATHS[4]: {"input": "a", "max_output_tokens": 2},
    PATHS[3]: {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
}


@st.composite
def bodies(draw):
    """(path, a body whose fields the endpoint knows, some of them right)"""
    path = draw(st.sampled_from(PATHS))
    fields = draw(st.dictionaries(st.sampled_from(sorted(FIELDS[path] - {"max_tokens"})), TEXT | JSON, max_size=2))
    lists = {key: draw(st.lists(ITEMS, max_size=3)) for key in ("messages", "input", "tools") if draw(st.booleans())}
    known = {key: value for key, value in lists.items() if key in FIELDS[path]}
    return path, GOOD.get(path, {}) | fields | known


@settings(max_examples=400, deadline=None)
@given(bodies())
def test_no_body_is_a_500(chatting, asked):
    path, body = asked
    status, _, answer = chatting.post(path, body)
    assert status in (200, 400, 404, 413), answer
    assert chatting.engine._thread.is_alive()


def test_what_is_no_http_is_refused_in_openai_s_shape(served):
    wrong = {b"\x00\r\n\r\n": 400, b"GET\r\n\r\n": 400, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n": 400}
    wrong |= {b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"A" * 60_000 + b"\r\nY: " + b"B" * 60_000: 431}
    for data, status in wrong.items():
        head, _, body = talk(served, data).partition(b"\r\n\r\n")
        assert data and head.startswith(b"HTTP/1.1 %d" % status)
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    try:
        assert talk(served, b"A" * 200_000)[:12] in (b"", b"HTTP/1.1 431")
    except ConnectionError:
        pass
    assert served.ask("GET", "/health")[0] == 200


@pytest.mark.parametrize(
    "method, path, status",
    [("GET", "/nothing", 404), ("POST", "/nothing", 404), ("DELETE", "/health", 405), ("GET", "/v1/completions", 405)],
)
def test_every_refusal_has_openai_s_shape(served, method, path, status):
    found, headers, answer = served.ask(method, path)
    assert found == status and set(answer["error"]) == {"message", "type", "param", "code"}
    assert status != 405 or headers["allow"]


@pytest.mark.parametrize("stream", [False, True])
def test_errors_tell_nothing_of_this_machine(model, monkeypatch, caplog, stream):
    """Neither a defect nor what a library says may hold addresses, paths or tracebacks; the log has them."""
    secret = "0x7f00dead: /somewhere/.secret/file.py, line 7"
    step, body = model.transformer.step, ASK | {"max_tokens": 8, "stream": stream, "temperature": 0}

    for problem in (KeyError(secret), cgpt.errors.KernelError(secret), OSError(2, "no", "/somewhere/.secret")):
        steps = []

        def fails(*args, problem=problem, steps=steps, **how):
            steps.append(1)
            if len(steps) > 2:
                raise problem
            return step(*args, **how)

        monkeypatch.setattr(model.transformer, "step", fails)
        with serving(model) as served:
            status, _, answer = served.post("/v1/completions", body)
        assert "internal_error" in str(answer) and (status == 200) == stream
        for told in ("0x7f", "/somewhere", "Traceback", "line 7", ".py"):
            assert told not in str(answer)
        assert "secret" in caplog.text
        caplog.clear()
    monkeypatch.setattr(model.transformer, "step", step)
    with serving(model) as served:
        monkeypatch.setattr(type(served.service.tokenizer), "encode", lambda *_, **__: {}[secret])
        status, _, answer = served.post("/tokenize", {"prompt": "a"})
    assert status == 500 and "secret" not in str(answer) and answer["error"]["code"] == "internal_error"


def test_a_body_is_counted_before_it_is_parsed(model):
    with serving(model) as served:
        for body in (
            b'{"prompt": [' + b"[]," * 300_000 + b"1]}",
            b"{" + b",".join(b'"%d":0' % i for i in range(70_000)) + b"}",
            b'{"tokens": [' + b"1," * 300_000 + b"1]}",
        ):
            assert "at most 262144 values and 65536 keys" in served.refused("/detokenize", body)["message"]
        text = '\\",:[{' * 20_000
        assert served.post("/tokenize", {"prompt": text})[0] == 200


def test_tokens_are_bounded(model):
    with serving(model, limits=Limits(ids=10)) as served:
        assert served.post("/tokenize", {"prompt": " a" * 10})[2]["count"] == 10
        assert "at most 10 are given" in served.refused("/tokenize", {"prompt": " a" * 11})["message"]
        assert "10 at most" in served.refused("/detokenize", {"tokens": [1] * 11})["message"]


def held(served):
    connection = http.client.HTTPConnection(served.host, served.port, timeout=20)
    connection.request("GET", "/health")
    assert connection.getresponse().read()
    return connection


def test_the_oldest_idle_connection_makes_room(model, monkeypatch):
    monkeypatch.setattr(server.Protocol, "max_connections", 4)
    with serving(model) as served:
        connections = [held(served) for _ in range(4)]
        connections[0].request("GET", "/health")  # now the second is the oldest
        connections[0].getresponse().read()
        assert served.ask("GET", "/health")[0] == 200
        assert [one.sock.recv(1) for one in connections[1:2]] == [b""]
        connections[0].request("GET", "/health")
        assert connections[0].getresponse().status == 200


def test_connections_that_come_at_once_are_bounded_too(model, monkeypatch):
    monkeypatch.setattr(server.Protocol, "max_connections", 4)
    loops, made, closed = [], server.Protocol.connection_made, []

    def connection_made(self, transport):
        loops.append(self.loop)
        made(self, transport)
        closed.append(sum(one.transport.is_closing() for one in self.connections))

    monkeypatch.setattr(server.Protocol, "connection_made", connection_made)
    with serving(model) as few, contextlib.ExitStack() as opened:
        ours = [opened.enter_context(socket.create_connection((few.host, few.port))) for _ in range(4)]
        wait_for(lambda: len(closed) == 4)
        loops[0].call_soon_threadsafe(time.sleep, 0.3)  # so that the next ones are accepted together
        ours += [opened.enter_context(socket.create_connection((few.host, few.port))) for _ in range(3)]
        wait_for(lambda: len(closed) == 7)
        assert max(closed) == 3  # each new one took the place of another


def test_where_all_are_busy_a_new_connection_is_told(model, monkeypatch):
    step = model.transformer.step
    monkeypatch.setattr(model.transformer, "step", lambda *a, **h: time.sleep(0.05) or step(*a, **h))
    monkeypatch.setattr(server.Protocol, "max_connections", 2)
    with serving(model) as served:
        ask = dict(model="demo", prompt="a", max_tokens=100, stream=True)
        streams = [served.client().completions.create(**ask) for _ in range(2)]
        [next(iter(stream)) for stream in streams]
        status, headers, answer = served.ask("GET", "/health")
        assert status == 503 and answer["error"]["code"] == "overloaded" and headers["retry-after"]
        for stream in streams:
            stream.close()


def test_a_stream_that_nobody_reads_is_ended(model):
    ask = json.dumps({"prompt": "a", "max_tokens": 200, "n": 16, "stream": True, "logprobs": 20}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with serving(model, limits=Limits(write_seconds=0.3)) as served, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((served.host, served.port))
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(ask) + ask)
        time.sleep(2)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(1 << 20):
                answer += part
        assert answer.startswith(b"HTTP/1.1 200") and b"[DONE]" not in answer
        wait_for(lambda: served.engine.running == 0)


def test_what_fails_beside_requests_is_logged_once_a_minute(caplog):
    quiet, loop = server.Quiet(), asyncio.new_event_loop()
    for _ in range(100):
        quiet(loop, {"message": "socket.accept() out of system resource", "exception": OSError(24, "too many")})
    loop.close()
    assert len(caplog.records) == 1


POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
BODY = json.dumps(ASK).encode()
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "data, statuses",
    [
        (POST + LENGTH + b"\r\n" + BODY, [200]),
        (POST + LENGTH + b"Content-Length: 3\r\n\r\n" + BODY, [400]),
        (POST + b"Content-Length: -1\r\n\r\n" + BODY, [400]),
        (POST + b"Content-Length: 3\r\n\r\n" + BODY, [400]),  # cut
        (POST + b"Content-Encoding: gzip\r\n" + LENGTH + b"\r\n" + BODY[:-1] + b"\xff", [400]),
        (POST + CHUNKED + b"%x\r\n%s\r\n0\r\nX: y\r\n\r\n" % (len(BODY), BODY), [200]),
        (POST + CHUNKED + b"zz\r\n" + BODY, [400]),
        (POST + CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n", [400]),
        (POST + CHUNKED + b"5\r\nhello!!0\r\n\r\n", [400]),
        (POST.replace(b"/1.1", b"/1.0") + LENGTH + b"\r\n" + BODY, [200]),
        (b"GET /health HTTP/1.0\r\n\r\n", [403]),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2 + POST + LENGTH + b"\r\n" + BODY, [200] * 3),
        (b"GET /v1/models/..%2f%00%ff/../demo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", [404]),
    ],
)
def test_requests_by_the_byte(served, data, statuses):
    """What a client that is no library sends: answered or refused, and the connection closed."""
    with socket.create_connection((served.host, served.port), timeout=20) as connection:
        connection.sendall(data)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", answer)] == statuses
    assert served.ask("GET", "/health")[0] == 200


def test_the_log_has_no_prompts_unless_asked(model, caplog):
    caplog.set_level(logging.INFO, "cgpt.serve")
    for asked in (False, True):
        caplog.clear()
        with serving(model, log_prompts=asked) as served:
            served.post("/v1/completions", ASK | {"prompt": "a secret"})
            served.ask("GET", "/a%0asecret?secret")
        text = "\n".join(record.getMessage() for record in caplog.records)
        assert ("secret" in text) == asked and "POST /v1/completions 200" in text and "GET other 404" in text


def test_idle_connections_do_not_stop_the_server(served):
    connections = [socket.create_connection((served.host, served.port)) for _ in range(50)]
    assert served.post("/v1/completions", ASK)[0] == 200
    for connection in connections:
        connection.close()
    wait_for(lambda: served.engine.running == 0)
