"""The process: uvicorn with its limits, and an end on SIGTERM that lets running answers say that they end."""

import asyncio
import contextlib
import ctypes
import gc
import socket
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from llama3.errors import RequestError
from llama3.limits import LIMITS
from llama3.server.app import Service, make_app
from llama3.server.deadline import DeadlineProtocol
from llama3.server.gate import LOOPBACK

if TYPE_CHECKING:
    from llama3.llama import Llama

M_ARENA_MAX = -8  # in glibc's malloc.h
GRACE_SECONDS = 30  # to end after a signal; what still runs after four fifths of them is cut off, and says so


def hold_memory_together() -> None:
    """glibc gives each thread a heap of its own, and what one has freed no other uses. With a thread a request, two
    heaps for all hold less: 126 MB and not 161 after two minutes of a crowd. Elsewhere there is nothing to do.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


def set_aside(load: "Callable[[], Llama]") -> "Llama":
    """The model, and all that the start has made out of the garbage collector's sight.

    Python looks through its long-lived objects when a quarter as many new ones have come. With the start's 200,000
    among them, circles of closed connections pile up, and each search is a pause.
    """
    llama = load()
    gc.collect()
    gc.freeze()
    return llama


class Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self.service = service
        service.on_error = lambda: setattr(self, "should_exit", True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.service.stopping = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().call_later(0.8 * GRACE_SECONDS, self.service.end)
        await super().shutdown(sockets)


def serve(
    load: "Callable[[], Llama]",
    host: str,
    port: int,
    token: str | None,
    slots: int,
    queue: int,
    hosts: tuple[str, ...] = (),
    quiet: bool = False,
    parsed_json: bool = False,
) -> None:
    """Until a signal ends it. Raises what loading the model has raised, and RequestError for an open door."""
    if not token and host not in LOOPBACK:
        raise RequestError(
            f"--host {host} can be reached from elsewhere: set --token (or LLAMA3_TOKEN), or leave it out"
        )
    hold_memory_together()
    service = Service(lambda: set_aside(load), slots, queue, parsed_json)
    hosts = (*hosts, *(() if host in ("0.0.0.0", "::") else (host,)))
    config = uvicorn.Config(
        make_app(service, token, hosts, quiet),
        host=host,
        port=port,
        http=DeadlineProtocol,
        h11_max_incomplete_event_size=LIMITS.header_bytes,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=GRACE_SECONDS,
        proxy_headers=False,
        server_header=False,
        log_level="warning",
        access_log=False,
    )
    Server(config, service).run()
    if service.error is not None:
        raise service.error
