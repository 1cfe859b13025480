"""The ranks of an MPI communicator (mpi4py), and whether this process is one of several that a launcher started."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cgpt.errors import InputError

# What the launchers of Open MPI, of MPICH, Intel MPI and Slurm, of MVAPICH, and of Slurm with PMIx tell each process:
# its rank, the number.
OPEN_MPI = "OMPI_COMM_WORLD_SIZE"
LAUNCHERS = (
    ("OMPI_COMM_WORLD_RANK", OPEN_MPI),
    ("PMI_RANK", "PMI_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("PMIX_RANK", "SLURM_STEP_NUM_TASKS"),
)
TAG = 7  # of what rank 0 tells the others
SHARE, LONGEST = 0.05, 0.005  # of the time that it has waited a rank sleeps before it looks again, seconds at the most
SPARE = 16 << 20  # bytes that are gathered at once, where what comes has to be put in its place
Floats = npt.NDArray[np.float32]


class MPICommunicator:
    """distributed.session.Communicator over MPI."""

    def __init__(self, comm: Any) -> None:
        """comm: an mpi4py communicator, of which it takes a duplicate."""
        from mpi4py import MPI  # only those who have several ranks need it

        self._mpi: Any = MPI
        self._comm = comm.Dup()
        self._status = MPI.Status()
        self.rank: int = comm.rank
        self.size: int = comm.size
        self._spare = np.empty(0, np.float32)  # what is on its way, where it is not in its place

    def gather(self, y: Floats, bounds: Sequence[int]) -> None:
        """Completes y [T, N], of which each rank has the columns from bounds[rank] up to bounds[rank + 1], on all."""
        for rows in _cut(y, bounds):
            self._gather(rows, bounds)

    def _gather(self, y: Floats, bounds: Sequence[int]) -> None:
        T, N = y.shape
        counts = [T * (end - begin) for begin, end in zip(bounds, bounds[1:], strict=False)]
        begins = [T * begin for begin in bounds[:-1]]
        if T == 1:
            self._comm.Allgatherv(self._mpi.IN_PLACE, [y, counts, begins, self._mpi.FLOAT])
            return
        parts = self._parts(T, N, bounds)
        np.copyto(parts[self.rank], y[:, bounds[self.rank] : bounds[self.rank + 1]])
        self._comm.Allgatherv(self._mpi.IN_PLACE, [self._spare, counts, begins, self._mpi.FLOAT])
        self._put(y, parts, bounds)

    def collect(self, y: Floats, bounds: Sequence[int]) -> None:
        """The same on rank 0 alone. The others' y [T, n] has their own columns only."""
        for rows in _cut(y, bounds):
            self._collect(rows, bounds)

    def _collect(self, y: Floats, bounds: Sequence[int]) -> None:
        T = y.shape[0]
        if self.rank:
            self._comm.Gatherv([y, self._mpi.FLOAT], None)
            return
        counts = [T * (end - begin) for begin, end in zip(bounds, bounds[1:], strict=False)]
        begins = [T * begin for begin in bounds[:-1]]
        if T == 1:
            self._comm.Gatherv(self._mpi.IN_PLACE, [y, counts, begins, self._mpi.FLOAT])
            return
        parts = self._parts(T, bounds[-1], bounds)
        self._comm.Gatherv(self._mpi.IN_PLACE, [self._spare, counts, begins, self._mpi.FLOAT])
        self._put(y, parts, bounds)

    def _parts(self, T: int, N: int, bounds: Sequence[int]) -> list[Floats]:
        """Places for the columns [T, n] of each rank, one behind the other."""
        if self._spare.size < T * N:
            self._spare = np.empty(T * N, np.float32)
        return [self._spare[T * a : T * b].reshape(T, b - a) for a, b in zip(bounds, bounds[1:], strict=False)]

    def _put(self, y: Floats, parts: list[Floats], bounds: Sequence[int]) -> None:
        for rank, part in enumerate(parts):
            if rank != self.rank:
                np.copyto(y[:, bounds[rank] : bounds[rank + 1]], part)

    def exchange(self, mine: Any) -> list[Any]:
        """What each rank gave, on all."""
        found: list[Any] = self._comm.allgather(mine)
        return found

    def send(self, message: bytes) -> None:
        """From rank 0 to each other one."""
        for rank in range(1, self.size):
            self._comm.Send([message, self._mpi.BYTE], rank, TAG)

    def receive(self) -> bytes:
        """The next message of rank 0. MPI's own waiting would keep a core busy, so this sleeps, for a twentieth of the
        time that it has waited, which is what a message is late by."""
        began = time.perf_counter()
        while not self._comm.Iprobe(0, TAG, self._status):
            time.sleep(min(SHARE * (time.perf_counter() - began), LONGEST))
        message = bytearray(self._status.Get_count(self._mpi.BYTE))
        self._comm.Recv([message, self._mpi.BYTE], 0, TAG)
        return bytes(message)

    def abort(self, message: str) -> None:
        """Says why on stderr and ends all ranks."""
        print(f"cgpt: error: {message} (on {socket.gethostname()})", file=sys.stderr, flush=True)
        self._comm.Abort(2)


def _cut(y: Floats, bounds: Sequence[int]) -> list[Floats]:
    """y in parts of so few rows that those of all ranks are SPARE at the most, or one row."""
    rows = max(1, SPARE // (4 * bounds[-1]))
    return [y[first : first + rows] for first in range(0, len(y), rows)]


def launched() -> tuple[int, int]:
    """The rank of this process, and how many an MPI launcher (mpiexec, mpirun, srun) started; (0, 1): none did."""
    for names in LAUNCHERS:
        rank, size = (os.environ.get(name, "") for name in names)
        if rank.isdecimal() and size.isdecimal():
            return int(rank), int(size)
    return 0, 1


def binding_advice(bound: int, machine: int, on_host: int) -> str | None:
    """What to say of a rank that may use `bound` cores of a machine that has more for its ranks: Open MPI gives each
    one core where there are two ranks, and a NUMA node where there are more. None where nothing is wrong."""
    if OPEN_MPI not in os.environ or bound > 1 or machine <= on_host:
        return None
    return (
        f"Open MPI has bound each rank to one of {machine} cores; give mpiexec --bind-to none to use all, or --map-by "
        "numa --bind-to numa for a rank on each NUMA node"
    )


def world() -> Any:
    """mpi4py's communicator of all the processes that a launcher started; None where there is one. InputError without
    mpi4py."""
    _, size = launched()
    if size < 2:
        return None
    if importlib.util.find_spec("mpi4py") is None:
        raise InputError(
            f"an MPI launcher started {size} processes, and mpi4py, by which they would run one model, is not here: "
            "pip install 'cgpt[mpi]', or start one process"
        )
    from mpi4py import MPI

    return MPI.COMM_WORLD if MPI.COMM_WORLD.size > 1 else None
