"""uvicorn on h11, with deadlines: what is sent half, and an answer that nobody reads, hold nothing for ever."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from llama3.limits import LIMITS

RECEIVING = (h11.IDLE, h11.SEND_BODY)  # states of the client: its request is not whole yet


class DeadlineProtocol(H11Protocol):
    _deadline: asyncio.TimerHandle | None = None  # of the request
    _unread: asyncio.TimerHandle | None = None  # of the answer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start()

    def data_received(self, data: bytes) -> None:
        if self._deadline is None and self.conn.their_state in RECEIVING:
            self._start()  # the next request on a connection that is kept alive
        super().data_received(data)
        if self.conn.their_state not in RECEIVING:
            self._stop()

    def pause_writing(self) -> None:
        """The buffers are full: its reader has stopped, or is slower than the answer."""
        super().pause_writing()
        # Its buffers would be sent first by a close, so never: it is aborted.
        self._unread = self.loop.call_later(LIMITS.unread_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        if self._unread is not None:
            self._unread.cancel()
        super().connection_lost(exc)

    def _start(self) -> None:
        self._deadline = self.loop.call_later(LIMITS.seconds, self._expire)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self.transport.close()
