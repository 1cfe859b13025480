"""Ranks that are threads of this process: what several processes do, without MPI."""

import pickle
import queue
import threading

import cgpt
from cgpt.distributed.session import Session
from cgpt.loading import follow

TIMEOUT = 20  # seconds


class ThreadCommunicator:
    """distributed.session.Communicator between threads, which share `board`."""

    def __init__(self, rank, size, board):
        self.rank, self.size, self.board = rank, size, board
        self.gathers = 0
        self.aborted = None

    def _all(self, value):
        """What every rank gave; the second wait keeps it there until all have looked."""
        board = self.board
        board.values[self.rank] = value
        board.barrier.wait(TIMEOUT)
        return list(board.values)

    def gather(self, y, bounds):
        self.gathers += 1
        for rank, other in enumerate(self._all(y)):
            assert other.shape == y.shape
            if rank != self.rank:
                y[:, bounds[rank] : bounds[rank + 1]] = other[:, bounds[rank] : bounds[rank + 1]]
        self.board.barrier.wait(TIMEOUT)

    def collect(self, y, bounds):
        for rank, other in enumerate(self._all(y)):
            if rank and not self.rank:
                y[:, bounds[rank] : bounds[rank + 1]] = other
        self.board.barrier.wait(TIMEOUT)

    def exchange(self, mine):
        found = [pickle.loads(one) for one in self._all(pickle.dumps(mine))]
        self.board.barrier.wait(TIMEOUT)
        return found

    def send(self, message):
        for inbox in self.board.inboxes[1:]:
            inbox.put(bytes(message))

    def receive(self):
        return self.board.inboxes[self.rank].get(timeout=TIMEOUT)

    def abort(self, message):
        self.board.aborts.append(message)
        self.board.barrier.abort()
        self.send(pickle.dumps(True) + pickle.dumps(("end", None, (), {}, None)))


class Board:
    def __init__(self, size):
        self.barrier = threading.Barrier(size)
        self.values = [None] * size
        self.inboxes = [queue.Queue() for _ in range(size)]
        self.aborts = []
        self.sessions = [None] * size


class ThreadRanks:
    """`with ThreadRanks(4) as ranks: ranks.load("demo-gpt2", ..)` gives a model of so many ranks, which are threads."""

    def __init__(self, size, follow=follow):
        self.board = Board(size)
        self.communicators = [ThreadCommunicator(rank, size, self.board) for rank in range(size)]
        self.errors = []
        self.sessions = self.board.sessions
        self._follow = follow
        self._threads = [threading.Thread(target=self._run, args=(rank,), daemon=True) for rank in range(1, size)]

    def _run(self, rank):
        try:
            self.sessions[rank] = Session(self.communicators[rank])
            self._follow(self.sessions[rank])
        except BaseException as problem:
            self.errors.append(problem)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        self.session = Session(self.communicators[0])
        return self

    def load(self, *args, **options):
        return cgpt.load(*args, comm=self.session, **options)

    def __exit__(self, *_):
        self.session.end()
        for thread in self._threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive()
