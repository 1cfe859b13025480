"""Does the server stay flat? Mixed clients on it for as long as it takes; a line a minute.

    python bench/soak.py [MODEL] [--clients 64] [--minutes 60] [--table soak.md]

Chats, tools, schemas, clients that leave and readers that are slow, at random. Needs httpx and psutil.
"""

import argparse
import asyncio
import random
import subprocess
import sys
import time
from collections import Counter

import httpx
import psutil

TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
KINDS = {
    "chat": {},
    "tools": {"tools": [TOOL]},
    "grammar": {"response_format": FORMAT},
    "leaves": {},
    "slow": {},
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo-gpt-oss")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--table", help="a file for the table, too")
    return parser.parse_args()


async def client(number: int, url: str, end: float, found: Counter, first: list[float], following: list[float]) -> None:
    rng = random.Random(number)
    while time.perf_counter() < end:
        kind = rng.choice(list(KINDS))
        question = {"role": "user", "content": f"Please compute {rng.randint(1, 99)} + {rng.randint(1, 99)}."}
        body = {"messages": [question], "max_tokens": rng.randint(8, 128), "stream": True, **KINDS[kind]}
        began = last = time.perf_counter()
        try:
            async with httpx.AsyncClient(base_url=url, timeout=600, trust_env=False) as http:
                async with http.stream("POST", "/v1/chat/completions", json=body) as response:
                    found[f"{kind} {response.status_code}"] += 1
                    seen = 0
                    async for line in response.aiter_lines():
                        if not line.startswith("data: {"):
                            continue
                        found["error event"] += '"error":{' in line
                        now = time.perf_counter()
                        (following if seen else first).append(now - last)
                        last, seen = now, seen + 1
                        if kind == "leaves" and seen > rng.randint(1, 20):
                            break
                        if kind == "slow":
                            await asyncio.sleep(0.1)
                            last = time.perf_counter()
        except httpx.HTTPError as problem:
            found[f"{type(problem).__name__} after {time.perf_counter() - began:.0f} s"] += 1


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * len(values))] * 1e3 if values else float("nan")


async def main() -> None:
    a = arguments()
    command = [sys.executable, "-m", "cgpt", "serve", "--port", "0", "--model", a.model]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    url = server.stderr.readline().split()[-1]
    drain = asyncio.create_task(asyncio.to_thread(server.stderr.read))
    watched, end = psutil.Process(server.pid), time.perf_counter() + 60 * a.minutes
    found, first, following = Counter(), [], []
    work = [asyncio.create_task(client(i, url, end, found, first, following)) for i in range(a.clients)]
    lines = [
        "| minute | MB | fds | requests | not 200 | first p50 / p99, ms | next p50 / p99, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    print(*lines, sep="\n", flush=True)
    minute = 0
    while time.perf_counter() < end and server.poll() is None:
        await asyncio.sleep(min(60, max(end - time.perf_counter(), 0.1)))
        minute += 1
        good = sum(n for what, n in found.items() if what.endswith(" 200"))
        wrong = {what: n for what, n in found.items() if n and not what.endswith(" 200")}
        times = " | ".join(f"{quantile(x, 0.5):.0f} / {quantile(x, 0.99):.0f}" for x in (first, following))
        memory = watched.memory_full_info().uss / 1e6
        lines.append(f"| {minute} | {memory:.0f} | {watched.num_fds()} | {good} | {wrong or 0} | {times} |")
        print(lines[-1], flush=True)
        found.clear(), first.clear(), following.clear()
    await asyncio.gather(*work, return_exceptions=True)
    server.terminate()
    await asyncio.to_thread(server.wait, 60)
    await drain
    if a.table:
        with open(a.table, "w") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
