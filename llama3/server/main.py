"""The server process: uvicorn with our limits, and a shutdown that sends an error to clients that still wait."""

import asyncio
import contextlib
import ctypes
import gc
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import FrameType

import uvicorn

from llama3.errors import RequestError
from llama3.limits import LIMITS
from llama3.llama import Llama
from llama3.server.app import make_app
from llama3.server.auth import LOOPBACK
from llama3.server.listener import Listener, listen, most_connections
from llama3.server.log_filter import limit_log
from llama3.server.names import host_name
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
    allowed_origins: tuple[str, ...] = ()  # origins whose pages may send requests, as `auth.origin_of` returns them
    quiet: bool = False  # write no access log
    parsed_json: bool = False  # in JSON mode, respond with the parsed object instead of its text


class Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, service: Service, sockets: list[socket.socket]):
        super().__init__(config)
        self.service, self.sockets = service, sockets
        service.on_load_error = lambda: setattr(self, "should_exit", True)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # Without sockets, uvicorn starts no accept loop. Its own has no limit, and logs a traceback for each failure.
        await super().startup(sockets=[])
        places = asyncio.Semaphore(most_connections(LIMITS.connections))
        protocol = partial(TimeoutProtocol, self.config, self.server_state, self.lifespan.state, places.release)
        self.servers = [Listener(sock, places, protocol) for sock in self.sockets]  # type: ignore[misc]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.service.stopping = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().call_later(CANCEL_AFTER_SECONDS, self.service.cancel_running)
        await super().shutdown(sockets)


def serve(load: Callable[[], Llama], settings: Settings) -> None:
    """Serve until a signal ends the process. `load` returns the model, and is called in the background.

    Raises what `load` raises, and RequestError for an address that cannot be used, or if other machines could reach a
    server that has no token.
    """
    host = settings.host
    check_host(host, settings.token)
    sockets = listen(host, settings.port)
    limit_malloc_arenas()
    service = Service(lambda: load_and_freeze(load), settings.slots, settings.queue, settings.parsed_json)
    hosts = (*settings.allowed_hosts, *own_names(host))
    config = uvicorn.Config(
        make_app(service, settings.token, hosts, settings.quiet, settings.allowed_origins),
        host=host,
        port=settings.port,
        http="h11",
        ws="none",
        timeout_keep_alive=5,
        timeout_graceful_shutdown=GRACE_SECONDS,
        proxy_headers=False,
        server_header=False,
        log_level="warning",
        access_log=False,
    )
    limit_log()
    Server(config, service, sockets).run()
    if service.load_error is not None:
        raise service.load_error


def check_host(host: str, token: str | None) -> None:
    """Raise RequestError if other machines could reach a server that has no token."""
    if not token and host not in LOOPBACK:
        raise RequestError(
            f"--host {host} can be reached from elsewhere: set --token-file (or LLAMA3_TOKEN), or leave out --host"
        )


def own_names(host: str) -> tuple[str, ...]:
    """The names that clients use for a server that listens on --host, besides this machine's own."""
    return () if host in ANY_ADDRESS else (host_name(f"[{host}]" if ":" in host else host) or host,)


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
