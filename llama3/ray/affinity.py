"""Send the requests of one dialogue to one replica, whose cache holds the beginning of their prompts.

A dialogue is known by the header `x-session-affinity`, which Workers AI's clients send for the same reason. Without it,
it is known by its messages: each turn repeats those of the turn before it.
"""

import hashlib
import random
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

HEADER = b"x-session-affinity"
MOST_KEYS = 100_000  # of which the holders are remembered; the oldest are forgotten first


def keys_of(headers: Iterable[tuple[bytes, bytes]], given: Any) -> list[str]:
    """The keys of a request: its own one first, then those which the earlier requests of its dialogue had.

    given: the decoded body. A request without a dialogue has no keys.
    """
    session = next((value for name, value in headers if name == HEADER and value), None)
    if session is not None:
        return ["session " + hashlib.sha256(session).hexdigest()]
    if isinstance(given, dict) and isinstance(given.get("inputs"), dict):  # from a Worker's binding
        given = given["inputs"]
    messages = given.get("messages", given.get("input")) if isinstance(given, dict) else None
    if not isinstance(messages, list) or not messages:
        return []
    beginning = {name: given.get(name) for name in ("lora", "tools", "instructions")}
    digest = hashlib.sha256(msgspec.json.encode(beginning))
    keys = []
    for message in messages:
        digest.update(msgspec.json.encode(message))
        keys.append(digest.hexdigest())
    return keys[::-1]


class Holders:
    """Remembers which replica has answered which request."""

    def __init__(self) -> None:
        self.replicas: OrderedDict[str, str] = OrderedDict()  # key -> replica

    def put(self, keys: Sequence[str], replica: str) -> None:
        """This replica answers the request with these keys. Only the first is put: earlier turns put the others."""
        for key in keys[:1]:
            self.replicas[key] = replica
            self.replicas.move_to_end(key)
        while len(self.replicas) > MOST_KEYS:
            self.replicas.popitem(last=False)

    def choose(self, keys: Sequence[str], loads: Mapping[str, int], slots: int, avoid: Sequence[str] = ()) -> str:
        """The replica for a request: the one that holds its dialogue, unless that is too busy, or else the least busy.

        loads: replica -> its requests, at least one replica. Too busy is a replica that has `slots` requests more than
        the least busy one: the request would wait there for a slot, and find one at once elsewhere.
        """
        there = {name: load for name, load in loads.items() if name not in avoid} or dict(loads)
        least = min(there.values())
        holder = next((self.replicas[key] for key in keys if self.replicas.get(key) in there), None)
        if holder is None and keys and keys[0].startswith("session "):
            # Every ingress makes the same choice for a session that it does not know (rendezvous hashing).
            holder = max(there, key=lambda name: hashlib.sha256(f"{name} {keys[0]}".encode()).digest())
        if holder is not None and there[holder] < least + slots:
            return holder
        return min(there, key=lambda name: (there[name], random.random()))  # idle ones at random
