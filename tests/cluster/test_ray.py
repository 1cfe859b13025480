"""A fleet on Ray: two replicas of the demo model on two nodes of a cluster in this machine."""

import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.serve_cases import Served

ray = pytest.importorskip("ray", reason="a fleet needs the extra [ray]")
serve = pytest.importorskip("ray.serve", reason="a fleet needs the extra [ray]")
psutil = pytest.importorskip("psutil")

from cgpt.cluster.ray import app  # noqa: E402
from cgpt.cluster.ray.messages import replica_tag  # noqa: E402
from cgpt.cluster.ray.options import FleetOptions  # noqa: E402

KEY = "secret"
OPTIONS = {"model": "demo-gpt-oss", "name": "demo", "replicas": 2, "api_key": KEY, "allow_host": "fleet.example"}


class Fleet(Served):
    """The fleet as its clients see it, and its processes."""

    def __init__(self, port):
        self.host, self.port, self.url = "127.0.0.1", port, f"http://127.0.0.1:{port}"

    def ask(self, method, path, body=None, headers=()):
        return super().ask(method, path, body, {"Authorization": f"Bearer {KEY}"} | dict(headers))

    def counted(self, name):
        """{labels: value} of what /metrics counts under this name."""
        lines = self.ask("GET", "/metrics")[2].splitlines()
        found = (
            line.removeprefix(f"cgpt_{name}").rsplit(" ", 1) for line in lines if line.startswith(f"cgpt_{name}{{")
        )
        return {labels: float(value) for labels, value in found}

    def replica_of(self, answer):
        """The tag of the replica that gave the id of an answer."""
        return answer["id"].replace("_", "-").split("-")[1][:8]

    def stream(self, max_tokens):
        """A streamed text of so many tokens, as chunks of OpenAI's client."""
        client = self.client(KEY)
        more = {"ignore_eos": True, "temperature": 0}
        return client.completions.create(model="demo", prompt="A", max_tokens=max_tokens, stream=True, extra_body=more)


def processes(title):
    """Those of the cluster, which are children of this one, that work as this."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "".join(child.cmdline()[:1]).startswith(f"ray::{title}")]


def replicas():
    return processes("ServeReplica:default:Replica")


def wait_until(is_so, seconds=30):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    paths = [os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        node = {"num_cpus": 2, "object_store_memory": 100 << 20}
        cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
        try:
            cluster.add_node(**node)
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


@pytest.fixture(scope="module")
def fleet(cluster):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    serve.run(app(FleetOptions(**OPTIONS)))
    fleet = Fleet(port)
    wait_until(lambda: fleet.ask("GET", "/health")[0] == 200)  # Ray's proxies hear of it a little later
    return fleet


def test_answers_are_the_server_s(fleet):
    from cgpt import load

    body = {"model": "demo", "prompt": "ROMEO:", "max_tokens": 12, "seed": 1, "temperature": 1}
    status, headers, answer = fleet.post("/v1/completions", body, {"x-request-id": "mine"})
    expected = load("demo-gpt-oss", threads=1).generate("ROMEO:", max_new_tokens=12, seed=1, temperature=1)
    assert status == 200 and answer["choices"][0]["text"] == expected.text
    assert headers.get_all("x-request-id") == ["mine"]
    assert fleet.refused("/v1/completions", {"prompt": 3})["param"] == "prompt"
    assert fleet.ask("GET", "/health")[2] == {"status": "ok"}
    text = "".join(chunk.choices[0].text for chunk in fleet.stream(12))
    assert text == load("demo-gpt-oss", threads=1).generate("A", max_new_tokens=12, ignore_eos=True, temperature=0).text


def test_the_front_lets_in(fleet):
    body = {"prompt": "ROMEO:", "max_tokens": 1}
    assert fleet.post("/v1/completions", body, {"Authorization": "Bearer other"})[0] == 401
    assert fleet.post("/v1/completions", body, {"Host": "evil.example"})[0] == 403
    assert fleet.post("/v1/completions", body, {"Host": "fleet.example"})[0] == 200
    counted = fleet.counted("http_requests_total")
    assert counted['{path="/v1/completions",status="401"}'] == counted['{path="/v1/completions",status="403"}'] == 1
    assert fleet.post("/v1/completions", b" " * (5 << 20))[0] == 413


def test_replicas_compute_on_cores_of_their_own(fleet):
    bound = []
    for process in replicas():
        masks = [os.sched_getaffinity(thread.id) for thread in process.threads()]
        bound.append(min(masks, key=len))
    assert len(bound) == 2 and len(bound[0] | bound[1]) == len(bound[0]) + len(bound[1])


def test_a_conversation_comes_back_to_its_replica(fleet):
    found = set()
    # An odd number of them, so that taking turns is no way to come back.
    conversations = [
        [{"role": "user", "content": f"{i}: who is the king, and who is his neighbour? " * 2}] for i in range(3)
    ]
    for turn in range(3):
        for i, messages in enumerate(conversations):
            status, _, answer = fleet.post("/v1/chat/completions", {"messages": messages, "max_tokens": 8})
            assert status == 200
            found.add((i, fleet.replica_of(answer)))
            assert (answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 60) == (turn > 0)
            messages += [{"role": "assistant", "content": "The king."}, {"role": "user", "content": "And then?"}]
    assert len(found) == 3 and len({replica for _, replica in found}) == 2


def test_what_a_replica_remembers_is_asked_of_it(fleet):
    for i in range(4):
        _, _, first = fleet.post("/v1/responses", {"input": f"{i} {'x' * 100}", "max_output_tokens": 4})
        assert fleet.ask("GET", f"/v1/responses/{first['id']}")[2] == first
        body = {"input": "y" * 100, "max_output_tokens": 4, "previous_response_id": first["id"]}
        status, _, second = fleet.post("/v1/responses", body)
        assert status == 200 and fleet.replica_of(second) == fleet.replica_of(first)
    status, _, answer = fleet.post("/v1/responses", body | {"previous_response_id": f"resp_{'ab' * 16}"})
    assert status == 400 and answer["error"]["code"] == "previous_response_not_found"


def test_who_leaves_ends_the_work(fleet):
    def cancelled():
        return sum(n for labels, n in fleet.counted("texts_total").items() if "cancelled" in labels)

    before = cancelled()
    stream = fleet.stream(200)
    next(iter(stream))
    stream.close()
    wait_until(lambda: cancelled() == before + 1)
    assert sum(fleet.counted("running").values()) == 0


def test_a_replica_is_lost(fleet):
    """One that streams is killed: the streams say so, and what it had told nothing of is answered by the other."""
    import openai

    before, victim = set(fleet.counted("running")), replicas()[0]
    tags = [replica_tag(labels.split('"')[1]) for labels in before]
    with ThreadPoolExecutor(8) as pool:

        def ask(**body):  # of both replicas
            bodies = [{"prompt": f"resp_{tag}{'0' * 24}", **body} for tag in tags]
            return [pool.submit(fleet.post, "/v1/completions", body) for body in bodies * 2]

        whole = ask(max_tokens=200, n=16, ignore_eos=True)
        wait_until(lambda: min(fleet.counted("running").values()) >= 16)
        streams = [iter(fleet.stream(240)) for _ in range(4)]
        assert {next(stream).id.removeprefix("cmpl-")[:8] for stream in streams} == set(tags)
        victim.suspend()  # in the middle of streams and of answers, and before it knows of what comes now
        whole += ask(max_tokens=8)
        wait_until(lambda: sum(one.done() for one in whole) == 4)
        victim.kill()
        assert [one.result()[0] for one in whole] == [200] * 8
    found = []
    for stream in streams:
        try:
            found.append(sum(1 for _ in stream))
        except openai.APIError as problem:
            found.append(problem.code)
    assert set(found) == {239, "replica_lost"}
    wait_until(lambda: len(fleet.counted("running")) == 2)
    assert len(before & set(fleet.counted("running"))) == 1


def test_a_rolling_restart_fails_nobody(fleet):
    found, done = [], threading.Event()

    def ask():
        while not done.is_set():
            found.append(fleet.post("/v1/completions", {"prompt": "A", "max_tokens": 20})[0])

    before = set(fleet.counted("running"))
    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask) for _ in range(3)]
        try:
            serve.run(app(FleetOptions(**OPTIONS, max_tokens=1000)))
        finally:
            done.set()
        assert all(one.result() is None for one in asking)
    assert set(found) == {200} and len(found) > 20
    after = set(fleet.counted("running"))
    assert len(after) == 2 and not before & after


def local_runner(model="demo-gpt2"):
    """Answers batches; a function that a worker can have without this file."""

    def make():
        from cgpt import load
        from cgpt.batch.local import LocalRunner
        from cgpt.batch.runner import MAX_WAITING
        from cgpt.generation.engine import Engine

        return LocalRunner(Engine(load(model, threads=1, precision="exact"), max_waiting=MAX_WAITING), ["demo"])

    return make


def test_each_line_of_a_batch_is_answered_once(cluster, tmp_path):
    """The answers are those of one process, though an actor is killed in the middle."""
    from cgpt.batch.output import BatchOutput
    from cgpt.batch.run import Batch
    from cgpt.batch.source import open_source
    from cgpt.cluster.ray.runner import RayRunner

    lines = tmp_path / "lines.jsonl"
    with lines.open("w") as file:
        for i in range(200):
            body = {"prompt": f"{i}. ROMEO:", "max_tokens": 60, "seed": i, "temperature": 1}
            url = "/v1/completions" if i % 50 else "/v1/other"
            file.write(json.dumps({"custom_id": str(i), "method": "POST", "url": url, "body": body}) + "\n")

    def answers(runner, output=None):
        return Batch(open_source(lines), runner, output and BatchOutput(output))

    def told(records):
        known = {}
        for record in records:
            assert record["custom_id"] not in known
            body = (record["response"] or {}).get("body") or {}
            known[record["custom_id"]] = record["id"], record["error"], body.get("choices")
        return known

    out, found = tmp_path / "out.jsonl", []
    runner = RayRunner(local_runner(), actors=2)
    for record in answers(runner, out):
        found.append(record)
        if len(found) == 1:
            processes("MapWorker")[0].kill()
    expected = told(answers(local_runner()()))
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(expected) == 200 and told(found) == told(written) == expected
    assert not list(answers(runner, out))  # all is answered


def test_what_fails_on_the_cluster_has_its_name_here(cluster):
    from cgpt.cluster.ray.runner import RayRunner
    from cgpt.errors import CheckpointError, InputError

    with pytest.raises(InputError, match="4 CPUs, too few for 9 times 1"):
        RayRunner(local_runner(), actors=9)
    with pytest.raises(CheckpointError, match="no-such-model"):
        RayRunner(local_runner("no-such-model"))
