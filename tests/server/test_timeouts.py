"""The protocol inside this process: a client that never reads loses its connection; and the filter of its log."""

import asyncio
import logging
import socket
from typing import Any

import pytest

pytest.importorskip("uvicorn")  # the extra `server`

import uvicorn
from uvicorn.server import ServerState

from llama3.limits import LIMITS
from llama3.server import log_filter
from llama3.server.timeouts import TimeoutProtocol


@pytest.mark.parametrize("size", [20_000, 300_000], ids=["less than asyncio's buffer", "more"])
@pytest.mark.parametrize("close", [b"Connection: close\r\n", b""], ids=["close", "kept alive"])
def test_a_response_that_is_not_read_ends_its_connection(
    monkeypatch: pytest.MonkeyPatch, size: int, close: bytes
) -> None:
    monkeypatch.setattr(LIMITS, "unread_seconds", 0.1)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
        await send({"type": "http.response.body", "body": b"x" * size})

    async def run() -> None:
        closed = asyncio.Event()
        config = uvicorn.Config(app, http="h11", log_config=None, timeout_keep_alive=1)
        ours, clients = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with clients:
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(lambda: TimeoutProtocol(config, ServerState(), {}, closed.set), ours)
            clients.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + close + b"\r\n")
            await asyncio.wait_for(closed.wait(), 30)

    asyncio.run(run())


def test_a_message_is_logged_once_a_minute_whatever_its_values(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    monkeypatch.setattr(log_filter.time, "monotonic", lambda: now)
    logger = logging.getLogger("a logger of this test")
    logger.addFilter(log_filter.OncePerMinute())
    for second in range(130):
        now = float(second)
        for number in range(3):
            logger.warning("connection %d failed", number)
            logger.error("another message\nof connection %d", number)
    assert [record.getMessage().split("\n")[0] for record in caplog.records] == [
        "connection 0 failed", "another message"
    ] * 3  # fmt: skip
