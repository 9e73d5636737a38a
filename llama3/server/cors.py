"""Let the pages of origins that `--allow-origin` names read the responses (CORS, as the fetch standard defines it)."""

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from llama3.server.auth import WRONG_ORIGIN, wrong_origin
from llama3.server.responses import error_response


class Cors(CORSMiddleware):
    """ASGI middleware that answers preflights, and adds CORS headers to the responses that an allowed page gets.

    It runs before `Auth`: a preflight has no token, and a page must be able to read why `Auth` refuses its request.
    """

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]):
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=("retry-after",) if origins else (),
            allow_private_network=True,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        origin = request_headers["origin"]
        if not self.is_allowed_origin(origin):
            return wrong_origin(origin)
        response = super().preflight_response(request_headers)
        if response.status_code != 200:
            return error_response(bytes(response.body).decode(), WRONG_ORIGIN, 403)
        kept = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        return Response(status_code=204, headers=kept)
