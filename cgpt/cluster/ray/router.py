"""Chooses the replica of a request: the one whose prefix cache has the prompt's beginning, unless others have much less
to do."""

from __future__ import annotations

from collections import OrderedDict, defaultdict

from ray.serve.request_router import PendingRequest, ReplicaID, ReplicaResult, RequestRouter, RunningReplica

from cgpt.cluster.ray.messages import Forwarded, replica_tag


class PrefixRouter(RequestRouter):
    """Sends a request to the replica that remembers what it refers to; else to the one that was sent the longest of its
    beginnings, if that has at most SLACK requests more than the least busy one; else to the least busy one.

    Knows what this process has sent. Each front has a router of its own.
    """

    SLACK = 2
    MAX_BLOCKS = 1 << 17  # blocks of prompts that are remembered

    def initialize_state(self) -> None:
        """Called by Ray where other routers take arguments of theirs."""
        self._owners: OrderedDict[int, ReplicaID] = OrderedDict()  # by the number of a block
        self._running: defaultdict[ReplicaID, set[str]] = defaultdict(set)  # Ray's numbers of requests
        self._last: dict[ReplicaID, int] = {}  # when something was last sent, in requests
        self._count = 0

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas one by one, the best first; Ray takes the first that has a place."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # where none has a place, try again, but not at once
        found = sorted(candidate_replicas, key=lambda one: self._busy(one.replica_id))
        request = _forwarded(pending_request)
        if request is None or not found:
            return [[one] for one in found]
        for one in found:
            if request.tag == replica_tag(one.replica_id.unique_id):
                return [[one]]  # no other could answer
        owner = next((self._owners[block] for block in reversed(request.blocks) if block in self._owners), None)
        least = len(self._running[found[0].replica_id])
        if owner is not None and len(self._running[owner]) - least <= self.SLACK:
            found.sort(key=lambda one: one.replica_id != owner)
        return [[one] for one in found]

    def _busy(self, replica: ReplicaID) -> tuple[int, int]:
        return len(self._running[replica]), self._last.get(replica, 0)

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult) -> None:
        """Notes where a request went, until it has ended, however it did."""
        # Not by on_request_completed(): Ray may call it before this, and for a replica that had no place for a request
        # after another one has it. The callback is called in any case, in a thread of Ray's.
        number, running = pending_request.metadata.internal_request_id, self._running[replica_id]
        running.add(number)
        result.add_done_callback(lambda _: running.discard(number))
        self._count += 1
        self._last[replica_id] = self._count
        if request := _forwarded(pending_request):
            for block in request.blocks:
                self._owners[block] = replica_id
                self._owners.move_to_end(block)
            while len(self._owners) > self.MAX_BLOCKS:
                self._owners.popitem(last=False)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Forgets the replicas that are gone."""
        super().update_replicas(replicas)
        here = {one.replica_id for one in replicas}
        for gone in self._running.keys() - here:
            del self._running[gone]
        self._last = {one: last for one, last in self._last.items() if one in here}


def _forwarded(pending: PendingRequest | None) -> Forwarded | None:
    found = pending.args[0] if pending is not None and pending.args else None
    return found if isinstance(found, Forwarded) else None
