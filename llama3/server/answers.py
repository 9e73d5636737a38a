"""What goes back: the service's envelopes, and a stream of events that ends when its reader goes away."""

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llama3.errors import ContractError
from llama3.workers_ai import bad_input, begin, chunks, error_chunk, result

if TYPE_CHECKING:
    from llama3.llama import Llama
    from llama3.workers_ai import Stream

InThread = Callable[..., Coroutine[Any, Any, Any]]
NO_CAPACITY = 3040  # the service's code
AHEAD = 16  # chunks that wait for a reader
MODELS = ("@hf/meta-llama/meta-llama-3-8b-instruct", "@cf/meta/llama-3-8b-instruct")
CAPACITY = ContractError("AiError: Capacity temporarily exceeded, please try again.", NO_CAPACITY, 429)
STOPPING = ContractError("AiError: the server is stopping; ask again later", NO_CAPACITY, 503)


class Json(Response):
    """Clients look for this content type to the letter."""

    def __init__(self, content: Any, status: int = 200, headers: dict[str, str] | None = None):
        body = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(
            "utf-8", "replace"
        )
        super().__init__(body, status, {"content-type": "application/json", **(headers or {})})


def envelope(value: Any) -> Json:
    return Json({"result": value, "success": True, "errors": [], "messages": []})


def refusal(message: str, code: int, status: int, result: Any = None, headers: dict[str, str] | None = None) -> Json:
    """Of the gate (no result), or of the model ({})."""
    errors = [{"message": message, "code": code}]
    return Json({"errors": errors, "success": False, "result": result, "messages": []}, status, headers)


@dataclass(frozen=True)
class Shape:
    """How one kind of client asks and is answered."""

    begin: Callable[["Llama", Any], "tuple[Stream, dict[str, Any]]"]  # body -> the answer to be, and what was asked for
    result: Callable[["Stream", dict[str, Any]], dict[str, Any]]  # the whole answer
    chunks: Callable[["Stream", dict[str, Any]], Iterator[dict[str, Any]]]  # the same as it comes
    error_chunk: Callable[[ContractError], dict[str, Any]]  # the last of an answer that ends badly
    reply: Callable[[dict[str, Any]], Json]
    refuse: Callable[[ContractError], Json]


def rest_error(error: ContractError) -> Json:
    return refusal(str(error), error.code, error.status, {}, retry_after(error))


def binding_error(error: ContractError) -> Json:
    """As a Worker's `env.AI.run` reads it."""
    message = str(error)
    description = message.removeprefix("AiError: ").removeprefix("Bad input: ")
    fields = {"internalCode": error.code, "httpCode": error.status, "name": "AiError"}
    return Json({**fields, "message": message, "description": description}, error.status, retry_after(error))


def retry_after(error: ContractError) -> dict[str, str]:
    return {"retry-after": "1"} if error.code == NO_CAPACITY else {}


def unknown_model(name: str) -> ContractError | None:
    if name in MODELS:
        return None
    return ContractError(f"AiError: No such model: No such model {name[:100]} or task", 5007, 400)


def begin_inputs(llama: "Llama", body: Any) -> "tuple[Stream, dict[str, Any]]":
    if not isinstance(body, dict) or "inputs" not in body:
        raise bad_input("required properties at '/' are 'inputs'")
    return begin(llama, body["inputs"])


REST = Shape(begin, result, chunks, error_chunk, envelope, rest_error)
BINDING = Shape(begin_inputs, result, chunks, error_chunk, Json, binding_error)


async def whole(
    work: Callable[["Stream", dict[str, Any]], dict[str, Any]],
    stream: "Stream",
    given: dict[str, Any],
    receive: Receive,
    in_thread: InThread,
) -> dict[str, Any] | None:
    """The result, work(stream, given); None if whoever asked has gone. Raises what `work` raises."""
    watcher = when_gone(receive, stream.close)
    try:
        found: dict[str, Any] = await in_thread(work, stream, given)
        return None if watcher.done() else found
    except Exception:
        if watcher.done():
            return None
        raise
    finally:
        stream.close()
        watcher.cancel()


class Events(Response):
    """The chunks of an answer as server-sent events, `data: ` and JSON, and nothing else; in the end [DONE].

    A thread makes them, AHEAD of the reader by so many at most: the next token is being computed while the last is
    sent, and a reader that does not read holds nothing but its own answer up. One that goes away ends the generation.
    """

    def __init__(
        self,
        stream: "Stream",
        given: dict[str, Any],
        shape: Shape,
        in_thread: InThread,
        stopping: Callable[[], bool],
        done: Callable[[], None],
    ):
        super().__init__(None, 200, {"content-type": "text/event-stream", "cache-control": "no-cache"})
        del self.headers["content-length"]
        self.stream, self.chunks, self.error_chunk = stream, shape.chunks(stream, given), shape.error_chunk
        self.in_thread, self.stopping, self.done = in_thread, stopping, done
        self.room, self.closed = threading.Semaphore(AHEAD), False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ready: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()  # None: that was all
        loop = asyncio.get_running_loop()

        def make() -> None:
            for chunk in self.chunks:
                self.room.acquire()
                if self.closed:
                    break
                loop.call_soon_threadsafe(ready.put_nowait, event(chunk))

        watcher = when_gone(receive, self._close)
        maker = asyncio.ensure_future(self.in_thread(make))
        maker.add_done_callback(lambda _: ready.put_nowait(None))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while (message := await ready.get()) is not None:
                await send(message)  # nothing is sent, and nothing waits, once the reader has gone
                self.room.release()
                if self.stopping():
                    await send(event(self.error_chunk(STOPPING)))
                    break
            self._close()
            await maker  # raises what it has raised
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
        finally:
            self._close()
            watcher.cancel()
            try:
                await asyncio.wait([maker])  # a thread is never left behind
            finally:
                self.done()

    def _close(self) -> None:
        self.closed = True
        self.stream.close()
        self.room.release()


def event(chunk: dict[str, Any]) -> dict[str, Any]:
    body = f"data: {json.dumps(chunk, ensure_ascii=False, allow_nan=False, separators=(',', ':'))}\n\n"
    return {"type": "http.response.body", "body": body.encode("utf-8", "replace"), "more_body": True}


def when_gone(receive: Receive, do: Callable[[], None]) -> "asyncio.Task[None]":
    """Does it when the client goes away, if the task has not been cancelled before."""

    async def wait() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        do()

    return asyncio.create_task(wait())
