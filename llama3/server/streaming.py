"""Run a generation for one client, whole or as a stream of events, and end it when the client disconnects."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llama3.api_format import ApiFormat
from llama3.json_text import encode_json
from llama3.server.responses import server_stopping
from llama3.workers_ai import Stream

InThread = Callable[..., Coroutine[Any, Any, Any]]
CHUNKS_AHEAD = 16  # how many chunks may be generated before the client has taken them
HEADERS = {
    "content-type": "text/event-stream",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx would collect the events, and pass them on together
}


async def result_unless_disconnected(
    result: Callable[[Stream, dict[str, Any]], dict[str, Any]],
    stream: Stream,
    parameters: dict[str, Any],
    receive: Receive,
    in_thread: InThread,
) -> dict[str, Any] | None:
    """result(stream, parameters), or None if the client has disconnected. Raises what `result` raises."""
    watcher = on_disconnect(receive, stream.close)
    try:
        found: dict[str, Any] = await in_thread(result, stream, parameters)
        return None if watcher.done() else found
    except Exception:
        if watcher.done():
            return None
        raise
    finally:
        stream.close()
        watcher.cancel()


class EventStream(Response):
    """The chunks of an answer as server-sent events, each `data: ` and JSON, with `data: [DONE]` at the end. Formats
    with `named_events` have a line `event: ` in front of each instead of [DONE].

    A thread of its own generates the chunks, at most CHUNKS_AHEAD more than the client has taken: the next token is
    computed while the last one is sent, and a client that does not read blocks only its own answer. When the client
    disconnects, the generation ends.
    """

    def __init__(
        self,
        stream: Stream,
        parameters: dict[str, Any],
        api_format: ApiFormat,
        in_thread: InThread,
        is_stopping: Callable[[], bool],
        on_end: Callable[[], None],
    ):
        """is_stopping: whether the server is shutting down. on_end: called once, when the response has ended."""
        super().__init__(None, 200, HEADERS)
        del self.headers["content-length"]
        self.stream, self.chunks = stream, api_format.chunks(stream, parameters)
        self.api_format = api_format
        self.in_thread, self.is_stopping, self.on_end = in_thread, is_stopping, on_end
        self.free_places, self.closed = threading.Semaphore(CHUNKS_AHEAD), False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()  # ASGI messages; None marks the end
        loop = asyncio.get_running_loop()

        def generate() -> None:
            for chunk in self.chunks:
                self.free_places.acquire()
                if self.closed:
                    break
                loop.call_soon_threadsafe(queue.put_nowait, event(chunk, self.api_format))

        watcher = on_disconnect(receive, self._close)
        generating = asyncio.ensure_future(self.in_thread(generate))
        generating.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while (message := await queue.get()) is not None:
                await send(message)  # returns at once, and sends nothing, after the client has disconnected
                self.free_places.release()
                if self.is_stopping():
                    await send(event(self.api_format.error_chunk(server_stopping()), self.api_format))
                    break
            self._close()
            await generating  # raises the exception of the thread, if there was one
            end = b"" if self.api_format.named_events else b"data: [DONE]\n\n"
            await send({"type": "http.response.body", "body": end})
        finally:
            self._close()
            watcher.cancel()
            try:
                await asyncio.wait([generating])  # the response must not end before its thread
            finally:
                self.on_end()

    def _close(self) -> None:
        self.closed = True
        self.stream.close()
        self.free_places.release()  # the thread may be waiting for a free place


def event(chunk: dict[str, Any], api_format: ApiFormat) -> dict[str, Any]:
    """A chunk as an ASGI message."""
    name = f"event: {chunk['type']}\n".encode() if api_format.named_events else b""
    return {"type": "http.response.body", "body": name + b"data: " + encode_json(chunk) + b"\n\n", "more_body": True}


def on_disconnect(receive: Receive, function: Callable[[], None]) -> "asyncio.Task[None]":
    """Call the function when the client disconnects, unless the returned task is cancelled before."""

    async def wait() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        function()

    return asyncio.create_task(wait())
