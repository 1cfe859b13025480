"""Does the server hold under load, and what does running requests together give?

    python bench/serve.py [MODEL] [--streams 64] [--seconds 120] [--tokens 64] [--cancel 0.2] [--dense bf16]

Starts `cgpt serve --precision exact` and asks for each of some texts alone. Then so many clients stream at once, some
of which leave in the middle; whoever stays must get the text that was made alone. Needs httpx.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from collections import Counter

import httpx
import psutil

MADE = ("prompt_tokens", "generated_tokens", "steps", "step_seconds")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo-gpt2")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=24, help="different ones")
    parser.add_argument("--cancel", type=float, default=0.2, help="the share that leaves")
    parser.add_argument("--dense")
    parser.add_argument("--prefix-cache", default="0", help="GB; 0 makes both sides compute everything")
    return parser.parse_args()


class Server:
    """`cgpt serve` in a process of its own."""

    def __init__(self, a: argparse.Namespace) -> None:
        command = [sys.executable, "-m", "cgpt", "serve", "--port", "0", "--model", a.model, "--name", "m"]
        command += ["--precision", "exact", "--prefix-cache", a.prefix_cache, "--max-waiting", "16"]
        command += ["--dense", a.dense] if a.dense else []
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if line.startswith("cgpt: serving at "):
                self.url = line.split()[-1]
                break
        else:
            raise SystemExit("the server did not start")
        self._watched = psutil.Process(self.process.pid)
        self._drain = asyncio.create_task(asyncio.to_thread(self.process.stderr.read))

    def memory(self) -> float:
        """MB of its own, without mapped weights."""
        return self._watched.memory_full_info().uss / 1e6

    async def stop(self) -> None:
        self.process.terminate()
        await asyncio.to_thread(self.process.wait, 60)
        await self._drain


def asked(i: int, tokens: int) -> dict:
    rng = random.Random(i)
    words = "the king and queen of a far land came to see what light there was by night".split()
    prompt = " ".join(rng.choice(words) for _ in range(rng.randint(2, 90)))
    new = rng.randint(tokens // 2, tokens)
    return {"prompt": prompt, "max_tokens": new, "temperature": 0.8, "seed": i, "stream": True}


async def ask(client: httpx.AsyncClient, body: dict, leave: int | None = None) -> tuple[str, int, float]:
    """The text, its tokens, and the time to the first; leaves after `leave` pieces. RuntimeError unless it is 200."""
    text, pieces, began, first = "", 0, time.perf_counter(), 0.0
    body = body | {"stream_options": {"include_usage": True}}
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError(str(response.status_code))
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(event["error"]["message"])
            if event["usage"]:
                return text, event["usage"]["completion_tokens"], first
            first = first or time.perf_counter() - began
            text += event["choices"][0]["text"]
            pieces += 1
            if leave is not None and pieces >= leave:
                return text, pieces, first
    raise RuntimeError("the stream ended early")


async def counted(client: httpx.AsyncClient) -> dict[str, float]:
    """The values of /metrics that have no labels."""
    lines = (await client.get("/metrics")).text.splitlines()
    return {line.split()[0]: float(line.split()[1]) for line in lines if line[0] != "#" and "{" not in line}


async def load(a: argparse.Namespace, server: Server, client: httpx.AsyncClient, alone: list[str]) -> None:
    found, firsts, memory, tokens = Counter(), [], [], 0
    end = time.perf_counter() + a.seconds

    async def worker(number: int) -> None:
        nonlocal tokens
        rng = random.Random(number)
        while time.perf_counter() < end:
            i = rng.randrange(len(alone))
            leave = rng.randint(1, a.tokens // 2) if rng.random() < a.cancel else None
            try:
                text, count, first = await ask(client, asked(i, a.tokens), leave)
            except (RuntimeError, httpx.HTTPError) as problem:
                found["429" if str(problem) == "429" else f"error: {type(problem).__name__} {problem}"] += 1
                await asyncio.sleep(0.5)
                continue
            tokens += count
            firsts.append(first)
            same = alone[i].startswith(text) if leave is not None else alone[i] == text
            found["left" if leave is not None else "finished"] += 1
            found["other text than alone"] += not same

    async def watch() -> None:
        while time.perf_counter() < end:
            memory.append(server.memory())
            await asyncio.sleep(max(a.seconds / 20, 0.2))

    began, before = time.perf_counter(), await counted(client)
    await asyncio.gather(watch(), *(worker(i) for i in range(a.streams)))
    seconds = time.perf_counter() - began
    after = await counted(client)
    made = {name: after[f"cgpt_{name}_total"] - before[f"cgpt_{name}_total"] for name in MADE}
    firsts.sort()
    ends = ", ".join(f"{n} {what}" for what, n in sorted(found.items()))
    print(f"{a.streams} streams   {tokens / seconds:8.1f} tok/s   {ends}")
    read, new, steps, stepping = made.values()
    print(f"engine        {read:.0f} ids read, {new:.0f} made; {steps:.0f} steps, {stepping / seconds:.0%} of the time")
    print(f"first token   p50 {statistics.median(firsts):.2f} s, p99 {firsts[int(0.99 * len(firsts))]:.2f} s")
    print(f"memory, MB    {', '.join(f'{m:.0f}' for m in memory)}")


async def main() -> None:
    a = arguments()
    server = Server(a)
    limits = httpx.Limits(max_connections=None)
    try:
        async with httpx.AsyncClient(base_url=server.url, timeout=600, limits=limits, trust_env=False) as client:
            await ask(client, asked(0, a.tokens))
            began, tokens, alone = time.perf_counter(), 0, []
            for i in range(a.prompts):
                text, count, _ = await ask(client, asked(i, a.tokens))
                alone.append(text)
                tokens += count
            print(f"one by one   {tokens / (time.perf_counter() - began):8.1f} tok/s")
            await load(a, server, client, alone)
    finally:
        await server.stop()


if __name__ == "__main__":
    asyncio.run(main())
