"""h11's HTTP/1.1 parser for one connection, with limits that hold however the client cuts its bytes into packets."""

import h11

from llama3.limits import LIMITS

AMBIGUOUS = "a request has either Content-Length or Transfer-Encoding; this one has both"


class Parser(h11.Connection):
    """h11's parser, which also refuses large headers that arrive at once, and knows which request is arriving."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, LIMITS.header_bytes)
        self.number = 0  # index of the request that is arriving, or of the last one that has arrived
        self.refusal: h11.RemoteProtocolError | None = None  # why the client's bytes are not HTTP

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """The next event. Raises RemoteProtocolError, and keeps it in `refusal`."""
        before = self.bytes_waiting
        try:
            event = super().next_event()
            body = len(event.data) if isinstance(event, h11.Data) else 0
            # h11 applies its limit to incomplete headers only, so headers that arrive in one piece can be larger.
            if before - self.bytes_waiting - body > LIMITS.header_bytes:
                raise h11.RemoteProtocolError("Receive buffer too long", error_status_hint=431)
            if isinstance(event, h11.Request):
                names = {name for name, _ in event.headers}
                if {b"content-length", b"transfer-encoding"} <= names:  # a proxy may find another end of the body
                    raise h11.RemoteProtocolError(AMBIGUOUS)
        except h11.RemoteProtocolError as error:
            self.refusal = error
            raise
        return event

    def start_next_cycle(self) -> None:
        super().start_next_cycle()
        self.number += 1

    @property
    def bytes_waiting(self) -> int:
        """The received bytes that are not parsed. `trailing_data` has them too, but copies them all."""
        return len(self._receive_buffer)

    @property
    def arriving(self) -> int | None:
        """The number of the request that has begun and has not arrived completely; None if there is none.

        The first request begins when the connection does, each later one with its first byte.
        """
        if self.their_state is h11.IDLE and (self.number == 0 or self.bytes_waiting):
            return self.number
        return self.number if self.their_state is h11.SEND_BODY else None
