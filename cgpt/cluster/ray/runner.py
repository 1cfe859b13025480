"""Answers the requests of a batch on a cluster: Ray Data maps blocks of lines over actors that have a model each."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator

import pyarrow
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError

from cgpt.arguments import warn_caller
from cgpt.batch.local import LocalRunner
from cgpt.batch.request import BatchRecord, BatchRequest
from cgpt.cluster.ray.cores import claim_cores
from cgpt.errors import CgptError, CheckpointError, InputError

BLOCK = 32  # lines that are handed over and come back together, and are answered again where their actor is lost
BLOCKS = 4  # that an actor works on at a time
WINDOW, WINDOW_BYTES = 1 << 17, 128 << 20  # lines of one data set, for which the actors load their models
IDLE_SECONDS = 0.5  # without a record
PATIENCE_SECONDS = 10.0  # until a busy cluster is named
Make = Callable[[], LocalRunner]
Lines = dict[int, bytes]  # requests, packed, by their number
Answer = tuple[int, BatchRecord]


def connect(address: str | None) -> None:
    """Connects this process to a Ray cluster, by default the one of $RAY_ADDRESS or of this machine, or else to a new
    one in this machine. CgptError where none answers."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        ray.init(address, ignore_reinit_error=True, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as problem:
        raise CgptError(f"no Ray cluster answers at {address or 'the usual place'}: {problem}") from None


class Answerer:
    """What an actor runs: a model, on cores of its own, that answers blocks of lines."""

    def __init__(self, make: Make, cpus: float, fingerprint: bytes) -> None:
        """fingerprint: what the model must have."""
        self._claim = claim_cores(cpus)
        self._runner = make()
        if self._runner.fingerprint != fingerprint:
            raise CheckpointError("under the name of the model the nodes of the cluster have different checkpoints")

    async def __call__(self, block: pyarrow.Table) -> pyarrow.Table:
        """The answers of a block, each as JSON of an Answer."""
        requests: list[BatchRequest] = [pickle.loads(line) for line in block["line"].to_pylist()]
        records = await asyncio.gather(*(asyncio.wrap_future(self._runner.submit(request)) for request in requests))
        answers = zip((request.number for request in requests), records, strict=True)
        return pyarrow.table({"answer": [json.dumps(answer) for answer in answers]})


class RayRunner:
    """A Runner on the Ray cluster that this process is connected to.

    Lines whose actor is lost are answered by another one. A line gets one record, however often it was answered.
    """

    def __init__(self, make: Make, *, cpus: float = 1, actors: int | None = None) -> None:
        """make: makes what answers, on a node. cpus: of Ray's, for each actor. actors: their number, by default as many
        as the cluster has CPUs for."""
        nodes = [float(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        room = sum(int(node // cpus) for node in nodes)  # an actor is on one node
        self._actors = room if actors is None else actors
        if not 1 <= self._actors <= room:
            few = f"too few for {max(1, self._actors)} times {cpus:g} on one node"
            raise InputError(f"the cluster has {sum(nodes):g} CPUs, {few}")
        self._make, self._cpus = make, cpus
        free = ray.available_resources().get("CPU", 0)  # before some are taken here
        told = ray.remote(num_cpus=cpus, max_calls=1)(_fingerprint).remote(make)
        if free < cpus and not ray.wait([told], timeout=PATIENCE_SECONDS)[0]:
            warn_caller(f"nothing begins before others leave {cpus:g} CPUs of the cluster, as a fleet does not")
        try:
            self.fingerprint: bytes = ray.get(told)
        except RayError as problem:
            raise _named(problem) from problem

    def close(self) -> None:
        """Does nothing: what run() began ends with it."""

    def run(self, requests: Iterable[BatchRequest]) -> Generator[BatchRecord | None, None, None]:
        """See Runner. Takes up to WINDOW requests at a time."""
        for left in _windows(requests):
            while left:
                before = len(left)
                for answer in _polled(self._answers([*left.values()])):
                    if answer is None:
                        yield None
                    elif left.pop(answer[0], None) is not None:
                        yield answer[1]
                if len(left) == before:
                    raise CgptError(f"the cluster lost {before} lines; start the batch again, and it goes on with them")

    def _answers(self, lines: list[bytes]) -> Iterator[Answer]:
        context = DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        starts = range(0, len(lines), BLOCK)
        data = ray.data.from_arrow_refs([ray.put(pyarrow.table({"line": lines[at : at + BLOCK]})) for at in starts])
        pool = ActorPoolStrategy(
            size=min(self._actors, len(starts)),
            max_tasks_in_flight_per_actor=BLOCKS + 1,
            max_concurrent_calls_per_actor=BLOCKS,
        )
        given = (self._make, self._cpus, self.fingerprint)
        answered = data.map_batches(
            Answerer, compute=pool, batch_format="pyarrow", num_cpus=self._cpus, fn_constructor_args=given
        )
        for block in answered.iter_batches(batch_size=None, batch_format="pyarrow"):
            for answer in block["answer"].to_pylist():
                yield json.loads(answer)


def _fingerprint(make: Make) -> bytes:
    with make() as runner:
        return runner.fingerprint


def _windows(requests: Iterable[BatchRequest]) -> Iterator[Lines]:
    """The requests, as many together as are handed to the cluster at a time."""
    window, nbytes = Lines(), 0
    for request in requests:
        window[request.number] = pickle.dumps(request)
        nbytes += request.nbytes
        if len(window) >= WINDOW or nbytes >= WINDOW_BYTES:
            yield window
            window, nbytes = Lines(), 0
    yield window


def _polled(answers: Iterator[Answer]) -> Iterator[Answer | None]:
    """What comes, and None now and then while nothing does."""
    found: queue.SimpleQueue[Answer | Exception | None] = queue.SimpleQueue()
    stopped = threading.Event()

    def take() -> None:
        try:
            for answer in answers:
                found.put(answer)
                if stopped.is_set():
                    break
            found.put(None)
        except Exception as problem:
            found.put(problem)

    threading.Thread(target=take, name="cgpt-ray-data", daemon=True).start()
    try:
        while True:
            try:
                answer = found.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                yield None
                continue
            if answer is None:
                return
            if isinstance(answer, Exception):
                raise _named(answer) from answer
            yield answer
    finally:
        stopped.set()


def _named(problem: BaseException) -> CgptError:
    """What failed on a node, as it would be raised here."""
    found: BaseException | None = problem
    while found is not None:
        cause = getattr(found, "cause", None) or found.__cause__
        if isinstance(found, CgptError) and not isinstance(found, RayError):
            return found
        found = cause if cause is not found else None
    return CgptError(f"the cluster failed: {type(problem).__name__}: {str(problem).strip().splitlines()[-1]}")
