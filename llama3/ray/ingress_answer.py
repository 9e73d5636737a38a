"""The answer to one request, from one replica or, if that dies, from the next."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llama3.errors import ContractError
from llama3.ray.ingress_events import Continuation, OtherText, SentEvents
from llama3.ray.ingress_request import api_format
from llama3.ray.replica import END, Ask, Headers
from llama3.server.responses import NO_CAPACITY, refusal, server_stopping
from llama3.server.streaming import event

LOG = logging.getLogger("ray.serve")
MOST_DEATHS = 5  # a request that so many replicas have died of is not tried again
SECONDS_FOR_A_REPLICA = 10  # until one takes the request
SECONDS_TO_GO_ON = 60  # for a request whose replica has died, while the others are full
REPLICA_DIED, FAILED = "AiError: the replicas that computed this answer have died; ask again", 3043
OTHER_TEXT = "AiError: the replica of this stream has died, and another one generates another text; ask again"
BUSY = (429, 503)
UNKNOWN = "unknown"  # a replica that has died before it could say its name


def no_replica() -> ContractError:
    return ContractError("AiError: no replica can answer now; ask again later", NO_CAPACITY, 503)


class Cut(Exception):
    """An answer that has not come to its end. replica: which has died; None if none has taken the request."""

    def __init__(self, why: str, replica: str | None):
        super().__init__(why)
        self.replica = replica


class Answer:
    """Gets an answer from the replicas, and sends it to the client.

    A stream goes on where it broke off: the request is sent to another replica with the same seed, and the events that
    the client has are skipped. Any other answer is sent when it is whole, so its request can simply be repeated.
    """

    def __init__(self, ask: Ask, stream: Any, send: Send, counts: dict[str, int]):
        """stream: the handle of the replicas' method `answer`. counts: how often a request was continued, repeated."""
        self.ask, self.stream, self.send, self.counts = ask, stream, send, counts
        self.sent: SentEvents | None = None  # once the stream has begun
        self.call: Any = None
        self.left = self.stopping = False

    def leave(self) -> None:
        """The client has left."""
        self.left = True
        self._cancel()

    def stop(self, now: bool) -> None:
        """End a running stream with a last event. Another answer may come to its end, unless it must end now."""
        self.stopping = True
        if self.sent is not None or now:
            self._cancel()

    def _cancel(self) -> None:
        if self.call is not None:
            self.call.cancel()

    async def run(self, scope: Scope, receive: Receive) -> None:
        """Ask replicas until the client has a whole answer, or an error."""
        time, deaths, until = asyncio.get_running_loop().time, 0, 0.0
        while not self.left:
            try:
                response = await self._try()
            except Cut as cut:
                if self.left:
                    return
                if self.stopping:
                    return await self._end(server_stopping(), scope, receive)
                if cut.replica is None and (not deaths or time() > until):
                    return await self._end(no_replica(), scope, receive)
                LOG.warning("an answer was cut off: %s", cut)
                if cut.replica is not None:
                    self.counts["repeated" if self.sent is None else "continued"] += 1
                    until = until or time() + SECONDS_TO_GO_ON
                    deaths += 1
                if deaths == MOST_DEATHS:
                    return await self._end(ContractError(REPLICA_DIED, FAILED, 500), scope, receive)
                continue
            except OtherText:
                return await self._end(ContractError(OTHER_TEXT, FAILED, 500), scope, receive)
            if response is None:
                return
            if deaths and response.status_code in BUSY and time() < until and not self.stopping:
                await asyncio.sleep(0.25)  # the others have got all requests of the one that died
                continue
            if self.sent is None:
                return await response(scope, receive, self.send)
            return await self._end(ContractError(REPLICA_DIED, FAILED, 500), scope, receive)

    async def _try(self) -> Response | None:
        """Ask one replica -> its response; None if it was a stream, which was sent. Raises Cut, OtherText."""
        parts = self._parts()
        async with contextlib.aclosing(parts):
            status, headers = await anext(parts)
            streams = status == 200 and (b"content-type", b"text/event-stream") in headers
            if not streams:
                return Whole(status, headers, b"".join([part async for part in parts]))
            continuation = Continuation(self.sent) if self.sent is not None else None
            async for part in parts:
                if self.sent is None:
                    self.sent = SentEvents()
                    await self.send({"type": "http.response.start", "status": status, "headers": headers})
                if continuation is None:
                    self.sent.add(part)
                elif (rest := continuation.next(part)) is None:
                    continue
                else:
                    part = rest
                await self.send({"type": "http.response.body", "body": part, "more_body": True})
                if self.stopping:
                    raise Cut("the server is stopping", None)
            await self.send({"type": "http.response.body", "body": b""})
            return None

    async def _parts(self) -> AsyncGenerator[Any, None]:
        """What a replica sends after its name: (status, headers), and the parts of the body. Raises Cut."""
        self.call = call = self.stream.remote(self.ask)
        replica, whole = None, False
        try:
            replica = await asyncio.wait_for(anext(call), SECONDS_FOR_A_REPLICA)
            while (part := await anext(call)) is not END:
                yield part
            whole = True
        except TimeoutError:
            raise Cut(f"no replica has taken the request within {SECONDS_FOR_A_REPLICA} s", None) from None
        except StopAsyncIteration:
            raise Cut("it has no end", replica or UNKNOWN) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # this request itself, not its call
                raise
            raise Cut("its call was cancelled", replica or UNKNOWN) from None
        except Exception as error:
            if replica is not None:
                self.ask.avoid.append(replica)
            raise Cut(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", replica or UNKNOWN) from None
        finally:
            self.call = None
            if not whole:
                call.cancel()

    async def _end(self, error: ContractError, scope: Scope, receive: Receive) -> None:
        """Tell the client why its answer ends here."""
        format = api_format(self.ask.path)
        if self.sent is None:
            return await refusal(error, format)(scope, receive, self.send)
        await self.send(event(format.error_chunk(error), format))
        end = b"" if format.named_events else b"data: [DONE]\n\n"
        await self.send({"type": "http.response.body", "body": end})


class Whole(Response):
    """A replica's whole answer, with its own headers."""

    def __init__(self, status: int, headers: Headers, body: bytes):
        super().__init__(body, status)
        self.raw_headers = headers
