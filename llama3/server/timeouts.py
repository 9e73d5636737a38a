"""Connection timeouts for uvicorn, which has none for requests that arrive slowly and responses that are not read."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from llama3.limits import LIMITS

RECEIVING = (h11.IDLE, h11.SEND_BODY)  # the client's states in which its request has not arrived completely


class TimeoutProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol on h11, with two timeouts.

    A request must arrive within LIMITS.seconds, and a client that stops reading must go on within
    LIMITS.unread_seconds. Otherwise the connection is closed.
    """

    _receive_timer: asyncio.TimerHandle | None = None
    _unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_receive_timer()

    def data_received(self, data: bytes) -> None:
        if self._receive_timer is None and self.conn.their_state in RECEIVING:
            self._start_receive_timer()  # the next request on a connection that is kept alive
        super().data_received(data)
        if self.conn.their_state not in RECEIVING:
            self._stop_receive_timer()

    def pause_writing(self) -> None:
        """Called when the send buffers are full: the client has stopped reading, or reads slower than we send."""
        super().pause_writing()
        # `close` would wait until the buffers are sent, which may be never. `abort` does not wait.
        self._unread_timer = self.loop.call_later(LIMITS.unread_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread_timer is not None:
            self._unread_timer.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_receive_timer()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
        super().connection_lost(exc)

    def _start_receive_timer(self) -> None:
        self._receive_timer = self.loop.call_later(LIMITS.seconds, self._receive_timed_out)

    def _stop_receive_timer(self) -> None:
        if self._receive_timer is not None:
            self._receive_timer.cancel()
            self._receive_timer = None

    def _receive_timed_out(self) -> None:
        self._receive_timer = None
        if not self.transport.is_closing():
            self.transport.close()
