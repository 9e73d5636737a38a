"""Connections to a real server process: deadlines, the header limit, and how many there may be."""

import contextlib
import itertools
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("uvicorn")  # the extra `server`

from llama3.limits import LIMITS
from tests.server.running import LONG, SHORT, RunningServer, post_request, read_all

GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
WHOLE = GET + b"\r\n"
HALF_HEAD = b"POST /run HTTP/1.1\r\nHost: loc"
HALF_BODY = b"POST /run HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{"
HALF_CHUNK = b"POST /run HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"
EARLY = HALF_BODY.replace(b"/run", b"/nowhere")  # answered before its body is there


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer("--limit", "seconds=1") as running:
        yield running


def statuses(reply: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", reply)]


def test_half_a_request_is_closed_at_its_deadline_whatever_came_before_it(server: RunningServer) -> None:
    """Behind no, one or three whole requests, in the same packet or in the next."""
    halves = {HALF_HEAD: [408], HALF_BODY: [408], HALF_CHUNK: [408], EARLY: [404]}  # a second reply is never sent
    with contextlib.ExitStack() as stack:
        cases = []
        for half, before, at_once in itertools.product(halves, (0, 1, 3), (True, False)):
            connection = stack.enter_context(server.connect())
            connection.settimeout(10)  # without a deadline, `recv` would raise
            connection.sendall(WHOLE * before + half if at_once else WHOLE * before)
            cases.append((connection, half, before, at_once))
        time.sleep(0.1)
        for connection, half, _, at_once in cases:
            if not at_once:
                connection.sendall(half)
        for connection, half, before, at_once in cases:
            found = read_all(connection)
            assert statuses(found) == [200] * before + halves[half], (half, before, at_once, found)
            if half is not EARLY:
                errors = json.loads(found.rpartition(b"\r\n\r\n")[2])["errors"]
                assert errors == [
                    {"message": "the request did not arrive within 1 s; --limit seconds=N allows N", "code": 3007}
                ]


def test_the_deadline_of_a_request_begins_with_it_and_not_with_the_one_before_it(server: RunningServer) -> None:
    """Each request arrives in 0.6 s of its 1 s; all of them together take longer. One ends where the next begins."""
    body = json.dumps(SHORT).encode()
    request = f"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    with server.connect() as connection:
        connection.sendall(request[:-5])
        for _ in range(3):
            time.sleep(0.6)
            connection.sendall(request[-5:] + request[:-5])
        time.sleep(0.6)
        connection.sendall(request[-5:] + WHOLE[:-2] + b"Connection: close\r\n\r\n")
        found = read_all(connection)
    assert statuses(found) == [400] * 4 + [200]


def test_a_request_behind_a_long_answer_has_its_whole_time(server: RunningServer) -> None:
    """It waits until the answer has ended, which takes longer than a request may take to arrive."""
    long = {**LONG, "stream": False, "max_tokens": 150}
    with server.connect() as connection:
        connection.sendall(post_request(long).replace(b"Connection: close\r\n", b"") + HALF_HEAD)
        reply = connection.recv(65536)
        connection.sendall(b"alhost\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        assert statuses(reply + read_all(connection)) == [200, 400]


def test_half_requests_do_not_delay_the_stop() -> None:
    running = RunningServer("--limit", "seconds=600")
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(running.connect()) for _ in range(6)]
        for connection, half in zip(
            connections, [HALF_HEAD, HALF_BODY, HALF_CHUNK, WHOLE + HALF_HEAD, WHOLE + HALF_BODY, b""], strict=True
        ):
            connection.sendall(half)
        time.sleep(0.5)
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(timeout=20)  # GRACE_SECONDS is 30
        replies = [read_all(connection) for connection in connections]
    assert [statuses(reply) for reply in replies] == [[], [503], [503], [200], [200, 503], []]
    assert running.process.stderr and running.process.stderr.read() == ""


def in_pieces(connection: socket.socket, raw: bytes, size: int) -> bytes:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with contextlib.suppress(OSError):  # the server may have closed already
        for start in range(0, len(raw), size):
            connection.sendall(raw[start : start + size])
            if size < len(raw):
                time.sleep(0.002)
    return read_all(connection)


def with_headers(total: int, begin: bytes = GET, filler: bytes = b"x") -> bytes:
    """A request whose head has `total` bytes."""
    begin += b"Connection: close\r\nX: "
    return begin + filler * (total - len(begin) - 5) + b"x\r\n\r\n"


@pytest.mark.parametrize("size", [1 << 20, 20_000, 999], ids=["one packet", "large pieces", "small pieces"])
@pytest.mark.parametrize("filler", [b"x", b" "], ids=["letters", "spaces"])
def test_the_header_limit_is_the_same_however_the_bytes_are_cut(
    server: RunningServer, size: int, filler: bytes
) -> None:
    for total, status in ((LIMITS.header_bytes, b"200"), (LIMITS.header_bytes + 1, b"431"), (60_000, b"431")):
        with server.connect() as connection:
            reply = in_pieces(connection, with_headers(total, filler=filler), size)
        assert reply[9:12] == status or (status == b"431" and reply == b""), (total, reply[:200])
        if reply[9:12] == b"431":
            assert b"more than 16,384 bytes; --limit header_bytes=N" in reply


@pytest.mark.parametrize("size", [1 << 20, 999], ids=["one packet", "pieces"])
@pytest.mark.parametrize("before", [1, 2])
def test_the_header_limit_holds_behind_other_requests(server: RunningServer, size: int, before: int) -> None:
    with server.connect() as connection:
        reply = in_pieces(connection, WHOLE * before + with_headers(60_000), size)
    assert reply == b"" or statuses(reply) == [200] * before + [431]


@pytest.mark.parametrize("size", [1 << 20, 999], ids=["one packet", "pieces"])
@pytest.mark.parametrize("where", ["trailer", "chunk"])
def test_trailers_and_chunk_extensions_count_as_headers(server: RunningServer, size: int, where: str) -> None:
    head = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    long = b"x" * 60_000
    chunk = b"c\r\n" if where == "trailer" else b"c;" + long + b"\r\n"
    trailer = b"X: " + long + b"\r\n" if where == "trailer" else b""
    with server.connect() as connection:
        reply = in_pieces(connection, head + chunk + b'{"text":"a"}\r\n0\r\n' + trailer + b"\r\n", size)
    assert 200 not in statuses(reply)
    with server.connect() as connection:
        reply = in_pieces(connection, head + b'c;a=b\r\n{"text":"a"}\r\n0\r\nX: y\r\n\r\n', size)
    assert statuses(reply) == [200]


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        b"transfer-encoding: chunked\r\nCONTENT-LENGTH: 2\r\n",
        b"Content-Length: 2\r\nContent-Length: 3\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
    ],
)
def test_a_request_with_two_possible_ends_is_refused_and_the_connection_closed(
    server: RunningServer, headers: bytes
) -> None:
    """The proxy in front of us may see another end than we do, and take what follows for another client's request."""
    smuggled = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
    reply = server.send(b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\n" + headers + b"\r\n0\r\n\r\n" + smuggled)
    assert statuses(reply) in ([400], [501]) and b"llama3_requests" not in reply


@pytest.mark.parametrize(
    "raw", [b"\xff" * 9000 + b"\r\n\r\n", b"\x16\x03\x01\x02\0", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nHost a\r\n\r\n"]
)
def test_what_is_not_http_gets_one_clear_line(server: RunningServer, raw: bytes) -> None:
    reply = server.send(raw)
    assert statuses(reply) == [400] and b"the HTTP request is malformed" in reply and len(reply) < 1000


def test_a_broken_body_behind_an_early_answer_leaves_no_traceback() -> None:
    with RunningServer() as running:
        for method in (b"POST", b"HEAD"):
            raw = method + b" /nowhere HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
            with running.connect() as connection:
                connection.sendall(raw)
                time.sleep(0.2)
                connection.sendall(b"not a chunk\r\n\r\n")
                assert len(statuses(read_all(connection))) == 1
        for _ in range(30):
            running.send(b"nonsense\r\n\r\n")
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(timeout=60)
        assert running.process.stderr
        log = running.process.stderr.read()
    assert "Traceback" not in log and len(log.splitlines()) <= 3, log


OPEN_FILES = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))"


def test_idle_connections_beyond_the_open_files_cost_little_and_end_at_their_deadlines() -> None:
    with RunningServer("--limit", "seconds=1", first=OPEN_FILES) as running, contextlib.ExitStack() as stack:
        before = running.memory()
        connections = [stack.enter_context(running.connect()) for _ in range(300)]
        answered = []
        asking = threading.Thread(target=lambda: answered.append(running.get("/health")[9:12]))
        asking.start()
        assert all(read_all(connection) == b"" for connection in connections)  # waits until all are closed
        asking.join()
        assert answered == [b"200"]
        assert running.memory() - before < 10_000_000
        assert running.get("/").startswith(b"HTTP/1.1 200")  # opens a file
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(timeout=60)
        assert running.process.stderr
        log = running.process.stderr.read()
    assert len(log.splitlines()) <= 10 and "Traceback" not in log, log
    assert "80 connections at once instead of 1000: the system allows 128 open files (ulimit -n)" in log


def test_when_files_run_out_the_log_has_one_line_and_the_server_recovers() -> None:
    """Something else has opened the files that connections need."""
    use_up = "import os, resource; resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))"
    with RunningServer(first=use_up) as running:
        import resource

        resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, (30, 4096))
        with contextlib.ExitStack() as stack:
            for _ in range(60):
                stack.enter_context(running.connect())
            time.sleep(1)
        assert running.get("/health")[9:12] == b"200"
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(timeout=60)
        assert running.process.stderr
        log = running.process.stderr.read()
    assert log.splitlines() == ["WARNING:  a connection cannot be accepted: Too many open files"]


def test_connections_are_limited_and_the_next_waits_for_a_place() -> None:
    with (
        RunningServer("--limit", "connections=2", "--limit", "seconds=600") as running,
        contextlib.ExitStack() as stack,
    ):
        held = [stack.enter_context(running.connect()) for _ in range(2)]
        time.sleep(0.3)
        replies: list[bytes] = []
        ask: Callable[[], None] = lambda: replies.append(running.get("/health"))  # noqa: E731
        threads = [threading.Thread(target=ask) for _ in range(5)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        assert replies == []
        held.pop().close()
        for thread in threads:
            thread.join()
        assert [reply[9:12] for reply in replies] == [b"200"] * 5
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(timeout=20)
