"""A real server process on a real socket, with badly behaved clients and with signals."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")  # the extra `server`

from llama3.limits import LIMITS
from tests.server.asgi import RUN
from tests.server.running import LONG, SHORT, RunningServer, environment, free_port, post_request, read_all


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """A server with a short receive timeout, so that the tests do not wait long."""
    assert LIMITS.seconds == 10
    with RunningServer("--limit", "seconds=1") as running:
        yield running


def test_a_client_that_disconnects_frees_its_slot(server: RunningServer):
    """There is one slot: if it were not freed, the next request would wait for minutes."""
    for _ in range(3):
        with server.connect() as connection:
            connection.sendall(post_request(LONG))
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    with server.connect() as connection:  # this client has not asked for a stream
        connection.sendall(post_request({**LONG, "stream": False}))
        time.sleep(0.3)
    start = time.monotonic()
    status, found = server.post(SHORT)
    assert status == 200 and found["result"]["usage"]["completion_tokens"] == 5
    assert time.monotonic() - start < 30  # far less than the others would have taken


@pytest.mark.parametrize(
    "raw",
    [b"", b"POST / HTTP/1.1\r\nHost: local", b"POST /run HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"],
    ids=["nothing", "half a header", "half a body"],
)
def test_a_request_that_does_not_arrive_in_time_is_closed(server: RunningServer, raw: bytes):
    assert b"200" not in server.send(raw).split(b"\r\n")[0]
    assert server.post(SHORT)[0] == 200


def test_bodies_that_do_not_arrive_do_not_block_other_requests():
    with RunningServer("--queue", "1") as running:
        half = b"POST /run HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 500_000
        before = running.memory()
        with contextlib.ExitStack() as connections:
            for _ in range(40):
                connections.enter_context(running.connect()).sendall(half)
            assert running.post(SHORT)[0] == 200
            assert running.memory() - before < 70_000_000


def test_huge_headers_and_bodies_are_refused_and_memory_stays(server: RunningServer):
    before = server.memory()
    assert server.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 60_000_000)[:12] in (b"HTTP/1.1 431", b"")
    headers = b"POST /run HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 1000000000\r\n\r\n"
    reply = server.send(headers + b"x" * 30_000_000)
    assert reply == b"" or b"413" in reply.split(b"\r\n")[0]
    assert server.post(SHORT)[0] == 200
    assert server.memory() - before < 30_000_000


def test_a_client_that_never_reads_blocks_no_other_and_costs_little_memory(server: RunningServer):
    with server.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(post_request({**LONG, "max_tokens": 200}))
        before = server.memory()
        assert server.post(SHORT)[0] == 200
        assert server.memory() - before < 30_000_000


def test_a_connection_whose_client_does_not_read_is_closed():
    """The client asks for more pages than the kernel's socket buffers hold."""
    with RunningServer("--limit", "unread_seconds=1") as running:

        def sockets() -> int:
            links = Path(f"/proc/{running.process.pid}/fd").iterdir()
            return sum(os.path.islink(link) and os.readlink(link).startswith("socket:") for link in links)

        time.sleep(0.5)  # until the connection of the last health check is closed
        before = sockets()
        with running.connect() as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000)
            time.sleep(0.5)
            assert sockets() == before + 1
            deadline = time.monotonic() + 50
            while sockets() > before and time.monotonic() < deadline:
                time.sleep(0.1)
            assert sockets() == before


def test_pipelined_requests_are_answered_in_order(server: RunningServer):
    one = post_request(SHORT).replace(b"Connection: close\r\n", b"")
    found = server.send(one + one + post_request(SHORT))
    assert found.count(b"HTTP/1.1 200 OK") == 3 and len(set(re.findall(rb'"response":"[^"]*"', found))) == 1


def test_a_percent_encoded_model_and_a_missing_content_type_are_accepted(server: RunningServer):
    assert server.post(SHORT, RUN.replace("/meta-llama/", "%2Fmeta-llama%2F"))[0] == 200


def test_sigterm_ends_a_running_stream_with_an_error_and_then_the_process():
    running = RunningServer()
    with running.connect() as connection:
        connection.sendall(post_request(LONG))
        assert connection.recv(1000)
        running.process.send_signal(signal.SIGTERM)
        rest = read_all(connection).decode()
    assert '"errors":[{"message":"AiError: the server is stopping' in rest and "data: [DONE]\n\n" in rest
    running.process.wait(timeout=60)
    assert "Traceback" not in running.process.stderr.read()


def test_kill_9_closes_the_connections_and_a_new_server_can_start():
    running = RunningServer("--token", "secret")
    with running.connect() as connection:
        connection.sendall(post_request(LONG).replace(b"Host", b"Authorization: Bearer secret\r\nHost"))
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        running.process.kill()
        assert b"[DONE]" not in read_all(connection)
    running.process.wait()
    again = RunningServer("--token", "secret")
    assert b"401" in again.send(post_request(SHORT)).split(b"\r\n")[0]
    again.process.kill()
    again.process.wait()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 can be reached from elsewhere: set --token-file"),
        (["--port", "0"], "--port: 0 is no port"),
        (["--slots", "0"], "0 is too small"),
        (["hello"], "serve takes no prompt ('hello')"),
        (["--model", "/nowhere"], "/nowhere"),
        (["--limit", "wheels=4"], "'wheels=4' is no limit; expected NAME=N"),
        (["--limit", f"tools={'9' * 5000}"], "is no limit; expected NAME=N"),
        (["--lora", "x"], "'x' is not NAME=FOLDER"),
        (["--host", "no.such.host.invalid", "--token", "x"], "cannot listen on --host no.such.host.invalid, --port"),
        (["--token", ""], "--token is empty"),
        (["--token-file", "/nowhere"], "--token-file: /nowhere: No such file"),
        (["--allow-origin", "*"], "'*' is no origin; expected one such as https://a.example"),
        (["--lora", "x=/nowhere"], "/nowhere: no such folder; an adapter is a folder"),
    ],
)
def test_options_that_cannot_be_served_are_refused_in_one_line(options: list[str], says: str):
    command = [sys.executable, "-m", "llama3.cli", "serve", "--quiet", *options]
    if "--port" not in options:
        command += ["--port", str(free_port())]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment())
    assert ran.returncode in (1, 2) and says in ran.stderr and len(ran.stderr.splitlines()) == 1, ran.stderr


def test_a_port_that_is_in_use_is_refused_in_one_line(server: RunningServer):
    command = [sys.executable, "-m", "llama3.cli", "serve", "--quiet", "--port", str(server.port)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment())
    says = f"llama3: cannot listen on --host 127.0.0.1, --port {server.port}: "
    assert ran.returncode == 2 and ran.stderr.startswith(says) and "--port chooses another one" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_the_options_limit_and_parsed_json_take_effect():
    with RunningServer(
        "--parsed-json", "--limit", "tools=1", "--limit", "body_bytes=900", "--limit", "schema_bytes=60"
    ) as running:
        tool = {"name": "a", "description": "", "parameters": {}}
        two = {"messages": [{"role": "user", "content": "a"}], "tools": [tool, {**tool, "name": "b"}]}
        form = {"type": "json_schema", "json_schema": {"enum": [[1, {"a": "b"}]]}}
        long = {"type": "json_schema", "json_schema": {"enum": ["x" * 60]}}
        answers = [running.post(inputs) for inputs in (two, {"prompt": "x" * 900}, {**SHORT, "response_format": long})]
        assert [(status, reply["errors"][0]["code"]) for status, reply in answers] == [
            (400, 5006), (413, 3006), (400, 5006)
        ]  # fmt: skip
        status, reply = running.post({"prompt": "a", "max_tokens": 30, "response_format": form})
        assert status == 200 and reply["result"]["response"] == [1, {"a": "b"}]
