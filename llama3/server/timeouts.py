"""Connection timeouts for uvicorn, which has none for requests that arrive slowly and responses that are not read."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from starlette.responses import Response
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol
from uvicorn.server import ServerState

from llama3.limits import LIMITS
from llama3.server.parser import Parser
from llama3.server.responses import error_response

INVALID_REQUEST, TOO_SLOW, STOPPING = 6003, 3007, 7009  # Cloudflare's error codes


class TimeoutProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol on h11, with two timeouts.

    A request must arrive completely within LIMITS.seconds. The time of a connection's first request begins when the
    connection is made, that of a later request with its first byte. A client that stops reading must continue within
    LIMITS.unread_seconds. Otherwise the connection is closed.
    """

    conn: Parser

    def __init__(
        self, config: uvicorn.Config, state: ServerState, app_state: dict[str, Any], on_close: Callable[[], None]
    ):
        """on_close: called once, when the connection is closed."""
        super().__init__(config, state, app_state)
        self.conn, self._on_close = Parser(), on_close
        self._timed: int | None = None  # the request that the receive timer belongs to
        self._receive_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # With a limit of 0, `pause_writing` is called as soon as the kernel does not take all bytes.
        transport.set_write_buffer_limits(0)
        self._time_arrival()

    def handle_events(self) -> None:
        """Called when bytes have arrived, and when a response has ended and the next request may be parsed."""
        super().handle_events()
        self._time_arrival()

    def _time_arrival(self) -> None:
        """Start the receive timer for the request that is arriving; stop it if there is none."""
        arriving = None if self.transport.is_closing() else self.conn.arriving
        if arriving is not None:
            self._unset_keepalive_if_required()
        if arriving == self._timed:
            return
        self._stop_receive_timer()
        if arriving is not None:
            self._timed = arriving
            self._receive_timer = self.loop.call_later(LIMITS.seconds, self._receive_timed_out)

    def _stop_receive_timer(self) -> None:
        if self._receive_timer is not None:
            self._receive_timer.cancel()
        self._receive_timer = self._timed = None

    def _receive_timed_out(self) -> None:
        if self.conn.their_state is h11.IDLE and not self.conn.bytes_waiting:
            self.transport.close()  # the client has never sent anything
            return
        msg = f"the request did not arrive within {LIMITS.seconds} s; --limit seconds=N allows N"
        self._refuse(error_response(msg, TOO_SLOW, 408))

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn when the client's bytes are not HTTP."""
        refusal = self.conn.refusal
        if refusal is not None and refusal.error_status_hint == 431:
            msg = f"the headers have more than {LIMITS.header_bytes:,} bytes; --limit header_bytes=N allows N"
            self._refuse(error_response(msg, INVALID_REQUEST, 431))
        else:
            why = str(refusal or msg)[:200]
            self._refuse(error_response(f"the HTTP request is malformed: {why}", INVALID_REQUEST, 400))

    def shutdown(self) -> None:
        """Called when the server stops. A request whose body is still arriving is refused, a complete one answered."""
        if self.conn.their_state is h11.SEND_BODY:
            self._refuse(error_response("the server is stopping", STOPPING, 503))
        elif not self.transport.is_closing():
            super().shutdown()

    def _refuse(self, response: Response) -> None:
        """Send this response, unless another one has begun, and close the connection."""
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # what the application still sends is dropped
            self.cycle.message_event.set()
        status, headers = response.status_code, [*response.raw_headers, (b"connection", b"close")]
        # h11 raises it for a body in the answer to HEAD, and for a second response to the same request.
        with contextlib.suppress(h11.LocalProtocolError):
            head = h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES[status])
            for event in (head, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def pause_writing(self) -> None:
        """Called when the kernel's send buffer is full: the client does not read, or reads slower than we send."""
        super().pause_writing()
        # `close` would wait until the buffers are sent, which may never happen. `abort` does not wait.
        self._unread_timer = self.loop.call_later(LIMITS.unread_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread_timer is not None:
            self._unread_timer.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_receive_timer()
        self._unset_keepalive_if_required()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
        super().connection_lost(exc)
        self._on_close()
