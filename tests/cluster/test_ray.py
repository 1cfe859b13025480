"""A fleet on Ray: two replicas of the demo model on two nodes of a cluster in this machine."""

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


def replicas():
    """The processes of the replicas; the cluster's are children of this one."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "".join(child.cmdline()[:1]).startswith("ray::ServeReplica:default:Replica")]


def wait_until(is_so, seconds=30):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def fleet():
    from ray.cluster_utils import Cluster

    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join(p for p in (os.getcwd(), os.environ.get("PYTHONPATH")) if p),
    }
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as free:
        for name, value in settings.items():
            patch.setenv(name, value)
        node = {"num_cpus": 1, "object_store_memory": 100 << 20}
        cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
        port = free.getsockname()[1]
        free.close()
        try:
            cluster.add_node(**node)
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            serve.run(app(FleetOptions(**OPTIONS)))
            yield Fleet(port)
        finally:
            ray.shutdown()
            cluster.shutdown()


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
    conversations = [
        [{"role": "user", "content": f"{i}: who is the king, and who is his neighbour? " * 2}] for i in range(4)
    ]
    for turn in range(3):
        for i, messages in enumerate(conversations):
            status, _, answer = fleet.post("/v1/chat/completions", {"messages": messages, "max_tokens": 8})
            assert status == 200
            found.add((i, fleet.replica_of(answer)))
            assert (answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 60) == (turn > 0)
            messages += [{"role": "assistant", "content": "The king."}, {"role": "user", "content": "And then?"}]
    assert len(found) == 4 and len({replica for _, replica in found}) == 2


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
    streams = [iter(fleet.stream(240)) for _ in range(4)]
    for stream in streams:
        next(stream)
    victim.suspend()  # in the middle, and with what comes now at its start
    with ThreadPoolExecutor(8) as pool:
        body = {"prompt": "A", "max_tokens": 8}
        whole = [pool.submit(fleet.post, "/v1/completions", body) for _ in range(8)]
        time.sleep(0.3)
        assert sum(one.done() for one in whole) < 8
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
