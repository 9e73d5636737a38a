"""The routes: a request's body in, `llama3.workers_ai` asked, its answer in the envelope of whoever asks.

`POST /client/v4/accounts/{account}/ai/run/{model}` is the REST call, `POST /run` that of a Worker's AI binding.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from llama3.errors import ContractError
from llama3.server.answers import NO_CAPACITY, Events, Json, envelope, model_error, refusal, whole
from llama3.server.gate import Gate
from llama3.workers_ai import bad_input, begin

if TYPE_CHECKING:
    from llama3.llama import Llama

MODELS = ("@hf/meta-llama/meta-llama-3-8b-instruct", "@cf/meta/llama-3-8b-instruct")
MAX_BODY = 1 << 20  # bytes
GONE = 499  # nobody reads this status: the client has left


class Service:
    """One model and who waits for it: as many requests run as it has slots, `queue` more may wait."""

    def __init__(self, load: "Callable[[], Llama]", slots: int, queue: int):
        self.load, self.room = load, slots + queue
        self.llama: Llama | None = None
        self.error: Exception | None = None  # of loading
        self.on_error: Callable[[], None] = lambda: None
        self.in_flight = 0
        self.stopping = False
        # A request in flight blocks a thread while it waits for its next token.
        self.limiter = anyio.CapacityLimiter(self.room + 2)

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Requests are answered from the start, with 503 until the model is there."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._load)
            yield
            group.cancel_scope.cancel()

    async def _load(self) -> None:
        try:
            self.llama = await self.in_thread(self.load)
        except Exception as error:
            self.error = error
            self.on_error()

    async def in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        return await anyio.to_thread.run_sync(partial(function, *args), limiter=self.limiter)

    async def answer(self, request: Request, inputs: Any, binding: bool) -> Response:
        if self.llama is None or self.stopping:
            return refusal("the model is not there yet" if not self.stopping else "the server is stopping", 7009, 503)
        if self.in_flight >= self.room:
            busy = ContractError("AiError: Capacity temporarily exceeded, please try again.", NO_CAPACITY, 429)
            answer = model_error(busy, binding)
            answer.headers["retry-after"] = "1"
            return answer
        self.in_flight += 1
        handed_on = False
        try:
            stream, given = await self.in_thread(begin, self.llama, inputs)
            if given.get("stream"):
                handed_on = True
                return Events(stream, given, self.in_thread, lambda: self.stopping, self._done)
            found = await whole(stream, given, request.receive, self.in_thread)
            if found is None:
                return Response(status_code=GONE)
            return Json(found) if binding else envelope(found)
        except ContractError as error:
            return model_error(error, binding)
        except Exception as error:  # a step that failed: the requests in it end, the server goes on
            message = f"AiError: {' '.join(str(error).split())}"
            return model_error(ContractError(message, 3043, 500), binding)
        finally:
            if not handed_on:
                self._done()

    def _done(self) -> None:
        self.in_flight -= 1


def make_app(service: Service, token: str | None = None, hosts: tuple[str, ...] = ()) -> Starlette:
    async def run(request: Request) -> Response:
        model = request.path_params["model"]
        if model not in MODELS:
            return refusal(f"AiError: No such model: No such model {model[:100]} or task", 5007, 400, {})
        try:
            return await service.answer(request, await read_body(request), binding=False)
        except ContractError as error:
            return model_error(error, binding=False)

    async def run_binding(request: Request) -> Response:
        try:
            model = request.headers.get("cf-consn-model-id", MODELS[0])
            if model not in MODELS:
                raise ContractError(f"AiError: No such model: No such model {model[:100]} or task", 5007, 400)
            body = await read_body(request)
            if not isinstance(body, dict) or "inputs" not in body:
                raise bad_input("required properties at '/' are 'inputs'")
            return await service.answer(request, body["inputs"], binding=True)
        except ContractError as error:
            return model_error(error, binding=True)

    async def health(request: Request) -> Response:
        return Json({"status": "ok"} if service.llama else {"status": "loading"}, 200 if service.llama else 503)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 405:
            return refusal(f"{request.method[:20]} not supported for requested URI", 7001, 405)
        return refusal("No route for that URI", 7000, error.status_code)

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=GONE)

    app = Starlette(
        routes=[
            Route("/client/v4/accounts/{account}/ai/run/{model:path}", run, methods=["POST"]),
            Route("/run", run_binding, methods=["POST"]),
            Route("/health", health),
        ],
        middleware=[Middleware(Gate, token=token, hosts=hosts)],
        exception_handlers={HTTPException: http_error, ClientDisconnect: gone},
        lifespan=service.lifespan,
    )
    app.router.redirect_slashes = False
    return app


async def read_body(request: Request) -> Any:
    """The JSON of a request, whatever content type it claims. Raises ContractError."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise ContractError(f"AiError: Request is too large: more than {MAX_BODY:,} bytes", 3006, 413)
    if not body:
        raise ContractError("AiError: Request is missing headers or body: body", 3003, 400)
    try:
        return msgspec.json.decode(bytes(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad_input(f"the body is not JSON: {' '.join(str(error).split())[:200]}") from None
