"""What a fleet on Ray gives, costs, and survives, on a cluster of several nodes in this machine.

    python bench/fleet.py [MODEL] [--dense int8] [--streams 8] [--tokens 64] [--seconds 10]

Compares `cgpt serve` with fleets of one replica and of two, the CPUs shared out; lets conversations come back; kills a
replica and the front, restarts all, takes a node away and lets the fleet grow, each under load; and runs a batch whose
actor and whose command are killed. Needs the extra [ray] and
httpx. All nodes share this machine's cores: what several machines give is not shown here.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from unittest import mock

import httpx
import psutil
import ray
from batch import count as lines_in
from batch import line
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.config import RequestRouterConfig
from serve import ask, asked

from cgpt.cluster.ray import app, application
from cgpt.cluster.ray.options import FleetOptions

PORT, REPLICA = 8123, "ServeReplica:default:Replica"
NODE = {"num_cpus": 1, "object_store_memory": 100 << 20}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo-gpt2")
    parser.add_argument("--dense")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10, help="of load before and after what happens")
    parser.add_argument("--only", nargs="+", choices=["rates", "losses", "batch", "growth"])
    parser.add_argument("--lines", type=int, default=10_000, help="of a batch")
    parser.add_argument("--cpus", type=int, default=2, help="of this machine, in nodes of one each")
    return parser.parse_args()


@contextmanager
def server(a: argparse.Namespace, threads: int) -> Iterator[str]:
    """The address of `cgpt serve`."""
    command = [sys.executable, "-m", "cgpt", "serve", "--port", "0", "--model", a.model, "--threads", str(threads)]
    command += ["--dense", a.dense] if a.dense else []
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield next(line.split()[-1] for line in process.stderr if line.startswith("cgpt: serving at "))
    finally:
        process.terminate()
        process.communicate(timeout=60)


def deploy(a: argparse.Namespace, **options: object) -> None:
    serve.run(app(FleetOptions(model=a.model, dense=a.dense, **options)))


@contextmanager
def cluster_of(cpus_of_nodes: Iterable[int]) -> Iterator[Cluster]:
    """A cluster in this machine, whose first node is the head."""
    sizes = [NODE | {"num_cpus": cpus} for cpus in cpus_of_nodes]
    cluster = Cluster(initialize_head=True, head_node_args=sizes[0] | {"include_dashboard": False})
    try:
        for size in sizes[1:]:
            cluster.add_node(**size)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@contextmanager
def fleet(a: argparse.Namespace, cpus_of_nodes: Iterable[int], **options: object) -> Iterator[tuple[str, Cluster]]:
    """The address of a fleet, and its cluster."""
    with cluster_of(cpus_of_nodes) as cluster:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        serve.start(
            proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": PORT}
        )  # else one a node, here
        deploy(a, **options)
        url = f"http://127.0.0.1:{PORT}"
        while httpx.get(f"{url}/health", trust_env=False).status_code != 200:  # Ray's proxies hear of it a little later
            time.sleep(0.1)
        yield url, cluster


def processes(title: str) -> list[psutil.Process]:
    """Those of the cluster, which are children of this one, by what they work as."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "".join(child.cmdline()[:1]).startswith(f"ray::{title}")]


@asynccontextmanager
async def connected(url: str):
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits, trust_env=False) as client:
        yield client


class Load:
    """Clients that ask one text after another, streamed. found: how the texts ended, by what was said."""

    def __init__(self, a: argparse.Namespace, client: httpx.AsyncClient, streams: int) -> None:
        self.found: Counter[str] = Counter()
        self.firsts: list[float] = []
        self.tokens = 0
        self._a, self._client, self._streams = a, client, streams

    async def run(self, until: Awaitable[object]) -> float:
        """Asks until something is done; returns the seconds that took."""
        end, began = asyncio.ensure_future(until), time.perf_counter()
        await asyncio.gather(*(self._ask(i, end) for i in range(self._streams)))
        end.result()
        return time.perf_counter() - began

    async def _ask(self, number: int, end: asyncio.Future) -> None:
        count = 0
        while not end.done():
            count += 1
            body = asked(1000 * number + count, self._a.tokens) | {"ignore_eos": True}
            try:
                _, tokens, first = await ask(self._client, body)
            except (RuntimeError, httpx.HTTPError) as problem:
                self.found[f"{type(problem).__name__}: {problem}"] += 1
                continue
            self.found["answered"] += 1
            self.firsts.append(first)
            self.tokens += tokens

    def __str__(self) -> str:
        return ", ".join(f"{n} {what}" for what, n in sorted(self.found.items()))


def cpu_seconds() -> float:
    """What all processes have computed that this one has started."""
    times = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return sum(one.user + one.system for one in times)


async def rates(a: argparse.Namespace, name: str, url: str) -> None:
    """Prints the rate and the time to the first token of one stream, and of several."""
    async with connected(url) as client:
        await ask(client, asked(0, a.tokens))
        for streams in (1, a.streams):
            load, computed = Load(a, client, streams), cpu_seconds()
            seconds = await load.run(asyncio.sleep(a.seconds))
            each = (cpu_seconds() - computed) / load.tokens
            load.firsts.sort()
            half, most = statistics.median(load.firsts), load.firsts[int(0.99 * len(load.firsts))]
            told = "" if set(load.found) == {"answered"} else str(load)
            print(
                f"{name:34} {streams:3} streams {load.tokens / seconds:8.1f} tok/s, {1e3 * each:5.2f} ms of CPU each   "
                f"first token p50 {1e3 * half:6.1f} ms, p99 {1e3 * most:6.1f} ms   {told}",
                flush=True,
            )


async def under_load(a: argparse.Namespace, name: str, url: str, happen: Callable[[], object]) -> None:
    """Prints how the texts ended that were asked for while something happened."""
    async with connected(url) as client:
        load = Load(a, client, a.streams)

        async def some_time() -> float:
            await asyncio.sleep(a.seconds / 2)
            began = time.perf_counter()
            await asyncio.to_thread(happen)
            took = time.perf_counter() - began
            await asyncio.sleep(a.seconds / 2)
            return took

        happening = asyncio.ensure_future(some_time())
        await load.run(happening)
        print(f"{name:34} {happening.result():5.1f} s   {load}", flush=True)


async def second_turns(name: str, url: str, conversations: int = 12, turns: int = 4) -> None:
    """Prints how many of the prompt's tokens were found in the cache after the first turn of some conversations."""
    read = found = 0
    async with connected(url) as client:
        texts = [f"{i}. " + asked(i, 1)["prompt"] * 2 for i in range(conversations)]
        for turn in range(turns):
            bodies = [{"prompt": text, "max_tokens": 8, "temperature": 0} for text in texts]
            answers = await asyncio.gather(*(client.post("/v1/completions", json=body) for body in bodies))
            for i, answer in enumerate(answers):
                told = answer.json()
                if turn:
                    read += told["usage"]["prompt_tokens"]
                    found += told["usage"]["prompt_tokens_details"]["cached_tokens"]
                texts[i] += told["choices"][0]["text"] + " And what then?"
    print(f"{name:34} {found / read:.0%} of the tokens of later turns were cached", flush=True)


def wait_for(count: int) -> None:
    while len(processes(REPLICA)) < count:
        time.sleep(0.1)


def other_router() -> mock._patch:
    """Fleets that are built within have Ray's own router."""
    return mock.patch.object(application, "RequestRouterConfig", lambda **_: RequestRouterConfig())


def batch_with_kills(a: argparse.Namespace) -> None:
    """Runs `cgpt batch --ray` while an actor is killed, then the command, and looks for lines that are missing or
    double."""
    with tempfile.TemporaryDirectory() as folder, cluster_of([1] * a.cpus) as cluster:
        given, out = Path(folder, "in.jsonl"), Path(folder, "out.jsonl")
        given.write_text("".join(json.dumps(line(i, 16)) + "\n" for i in range(a.lines)))
        command = [sys.executable, "-m", "cgpt", "batch", str(given), str(out), "--model", a.model]
        command += ["--ray", cluster.address, *(["--dense", a.dense] if a.dense else [])]

        def start() -> subprocess.Popen:
            return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

        def wait_for_lines(count: int) -> None:
            while lines_in(out) < count:
                time.sleep(0.05)

        began, process = time.perf_counter(), start()
        wait_for_lines(a.lines // 4)
        processes("MapWorker")[0].kill()
        wait_for_lines(a.lines // 2)
        process.kill()
        process.communicate()
        print(f"{'cgpt batch --ray':34} an actor killed, then the command, with {lines_in(out):,} lines", flush=True)
        told = start().communicate()[1].splitlines()[-1]
        ids = [json.loads(answer)["custom_id"] for answer in out.read_text().splitlines()]
        assert sorted(ids) == sorted(f"line {i}" for i in range(a.lines)), "lines are missing or double"
        print(f"{'':34} {time.perf_counter() - began:5.1f} s   each of {a.lines:,} lines once; {told}", flush=True)


def main() -> None:
    a = arguments()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["PYTHONPATH"] = os.pathsep.join([os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    parts = {"rates": compare, "losses": lose, "batch": batch_with_kills, "growth": grow}
    for name in a.only or parts:
        parts[name](a)


def compare(a: argparse.Namespace) -> None:
    """Prints the rates of a server, of a fleet of one replica, and of one that has a replica for each CPU."""
    whole = {"cpus": a.cpus, "replicas": 1}
    with server(a, a.cpus) as url:
        asyncio.run(rates(a, f"cgpt serve, {a.cpus} threads", url))
    with fleet(a, [a.cpus], **whole) as (url, _):
        asyncio.run(rates(a, f"fleet, 1 replica of {a.cpus} threads", url))
    with fleet(a, [1] * a.cpus, cpus=1, replicas=a.cpus) as (url, _):
        asyncio.run(rates(a, f"fleet, {a.cpus} replicas of 1 thread", url))


def lose(a: argparse.Namespace) -> None:
    """Prints what becomes of conversations, and of requests where something is lost or begins anew."""
    single = {"cpus": 1, "replicas": a.cpus}
    with fleet(a, [1] * a.cpus, **single) as (url, _):
        asyncio.run(second_turns("PrefixRouter", url))
        asyncio.run(under_load(a, "a replica is killed", url, lambda: processes(REPLICA)[0].kill()))
        wait_for(a.cpus)
        asyncio.run(
            under_load(a, "the front is killed", url, lambda: processes("ServeReplica:default:Front")[0].kill())
        )
        asyncio.run(under_load(a, "a rolling restart", url, lambda: deploy(a, **single, max_tokens=10_000)))
        with other_router():
            deploy(a, **single)
        asyncio.run(second_turns("Ray's own router", url))
    with fleet(a, [1] * (a.cpus + 1), **single) as (url, cluster):
        gone = cluster.list_all_nodes()[-1]
        asyncio.run(under_load(a, "a node is taken away", url, lambda: cluster.remove_node(gone, False)))


def grow(a: argparse.Namespace) -> None:
    """Prints when one replica becomes several."""

    def wait() -> None:
        wait_for(a.cpus)
        print(f"{'':34} the replica no. {a.cpus} was started")

    with fleet(a, [1] * a.cpus, cpus=1, max_replicas=a.cpus, target_ongoing=2) as (url, _):
        asyncio.run(under_load(a, "the fleet grows", url, wait))


if __name__ == "__main__":
    main()
