"""`llama3 serve --ray` on a real cluster of this machine: the plain server's contract, whatever happens to replicas."""

import os
import random
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llama3 import Llama
from tests.cli.running import PROGRAM
from tests.ray.running import RunningService, ServeCluster, texts
from tests.server.running import LONG, post_request, read_all

pytestmark = pytest.mark.slow

CLIENTS, KILLS = 8, 2


def inputs(n: int) -> dict[str, Any]:
    """A request of its own for each client, without an end for 120 tokens."""
    return {"prompt": f"Go on, {n}", "max_tokens": 120, "temperature": 5, "seed": 14 + n, "stream": True}


def test_answers_are_those_of_the_model(service: RunningService):
    asked = {"prompt": "What is RoPE?", "max_tokens": 20, "seed": 3}
    status, reply = service.post(asked)
    assert status == 200
    assert reply["result"] == Llama.load().run(asked)  # type: ignore[index]


def test_every_stream_survives_the_kill_of_a_replica(service: RunningService):
    dice = random.Random(7)
    with ThreadPoolExecutor(CLIENTS) as pool:
        ask = [post_request(inputs(n)) for n in range(CLIENTS)]
        undisturbed = [texts(raw) for raw in pool.map(service.send, ask)]
        for _ in range(KILLS):
            running = [pool.submit(service.send, raw) for raw in ask]
            time.sleep(dice.uniform(0.1, 0.4))
            os.kill(dice.choice(service.replicas()), signal.SIGKILL)
            assert [texts(answer.result()) for answer in running] == undisturbed
            while len(service.samples("llama3_requests_in_flight")) < 2:
                time.sleep(0.1)
    assert re.search(rb'llama3_requests_asked_again_total{kind="continued"} [1-9]', service.get("/metrics"))


def test_ten_turn_dialogues_stay_on_their_replica(service: RunningService):
    stayed = 0
    for dialogue in range(4):
        messages: list[dict[str, str]] = []
        home = ""
        for turn in range(10):
            before = service.samples("llama3_tokens_total")
            messages.append({"role": "user", "content": f"{dialogue}, {turn}"})
            status, reply = service.post({"messages": messages, "max_tokens": 3, "seed": 1})
            assert status == 200
            messages.append({"role": "assistant", "content": reply["result"]["response"]})  # type: ignore[index]
            after = service.samples("llama3_tokens_total")
            (replica,) = [name for name, n in after.items() if n > before.get(name, 0)]
            stayed += replica == home
            home = replica
    assert stayed >= 0.95 * 4 * 9


def test_a_half_sent_body_gets_408(service: RunningService):
    with service.connect() as connection:
        start = time.monotonic()
        connection.sendall(post_request({"prompt": "hi"})[:-3])
        reply = read_all(connection)
    assert reply.startswith(b"HTTP/1.1 408") and time.monotonic() - start >= 2


def test_a_large_body_gets_413_and_many_requests_429(service: RunningService):
    assert service.post({"prompt": "x" * (1 << 20)})[0] == 413
    with ThreadPoolExecutor(40) as pool:
        short = {**inputs(0), "stream": False, "max_tokens": 60}
        statuses = sorted(status for status, _ in pool.map(service.post, [short] * 40))
    assert statuses == [200] * 24 + [429] * 16


def test_a_client_that_leaves_frees_its_slot(service: RunningService):
    for inputs_ in (LONG, {**LONG, "stream": False}):
        with service.connect() as connection:
            connection.sendall(post_request(inputs_))
            while not service.in_flight():
                time.sleep(0.02)
        until = time.monotonic() + 30
        while service.in_flight():
            assert time.monotonic() < until
            time.sleep(0.02)


def test_ray_serve_listens_at_one_address(serve_cluster: ServeCluster, service: RunningService):
    """A second service at another port is refused, and the first one goes on."""
    ran = serve_cluster.run(*PROGRAM, "serve", "--ray", serve_cluster.address, "--port", "9")
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1, ran.stderr
    assert f"Ray Serve runs on this cluster already, at 127.0.0.1:{service.port}; expected" in ran.stderr
    assert service.get("/health").startswith(b"HTTP/1.1 200")


def test_shutdown_ends_a_stream_with_a_last_event(serve_cluster: ServeCluster, service: RunningService):
    with service.connect() as connection:
        connection.sendall(post_request(LONG))
        first = connection.recv(1000)
        serve_cluster.stop()
        raw = first + read_all(connection)
    assert b"the server is stopping" in raw and raw.rstrip(b"\r\n0").endswith(b"data: [DONE]")
