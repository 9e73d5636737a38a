"""Accept a limited number of connections. Further ones wait in the kernel's queue, where they take no memory of ours.

Each socket may also have accepted one connection more than that, which waits for a place.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable

from llama3.errors import RequestError

LOG = logging.getLogger("uvicorn.error")
BACKLOG = 2048  # connections that may wait in the kernel's queue
RETRY_SECONDS = 0.1  # after a connection could not be accepted
OTHER_FILES = 48  # open files that are not connections: libraries, standard streams, a static file being served
NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # "localhost" may resolve to ::1 on a machine without IPv6


class Listener:
    """Accepts the connections of one socket. It has the methods of an `asyncio.Server` that uvicorn calls."""

    def __init__(self, sock: socket.socket, places: asyncio.Semaphore, protocol: Callable[[], asyncio.Protocol]):
        """places: each connection takes one, and its protocol releases it."""
        self.sock, self.places, self.protocol = sock, places, protocol
        self.task = asyncio.create_task(self._accept())
        self.task.add_done_callback(lambda _: sock.close())

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self.sock)
            except OSError as error:
                if not isinstance(error, ConnectionError):  # a ConnectionError means that the client has already gone
                    LOG.warning("a connection cannot be accepted: %s", error.strerror)
                    await asyncio.sleep(RETRY_SECONDS)
                continue
            try:
                await self.places.acquire()
            except asyncio.CancelledError:
                connection.close()
                raise
            try:
                await loop.connect_accepted_socket(self.protocol, connection)
            except OSError:
                connection.close()
                self.places.release()

    def close(self) -> None:
        self.task.cancel()

    async def wait_closed(self) -> None:
        await asyncio.wait([self.task])


def listen(host: str, port: int) -> list[socket.socket]:
    """A listening socket for each address of this host. Raises RequestError."""
    sockets: list[socket.socket] = []
    failed: OSError | None = None
    try:
        for family, _, _, _, address in dict.fromkeys(
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        ):
            try:
                sock = socket.create_server(address, family=family, backlog=BACKLOG)
            except OSError as error:
                failed = error
                if error.errno not in NOT_HERE:
                    break
            else:
                sock.setblocking(False)
                sockets.append(sock)
    except OSError as error:  # the name is unknown
        failed = error
    if failed is not None and (not sockets or failed.errno not in NOT_HERE):
        for sock in sockets:
            sock.close()
        advice = "; --port chooses another one" if failed.errno == errno.EADDRINUSE else ""
        raise RequestError(f"cannot listen on --host {host}, --port {port}: {failed.strerror}{advice}")
    return sockets


def most_connections(wanted: int) -> int:
    """`wanted`, or fewer if this process may not open so many files.

    The soft limit of open files is increased as far as the system permits and as needed.
    """
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        except (ValueError, OSError):  # macOS has a further limit
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    most = max(1, soft - OTHER_FILES)
    LOG.warning("%d connections at once instead of %d: the system allows %d open files (ulimit -n)", most, wanted, soft)
    return most
