"""The ingress: takes requests over HTTP, gives each to a replica, and goes on elsewhere if the replica dies."""

from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from llama3.errors import ContractError
from llama3.ray.ingress_answer import Answer
from llama3.ray.ingress_metrics import joined
from llama3.ray.ingress_request import api_format, receive_whole
from llama3.ray.settings import Settings, set_limits
from llama3.server.auth import Auth
from llama3.server.body import BodyReader
from llama3.server.cors import Cors
from llama3.server.responses import error_response, refusal
from llama3.server.service import SERVICE_UNAVAILABLE
from llama3.server.streaming import on_disconnect

STATUS_CLOSES = (408, 413, 431)  # the rest of such a request is not read


class Ingress:
    """The class of the deployment in front of the replicas. It checks who asks, and needs no model."""

    def __init__(self, settings: Settings, replicas: Any):
        """replicas: Ray Serve's handle of the other deployment."""
        set_limits(settings)
        self.settings, self.replicas = settings, replicas
        self.stream = replicas.options(method_name="answer", stream=True)
        self.bodies, self.answers, self.stopping = BodyReader(), set[Answer](), False
        self.counts = {"continued": 0, "repeated": 0}

    def __serve_build_asgi_app__(self) -> Starlette:
        """Called by Ray Serve after the constructor."""
        settings = self.settings
        return Starlette(
            routes=[Route("/metrics", self.metrics), Route("/{path:path}", Passing(self))],
            middleware=[
                Middleware(Cors, origins=settings.allow_origin),
                Middleware(Auth, token=settings.token, hosts=settings.allow_host, origins=settings.allow_origin),
            ],
        )

    async def metrics(self, request: Request) -> Response:
        """The metrics of all replicas that run, each sample with the name of its replica. 503 if one is too slow."""
        asked = self.replicas.broadcast("metrics")
        try:
            found = await asked.results_async(timeout_s=5, return_exceptions=True)  # one may have died just now
        except TimeoutError:
            return error_response("a replica has not given its metrics in 5 seconds", SERVICE_UNAVAILABLE, 503)
        text = joined([each for each in found if not isinstance(each, Exception)], self.counts)
        return Response(text, media_type="text/plain; version=0.0.4")

    async def stop(self, now: bool = False) -> int:
        """End running streams with a last event, and answer new requests with 503 -> how many answers still run.

        now: end the others, too, with 503.
        """
        self.stopping = True
        for answer in list(self.answers):
            answer.stop(now)
        return len(self.answers)


class Passing:
    """The ASGI application that passes a request on. It is a class, because Starlette gives a function no `send`."""

    def __init__(self, ingress: Ingress):
        self.ingress = ingress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ingress, request = self.ingress, Request(scope, receive)
        try:
            ask = await receive_whole(request, ingress.bodies)
        except ClientDisconnect:
            return
        except ContractError as error:
            closing = {"connection": "close"} if error.status in STATUS_CLOSES else {}
            if error.status in (408, 431):  # the server's own, not the route's
                response: Response = error_response(str(error), error.code, error.status, headers=closing)
            else:
                response = refusal(error, api_format(scope["path"]))
                response.headers.update(closing)
            await response(scope, receive, send)
            return
        if ingress.stopping:
            await error_response("the server is stopping", SERVICE_UNAVAILABLE, 503)(scope, receive, send)
            return
        answer = Answer(ask, ingress.stream, send, ingress.counts)
        ingress.answers.add(answer)
        watcher = on_disconnect(receive, answer.leave)
        try:
            await answer.run(scope, receive)
        finally:
            watcher.cancel()
            ingress.answers.discard(answer)
