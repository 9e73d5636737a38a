"""What goes back: the service's envelopes, and a stream of events that ends when its reader goes away."""

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llama3.workers_ai import chunks, result

if TYPE_CHECKING:
    from llama3.errors import ContractError
    from llama3.llama import Stream

InThread = Callable[..., Awaitable[Any]]
NO_CAPACITY = 3040  # the service's code
STOPPING = "AiError: the server is stopping; ask again later"


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


def model_error(error: "ContractError", binding: bool) -> Json:
    """binding: as a Worker's `env.AI.run` reads it; else as REST has it."""
    message = str(error)
    if not binding:
        return refusal(message, error.code, error.status, {})
    description = message.removeprefix("AiError: ").removeprefix("Bad input: ")
    fields = {"internalCode": error.code, "httpCode": error.status, "name": "AiError"}
    return Json({**fields, "message": message, "description": description}, error.status)


async def whole(
    stream: "Stream", given: dict[str, Any], receive: Receive, in_thread: InThread
) -> dict[str, Any] | None:
    """The result; None if whoever asked has gone. Raises what `result` raises."""
    found: dict[str, Any] | None = None
    failed: Exception | None = None
    gone = False
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            nonlocal gone
            await disconnected(receive)
            gone = True
            stream.close()

        group.start_soon(watch)
        try:
            found = await in_thread(result, stream, given)
        except Exception as error:
            failed = error  # raised in here it would become a group of errors
        finally:
            stream.close()
        group.cancel_scope.cancel()
    if failed and not gone:
        raise failed
    return found if not gone else None


class Events(Response):
    """The chunks of an answer as server-sent events, `data: ` and JSON, and nothing else; in the end [DONE].

    The next chunk is asked for when the last one has been taken, so a reader that does not read holds nothing but its
    own answer up. One that goes away ends the generation.
    """

    def __init__(
        self,
        stream: "Stream",
        given: dict[str, Any],
        in_thread: InThread,
        stopping: Callable[[], bool],
        done: Callable[[], None],
    ):
        super().__init__(None, 200, {"content-type": "text/event-stream", "cache-control": "no-cache"})
        del self.headers["content-length"]
        self.stream, self.given, self.in_thread, self.stopping, self.done = stream, given, in_thread, stopping, done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with anyio.create_task_group() as group:

                async def watch() -> None:
                    await disconnected(receive)
                    self.stream.close()
                    group.cancel_scope.cancel()

                group.start_soon(watch)
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                pieces = chunks(self.stream, self.given)
                while (chunk := await self.in_thread(next, pieces, None)) is not None:
                    await send(event(chunk))
                    if self.stopping():
                        await send(event({"response": "", "errors": [{"message": STOPPING, "code": NO_CAPACITY}]}))
                        break
                await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
                group.cancel_scope.cancel()
        finally:
            self.stream.close()
            self.done()


def event(chunk: dict[str, Any]) -> dict[str, Any]:
    body = f"data: {json.dumps(chunk, ensure_ascii=False, allow_nan=False, separators=(',', ':'))}\n\n"
    return {"type": "http.response.body", "body": body.encode("utf-8", "replace"), "more_body": True}


async def disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
