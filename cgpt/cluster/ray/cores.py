"""Whole cores of this machine for each replica, so that no two of them compute on the same one.

Ray counts CPUs and binds nobody to them. A replica takes as many cores as its CPUs are of its node's, and its threads
run there. A core is taken by a name among the sockets of the machine ("abstract" ones, without a file), which the
system gives back when the process ends, however it ends.
"""

from __future__ import annotations

import errno
import logging
import os
import socket

import ray

from cgpt.machine import topology

NAME = "cgpt-core"
log = logging.getLogger("cgpt.cluster")


def core_count(cpus: float, node_cpus: float, cores: int) -> int:
    """The cores for `cpus` of a node that Ray counts as `node_cpus`, where this process may use `cores`: Ray may count
    the siblings of a core as two, and a node may be given fewer CPUs than its machine has."""
    return max(1, int(min(cpus, cpus / max(node_cpus, cpus) * cores)))


def claim_cores(cpus: float) -> CoreClaim:
    """Takes the cores for `cpus` of Ray's on this node, and binds this thread to them; warns where too few are free."""
    here = ray.get_runtime_context().get_node_id()
    node_cpus = next(float(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["NodeID"] == here)
    count = core_count(cpus, node_cpus, len(topology.cores(topology.usable_cpus())))
    claim = CoreClaim(count)
    if claim.cpus:
        os.sched_setaffinity(0, claim.cpus)
    else:
        log.warning("bound to no cores: fewer than %d are free on this node", count)
    return claim


class CoreClaim:
    """Some cores of this machine, taken until the process ends or release() is called.

    cpus: their CPUs; empty where too few cores are free, or the system knows no affinity.
    """

    def __init__(self, count: int) -> None:
        self.cpus: set[int] = set()
        self._names: list[socket.socket] = []
        if not hasattr(os, "sched_setaffinity"):
            return
        cores: dict[topology.Core, set[int]] = {}
        for cpu in sorted(topology.usable_cpus()):
            for core in topology.cores({cpu}):  # the one it is on
                cores.setdefault(core, set()).add(cpu)
        for siblings in cores.values():
            if len(self._names) < count and self._take(min(siblings)):
                self.cpus |= siblings
        if len(self._names) < count:
            self.release()

    def _take(self, cpu: int) -> bool:
        name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            name.bind(f"\0{NAME}-{cpu}")
        except OSError as problem:
            name.close()
            if problem.errno != errno.EADDRINUSE:
                raise
            return False
        self._names.append(name)
        return True

    def release(self) -> None:
        """Gives the cores back; threads stay where they are bound."""
        for name in self._names:
            name.close()
        self.cpus, self._names = set(), []
