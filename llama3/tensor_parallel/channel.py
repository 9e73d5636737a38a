"""Messages between rank 0 and another rank: a letter, a length and bytes, over a pair of sockets.

The operating system closes a process's sockets when it ends, however it ends. So whoever waits for a message from a
rank that dies is woken at once, and no rank ever waits for one that is gone.
"""

import os
import queue
import socket
import threading
from contextlib import suppress
from typing import Any

from llama3.errors import DeviceError

# From rank 0
SETUP, COMMAND, GO_ON, ABANDON = b"S", b"C", b"G", b"A"
# To rank 0
READY, MEET, FAILED = b"R", b"M", b"F"


class Closed(Exception):
    """The process at the other end is gone."""


class RankError(DeviceError):
    """A rank is gone or has failed, and the model with it."""


class RankGone(RankError):
    """The process of a rank has ended."""

    def __init__(self, rank: int):
        super().__init__(f"rank {rank} is gone")


class Channel:
    """One end of a pair of sockets."""

    def __init__(self, connection: socket.socket):
        self.socket = connection

    def send(self, kind: bytes, payload: bytes = b"") -> None:
        """Raises Closed."""
        try:
            self.socket.sendall(kind + len(payload).to_bytes(8, "little") + payload)
        except OSError as error:
            raise Closed from error

    def receive(self) -> tuple[bytes, Any]:
        """Wait for a message -> its letter and its bytes. Raises Closed."""
        head = self._read(9)
        return bytes(head[:1]), self._read(int.from_bytes(head[1:], "little"))

    def _read(self, n: int) -> bytearray:
        data = bytearray(n)
        view, done = memoryview(data), 0
        while done < n:
            try:
                got = self.socket.recv_into(view[done:])
            except OSError as error:
                raise Closed from error
            if not got:
                raise Closed
            done += got
        return data

    def end(self) -> None:
        """Close the connection, also for a thread that waits for a message, and for a fork."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.close()

    def close(self) -> None:
        """Close this process's end. A fork may still have it."""
        self.socket.close()


class ReadAhead(Channel):
    """A rank's channel for a process that may be waiting on its GPU for rank 0 when that dies: it ends even then."""

    def __init__(self, channel: Channel):
        super().__init__(channel.socket)
        self._messages: queue.SimpleQueue[tuple[bytes, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._read_all, daemon=True).start()

    def _read_all(self) -> None:
        try:
            while True:
                self._messages.put(super().receive())
        except Closed:
            os._exit(0)  # the other threads may wait for ever

    def receive(self) -> tuple[bytes, Any]:
        return self._messages.get()
