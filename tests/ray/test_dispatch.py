"""Requests shared out among replicas that are lost: each is answered once, and only what kills replicas is given up.

Ray is replaced by actors that are threads, so these tests need neither Ray nor a network.
"""

import json
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama3 import CheckpointError, Llama3Error, RequestError
from llama3.batch import IN_FLIGHT, in_order
from llama3.batch_request import Line
from llama3.ray import dispatch
from llama3.ray.dispatch import TRIES, Replicas, encoded
from llama3.ray.placement import Placement

LOADED = (Path("model"), "cpu")


class RayError(Exception):
    """A replica was lost."""


class RayTaskError(RayError):
    def __init__(self, cause: Exception):
        self.cause = cause


class Actor:
    """Stands for an actor. answer(text, actor) answers a request, or kills it."""

    def __init__(self, load: Callable[[int], Any], answer: "Callable[[bytes, Actor], None]", number: int):
        self.dead, self.lock, self.number = threading.Event(), threading.Lock(), number
        self.now: list[bytes] = []  # requests in flight
        self.most = 0
        self.load = SimpleNamespace(remote=lambda _: lambda: load(number))
        self.answer_line = SimpleNamespace(remote=lambda text: lambda: self.run(text, answer))

    def run(self, text: bytes, answer: "Callable[[bytes, Actor], None]") -> Line:
        with self.lock:
            self.now.append(text)
            self.most = max(self.most, len(self.now))
        try:
            answer(text, self)
            if self.dead.wait(0.0005):
                raise RayError
            return Line(b"answer to " + text, 1)
        finally:
            with self.lock:
                self.now.remove(text)


class Cluster:
    """Replaces Ray: starts actors, and remembers them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: Any = lambda text, actor: None, load: Any = None):
        self.actors: list[Actor] = []
        exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
        ray = SimpleNamespace(get=lambda call: call(), kill=lambda actor: actor.dead.set(), exceptions=exceptions)

        def start(placement: Placement, slots: int) -> Actor:
            self.actors.append(Actor(load or (lambda number: LOADED), answer, len(self.actors)))
            return self.actors[-1]

        monkeypatch.setattr(dispatch, "import_ray", lambda: ray)
        monkeypatch.setattr(dispatch, "start", start)


def lines(n: int) -> list[bytes]:
    return [json.dumps({"custom_id": str(k), "prompt": "a"}).encode() for k in range(n)]


def answers(texts: list[bytes], replicas: int, slots: int) -> list[Line]:
    with closing(Replicas(lambda device, slots: None, Placement(replicas, "cpu", 0, 1), slots)) as copies:
        return list(in_order(texts, copies.answer_line, copies.slots, copies.close))


@pytest.mark.parametrize(("replicas", "slots"), [(1, 1), (3, 2)])
def test_the_requests_are_shared_out_evenly(monkeypatch: pytest.MonkeyPatch, replicas: int, slots: int) -> None:
    """The first answers come when each replica has as many requests in flight as it may have."""
    most = IN_FLIGHT * slots
    full = threading.Barrier(replicas * most)

    def answer(text: bytes, actor: Actor) -> None:
        if text in texts[: replicas * most]:
            full.wait(60)

    cluster, texts = Cluster(monkeypatch, answer), lines(60)
    assert [line.text for line in answers(texts, replicas, slots)] == [b"answer to " + text for text in texts]
    assert [actor.most for actor in cluster.actors] == [most] * replicas


@settings(max_examples=30)
@given(st.sets(st.integers(0, 39), max_size=4), st.integers(1, 3), st.integers(1, 3))
def test_only_what_kills_its_replica_is_given_up(poison: set[int], replicas: int, slots: int) -> None:
    texts = lines(40)
    deadly = {texts[k] for k in poison}

    def answer(text: bytes, actor: Actor) -> None:
        if text in deadly:
            actor.dead.set()

    with pytest.MonkeyPatch.context() as monkeypatch:
        cluster = Cluster(monkeypatch, answer)
        found = answers(texts, replicas, slots)
    assert len(cluster.actors) <= replicas + TRIES * len(poison)
    for text, line in zip(texts, found):
        if text not in deadly:
            assert line.text == b"answer to " + text
        else:
            answer_object = json.loads(line.text)
            assert answer_object["custom_id"] == json.loads(text)["custom_id"] and answer_object["success"] is False
            assert line.failed and "3 times" in answer_object["errors"][0]["message"]


def test_a_replica_that_is_lost_is_replaced_and_its_requests_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = lines(50)

    def answer(text: bytes, actor: Actor) -> None:
        if actor.number < 2 and text == texts[20]:  # two times in a row
            actor.dead.set()

    cluster = Cluster(monkeypatch, answer)
    assert [line.text for line in answers(texts, 2, 2)] == [b"answer to " + text for text in texts]
    assert 3 <= len(cluster.actors) <= 4


def test_the_last_try_is_made_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    texts = lines(40)

    def answer(text: bytes, actor: Actor) -> None:
        if text == texts[10]:
            time.sleep(0.01)
            seen.append(len(actor.now))
            actor.dead.set()

    Cluster(monkeypatch, answer)
    assert sum(line.failed for line in answers(texts, 2, 2)) == 1
    assert len(seen) == TRIES and seen[-1] == 1


def test_an_error_of_loading_ends_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(number: int) -> Any:
        raise RayTaskError(CheckpointError("no such folder"))

    Cluster(monkeypatch, load=load)
    with pytest.raises(CheckpointError, match="no such folder"):
        answers(lines(10), 2, 2)


def test_a_replica_that_is_lost_while_it_loads_is_started_three_times(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(number: int) -> Any:
        if number < 2:
            raise RayError("killed")
        return LOADED

    cluster = Cluster(monkeypatch, load=load)
    assert len(answers(lines(10), 1, 2)) == 10 and len(cluster.actors) == 3

    def never(number: int) -> Any:
        raise RayError("out of memory")

    cluster = Cluster(monkeypatch, load=never)
    with pytest.raises(Llama3Error, match="lost 3 times while it loaded the model: out of memory"):
        answers(lines(10), 1, 2)
    assert len(cluster.actors) == TRIES


def test_closing_ends_the_requests_that_are_running(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(text: bytes, actor: Actor) -> None:
        if text != first:
            actor.dead.wait(60)

    first, *_ = texts = lines(30)
    cluster = Cluster(monkeypatch, answer)
    copies = Replicas(lambda device, slots: None, Placement(2, "cpu", 0, 1), 2)
    running = in_order(texts, copies.answer_line, copies.slots, copies.close)
    assert next(running).text == b"answer to " + first
    running.close()
    assert all(actor.dead.is_set() and not actor.now for actor in cluster.actors)
    with pytest.raises(RequestError, match="stopped"):
        copies.answer_line(first)


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), b"a"])
def test_a_request_that_json_cannot_hold_is_refused_by_its_number(value: Any) -> None:
    read = encoded([{"prompt": "a"}, {"prompt": value}])
    assert next(read) == b'{"prompt":"a"}'
    with pytest.raises(RequestError, match=r"^request 2 is not JSON: .*; expected an object of docs/batch\.md$"):
        next(read)


def test_slots_below_one_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch)
    with pytest.raises(RequestError, match="slots is 0; expected a whole number of at least 1"):
        answers(lines(1), 1, 0)
    assert not cluster.actors
