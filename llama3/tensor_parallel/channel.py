"""Messages between rank 0 and another rank: a letter, a length and bytes, over a pair of sockets.

The operating system closes a process's sockets when it ends, however it ends. So whoever waits for a message from a
rank that dies is woken at once, and no rank ever waits for one that is gone.
"""

import socket
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

    def close(self) -> None:
        self.socket.close()
