"""Ray Serve's request router for the replicas, which runs in each ingress: `affinity.Holders` chooses."""

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from llama3.ray.affinity import Holders
from llama3.ray.replica import Ask


class AffinityRouter(RequestRouter):  # type: ignore[misc]  # Any to mypy, and so if Ray is not installed
    """Counts the requests at each replica from the moment they are assigned, so that a burst is shared out evenly."""

    def initialize_state(self, slots: int = 1) -> None:
        self.slots, self.holders = slots, Holders()
        self.assigned: dict[str, tuple[str, Any]] = {}  # Serve's id of a request -> (its replica, its future)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """One replica, and behind it the others, for the case that it cannot be reached."""
        replicas = {str(replica.replica_id.unique_id): replica for replica in candidate_replicas}
        if pending_request is None or not replicas:
            return [candidate_replicas]
        ask = next((arg for arg in pending_request.args if isinstance(arg, Ask)), None)
        name = self.holders.choose(
            ask.keys if ask else (), self.loads(replicas, pending_request), self.slots, ask.avoid if ask else ()
        )
        self.assigned[pending_request.metadata.internal_request_id] = name, pending_request.future
        return [[replicas[name]], [replica for other, replica in replicas.items() if other != name]]

    def loads(self, replicas: dict[str, RunningReplica], pending: PendingRequest) -> dict[str, int]:
        found = dict.fromkeys(replicas, 0)
        for id, (name, future) in list(self.assigned.items()):
            if future.cancelled() or name not in found:  # its client has left before it was sent, or its replica died
                self.assigned.pop(id, None)
            elif id != pending.metadata.internal_request_id:
                found[name] += 1
        return found

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        name = str(replica_id.unique_id)
        self.assigned[pending_request.metadata.internal_request_id] = name, pending_request.future
        for arg in pending_request.args:
            if isinstance(arg, Ask):
                self.holders.put(arg.keys, name)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        if self.assigned.get(internal_request_id, ("",))[0] == str(replica_id.unique_id):
            self.assigned.pop(internal_request_id, None)
