"""Parts of the ingress: the seed it puts into a request, the joined metrics, and what two runs have in common."""

import asyncio
import gzip
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request

from llama3.ray.ingress_events import Continuation, OtherText, SentEvents
from llama3.ray.ingress_metrics import joined
from llama3.ray.ingress_request import receive_whole, with_seed
from llama3.ray.replica import Ask
from llama3.server.body import BodyReader
from llama3.server.metrics import Metrics
from tests.server.asgi import RUN

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def received(body: bytes, path: str = RUN, **headers: str) -> Ask:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": pairs}
    return asyncio.run(receive_whole(Request(scope, receive), BodyReader()))


@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_a_seed_changes_nothing_else_of_a_stream_s_request(body: dict[str, Any]):
    body = {**body, "stream": True}
    body.pop("seed", None)
    found = msgspec.json.decode(received(msgspec.json.encode(body)).body)
    assert 1 <= found.pop("seed") <= 9_999_999_999
    assert found == body


@pytest.mark.parametrize(
    "path, body, wants",
    [
        (RUN, {"stream": True}, True),
        (RUN, {"stream": True, "seed": 3}, False),
        (RUN, {"stream": True, "seed": None}, False),  # it is refused there, and must be
        ("/v1/chat/completions", {"stream": True, "seed": None}, True),
        ("/run", {"inputs": {"stream": True}}, True),
        ("/run", {"stream": True}, False),
        (RUN, {"stream": False}, False),
        (RUN, {"stream": "yes"}, False),
        (RUN, [], False),
        (RUN, None, False),
    ],
)
def test_only_streams_without_a_seed_get_one(path: str, body: Any, wants: bool):
    assert with_seed(body, path) == wants


@pytest.mark.parametrize(
    "body", [b"", b"[", b'{"stream": true, "a": "\\ud800"}', b'{"stream": false, "a":  1}', b"\xff"]
)
def test_other_bodies_pass_as_they_are(body: bytes):
    assert received(body).body == body


def test_a_compressed_request_gets_a_seed_too():
    ask = received(gzip.compress(json.dumps({"stream": True, "prompt": "hi"}).encode()), content_encoding="gzip")
    assert json.loads(ask.body)["prompt"] == "hi" and "seed" in json.loads(ask.body)
    assert not any(name == b"content-encoding" for name, _ in ask.scope()["headers"])


def test_joined_metrics_are_those_of_each_replica():
    metrics = {name: Metrics(lambda: 2) for name in ("a", "b")}
    metrics["a"].requests.labels("200").inc(3)
    text = joined([(name, each.text()) for name, each in metrics.items()], {"continued": 1})
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = {(sample.name, *sorted(sample.labels.items())): sample.value for sample in samples}
    assert found["llama3_requests_total", ("replica", "a"), ("status", "200")] == 3
    assert found["llama3_requests_in_flight", ("replica", "b")] == 2
    assert found["llama3_requests_asked_again_total", ("kind", "continued")] == 1
    described = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(described) == len(set(described))


def chunk(text: str, n: int, id: str, **more: Any) -> bytes:
    value = {"id": "chatcmpl-" + id * 32, "created": n, "choices": [{"delta": {"content": text}}], **more}
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def test_a_continuation_keeps_id_and_time_and_what_a_text_says():
    """A text may look like an id or a time."""
    said = "chatcmpl-" + "c" * 32 + ' "created":7'
    first = [chunk(said, 5, "a"), chunk("b", 5, "a")]
    second = [chunk(said, 9, "b"), chunk("b", 9, "b"), chunk(said, 9, "b")]
    sent = SentEvents()
    for event in first:
        sent.add(event)
    continuation = Continuation(sent)
    assert [continuation.next(event) for event in second] == [None, None, chunk(said, 5, "a")]


def test_other_text_is_noticed_at_the_last_event_that_was_sent():
    sent = SentEvents()
    sent.add(chunk("a", 5, "a"))
    with pytest.raises(OtherText):
        Continuation(sent).next(chunk("b", 5, "a"))
