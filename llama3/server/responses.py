"""JSON responses over HTTP, and the errors of the server itself."""

import re
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llama3.api_format import REST, ApiFormat, error_envelope
from llama3.errors import ContractError
from llama3.json_text import encode_json
from llama3.openai_api.output import openai_error

NO_CAPACITY = 3040  # Cloudflare's error code
OPENAI_PATH = re.compile(r"(/client/v4/accounts/[^/]+/ai)?/v1(/|$)")


class JsonResponse(Response):
    """The content type is exactly `application/json`: workerd's AI binding does not decode anything else as JSON."""

    def __init__(self, content: Any, status: int = 200, headers: dict[str, str] | None = None):
        super().__init__(encode_json(content), status, {"content-type": "application/json", **(headers or {})})


class ErrorResponse(Response):
    """An error in Cloudflare's envelope, which on OpenAI's routes also has OpenAI's "error" object.

    OpenAI's clients read only that object. The request's path decides whether it is sent, because the authentication
    and the router refuse requests of all routes.
    """

    def __init__(self, message: str, code: int, status: int, result: Any, headers: dict[str, str] | None):
        envelope = error_envelope(message, code, result)
        self.plain = JsonResponse(envelope, status, headers)
        self.for_openai = JsonResponse({"error": openai_error(message, code, status), **envelope}, status, headers)
        super().__init__(self.plain.body, status, dict(self.plain.headers))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = self.for_openai if OPENAI_PATH.match(scope["path"]) else self.plain
        await response(scope, receive, send)


def error_response(
    message: str, code: int, status: int, result: Any = None, headers: dict[str, str] | None = None
) -> ErrorResponse:
    """The envelope of an error. Workers AI sends {} as the result for an error of the model, else null."""
    return ErrorResponse(message, code, status, result, headers)


def refusal(error: ContractError, api_format: ApiFormat = REST) -> JsonResponse:
    """The response to a request that cannot be answered."""
    return JsonResponse(api_format.error_body(error), error.status, retry_after(error))


def retry_after(error: ContractError) -> dict[str, str]:
    return {"retry-after": "1"} if error.code == NO_CAPACITY else {}


# These are functions, not constants: an exception that is raised again keeps the frames of all earlier times.


def no_capacity() -> ContractError:
    return ContractError("AiError: Capacity temporarily exceeded, please try again.", NO_CAPACITY, 429)


def server_stopping() -> ContractError:
    return ContractError("AiError: the server is stopping; ask again later", NO_CAPACITY, 503)
