"""The routes of the server.

`POST /client/v4/accounts/{account}/ai/run/{model}` is the REST route, `POST /run` the route that a Worker's AI binding
calls, and `.../v1/chat/completions`, `.../v1/completions` and `.../v1/responses` are OpenAI's.
"""

from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from llama3.api_format import REST
from llama3.errors import ContractError, RequestError
from llama3.llama import Llama
from llama3.model_names import ALIASES, MODELS, openai_names, unknown_model
from llama3.openai_api.chat_completions import CHAT_COMPLETIONS
from llama3.openai_api.completions import COMPLETIONS
from llama3.openai_api.responses import RESPONSES
from llama3.server import models_api, playground
from llama3.server.access_log import AccessLog
from llama3.server.auth import BINDING_RUN, Auth
from llama3.server.binding import BINDING
from llama3.server.cors import Cors
from llama3.server.inspect_api import inspect_object
from llama3.server.responses import JsonResponse, error_response, no_capacity, refusal
from llama3.server.service import CLIENT_CLOSED_REQUEST, SERVICE_UNAVAILABLE, Service
from llama3.workers_ai_input import bad_input, check_type, to_contract_error

ACCOUNT = "/client/v4/accounts/{account}/ai"
OPENAI_BASES = ("", ACCOUNT)  # in front of /v1
METHOD_NOT_ALLOWED, NO_ROUTE = 7001, 7000  # Cloudflare's error codes


class Routes:
    """The functions that answer the routes which need a `Service`, one method each."""

    def __init__(self, service: Service):
        self.service = service
        self.inspecting = False

    async def run(self, request: Request) -> Response:
        unknown = unknown_model(request.path_params["model"])
        return refusal(unknown) if unknown else await self.service.answer(request, REST)

    async def run_binding(self, request: Request) -> Response:
        unknown = unknown_model(request.headers.get("cf-consn-model-id", MODELS[0]))
        return refusal(unknown, BINDING) if unknown else await self.service.answer(request, BINDING)

    async def chat_completions(self, request: Request) -> Response:
        return await self.service.answer(request, CHAT_COMPLETIONS)

    async def completions(self, request: Request) -> Response:
        return await self.service.answer(request, COMPLETIONS)

    async def responses(self, request: Request) -> Response:
        return await self.service.answer(request, RESPONSES)

    async def tokenize(self, request: Request) -> Response:
        """{"text": ...} -> {"tokens": [{"id": ..., "text": ...}, ...]}"""
        if self.service.llama is None:
            return error_response("the model is not loaded yet", SERVICE_UNAVAILABLE, 503)
        try:
            body = check_type("/", await self.service.bodies.read(request), "object")
            text = check_type("/text", body.get("text"), "string")
            return JsonResponse(await self.service.in_thread(tokens_object, self.service.llama, text))
        except ContractError as error:
            return refusal(error)
        except RequestError as error:
            return refusal(bad_input(str(error)))
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED_REQUEST)

    async def inspect(self, request: Request) -> Response:
        """The inputs of `run`, and {"without": ["0.1", ...]} -> what the page /inspect draws. One at a time."""
        if self.service.llama is None:
            return error_response("the model is not loaded yet", SERVICE_UNAVAILABLE, 503)
        try:
            body = await self.service.bodies.read(request)
            if self.inspecting:
                raise no_capacity()
            self.inspecting = True
            try:
                return JsonResponse(await self.service.in_thread(inspect_object, self.service.llama, body))
            finally:
                self.inspecting = False
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        except Exception as error:
            return refusal(to_contract_error(error))

    async def models(self, request: Request) -> Response:
        llama = self.service.llama
        data = [openai_model(name) for name in MODELS]
        return JsonResponse({"object": "list", "data": data, "adapters": llama.adapters if llama else []})

    async def model(self, request: Request) -> Response:
        name, llama = request.path_params["model"], self.service.llama
        unknown = unknown_model(name, openai_names(llama) if llama else (*MODELS, *ALIASES))
        if unknown is None:
            return JsonResponse(openai_model(name))
        return error_response(str(unknown), unknown.code, 404, {})

    async def health(self, request: Request) -> Response:
        loaded = self.service.llama is not None
        return JsonResponse({"status": "ok" if loaded else "loading"}, 200 if loaded else 503)

    async def metrics(self, request: Request) -> Response:
        return Response(self.service.metrics.text(), media_type="text/plain; version=0.0.4")


async def http_error(request: Request, error: Exception) -> Response:
    """Starlette's own errors in Cloudflare's envelope."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        return error_response(f"{request.method[:20]} not supported for requested URI", METHOD_NOT_ALLOWED, 405)
    return error_response("No route for that URI", NO_ROUTE, error.status_code)


def make_app(
    service: Service,
    token: str | None = None,
    hosts: tuple[str, ...] = (),
    quiet: bool = True,
    origins: tuple[str, ...] = (),
) -> Starlette:
    """token, hosts, origins: see `Auth`. quiet: write no access log."""
    routes = Routes(service)
    app = Starlette(
        routes=[
            Route(ACCOUNT + "/run/{model:path}", routes.run, methods=["POST"]),
            *(Route(path, routes.run_binding, methods=["POST"]) for path in BINDING_RUN),
            *(Route(f"{base}/v1/chat/completions", routes.chat_completions, methods=["POST"]) for base in OPENAI_BASES),
            *(Route(f"{base}/v1/completions", routes.completions, methods=["POST"]) for base in OPENAI_BASES),
            *(Route(f"{base}/v1/responses", routes.responses, methods=["POST"]) for base in OPENAI_BASES),
            Route("/inspect/run", routes.inspect, methods=["POST"]),
            Route("/tokenize", routes.tokenize, methods=["POST"]),
            *(Route(f"{base}/v1/models", routes.models) for base in OPENAI_BASES),
            *(Route(f"{base}/v1/models/{{model:path}}", routes.model) for base in OPENAI_BASES),
            *(Route(base + "/models/search", models_api.search) for base in (ACCOUNT, "/ai-api")),
            Route(ACCOUNT + "/models/schema", models_api.schema),
            Route("/health", routes.health),
            Route("/metrics", routes.metrics),
            *playground.ROUTES,
        ],
        middleware=[
            Middleware(AccessLog, metrics=service.metrics, quiet=quiet),
            Middleware(Cors, origins=origins),
            Middleware(Auth, token=token, hosts=hosts, origins=origins),
        ],
        exception_handlers={HTTPException: http_error},
        lifespan=service.lifespan,
    )
    app.router.redirect_slashes = False
    return app


def openai_model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "meta"}


def tokens_object(llama: Llama, text: str) -> dict[str, Any]:
    tokenizer = llama.tokenizer
    assert tokenizer is not None  # the command line refuses a model without a tokenizer
    return {"tokens": [{"id": token, "text": tokenizer.decode([token])} for token in llama.encode(text)]}
