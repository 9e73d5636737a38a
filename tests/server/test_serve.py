"""A real server process on a real socket: what clients that behave badly, and signals, do to it."""

import contextlib
import json
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
from tests.server.calling import RUN

LONG = {"prompt": "Go on", "max_tokens": 1500, "temperature": 5, "seed": 1, "stream": True}  # it does go on


class Running:
    """`llama3 serve` on a port of its own, with one slot."""

    def __init__(self, *options: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        start = "from llama3.cli import main; main()"
        command = [sys.executable, "-c", start, "serve", "--port", str(self.port), "--slots", "1", "--quiet"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA3_")}
        self.process = subprocess.Popen(
            [*command, *options], stderr=subprocess.PIPE, text=True, env={**environment, "PYTHONPATH": ROOT}
        )
        for _ in range(600):
            if self.process.poll() is not None:
                raise AssertionError(self.process.stderr.read() if self.process.stderr else "")
            try:
                if self.get("/health").startswith(b"HTTP/1.1 200"):
                    return
            except OSError:
                pass
            time.sleep(0.1)
        raise AssertionError("it did not become healthy")

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def send(self, raw: bytes) -> bytes:
        """All that comes back until the other side closes."""
        with self.connect() as connection:
            with contextlib.suppress(OSError):  # it has closed already; what it said can still be read
                connection.sendall(raw)
            return read_all(connection)

    def get(self, path: str) -> bytes:
        return self.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())

    def post(self, inputs: dict, path: str = RUN) -> tuple[int, object]:
        head, _, body = self.send(posted(inputs, path)).partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body)

    def in_flight(self) -> float:
        found = re.search(rb"^llama3_requests_in_flight (\S+)$", self.get("/metrics"), re.M)
        assert found
        return float(found[1])

    def memory(self) -> int:
        """Resident bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


ROOT = str(Path(__file__).parents[2])
SHORT = {"prompt": "What is RoPE?", "max_tokens": 5, "seed": 1}


def posted(inputs: dict, path: str = RUN) -> bytes:
    body = json.dumps(inputs).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def read_all(connection: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            found += part
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """Its deadline is short, so that the tests are."""
    assert LIMITS.seconds == 10
    with Running("--limit", "seconds=1") as running:
        yield running


def test_a_client_that_goes_away_frees_its_slot(server: Running):
    """There is one slot: the next request would wait for minutes."""
    for _ in range(3):
        with server.connect() as connection:
            connection.sendall(posted(LONG))
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    with server.connect() as connection:  # one that has asked for the whole answer
        connection.sendall(posted({**LONG, "stream": False}))
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
def test_a_request_that_does_not_arrive_is_cut_off(server: Running, raw: bytes):
    assert b"200" not in server.send(raw).split(b"\r\n")[0]
    assert server.post(SHORT)[0] == 200


def test_bodies_that_do_not_arrive_take_nobodys_place():
    with Running("--queue", "1") as running:
        half = b"POST /run HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 500_000
        before = running.memory()
        with contextlib.ExitStack() as open_ones:
            for _ in range(40):
                open_ones.enter_context(running.connect()).sendall(half)
            assert running.post(SHORT)[0] == 200
            assert running.memory() - before < 70_000_000


def test_headers_and_bodies_beyond_all_bounds_are_refused_and_memory_stays(server: Running):
    before = server.memory()
    assert server.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 60_000_000)[:12] in (b"HTTP/1.1 400", b"")
    head = b"POST /run HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 1000000000\r\n\r\n"
    reply = server.send(head + b"x" * 30_000_000)
    assert reply == b"" or b"413" in reply.split(b"\r\n")[0]
    assert server.post(SHORT)[0] == 200
    assert server.memory() - before < 30_000_000


def test_a_reader_that_never_reads_holds_nobody_else_up_for_ever_and_costs_little(server: Running):
    with server.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(posted({**LONG, "max_tokens": 200}))
        before = server.memory()
        assert server.post(SHORT)[0] == 200
        assert server.memory() - before < 30_000_000


def test_what_nobody_reads_is_not_kept_for_ever():
    """More pages than the kernel takes off the server's hands."""
    with Running("--limit", "unread_seconds=1") as running:

        def sockets() -> int:
            links = Path(f"/proc/{running.process.pid}/fd").iterdir()
            return sum(os.path.islink(link) and os.readlink(link).startswith("socket:") for link in links)

        time.sleep(0.5)  # until the last question for its health has been closed
        before = sockets()
        with running.connect() as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000)
            time.sleep(0.5)
            assert sockets() == before + 1
            deadline = time.monotonic() + 50
            while sockets() > before and time.monotonic() < deadline:
                time.sleep(0.1)
            assert sockets() == before


def test_requests_one_behind_the_other_on_one_connection_are_answered_in_turn(server: Running):
    one = posted(SHORT).replace(b"Connection: close\r\n", b"")
    found = server.send(one + one + posted(SHORT))
    assert found.count(b"HTTP/1.1 200 OK") == 3 and len(set(re.findall(rb'"response":"[^"]*"', found))) == 1


def test_a_percent_encoded_model_and_no_content_type_are_fine(server: Running):
    assert server.post(SHORT, RUN.replace("/meta-llama/", "%2Fmeta-llama%2F"))[0] == 200


def test_on_sigterm_a_running_stream_says_that_it_ends_and_the_process_goes():
    running = Running()
    with running.connect() as connection:
        connection.sendall(posted(LONG))
        assert connection.recv(1000)
        running.process.send_signal(signal.SIGTERM)
        rest = read_all(connection).decode()
    assert '"errors":[{"message":"AiError: the server is stopping' in rest and "data: [DONE]\n\n" in rest
    running.process.wait(timeout=60)
    assert "Traceback" not in running.process.stderr.read()


def test_after_kill_9_its_clients_notice_and_a_new_one_serves():
    running = Running("--token", "secret")
    with running.connect() as connection:
        connection.sendall(posted(LONG).replace(b"Host", b"Authorization: Bearer secret\r\nHost"))
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        running.process.kill()
        assert b"[DONE]" not in read_all(connection)  # and it returns
    running.process.wait()
    again = Running("--token", "secret")
    assert b"401" in again.send(posted(SHORT)).split(b"\r\n")[0]
    again.process.kill()
    again.process.wait()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 can be reached from elsewhere: set --token"),
        (["--port", "0"], "--port: 0 is no port"),
        (["--slots", "0"], "0 is too small"),
        (["hello"], "serve takes no prompt ('hello')"),
        (["--model", "/nowhere"], "/nowhere"),
        (["--limit", "wheels=4"], "'wheels=4' is no limit; expected NAME=N"),
        (["--limit", f"tools={'9' * 5000}"], "is no limit; expected NAME=N"),
        (["--lora", "x"], "'x' is not NAME=FOLDER"),
        (["--lora", "x=/nowhere"], "/nowhere: no such folder; an adapter is one"),
    ],
)
def test_what_cannot_be_served_is_one_line(options: list[str], says: str):
    command = [sys.executable, "-m", "llama3.cli", "serve", "--quiet", *options]
    if "--port" not in options:
        command += ["--port", "39181"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert ran.returncode in (1, 2) and says in ran.stderr and len(ran.stderr.splitlines()) == 1, ran.stderr


def test_limits_are_what_the_command_line_says_and_json_may_come_parsed():
    with Running(
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
