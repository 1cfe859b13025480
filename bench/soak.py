"""Does the server stay flat? Mixed clients on it for as long as it takes, and what each minute brought.

    python bench/soak.py [MODEL] [--clients 64] [--minutes 60] [--out bench/soak]
    python bench/soak.py --plot bench/soak/soak.csv

Chats, calls of tools, answers and calls that keep to a schema, /v1/responses, /v1/messages, clients that leave and
readers that are slow, at random. Writes soak.csv and soak.md, a row a minute as it ends, and soak.svg, where matplotlib
is installed. Needs httpx and psutil.

Times are of streams, in ms: from the request to the first token, and from one token to the next. `leaves` and `slow`
count as requests, but a slow reader's own pauses are no times of the server.
"""

import argparse
import asyncio
import csv
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

PROPERTIES = {"a": {"type": "integer"}, "b": {"type": "integer"}}
CLOSED = {"type": "object", "properties": PROPERTIES, "required": ["a", "b"], "additionalProperties": False}
SUM = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "schema": SUM}}


def tool(strict: bool) -> dict:
    return {"type": "function", "function": {"name": "add", "parameters": CLOSED, "strict": strict}}


KINDS = {
    "chat": {},
    "tools": {"tools": [tool(False)]},
    "strict": {"tools": [tool(True)], "tool_choice": "required"},
    "grammar": {"response_format": FORMAT},
    "logprobs": {"logprobs": True, "top_logprobs": 20},
    "responses": {},
    "messages": {},
    "whole": {"stream": False},
    "leaves": {},
    "slow": {},
}
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
COLUMNS = [
    "minute", "anon_mb", "file_mb", "fds", "threads", "requests", "errors", "tokens",
    "first_p50_ms", "first_p99_ms", "next_p50_ms", "next_p99_ms", "what_failed",
]  # fmt: skip


@dataclass
class Minute:
    """What came within a minute. requests, failures: by kind. first, following: seconds until a token."""

    requests: Counter = field(default_factory=Counter)
    failures: Counter = field(default_factory=Counter)
    first: list[float] = field(default_factory=list)
    following: list[float] = field(default_factory=list)


class Load:
    """The clients. now: what this minute has brought so far."""

    def __init__(self, url: str, seconds: float) -> None:
        self.url, self.end, self.now = url, time.perf_counter() + seconds, Minute()

    async def client(self, number: int) -> None:
        rng = random.Random(number)
        while time.perf_counter() < self.end:
            kind = rng.choice(list(KINDS))
            began, stage = time.perf_counter(), ["before the head"]
            try:
                # Without certificates: to read them takes a core so long that 64 clients, which wait for each other,
                # send their heads later than the server waits for them.
                async with httpx.AsyncClient(base_url=self.url, timeout=600, trust_env=False, verify=False) as http:
                    await self._ask(http, kind, rng, stage)
            except Exception as problem:
                what = f"{kind} {type(problem).__name__} {stage[-1]}, after {time.perf_counter() - began:.0f} s"
                self.now.failures[what] += 1
                await asyncio.sleep(1)

    async def _ask(self, http: httpx.AsyncClient, kind: str, rng: random.Random, stage: list[str]) -> None:
        question = {"role": "user", "content": f"Please compute {rng.randint(1, 99)} + {rng.randint(1, 99)}."}
        limit = rng.randint(8, 128)
        path, given, most = CHAT, "messages", "max_tokens"
        if kind == "responses":
            path, given, most = RESPONSES, "input", "max_output_tokens"
        elif kind == "messages":
            path = MESSAGES
        body = {given: [question], most: limit, "temperature": 1, "stream": True, **KINDS[kind]}
        leave_after = rng.randint(1, 20) if kind == "leaves" else limit * 10
        last, seen = time.perf_counter(), 0
        async with http.stream("POST", path, json=body) as response:
            self.now.requests[kind] += 1
            stage.append("within the answer")
            if response.status_code != 200:
                self.now.failures[f"{kind} status {response.status_code}"] += 1
            async for line in response.aiter_lines():
                if '"error":{' in line or line == "event: error" or '"status":"failed"' in line:
                    self.now.failures[f"{kind} {line[:100]}"] += 1
                if not line.startswith("data: {") or (path != CHAT and "delta" not in line):
                    continue
                now = time.perf_counter()
                (self.now.following if seen else self.now.first).append(now - last)
                last, seen = now, seen + 1
                if seen > leave_after:
                    break
                if kind == "slow":
                    await asyncio.sleep(0.1)
                    last = time.perf_counter()


def row(minute: int, found: Minute, server: psutil.Process) -> dict:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{server.pid}/status").read_text().splitlines())
    resident = {name: int(status[name].split()[0]) // 1024 for name in ("RssAnon", "RssFile")}
    times = [quantile(x, share) for x in (found.first, found.following) for share in (0.5, 0.99)]
    failures = "; ".join(f"{n} x {what}" for what, n in found.failures.items())
    counts = [found.requests.total(), found.failures.total(), len(found.first) + len(found.following)]
    where = [minute, resident["RssAnon"], resident["RssFile"], server.num_fds(), server.num_threads()]
    return dict(zip(COLUMNS, [*where, *counts, *times, failures], strict=True))


def quantile(values: list[float], share: float) -> float:
    return round(sorted(values)[int(share * len(values))] * 1e3, 1) if values else float("nan")


def write(rows: list[dict], out: Path, head: str) -> None:
    with open(out / "soak.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    lines = ["| " + " | ".join(str(one[name]).replace("|", "/") for name in COLUMNS) + " |" for one in rows]
    table = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS), *lines]
    (out / "soak.md").write_text("\n".join([head, "", *table, ""]))


def plot(table: Path) -> None:
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)
        return
    rows = list(csv.DictReader(open(table)))
    panels = [
        ("memory, MB", ["anon_mb", "file_mb"]),
        ("fds, threads", ["fds", "threads"]),
        ("requests, errors a minute", ["requests", "errors"]),
        ("first token, ms", ["first_p50_ms", "first_p99_ms"]),
        ("next token, ms", ["next_p50_ms", "next_p99_ms"]),
    ]
    figure, axes = pyplot.subplots(len(panels), sharex=True, figsize=(9, 12))
    for axis, (label, names) in zip(axes, panels, strict=True):
        for name in names:
            axis.plot([int(one["minute"]) for one in rows], [float(one[name]) for one in rows], label=name)
        axis.set_ylim(bottom=0)
        axis.set_ylabel(label)
        axis.legend(loc="lower right")
    axes[-1].set_xlabel("minute")
    figure.tight_layout()
    figure.savefig(table.with_suffix(".svg"))


async def soak(a: argparse.Namespace) -> int:
    a.out.mkdir(parents=True, exist_ok=True)
    with open(a.out / "server.log", "w") as log:
        command = [sys.executable, "-m", "cgpt", "serve", "--port", "0", "--model", a.model]
        server = subprocess.Popen(command, stderr=log)
    said = ""
    while "serving at" not in said:
        await asyncio.sleep(0.1)
        said = (a.out / "server.log").read_text()
        if server.poll() is not None:
            sys.exit(f"the server did not start: {said}")
    url = said.split("serving at", 1)[1].split()[0]
    load = Load(url, 60 * a.minutes)
    work = [asyncio.create_task(load.client(i)) for i in range(a.clients)]
    watched, rows = psutil.Process(server.pid), []
    machine = f"{psutil.cpu_count()} cores, load {psutil.getloadavg()[0]:.1f} before"
    head = f"{a.clients} clients on {Path(a.model).name}, {machine}"
    began, minute = time.perf_counter(), 0
    while time.perf_counter() < load.end and server.poll() is None:
        minute += 1
        await asyncio.sleep(max(0.1, min(began + 60 * minute, load.end) - time.perf_counter()))
        found, load.now = load.now, Minute()
        if server.poll() is not None:
            break
        rows.append(await asyncio.to_thread(row, minute, found, watched))
        write(rows, a.out, head)
        print({name: value for name, value in rows[-1].items() if value != ""}, flush=True)
    ended = server.poll()
    if ended is None:
        await asyncio.wait(work, timeout=120)
        watched.terminate()
        server.wait(60)
    else:
        print(f"the server ended with {ended}: {(a.out / 'server.log').read_text()[-2000:]}", file=sys.stderr)
    for task in work:
        task.cancel()
    if not rows:
        return 1
    plot(a.out / "soak.csv")
    failures = sum(one["errors"] for one in rows)
    print(f"{sum(one['requests'] for one in rows)} requests, {failures} errors; see {a.out}")
    return int(ended is not None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo-gpt-oss")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("soak"), help="directory of the tables")
    parser.add_argument("--plot", type=Path, metavar="CSV", help="only draw the plot of a table")
    a = parser.parse_args()
    if a.plot:
        plot(a.plot)
        return 0
    return asyncio.run(soak(a))


if __name__ == "__main__":
    sys.exit(main())
