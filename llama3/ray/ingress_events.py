"""Join the events of two runs of one request, so that a client sees one stream.

Both runs have the same seed, so they generate the same text. Three things differ: the padding `p` of Workers AI's
events, ids and times. Log-probabilities may differ in their last digits.
"""

import hashlib
import re
from typing import Any

import msgspec

IDS = re.compile(rb"\b(?:chatcmpl-|cmpl-|resp_|msg_|fc_|call_)[0-9a-f]{32}\b")
TIME = re.compile(rb'"created(?:_at)?":\s*[0-9]+')
DIFFERENT = {"p", "id", "item_id", "call_id", "created", "created_at", "logprobs"}  # fields that may differ


class OtherText(Exception):
    """Two runs of one request have not generated the same text."""


class SentEvents:
    """What a client has of a stream: how many events, the hash of what two runs have in common, ids and times."""

    def __init__(self) -> None:
        self.n, self.digest = 0, hashlib.sha256()
        self.ids: list[bytes] = []  # in the order in which they first appear, which is the same in each run
        self.time: bytes | None = None

    def add(self, event: bytes) -> None:
        self.n += 1
        self.digest.update(in_common(event))
        for found in IDS.findall(event):
            if found not in self.ids:
                self.ids.append(found)
        if self.time is None and (match := TIME.search(event)):
            self.time = match[0]


class Continuation:
    """Takes the events of another run, and returns those that the client lacks, with the ids of the first run."""

    def __init__(self, sent: SentEvents):
        self.sent, self.again = sent, SentEvents()

    def next(self, event: bytes) -> bytes | None:
        """The event to send; None for one that was sent. Raises OtherText if the runs do not have the same events."""
        repeated = self.again.n < self.sent.n
        self.again.add(event)
        if repeated:
            if self.again.n == self.sent.n and self.again.digest.digest() != self.sent.digest.digest():
                raise OtherText
            return None
        names = dict(zip(self.again.ids, self.sent.ids))
        event = IDS.sub(lambda found: names.get(found[0], found[0]), event)
        if self.sent.time is not None:
            value = self.sent.time.partition(b":")[2]
            event = TIME.sub(lambda found: found[0].partition(b":")[0] + b":" + value, event)
        self.sent.add(event)
        return event


def in_common(event: bytes) -> bytes:
    """An event without what differs between two runs."""
    begin = event.find(b"data: ") + len(b"data: ")
    try:
        return msgspec.json.encode(without_differences(msgspec.json.decode(event[begin:])))
    except msgspec.DecodeError:  # [DONE]
        return event


def without_differences(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_differences(inner) for name, inner in value.items() if name not in DIFFERENT}
    if isinstance(value, list):
        return [without_differences(inner) for inner in value]
    return value
