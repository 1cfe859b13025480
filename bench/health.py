"""Does `/health` answer within 100 ms (p99) beside requests that cost much, and does another stream go on?

    python bench/health.py [--only WORD] [--copies 1] [--seconds 3] [--table health.md]

Starts `cgpt serve` on demo-gpt-oss. Each attack is asked again and again for some seconds, by --copies clients, while
one client asks for /health every 10 ms on a connection that stays and, every tenth time, on a new one, and another
reads a stream. Times are in ms; the client's own count too, as it shares the cores. Run it on a machine that is quiet.
"""

import argparse
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
LEAVE = "leave"  # a chat whose client goes when the head has come: all was compiled, and the prompt need not be read
HEADERS = {"Content-Type": "application/json"}
HI = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
WORDS = {"ignore_eos": True, "temperature": 1}
PATTERNS = {
    "a?^3000": "^" + "a?" * 3000 + "a" * 3000 + "$",
    "a?^1000": "^" + "a?" * 1000 + "a" * 1000 + "$",
    "(.{0,5000}x){1,500}": "^(.{0,5000}x){1,500}$",
    ".*a.{18}": "^.*a.{18}$",
    ".*a.{200}": "^.*a.{200}$",
    r"\p{L}{1,5000}": r"\p{L}{1,5000}",
    "((.*a){20}|...)": "^((.*a){20}|(.*b){21}|(.*[c-z]){22})$",
}


def closed(properties: dict) -> dict:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def tools(number: int, parameters: dict, **more) -> dict:
    functions = [{"name": f"f{i}", "parameters": parameters, "strict": True} for i in range(number)]
    return HI | {"tools": [{"type": "function", "function": one} for one in functions]} | more


def answer(schema: dict) -> dict:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return HI | {"max_tokens": 60, "temperature": 1, "response_format": form}


def call(schema: dict) -> dict:
    return tools(1, closed({"a": schema}), tool_choice="required", max_tokens=60, temperature=1)


def posts() -> dict[str, tuple[str, bytes | dict | Callable[[int], dict]]]:
    """{name: (path, body, or what makes one of a number, where each is to differ)}"""
    found = {"plain": (CHAT, HI)}
    for name, pattern in PATTERNS.items():
        found[f"answer {name}"] = CHAT, answer({"type": "string", "pattern": pattern})
        found[f"call {name}"] = CHAT, call({"type": "string", "pattern": pattern})
    names = [f"value number {i} of this" for i in range(5000)]
    sixty = [{"type": "object", "properties": {f"q{k}": {"type": "string"} for k in range(2)}}] * 60

    def each_strict(number: int) -> dict:
        made = tools(128, {}) | {"stream": True}
        for i, tool in enumerate(made["tools"]):
            tool["function"]["parameters"] = closed({f"p{number}_{i}_{j}": {"type": "string"} for j in range(60)})
        return made

    logged = WORDS | {"max_output_tokens": 6000, "top_logprobs": 20, "input": "hi"}
    return found | {
        "enum of 5000": (CHAT, call({"enum": names})),
        "128 strict tools, new each time": (LEAVE, each_strict),
        "a tool of 60 objects, 128 times": (LEAVE, tools(128, closed({f"p{i}": one for i, one in enumerate(sixty)}))),
        "3,000 properties, new each time": (
            LEAVE,
            lambda n: call(closed({f"{n}_{i}": True for i in range(3000)})) | {"stream": True},
        ),
        "const of 3 MB": (CHAT, answer({"const": {"a": ["x" * 100_000] * 30}})),
        "420,000 keys": (CHAT, ("{" + ",".join(f'"{i:x}":0' for i in range(420_000)) + "}").encode()),
        "1.39 M lists": (CHAT, b'{"a":[' + b"[]," * 1_390_000 + b"[]]}"),
        "520,000 objects": (CHAT, b'{"a":[' + b'{"a":0},' * 450_000 + b"0]}"),
        "1.04 M floats": (CHAT, b'{"a":[' + b"0.1," * 1_040_000 + b"0]}"),
        "262,000 values": (COMPLETIONS, {"prompt": "a", "user": [0.1] * 262_000, "max_tokens": 1}),
        "detokenize 1.3 M ids": ("/detokenize", {"tokens": [1] * 1_300_000}),
        "detokenize 262,000 ids": ("/detokenize", {"tokens": [1] * 262_000}),
        "tokenize 4 MB": ("/tokenize", {"prompt": "a b" * 1_300_000}),
        "tokenize 200,000 ids": ("/tokenize", {"prompt": "a b" * 87_000}),
        "256 prompts, echo, logprobs": (
            COMPLETIONS,
            {"prompt": [[i % 500] * 50 for i in range(256)], "max_tokens": 1, "echo": True, "logprobs": 20},
        ),
        "24,000 ids, echo, logprobs": (
            COMPLETIONS,
            {"prompt": [5, 6, 7, 8] * 6000, "max_tokens": 1, "echo": True, "logprobs": 20},
        ),
        "the same, streamed": (
            COMPLETIONS,
            {"prompt": [5, 6, 7, 8] * 6000, "max_tokens": 1, "echo": True, "logprobs": 20, "stream": True},
        ),
        "16 of 3,000 ids": (COMPLETIONS, {"prompt": [5] * 3000, "max_tokens": 2, "n": 16}),
        "6,000 tokens, 20 logprobs": (RESPONSES, logged),
        "the same, streamed ": (RESPONSES, logged | {"stream": True}),
        "16 x 512 tokens": (CHAT, HI | WORDS | {"max_tokens": 512, "n": 16, "logprobs": True, "top_logprobs": 20}),
        "4,096 messages": (CHAT, HI | {"messages": HI["messages"] * 4096}),
    }


Attack = Callable[[int], str]  # takes a number that no other has, and says what came of it


class Watch:
    """What others see meanwhile: seconds of each answer of /health, and between the tokens of a stream."""

    def __init__(self, port: int) -> None:
        self._port, self._stopping = port, threading.Event()
        self.health: list[float] = []
        self.gaps: list[float] = []
        self._threads = [threading.Thread(target=one, daemon=True) for one in (self._ask, self._read)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        kept, number = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60), 0
        while not self._stopping.is_set():
            number += 1
            fresh = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60) if number % 10 == 0 else kept
            began = time.perf_counter()
            try:
                fresh.request("GET", "/health")
                good = fresh.getresponse().read() == b'{"status":"ok"}'
            except (OSError, http.client.HTTPException):
                good = False
                kept.close()
            self.health.append(time.perf_counter() - began if good else float("inf"))
            if fresh is not kept:
                fresh.close()
            time.sleep(0.01)

    def _read(self) -> None:
        body = json.dumps(WORDS | {"prompt": "hello", "max_tokens": 4000, "stream": True})
        while not self._stopping.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
            try:
                connection.request("POST", COMPLETIONS, body, HEADERS)
                response, last = connection.getresponse(), time.perf_counter()
                while not self._stopping.is_set() and (line := response.readline()):
                    if line.startswith(b"data"):
                        now = time.perf_counter()
                        self.gaps.append(now - last)
                        last = now
            except (OSError, http.client.HTTPException):
                time.sleep(0.1)
            connection.close()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] * 1e3 if values else float("nan")


def post(port: int, path: str, body: bytes) -> str:
    leaves = path == LEAVE
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    try:
        connection.request("POST", CHAT if leaves else path, body, HEADERS)
        response = connection.getresponse()
        while not leaves and response.read(1 << 16):
            pass
        return str(response.status)
    except (OSError, http.client.HTTPException) as problem:
        return type(problem).__name__
    finally:
        connection.close()


def hold(port: int) -> str:
    """530 connections that ask once and stay."""
    held = []
    for _ in range(530):
        one = socket.create_connection(("127.0.0.1", port), timeout=10)
        one.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        one.recv(4096)
        held.append(one)
    for one in held:
        one.close()
    return "530 held"


def drip(port: int) -> str:
    """200 connections whose heads come by the byte."""
    held = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(200)]
    for byte in b"GET /hea":
        for one in held:
            one.send(bytes([byte]))
        time.sleep(0.1)
    for one in held:
        one.close()
    return "200 held"


def row(port: int, name: str, a: argparse.Namespace, attack: Attack) -> str:
    """Attacks again and again for a.seconds."""
    watch, results, took, end = Watch(port), set[str](), [], 0.0

    def work(first: int) -> None:
        number = first
        while not took or time.perf_counter() < end:
            number += 1
            began = time.perf_counter()
            results.add(attack(number))
            took.append(time.perf_counter() - began)

    time.sleep(1)
    watch.health.clear(), watch.gaps.clear()
    end = time.perf_counter() + a.seconds
    threads = [threading.Thread(target=work, args=(i * 1_000_000,)) for i in range(a.copies)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    watch.stop()
    health = " | ".join(f"{quantile(watch.health, share):.1f}" for share in (0.5, 0.99, 1))
    gaps = " | ".join(f"{quantile(watch.gaps, share):.0f}" for share in (0.99, 1))
    seconds = max(took)
    return f"| {name} | {', '.join(sorted(results))} | {seconds:.2f} | {len(watch.health)} | {health} | {gaps} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo-gpt-oss")
    parser.add_argument("--only", default="", help="attacks with this in their names")
    parser.add_argument("--copies", type=int, default=1, help="clients that attack at once")
    parser.add_argument("--seconds", type=float, default=3, help="of each attack, at least")
    parser.add_argument("--table", type=Path, help="a file for the table too")
    a = parser.parse_args()
    command = [sys.executable, "-m", "cgpt", "serve", "--port", "0", "--model", a.model]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    said = server.stderr.readline()
    if "serving at" not in said:
        sys.exit(f"the server did not start: {said}{server.stderr.read()}")
    port = int(said.rpartition(":")[2])
    threading.Thread(target=server.stderr.read, daemon=True).start()
    attacks: dict[str, Attack] = {"nothing": lambda _: time.sleep(1) or "-"}
    for name, (path, body) in posts().items():
        made = [body(i) for i in range(8)] if callable(body) else [body]
        raw = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in made]
        attacks[name] = lambda number, path=path, raw=raw: post(port, path, raw[number % len(raw)])
    attacks |= {"idle connections": lambda _: hold(port), "heads by the byte": lambda _: drip(port)}
    lines = [
        "| beside | answers | s, at most | /health | p50 ms | p99 ms | max ms | a stream's gaps p99 ms | max ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    print(*lines, sep="\n")
    for name, attack in attacks.items():
        if a.only in name:
            lines.append(row(port, name.strip(), a, attack))
            print(lines[-1], flush=True)
        if server.poll() is not None:
            print(f"the server ended with {server.returncode}")
            return 1
    server.terminate()
    server.wait(60)
    if a.table:
        a.table.write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
