"""`Service`, which the routes call: one model, the requests in flight, and how many of them are accepted."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from llama3.api_format import ApiFormat
from llama3.errors import ContractError
from llama3.json_text import read_json
from llama3.llama import Llama
from llama3.server.body import BodyReader
from llama3.server.metrics import Metrics
from llama3.server.responses import JsonResponse, error_response, no_capacity, refusal, server_stopping
from llama3.server.streaming import EventStream, result_unless_disconnected
from llama3.server.threads import in_new_thread
from llama3.workers_ai import Stream
from llama3.workers_ai_input import to_contract_error

CLIENT_CLOSED_REQUEST = 499  # nginx's status for the access log; the client has disconnected and does not see it
SERVICE_UNAVAILABLE = 7009  # Cloudflare's error code


class Service:
    """One model and its requests: `slots` of them run at once, `queue` more may wait, and the rest get HTTP 429."""

    def __init__(self, load: Callable[[], Llama], slots: int, queue: int, parsed_json: bool = False):
        """parsed_json: in JSON mode, the response is the parsed object instead of its text."""
        self.load, self.capacity, self.parsed_json = load, slots + queue, parsed_json
        self.llama: Llama | None = None
        self.load_error: Exception | None = None
        self.on_load_error: Callable[[], None] = lambda: None
        self.bodies = BodyReader()
        self.in_flight = 0
        self.running: set[Stream] = set()
        self.metrics = Metrics(lambda: self.in_flight)
        self.stopping = False
        # Each request in flight blocks one thread while it waits for its next token; two more are for other work.
        self.thread_limit = asyncio.Semaphore(self.capacity + 2)

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Load the model in the background: until it is loaded, requests are answered with HTTP 503."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._load)
            yield
            group.cancel_scope.cancel()

    async def _load(self) -> None:
        try:
            self.llama = await self.in_thread(self.load)
        except Exception as error:
            self.load_error = error
            self.on_load_error()

    async def in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        async with self.thread_limit:
            return await in_new_thread(function, *args)

    async def answer(self, request: Request, api_format: ApiFormat) -> Response:
        """Read the request, generate, and respond: whole or, with "stream", as server-sent events."""
        if self.llama is None or self.stopping:
            why = "the server is stopping" if self.stopping else "the model is not loaded yet"
            return error_response(why, SERVICE_UNAVAILABLE, 503)
        try:
            body = await self.bodies.read(request)
        except ContractError as error:
            return refusal(error, api_format)
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        if self.in_flight >= self.capacity:
            return refusal(no_capacity(), api_format)
        self.in_flight += 1
        streaming, stream = False, None
        try:
            stream, parameters = await self.in_thread(api_format.start, self.llama, body)
            self.running.add(stream)
            if parameters.get("stream"):
                streaming = True  # from here on, the EventStream calls _end_request
                on_end = partial(self._end_request, stream)
                return EventStream(stream, parameters, api_format, self.in_thread, lambda: self.stopping, on_end)
            result = await result_unless_disconnected(
                api_format.result, stream, parameters, request.receive, self.in_thread
            )
            if result is None:
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            if stream.finish_reason == "cancelled":
                return refusal(server_stopping(), api_format)
            if self.parsed_json and "response_format" in parameters and "response" in result:
                result["response"] = read_json(result["response"])
            return JsonResponse(api_format.body(result))
        except Exception as error:  # for example a failed step: it ends the requests in it, and the server goes on
            cancelled = self.stopping and stream is not None and stream.finish_reason == "cancelled"
            return refusal(server_stopping() if cancelled else to_contract_error(error), api_format)
        finally:
            if not streaming:
                self._end_request(stream)

    def cancel_running(self) -> None:
        """End all running generations: the step that is being computed is their last."""
        for stream in self.running:
            stream.close()

    def _end_request(self, stream: Stream | None) -> None:
        self.in_flight -= 1
        if stream is not None:
            self.running.discard(stream)
            self.metrics.tokens.labels("prompt").inc(stream.usage.prompt_tokens)
            self.metrics.tokens.labels("generated").inc(stream.usage.completion_tokens)
