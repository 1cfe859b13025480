"""Damaged HTTP requests by the thousand, through the whole application in this process, on a tiny model.

Each is answered, or refused in the shape of OpenAI's errors; none is a 500, none tells of this machine, and none leaves
anything running. `python bench/fuzz.py requests` runs as many as there is time for.
"""

import asyncio
import gzip
import json
import random
import re
import shutil
import sys
from contextlib import contextmanager
from copy import deepcopy

import cgpt
from cgpt.generation.engine import Engine
from cgpt.models import synth
from cgpt.serve.app import ENDPOINTS, make_app
from cgpt.serve.limits import Limits
from cgpt.serve.service import Service

from support.fuzz import GPT_OSS, NASTY, damaged_bytes, nodes, scratch

AT_ONCE = 8  # requests of a case
LIMITS = Limits(
    max_tokens=6, body_bytes=200_000, n=3, requests=6, messages=8, tools=4, stops=3, stop_length=20, logit_biases=5,
    values=5000, keys=2000, ids=2000, stored_bytes=100_000, stored_entries=50,
)  # fmt: skip
TELLS = re.compile(
    r"Traceback|0x[0-9a-f]{8}|/dev/shm|/tmp/|\.py\b|internal_error|model_failed"
)  # what no answer may say
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}, "s": {"enum": ["a", "b"]}}, "required": ["n"]}
FUNCTION = {"name": "f", "description": "Does.", "parameters": SCHEMA, "strict": True}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TALK = [
    {"role": "system", "content": "Be."},
    {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    {"role": "assistant", "content": "x", "reasoning": "y", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "7"},
]
ITEMS = [
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
    {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "y"}]},
    {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "call_1", "output": "7"},
]
FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}
BLOCKS = [
    {"role": "user", "content": "Hi"},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "y", "signature": "eQ=="},
            {"type": "text", "text": "x"},
            {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"n": 1}},
        ],
    },
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "7"}]},
]
INPUT_TOOL = {"name": "f", "description": "Does.", "input_schema": SCHEMA}
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
BODIES = [
    (CHAT, {"messages": TALK, "tools": [TOOL], "temperature": 1, "seed": 3, "max_tokens": 4}),
    (CHAT, {"messages": TALK[:2], "response_format": FORMAT, "n": 2, "logprobs": True, "top_logprobs": 2}),
    (
        CHAT,
        {"messages": TALK[1:2], "tools": [TOOL], "tool_choice": "required", "stop": ["a"], "max_completion_tokens": 4},
    ),
    (CHAT, {"messages": TALK[1:2], "structured_outputs": {"regex": "[a-c]{1,3}"}, "reasoning_effort": "low"}),
    (COMPLETIONS, {"prompt": "Hi", "max_tokens": 3, "echo": True, "logprobs": 2, "logit_bias": {"5": 1}}),
    (COMPLETIONS, {"prompt": [[1, 2], [3]], "max_tokens": 2, "n": 1, "best_of": 2, "top_p": 0.5, "top_k": 4}),
    (
        RESPONSES,
        {"input": "Hi", "instructions": "Be.", "max_output_tokens": 4, "include": ["reasoning.encrypted_content"]},
    ),
    (RESPONSES, {"input": ITEMS, "tools": [{"type": "function"} | FUNCTION], "tool_choice": "auto", "top_logprobs": 1}),
    (RESPONSES, {"input": ITEMS[:1], "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}}),
    (
        MESSAGES,
        {"messages": BLOCKS, "tools": [INPUT_TOOL], "max_tokens": 4, "system": [{"type": "text", "text": "Be."}]},
    ),
    (MESSAGES, {"messages": BLOCKS[:1], "tools": [INPUT_TOOL], "tool_choice": {"type": "any"}, "max_tokens": 4}),
    (
        MESSAGES,
        {"messages": BLOCKS[:1], "thinking": {"type": "enabled", "budget_tokens": 2048}, "stop_sequences": ["a"]},
    ),
    (COUNT, {"messages": BLOCKS, "tools": [INPUT_TOOL]}),
    ("/tokenize", {"prompt": "Hi", "special": True}),
    ("/detokenize", {"tokens": [1, 2, 3]}),
]
PATHS = sorted({one.path for one in ENDPOINTS if not one.takes})
KEYS = sorted(
    {name for one in ENDPOINTS if one.takes for name in one.takes.model_fields}
    | {
        "$ref",
        "$defs",
        "anyOf",
        "allOf",
        "pattern",
        "enum",
        "const",
        "items",
        "minItems",
        "maxItems",
        "minimum",
        "format",
        "required",
        "additionalProperties",
        "function",
        "type",
        "role",
        "name",
        "arguments",
        "include_usage",
        "json",
        "grammar",
        "image_url",
        "namespace",
        "id",
        "call_id",
        "output",
        "parameters",
        "schema",
    }
)
VALUES = [
    *NASTY,
    "auto",
    "none",
    "required",
    "user",
    "assistant",
    "tool",
    "developer",
    "function",
    "text",
    "input_text",
    "json",
    "json_object",
    "json_schema",
    "namespace",
    "item_reference",
    "call_1",
    "f",
    "low",
    "<|start|>",
    "<|call|>",
    "[a-z]+",
    'root ::= "a" | root',
    "start: /a+/",
    "a" * 3000,
    ["a"] * 300,
    [[1]] * 50,
    SCHEMA,
    TOOL,
    FORMAT,
    TALK[2],
    ITEMS[2],
    {"type": "string", "pattern": "(a|b)*c{2,9}"},
    {"$ref": "#"},
    {"type": "object", "additionalProperties": {"$ref": "#"}},
    "\U0001f600é\u0301",
    "\ufeff",
    "\u2028",
]


def damaged_body(rng, body):
    """The JSON text of a body with some of its values changed, which may be no JSON any more."""
    tree = deepcopy(body)
    for _ in range(rng.choice([0, 0, 1, 1, 1, 2, 3])):
        places = nodes(tree)
        container, key = rng.choice(places) if places else (tree, "model")
        action = rng.randrange(6)
        if action == 0:
            container.pop(key, None) if isinstance(container, dict) else container.pop(key)
        elif action == 1 and isinstance(container, dict):
            container[rng.choice(KEYS)] = deepcopy(rng.choice(VALUES))
        elif action == 2 and places:
            other, other_key = rng.choice(places)
            try:
                container[key] = deepcopy(other[other_key])
            except (KeyError, IndexError):
                pass
        elif action == 3 and isinstance(container, list):
            container[key:key] = [deepcopy(container[key])] * rng.choice([1, 2, 9])
        else:
            container[key] = deepcopy(rng.choice(VALUES))
    data = json.dumps(tree, ensure_ascii=rng.random() < 0.8).encode("utf-8", "surrogatepass")
    return damaged_bytes(rng, data, len(data)) if rng.random() < 0.1 else data


def request(rng):
    """(method, path, headers, body, how many parts of the answer are read before the client leaves; None for all)"""
    if rng.random() < 0.08:
        path = rng.choice(PATHS).replace("{name:path}", rng.choice(["demo", "x/y", "%00", "é"]))
        path = path.replace("{response_id}", rng.choice(["resp_1", "", "é", "a" * 300]))
        return rng.choice(["GET", "GET", "HEAD", "POST", "DELETE", "PUT"]), path, {}, b"", None
    path, body = rng.choice(BODIES)
    if rng.random() < 0.4:
        body = body | {"stream": True}
    data = damaged_body(rng, body)
    if rng.random() < 0.03:
        path = rng.choice([one for one, _ in BODIES])
    headers = {"content-type": "application/json"}
    if rng.random() < 0.05:
        odd = {
            "content-type": ["text/plain", "application/json; charset=x", ""],
            "content-encoding": ["gzip", "br", "identity"],
            "host": ["evil.example", "", "[::1"],
            "origin": ["http://evil.example", "null"],
            "content-length": ["-1", "9" * 30, "x", "3"],
            "x-request-id": ["a", "\x00", "b" * 300],
        }
        name = rng.choice(list(odd))
        headers[name] = rng.choice(odd[name])
    if rng.random() < 0.03:
        headers["content-encoding"], data = "gzip", damaged_bytes(rng, gzip.compress(data, mtime=0), 1000)
    return "POST", path, headers, data, rng.choice([0, 1, 2, 5]) if rng.random() < 0.1 else None


async def ask(app, method, path, headers, body, leaves_after):
    """The status and the text of what comes until the client leaves; status 0 where nothing came."""
    raw = [(name.encode(), value.encode("latin-1")) for name, value in ({"host": "localhost"} | headers).items()]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": raw,
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {"limits": LIMITS},
    }  # fmt: skip
    status, parts, gone = 0, [], asyncio.Event()
    incoming = [
        {"type": "http.request", "body": body[i : i + 70_000], "more_body": True} for i in range(0, len(body), 70_000)
    ]
    incoming.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive():
        if incoming:
            return incoming.pop(0)
        if leaves_after != 0:
            await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        nonlocal status
        status = message.get("status", status)
        parts.append(message.get("body", b""))
        if len(parts) == leaves_after:
            gone.set()

    await asyncio.wait_for(app(scope, receive, send), 60)
    return status, b"".join(parts).decode("utf-8")


def check(status, text, method, path, leaves_after):
    assert status in (0, 200, 307, 400, 401, 403, 404, 405, 408, 413, 415, 429, 499), (status, text)
    assert status or leaves_after is not None
    assert not TELLS.search(text) or "openapi" in text[:20] or text.startswith("<!DOCTYPE"), text
    if status >= 400 and status != 499 and method != "HEAD":
        of_error = {"message", "type"} | ({"details"} if path in (MESSAGES, COUNT) else {"param", "code"})
        assert set(json.loads(text)["error"]) == of_error, text
    for line in text.split("\n"):
        if line.startswith("data: {"):
            json.loads(line[6:])
    if status == 200 and "data: {" in text and leaves_after is None:
        assert text.endswith(("data: [DONE]\n\n", "}\n\n")), text


@contextmanager
def cases():
    """What bench/fuzz.py runs: a function of the seed, which asks AT_ONCE requests together."""
    demo = cgpt.locate("demo-gpt-oss")
    with scratch() as folder:
        config = json.loads((demo / "config.json").read_text())
        synth.write(GPT_OSS | {key: config[key] for key in ("vocab_size", "eos_token_id")}, folder)
        for path in demo.glob("*token*.json"):
            shutil.copy(path, folder)
        with Engine(cgpt.load(folder, threads=1), prefix_cache_bytes=1_000_000) as engine:
            app = make_app(Service(engine, ("demo",), LIMITS))

            async def together(seed):
                rng = random.Random(seed)
                asked = [request(rng) for _ in range(AT_ONCE)]
                answers = await asyncio.gather(*(ask(app, *one) for one in asked))
                for (method, path, *_, leaves_after), (status, text) in zip(asked, answers, strict=True):
                    check(status, text, method, path, leaves_after)
                for _ in range(2000):
                    if not engine.running and not engine.waiting:
                        break
                    await asyncio.sleep(0.005)
                assert not engine.running and not engine.waiting and engine.failure is None
                assert (await ask(app, "GET", "/health", {}, b"", None))[0] == 200
                return [str(status) for status, _ in answers]

            sys.setswitchinterval(1e-4)  # else the loop and the engine mostly wait for each other
            loop = asyncio.new_event_loop()
            yield lambda seed: loop.run_until_complete(together(seed))
            loop.close()
