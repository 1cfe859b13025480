"""Several processes, one model: rank 0 leads, the others do as it did.

What rank 0 does with its models and sequences is a log that the others replay, so that all of them call the same
kernels on their own rows in the same order. Operations that need no answer (a new cache, truncate, snapshot, ..) travel
with the next step.
"""

from __future__ import annotations

import atexit
import io
import itertools
import os
import pickle
import platform
import signal
import socket
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cgpt.arguments import warn_caller
from cgpt.distributed.level import use_common_level
from cgpt.distributed.mpi import MPICommunicator, binding_advice
from cgpt.errors import CgptError, CheckpointError, InputError, NumericsError
from cgpt.machine import topology
from cgpt.machine.threads import thread_count
from cgpt.version import __version__

Floats = npt.NDArray[np.float32]
Load = Callable[..., Any]  # (session, **arguments) -> api.Model


class Communicator(Protocol):
    """What a session needs of the connection between the ranks."""

    rank: int
    size: int

    def gather(self, y: Floats, bounds: Sequence[int]) -> None:
        """Completes y [T, N], of which each rank has the columns from bounds[rank] up to bounds[rank + 1], on all."""

    def collect(self, y: Floats, bounds: Sequence[int]) -> None:
        """The same on rank 0 alone. The others' y [T, n] has their own columns only."""

    def exchange(self, mine: Any) -> list[Any]:
        """What each rank gave, on all."""

    def send(self, message: bytes) -> None:
        """From rank 0 to each other one."""

    def receive(self) -> bytes:
        """The next message of rank 0, which may come in a day: the processor is free meanwhile."""

    def abort(self, message: str) -> None:
        """Says why on stderr and ends all ranks."""


class Rejected(Exception):
    """Rank 0 found something wrong with what a step gave: its sequences are as if interrupted."""


class _Pickler(pickle.Pickler):
    """Objects that all ranks have are sent as their number."""

    def __init__(self, file: io.BytesIO, numbers: dict[int, int]) -> None:
        super().__init__(file, protocol=5)
        self._numbers = numbers

    def persistent_id(self, thing: Any) -> int | None:
        return self._numbers.get(id(thing))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, objects: dict[int, Any]) -> None:
        super().__init__(file)
        self._objects = objects

    def persistent_load(self, number: int) -> Any:
        return self._objects[number]


class Session:
    """The ranks of a communicator: models.partition.Ranks. Made on all of them at once; the first call of each is
    `load`, or `follow` where the rank is not 0."""

    def __init__(self, communicator: Communicator) -> None:
        self.communicator = communicator
        self.rank, self.size = communicator.rank, communicator.size
        self.gather, self.collect = communicator.gather, communicator.collect
        self.exchange = communicator.exchange
        self.ended = False
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._log: deque[tuple[str, Any, tuple[Any, ...], dict[str, Any], int | None]] = deque()
        self._numbers: dict[int, int] = {}  # rank 0: of objects that all have, by id()
        self._objects: dict[int, Any] = {}  # the others: by number
        self._counter = itertools.count()
        self._confirmed = True
        self._message: io.BytesIO | None = None  # that has come, and what of it was not replayed
        self._agreed: Exception | None = None  # that was raised on all ranks
        self._require_versions()
        level, own = use_common_level(communicator.exchange)
        if any(other != level for other in own) and not self.rank:
            better = ", ".join(f"rank {rank} has {other}" for rank, other in enumerate(own) if other != level)
            warn_caller(f"all ranks use the kernels of {level}, the best that all have: {better}")
        cpus = frozenset(topology.usable_cpus())
        places = communicator.exchange((socket.gethostname(), cpus))
        beside = [other for host, other in places if host == places[self.rank][0]]
        self.on_host, self._sharing = len(beside), sum(bool(cpus & other) for other in beside)
        machine = len(topology.cores(topology.online_cpus()))
        if (advice := binding_advice(len(topology.cores(set(cpus))), machine, self.on_host)) and not self.rank:
            warn_caller(advice)

    def _require_versions(self) -> None:
        versions = self.communicator.exchange((__version__, platform.machine()))
        for rank, version in enumerate(versions):
            if version != versions[0]:
                self.ended = True
                one, other = " on ".join(versions[0]), " on ".join(version)
                raise InputError(f"rank 0 has cgpt {one}, rank {rank} has {other}; the same is needed on all")

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is raised within on one rank is raised on all."""
        self._agreed = told = None
        try:
            yield
        except Exception as problem:
            self._agreed = problem
            told = type(problem) if isinstance(problem, CgptError) else CgptError, _text(problem)
        for rank, failure in enumerate(self.communicator.exchange(told)):
            if failure is not None and self._agreed is None:
                self._agreed = failure[0](f"rank {rank} of {self.size}: {failure[1]}")
        if self._agreed is not None:
            raise self._agreed

    def require_same(self, what: str, mine: Any, where: str) -> None:
        """CheckpointError on all ranks where one has another value of what is called so."""
        found = self.communicator.exchange((mine, where))
        with self.together():
            for rank, (value, place) in enumerate(found):
                if value != found[0][0]:
                    raise CheckpointError(
                        f"rank {rank} of {self.size} has another {what} in {place} than rank 0 in {found[0][1]}; "
                        "give all of them the same files"
                    )

    def thread_count(self, threads: int | None) -> int:
        """The threads of this rank: `threads`, or its share of the cores that it may use."""
        return thread_count(threads) if threads is not None else max(1, thread_count(None) // self._sharing)

    # ------------------------------------------------------------------------------------------------ rank 0

    def track(self, what: str, source: object, made: object, *args: Any) -> None:
        """Rank 0 made an object by the method `what` of another one: the others do, too, until it is gone."""
        if self.rank:
            return
        self._log.append((what, source, args, {}, self._enter(made, next(self._counter))))

    def record(self, what: str, target: object, *args: Any) -> None:
        """Rank 0 called a method of a tracked object: the others do, before the next step."""
        if not self.rank and id(target) in self._numbers:
            self._log.append((what, target, args, {}, None))

    def _enter(self, made: object, number: int) -> int:
        self._numbers[id(made)] = number
        weakref.finalize(made, self._forget, id(made), number).atexit = False
        return number

    def _forget(self, key: int, number: int) -> None:
        self._numbers.pop(key, None)
        self._log.append(("forget", None, (number,), {}, None))

    @contextmanager
    def lead(self, what: str, model: object, *args: Any, **options: Any) -> Iterator[None]:
        """Within it all ranks call the method `what` of their model, which rank 0 begins, one such call at a time."""
        if self.rank:
            yield
            if not self._is_confirmed():
                raise Rejected
            return
        with self._one_at_a_time(), _delayed_interrupts():
            self._begin(what, model, args, options)
            with self._ending_all():
                yield
            self._confirmed = True

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """InputError in a fork, which must not send anything, and where the lock may be that of a thread it lacks."""
        if os.getpid() != self._process:
            raise InputError("this process is a fork of a rank, whose model runs in its parent alone; load another one")
        with self._lock:
            yield

    @contextmanager
    def _ending_all(self) -> Iterator[None]:
        """What is raised within ends all ranks, since the others wait for this one; unless all have raised it, or have
        done their part."""
        try:
            yield
        except BaseException as problem:
            if problem is not self._agreed and not isinstance(problem, NumericsError):
                self.abort(problem)
            raise

    def load(self, load: Load, **arguments: Any) -> Any:
        """What `load(session, **arguments)` gives, which all ranks call."""
        with self._one_at_a_time():
            number = next(self._counter)
            self._begin("load", None, (), arguments, number)
            with self._ending_all():
                model = load(self, **arguments)
            self._enter(model.transformer, number)
            return model

    def on_all(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What function(*args) gives on each rank, which all call at once; it is named in a module that all have."""
        with self._one_at_a_time():
            self._begin("on_all", None, (function, *args), {})
            with self._ending_all():
                return self.exchange(function(*args))

    def end(self) -> None:
        """Lets the other ranks go."""
        if os.getpid() != self._process:
            return  # a fork ends for itself
        with self._lock:
            if not self.ended and not self.rank:
                self._begin("end", None, (), {})
            self.ended = True

    def _begin(
        self, what: str, target: object, args: tuple[Any, ...], options: dict[str, Any], number: int | None = None
    ) -> None:
        """Sends what was done since the last time, whether the last step was right, and what comes now."""
        if self.ended:
            raise InputError("the ranks have ended; start the program again")
        self._log.append((what, target, args, options, number))
        buffer = io.BytesIO(pickle.dumps(self._confirmed))
        buffer.seek(0, io.SEEK_END)
        self._confirmed = False
        while self._log:
            _Pickler(buffer, self._numbers).dump(self._log.popleft())
        self.communicator.send(buffer.getvalue())

    def abort(self, problem: BaseException) -> None:
        """Ends all ranks, since this one cannot go on and the others would wait for it."""
        self.ended = True
        self.communicator.abort(f"rank {self.rank} of {self.size} ends, and so do all: {_text(problem)}")

    # ------------------------------------------------------------------------------------------------ the others

    def follow(self, load: Load) -> None:
        """Does what rank 0 does, until it ends; load(session, **arguments) gives a model."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; rank 0 decides
        with self._ending_all():
            while not self.ended:
                self._is_confirmed()
                message, self._message = self._message, None
                assert message is not None
                while message.tell() < len(message.getbuffer()):
                    self._replay(load, *_Unpickler(message, self._objects).load())
        self._objects.clear()

    def _is_confirmed(self) -> bool:
        """Whether rank 0 found the last step right, which its next message says."""
        if self._message is None:
            received = self.communicator.receive()
            self._message = io.BytesIO(received)
            self._confirmed = pickle.load(self._message)
        return self._confirmed

    def _replay(
        self, load: Load, what: str, target: Any, args: tuple[Any, ...], options: dict[str, Any], number: int | None
    ) -> None:
        made = None
        if what == "end":
            self.ended = True
        elif what == "forget":
            del self._objects[args[0]]
        elif what == "on_all":
            self.exchange(args[0](*args[1:]))
        elif what == "load":
            try:
                made = load(self, **options).transformer
            except Exception as problem:
                if problem is not self._agreed:
                    raise
        else:
            with suppress(Rejected):
                made = getattr(target, what)(*args, **options)
        if number is not None:
            self._objects[number] = made


def _text(problem: BaseException) -> str:
    text = str(problem)
    return text if text and isinstance(problem, CgptError) else ": ".join(filter(None, (type(problem).__name__, text)))


@contextmanager
def _delayed_interrupts() -> Iterator[None]:
    """Ctrl-C waits for the end of the block, in the thread that gets it."""
    came: list[Any] = []
    if threading.current_thread() is not threading.main_thread() or (old := signal.getsignal(signal.SIGINT)) is None:
        yield
        return
    signal.signal(signal.SIGINT, lambda *args: came.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)
    if came and callable(old):
        old(*came[0])


_sessions: list[tuple[Any, Session]] = []


def session_of(comm: Any) -> Session:
    """The session of an mpi4py communicator; the first call makes it, on all ranks. A Session is its own."""
    if isinstance(comm, Session):
        return comm
    for known, session in _sessions:
        if known == comm:
            return session
    if not all(hasattr(comm, name) for name in ("Allgatherv", "Gatherv", "Dup")):
        raise InputError(f"comm is a communicator of mpi4py, as MPI.COMM_WORLD, not a {type(comm).__name__}")
    session = Session(MPICommunicator(comm))
    _sessions.append((comm, session))
    atexit.register(session.end)
    return session
