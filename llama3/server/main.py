"""The server process: uvicorn with our limits, and a shutdown that sends an error to clients that still wait."""

import asyncio
import contextlib
import ctypes
import gc
import socket
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

import uvicorn

from llama3.errors import RequestError
from llama3.limits import LIMITS
from llama3.llama import Llama
from llama3.server.app import make_app
from llama3.server.auth import LOOPBACK
from llama3.server.service import Service
from llama3.server.timeouts import TimeoutProtocol

M_ARENA_MAX = -8  # from glibc's malloc.h
GRACE_SECONDS = 30  # time to shut down after a signal
CANCEL_AFTER_SECONDS = 24  # after the signal; leaves the cancelled answers time to send their error
ANY_ADDRESS = ("0.0.0.0", "::")  # all interfaces; clients never use these as a Host


@dataclass(frozen=True)
class Settings:
    """What `llama3 serve` sets on its command line; see `llama3 serve --help`."""

    host: str
    port: int
    token: str | None
    slots: int  # how many requests run at once
    queue: int  # how many more may wait
    allowed_hosts: tuple[str, ...] = ()  # host names that requests may use besides this machine's own
    quiet: bool = False  # write no access log
    parsed_json: bool = False  # in JSON mode, respond with the parsed object instead of its text


class Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self.service = service
        service.on_load_error = lambda: setattr(self, "should_exit", True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.service.stopping = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().call_later(CANCEL_AFTER_SECONDS, self.service.cancel_running)
        await super().shutdown(sockets)


def serve(load: Callable[[], Llama], settings: Settings) -> None:
    """Serve until a signal ends the process. `load` returns the model, and is called in the background.

    Raises what `load` raises, and RequestError if other machines could reach a server that has no token.
    """
    host = settings.host
    if not settings.token and host not in LOOPBACK:
        raise RequestError(
            f"--host {host} can be reached from elsewhere: set --token (or LLAMA3_TOKEN), or leave out --host"
        )
    limit_malloc_arenas()
    service = Service(lambda: load_and_freeze(load), settings.slots, settings.queue, settings.parsed_json)
    hosts = settings.allowed_hosts if host in ANY_ADDRESS else (*settings.allowed_hosts, host)
    config = uvicorn.Config(
        make_app(service, settings.token, hosts, settings.quiet),
        host=host,
        port=settings.port,
        http=TimeoutProtocol,
        h11_max_incomplete_event_size=LIMITS.header_bytes,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=GRACE_SECONDS,
        proxy_headers=False,
        server_header=False,
        log_level="warning",
        access_log=False,
    )
    Server(config, service).run()
    if service.load_error is not None:
        raise service.load_error


def limit_malloc_arenas() -> None:
    """Let glibc's malloc use two arenas (heaps) for all threads. Without glibc, this does nothing.

    By default each thread gets an arena of its own, and the memory that one thread has freed is not used by others.
    With one thread per request, two arenas need less: 126 MB instead of 161 MB after two minutes with 64 clients.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


def load_and_freeze(load: Callable[[], Llama]) -> Llama:
    """Load the model, then exempt all objects that exist by now from garbage collection.

    Python runs a full collection only when the number of new objects reaches a quarter of the long-lived ones. Loading
    makes 200,000 long-lived objects. If they counted, the reference cycles of closed connections would pile up for a
    long time, and each full collection would be a noticeable pause.
    """
    llama = load()
    gc.collect()
    gc.freeze()
    return llama
