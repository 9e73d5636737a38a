"""A minute of 64 clients at once, half of which disconnect in the middle of a stream, on a real server process."""

import json
import random
import re
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")  # the extra `server`

from llama3 import Llama
from tests.server.running import SHORT, RunningServer, post_request, read_all

CLIENTS, SECONDS = 64, 60


def thread_count(running: RunningServer) -> int:
    found = re.search(r"^Threads:\s+(\d+)", Path(f"/proc/{running.process.pid}/status").read_text(), re.M)
    assert found
    return int(found[1])


def text_of(reply: bytes) -> str:
    events = [json.loads(event) for event in re.findall(rb"^data: ({.*})$", reply, re.M)]
    return "".join(event["response"] for event in events)


@pytest.mark.slow
def test_many_clients_get_answers_or_429_and_no_thread_or_request_is_left():
    with RunningServer("--slots", "8", "--queue", "40") as running:
        statuses, errors, answers, end = Counter(), [], {}, time.monotonic() + SECONDS

        def client(number: int) -> None:
            dice = random.Random(number)
            try:
                while time.monotonic() < end:
                    inputs = {"prompt": "Go on and on", "temperature": 3, "stream": True}
                    inputs |= {"seed": dice.randint(1, 99), "max_tokens": dice.randint(5, 60)}
                    with running.connect() as connection:
                        connection.sendall(post_request(inputs))
                        reply = connection.recv(200)
                        if number % 2 and reply.startswith(b"HTTP/1.1 200"):
                            statuses["disconnected"] += 1
                            continue
                        reply += read_all(connection)
                    statuses[reply[9:12].decode()] += 1
                    if reply.startswith(b"HTTP/1.1 200"):
                        assert b"\ndata: [DONE]\n" in reply, reply[-200:]
                        text = answers.setdefault((inputs["seed"], inputs["max_tokens"]), text_of(reply))
                        assert text == text_of(reply), inputs
                    else:
                        time.sleep(0.1)
            except BaseException as error:
                errors.append(error)

        idle = thread_count(running)
        threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors, errors[0]
        assert set(statuses) <= {"200", "429", "disconnected"}, statuses
        assert statuses["200"] > 50 and statuses["disconnected"] > 50, statuses

        deadline = time.monotonic() + 30
        while running.in_flight() or thread_count(running) > idle + 3:
            assert time.monotonic() < deadline, (running.in_flight(), idle, thread_count(running))
            time.sleep(1)
            running.post(SHORT)  # the server must still answer

    llama = Llama.load()
    for seed, max_tokens in random.Random(1).sample(sorted(answers), 20):
        inputs = {"prompt": "Go on and on", "temperature": 3, "seed": seed, "max_tokens": max_tokens}
        assert llama.run(inputs)["response"] == answers[seed, max_tokens]
