"""The routes: a request's body in, `llama3.workers_ai` asked, its answer in the envelope of whoever asks.

`POST /client/v4/accounts/{account}/ai/run/{model}` is the REST call, `POST /run` that of a Worker's AI binding, and
`.../v1/chat/completions` OpenAI's.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from llama3.errors import ContractError, RequestError
from llama3.json_text import read_json
from llama3.server import catalogue, playground
from llama3.server.answers import (
    BINDING,
    CAPACITY,
    MODELS,
    REST,
    STOPPING,
    Events,
    Json,
    Shape,
    binding_error,
    refusal,
    rest_error,
    unknown_model,
    whole,
)
from llama3.server.body import Bodies
from llama3.server.completions import COMPLETIONS
from llama3.server.gate import Gate
from llama3.server.journal import Figures, Journal
from llama3.server.openai import OPENAI
from llama3.server.threads import in_new_thread
from llama3.workers_ai import bad_input, check_type, failure

if TYPE_CHECKING:
    from llama3.llama import Llama
    from llama3.workers_ai import Stream

ACCOUNT = "/client/v4/accounts/{account}/ai"
GONE = 499  # nobody reads this status: the client has left


class Service:
    """One model and who waits for it: as many requests run as it has slots, `queue` more may wait."""

    def __init__(self, load: "Callable[[], Llama]", slots: int, queue: int, parsed_json: bool = False):
        """parsed_json: the response in JSON mode is the object, and not its text."""
        self.load, self.room, self.parsed_json = load, slots + queue, parsed_json
        self.llama: Llama | None = None
        self.error: Exception | None = None  # of loading
        self.on_error: Callable[[], None] = lambda: None
        self.bodies = Bodies()
        self.in_flight = 0
        self.running: set[Stream] = set()
        self.figures = Figures(lambda: self.in_flight)
        self.stopping = False
        # A request in flight blocks a thread while it waits for its next token.
        self.threads = asyncio.Semaphore(self.room + 2)

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
        async with self.threads:
            return await in_new_thread(function, *args)

    async def answer(self, request: Request, shape: Shape) -> Response:
        if self.llama is None or self.stopping:
            return refusal("the server is stopping" if self.stopping else "the model is not there yet", 7009, 503)
        try:
            body = await self.bodies.read(request)
        except ContractError as error:
            return shape.refuse(error)
        except ClientDisconnect:
            return Response(status_code=GONE)
        if self.in_flight >= self.room:
            return shape.refuse(CAPACITY)
        self.in_flight += 1
        handed_on, stream = False, None
        try:
            stream, given = await self.in_thread(shape.begin, self.llama, body)
            self.running.add(stream)
            if given.get("stream"):
                handed_on = True
                done = partial(self._done, stream)
                return Events(stream, given, shape, self.in_thread, lambda: self.stopping, done)
            found = await whole(shape.result, stream, given, request.receive, self.in_thread)
            if found is None:
                return Response(status_code=GONE)
            if self.parsed_json and "response_format" in given and "response" in found:
                found["response"] = read_json(found["response"])
            return shape.reply(found) if stream.finish_reason != "cancelled" else shape.refuse(STOPPING)
        except Exception as error:  # a step that failed, for one: the requests in it end, the server goes on
            cut_off = stream is not None and stream.finish_reason == "cancelled"
            return shape.refuse(STOPPING if cut_off else failure(error))
        finally:
            if not handed_on:
                self._done(stream)

    def end(self) -> None:
        """Of what still runs: the next step is its last."""
        for stream in self.running:
            stream.close()

    def _done(self, stream: "Stream | None") -> None:
        self.in_flight -= 1
        if stream is not None:
            self.running.discard(stream)
            self.figures.tokens.labels("prompt").inc(stream.usage.prompt_tokens)
            self.figures.tokens.labels("generated").inc(stream.usage.completion_tokens)


def make_app(service: Service, token: str | None = None, hosts: tuple[str, ...] = (), quiet: bool = True) -> Starlette:
    async def run(request: Request) -> Response:
        unknown = unknown_model(request.path_params["model"])
        return rest_error(unknown) if unknown else await service.answer(request, REST)

    async def run_binding(request: Request) -> Response:
        unknown = unknown_model(request.headers.get("cf-consn-model-id", MODELS[0]))
        return binding_error(unknown) if unknown else await service.answer(request, BINDING)

    async def chat(request: Request) -> Response:
        return await service.answer(request, OPENAI)

    async def completions(request: Request) -> Response:
        return await service.answer(request, COMPLETIONS)

    async def tokenize(request: Request) -> Response:
        if service.llama is None:
            return refusal("the model is not there yet", 7009, 503)
        try:
            body = check_type("/", await service.bodies.read(request), "object")
            text = check_type("/text", body.get("text"), "string")
            return Json(await service.in_thread(tokens_of, service.llama, text))
        except ContractError as error:
            return rest_error(error)
        except RequestError as error:
            return rest_error(bad_input(str(error)))
        except ClientDisconnect:
            return Response(status_code=GONE)

    async def models(request: Request) -> Response:
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "meta"} for name in MODELS]
        return Json({"object": "list", "data": data, "adapters": service.llama.adapters if service.llama else []})

    async def health(request: Request) -> Response:
        return Json({"status": "ok"} if service.llama else {"status": "loading"}, 200 if service.llama else 503)

    async def metrics(request: Request) -> Response:
        return Response(service.figures.text(), media_type="text/plain; version=0.0.4")

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 405:
            return refusal(f"{request.method[:20]} not supported for requested URI", 7001, 405)
        return refusal("No route for that URI", 7000, error.status_code)

    app = Starlette(
        routes=[
            Route(ACCOUNT + "/run/{model:path}", run, methods=["POST"]),
            Route("/run", run_binding, methods=["POST"]),
            *(Route(f"{base}/v1/chat/completions", chat, methods=["POST"]) for base in ("", ACCOUNT)),
            *(Route(f"{base}/v1/completions", completions, methods=["POST"]) for base in ("", ACCOUNT)),
            Route("/tokenize", tokenize, methods=["POST"]),
            *(Route(f"{base}/v1/models", models) for base in ("", ACCOUNT)),
            *(Route(base + "/models/search", catalogue.search) for base in (ACCOUNT, "/ai-api")),
            Route(ACCOUNT + "/models/schema", catalogue.schema),
            Route("/health", health),
            Route("/metrics", metrics),
            *playground.routes,
        ],
        middleware=[
            Middleware(Journal, figures=service.figures, quiet=quiet),
            Middleware(Gate, token=token, hosts=hosts),
        ],
        exception_handlers={HTTPException: http_error},
        lifespan=service.lifespan,
    )
    app.router.redirect_slashes = False
    return app


def tokens_of(llama: "Llama", text: str) -> dict[str, Any]:
    tokenizer = llama.tokenizer
    assert tokenizer is not None  # the command line has seen to that
    return {"tokens": [{"id": token, "text": tokenizer.decode([token])} for token in llama.encode(text)]}
