"""The answer to one request, from one replica or, if that dies, from the next."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llama3.errors import ContractError
from llama3.ray.ingress_events import Continuation, SentEvents
from llama3.ray.ingress_request import api_format
from llama3.ray.replica import END, Ask, Headers
from llama3.server.responses import error_response, server_stopping
from llama3.server.service import SERVICE_UNAVAILABLE
from llama3.server.streaming import event

LOG = logging.getLogger("ray.serve")
MOST_DEATHS = 5  # a request that so many replicas have died of is not tried again
SECONDS_FOR_A_REPLICA = 10  # until one takes the request
SECONDS_TO_GO_ON = 60  # for a request whose replica has died, while the others are full
REPLICA_DIED, FAILED = "AiError: the replicas that computed this answer have died; ask again", 3043
OTHER_TEXT = "AiError: the replica of this stream has died, and another one generates another text; ask again"
BUSY = (429, 503)


class Cut(Exception):
    """An answer that has not come to its end: its replica has died, or was not found."""


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

    def stop(self) -> None:
        """End a running stream with a last event. An answer that is not a stream may come to its end."""
        self.stopping = True
        if self.sent is not None:
            self._cancel()

    def _cancel(self) -> None:
        if self.call is not None:
            self.call.cancel()

    async def run(self, scope: Scope, receive: Receive) -> None:
        deaths, until = 0, asyncio.get_running_loop().time() + SECONDS_TO_GO_ON
        response: Response | None = None
        while not self.left:
            try:
                response = await self._try()
            except Cut as cut:
                if self.left:
                    return
                if self.stopping:
                    return await self._end(server_stopping(), scope, receive)
                deaths += 1
                LOG.warning(
                    "an answer was cut off (%s); %s", cut, "asking again" if deaths < MOST_DEATHS else "giving up"
                )
                if deaths == MOST_DEATHS or (not self.ask.avoid and deaths > 1):
                    return await self._end(ContractError(REPLICA_DIED, FAILED, 500), scope, receive)
                self.counts["repeated" if self.sent is None else "continued"] += 1
                continue
            except ValueError:
                return await self._end(ContractError(OTHER_TEXT, FAILED, 500), scope, receive)
            if response is None:
                return
            late = asyncio.get_running_loop().time() > until
            if deaths and response.status_code in BUSY and not late and not self.stopping:
                await asyncio.sleep(0.25)  # the others have got all requests of the one that died
                continue
            break
        if response is not None and self.sent is None:
            await response(scope, receive, self.send)
        elif response is not None:
            await self._end(ContractError(REPLICA_DIED, FAILED, 500), scope, receive)

    async def _try(self) -> Response | None:
        """Ask one replica -> its response; None if it was a stream, which was sent. Raises Cut, ValueError."""
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
                    raise Cut("stopping")
            await self.send({"type": "http.response.body", "body": b""})
            return None

    async def _parts(self) -> AsyncGenerator[Any, None]:
        """What a replica sends behind its name: (status, headers), and the parts of the body. Raises Cut."""
        self.call = call = self.stream.remote(self.ask)
        replica, whole = None, False
        try:
            replica = await asyncio.wait_for(anext(call), SECONDS_FOR_A_REPLICA)
            while (part := await anext(call)) is not END:
                yield part
            whole = True
        except TimeoutError:
            raise Cut("no replica has taken the request") from None
        except StopAsyncIteration:
            raise Cut("no end") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # this request itself, not its call
                raise
            raise Cut("cancelled") from None
        except Exception as error:
            if replica is not None:
                self.ask.avoid.append(replica)
            raise Cut(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from None
        finally:
            self.call = None
            if not whole:
                call.cancel()

    async def _end(self, error: ContractError, scope: Scope, receive: Receive) -> None:
        """Tell the client why its answer ends here."""
        format = api_format(self.ask.path)
        if self.sent is None:
            status = 503 if error.code != FAILED else error.status
            await error_response(str(error), SERVICE_UNAVAILABLE, status)(scope, receive, self.send)
            return
        await self.send(event(format.error_chunk(error), format))
        end = b"" if format.named_events else b"data: [DONE]\n\n"
        await self.send({"type": "http.response.body", "body": end})


class Whole(Response):
    """A replica's whole answer, with its own headers."""

    def __init__(self, status: int, headers: Headers, body: bytes):
        super().__init__(body, status)
        self.raw_headers = headers
