"""What a fleet is made of, without a cluster."""

import asyncio
import gzip
import json
import warnings
from types import SimpleNamespace

import pytest

pytest.importorskip("ray", reason="a fleet needs the extra [ray]")

from cgpt.cluster.ray import cores, front, runner  # noqa: E402
from cgpt.cluster.ray.affinity import BLOCK, prompt_blocks, referred_tag  # noqa: E402
from cgpt.cluster.ray.cores import CoreClaim, core_count  # noqa: E402
from cgpt.cluster.ray.front import Front, by_replica  # noqa: E402
from cgpt.cluster.ray.options import FleetOptions  # noqa: E402
from cgpt.cluster.ray.relay import Relay, replica_lost  # noqa: E402
from cgpt.cluster.ray.router import PrefixRouter  # noqa: E402
from cgpt.errors import InputError  # noqa: E402
from cgpt.loading import DENSE  # noqa: E402
from cgpt.machine import topology  # noqa: E402
from cgpt.serve.errors import ApiError  # noqa: E402
from cgpt.serve.limits import Limits  # noqa: E402
from cgpt.serve.metrics import Family  # noqa: E402
from cgpt.serve.store import new_number  # noqa: E402


@pytest.mark.parametrize(
    "cpus, node_cpus, cores, expected",
    [
        (4, 8, 8, 4),
        (4, 8, 4, 2),  # Ray counts the siblings of a core as two
        (2, 2, 8, 2),  # a node of a part of the machine
        (0.5, 2, 2, 1),
        (3, 8, 4, 1),
    ],
)
def test_cores_of_a_replica(cpus, node_cpus, cores, expected):
    assert core_count(cpus, node_cpus, cores) == expected


def test_no_core_is_taken_twice(monkeypatch):
    monkeypatch.setattr(cores, "NAME", "cgpt-core-of-a-test")  # a fleet may run here
    all_cpus = topology.usable_cpus()
    count = len(topology.cores(all_cpus))
    first = CoreClaim(1)
    second = CoreClaim(count)
    assert first.cpus and not second.cpus  # none of its cores, where it cannot have all
    rest = CoreClaim(max(1, count - 1))
    assert not rest.cpus & first.cpus and (rest.cpus | first.cpus == all_cpus or count == 1)
    for claim in (first, rest):
        claim.release()
    whole = CoreClaim(count)
    assert whole.cpus == all_cpus
    whole.release()


def test_prompts_that_begin_alike_share_blocks():
    messages = [{"role": "user", "content": "x" * 3 * BLOCK}]
    first = prompt_blocks({"messages": messages, "seed": 1})
    second = prompt_blocks({"seed": 2, "messages": [*messages, {"role": "assistant", "content": "y" * BLOCK}]})
    other = prompt_blocks({"messages": [{"role": "user", "content": f"z{'x' * 3 * BLOCK}"}]})
    assert len(first) == 3 and second[:3] == first and len(second) > 3
    assert not set(first) & set(other)
    assert not prompt_blocks({"prompt": "short"}) and not prompt_blocks({})


def test_the_last_id_says_who_remembers():
    ids = [f"{prefix}_{new_number(tag)}" for prefix, tag in (("resp", "0123abcd"), ("call", "89ef4567"))]
    assert referred_tag("/v1/responses", json.dumps({"previous": ids[0], "input": ids[1]}).encode()) == "89ef4567"
    assert referred_tag(f"/v1/responses/{ids[0]}", b"") == "0123abcd"
    assert referred_tag("/v1/responses/resp_1", b"{}") == ""


def test_a_label_says_which_replica_counted():
    families = [
        Family("texts", "counter", "Texts.", {'{reason="stop"}': 1}),
        Family("time", "summary", "", {"_sum": 2}),
    ]
    assert [family.samples for family in by_replica([("b", families), ("a", families)])] == [
        {'{replica="a",reason="stop"}': 1, '{replica="b",reason="stop"}': 1},
        {'_sum{replica="a"}': 2, '_sum{replica="b"}': 2},
    ]


@pytest.mark.parametrize("free, is_named", [(2, False), (1, True)])
def test_a_busy_cluster_is_named_and_a_slow_model_is_not(monkeypatch, free, is_named):
    """What the batch takes itself makes no cluster busy."""
    taken = []

    def task(**_):
        return lambda function: SimpleNamespace(remote=lambda make: taken.append(2))

    monkeypatch.setattr(runner.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}])
    monkeypatch.setattr(runner.ray, "available_resources", lambda: {"CPU": free - sum(taken)})
    monkeypatch.setattr(runner.ray, "remote", task)
    monkeypatch.setattr(runner.ray, "wait", lambda told, timeout: ([], told))
    monkeypatch.setattr(runner.ray, "get", lambda told: b"12345678")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert runner.RayRunner(lambda: None, cpus=2).fingerprint == b"12345678"
    assert [str(one.message)[:20] for one in caught] == ["nothing begins befor"] * is_named


@pytest.mark.parametrize("packed", [False, True])
def test_a_packed_body_is_read_beside_the_front_s_loop(monkeypatch, packed):
    """Few bytes become many."""
    text = json.dumps({"prompt": [1] * 1000}).encode()
    headers = [(b"content-encoding", b"gzip")] if packed else []
    coming = [{"type": "http.request", "body": gzip.compress(text) if packed else text}]
    beside, answered = [], []

    async def receive():
        return coming.pop() if coming else await asyncio.Event().wait()

    async def run_beside(read):
        beside.append(1)
        return read()

    async def answer(request, _):
        answered.append(len(request.blocks))

    monkeypatch.setattr(front, "run_in_threadpool", run_beside)
    one = object.__new__(Front)
    one._limits, one._answer = Limits(), answer
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "query_string": b"", "headers": headers}
    asyncio.run(one._forward(scope, receive, None))
    assert len(beside) == packed and answered[0] > 20


@pytest.mark.parametrize("actors", [None, 1])
def test_an_actor_needs_its_cpus_on_one_node(monkeypatch, actors):
    """Else it would wait for ever."""
    nodes = [{"Alive": alive, "Resources": {"CPU": cpus}} for alive, cpus in ((True, 1.0), (True, 1.0), (False, 2.0))]
    monkeypatch.setattr(runner.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(runner.ray, "cluster_resources", lambda: {"CPU": 2})
    monkeypatch.setattr(runner.ray, "available_resources", lambda: pytest.fail("it was asked for an actor"))
    with pytest.raises(InputError, match="2 CPUs, too few for 1 times 2 on one node"):
        runner.RayRunner(lambda: None, cpus=2, actors=actors)


class Sent:
    """A request that was sent to a replica."""

    def __init__(self, is_done):
        self.is_done, self.callbacks = is_done, []

    def add_done_callback(self, callback):
        if self.is_done:
            callback(None)
        self.callbacks.append(callback)


def test_requests_of_a_replica_are_counted_whatever_ray_says_first():
    """What is over already counts no more, and what one replica has refused counts where it runs."""
    router = object.__new__(PrefixRouter)
    router.initialize_state()

    def best():
        ranked = asyncio.run(router.choose_replicas([SimpleNamespace(replica_id=one) for one in "ab"]))
        return ranked[0][0].replica_id

    def route(number, replica, is_done=False):
        sent = Sent(is_done)
        if is_done:
            router.on_request_completed(replica, number)
        pending = SimpleNamespace(metadata=SimpleNamespace(internal_request_id=number), args=[])
        router.on_request_routed(pending, replica, sent)
        return sent

    for number in ("1", "2"):
        route(number, "a", is_done=True)
    third = route("3", "b")
    assert best() == "a"
    route("4", "a")
    router.on_request_completed("b", "4")  # which had refused it
    fifth = route("5", "a")
    assert best() == "b"
    for sent in (third, fifth):
        for callback in sent.callbacks:
            callback(None)
    assert best() == "b"
    route("6", "b")
    assert best() == "a"


HEAD = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}


def body(text):
    return {"type": "http.response.body", "body": text.encode(), "more_body": True}


def relayed(path, *steps):
    """(relay, what the client got) after each step's messages, or its error at the end."""
    sent = []

    async def send(message):
        sent.append(message)

    async def run():
        for step in steps:
            await (relay.fail(step) if isinstance(step, ApiError) else relay.pass_on(step))

    relay = Relay(path, send)
    asyncio.run(run())
    return relay, sent


def test_another_replica_takes_over_where_nothing_was_told():
    relay, sent = relayed("/v1/completions", [HEAD, body(": keep-alive\n\n")], [HEAD, body("data: {}\n\n")])
    assert [message["type"] for message in sent] == ["http.response.start", *["http.response.body"] * 2]
    assert relay.has_begun and relay.has_told
    refusal = HEAD | {"status": 503}
    with pytest.raises(ApiError, match="503"):
        relayed("/v1/completions", [HEAD, body(": keep-alive\n\n")], [refusal, body("{}")])


def test_a_head_alone_is_held_back():
    relay, sent = relayed("/v1/completions", [HEAD], [HEAD | {"status": 400}, body("{}")])
    assert [message.get("status") for message in sent] == [400, None] and relay.has_told
    with pytest.raises(ApiError, match="lost"):
        relayed("/v1/completions", [HEAD], replica_lost())


@pytest.mark.parametrize(
    "path, end",
    [
        ("/v1/chat/completions", "}}\n\ndata: [DONE]\n\n"),
        ("/v1/responses", "}}\n\n"),
        ("/v1/messages", '"type":"error"}\n\n'),
    ],
)
def test_a_stream_says_why_it_ends(path, end):
    _, sent = relayed(path, [HEAD, body("data: {}\n\n")], replica_lost())
    text = sent[-1]["body"].decode()
    assert text.startswith("event: error\ndata: " if "messages" in path else "data: ") and text.endswith(end)
    assert "replica_lost" in text and not sent[-1]["more_body"]


def test_an_answer_that_is_no_stream_breaks_off():
    head = HEAD | {"headers": [(b"content-type", b"application/json")]}
    with pytest.raises(RuntimeError, match="in its middle"):
        relayed("/v1/completions", [head, body("{")], replica_lost())


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "model"),
        ({"model": "m", "thread": "2"}, "thread"),
        ({"model": "m", "dense": "int2"}, "int8"),
        ({"model": "m", "replicas": 2, "max_replicas": 3}, "one of them"),
        ({"model": "m", "min_replicas": 3, "max_replicas": 2}, "3 or more|min_replicas or more"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        FleetOptions.model_validate(options)


def test_options_come_as_text():
    found = FleetOptions.model_validate({"model": "m", "cpus": "4", "huge_pages": "true", "dense": "int8"})
    assert (found.cpus, found.huge_pages, found.dense) == (4, True, "int8")


def test_options_know_every_dense():
    assert [FleetOptions(model="m", dense=dense).dense for dense in DENSE] == [*DENSE]
