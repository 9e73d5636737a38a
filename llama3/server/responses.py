"""JSON responses: Cloudflare's envelope around results and errors, and the errors of the server itself."""

import json
import re
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llama3.errors import ContractError

NO_CAPACITY = 3040  # Cloudflare's error code
OPENAI_PATH = re.compile(r"(/client/v4/accounts/[^/]+/ai)?/v1(/|$)")
PARAMETER = re.compile(r"'(/[^' ]+)'")  # the path of a wrong value in Workers AI's messages
# JSON allows these three in a string, but many readers of event streams take them for the end of a line.
LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


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
        errors = [{"message": message, "code": code}]
        envelope = {"errors": errors, "success": False, "result": result, "messages": []}
        self.plain = JsonResponse(envelope, status, headers)
        self.for_openai = JsonResponse({"error": openai_error(message, code, status), **envelope}, status, headers)
        super().__init__(self.plain.body, status, dict(self.plain.headers))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = self.for_openai if OPENAI_PATH.match(scope["path"]) else self.plain
        await response(scope, receive, send)


def encode_json(content: Any) -> bytes:
    """Compact JSON in UTF-8, on one line for every reader. Lone surrogates, which UTF-8 cannot encode, become "?"."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(LINE_ENDS).encode("utf-8", "replace")


def success_response(result: Any) -> JsonResponse:
    return JsonResponse({"result": result, "success": True, "errors": [], "messages": []})


def error_response(
    message: str, code: int, status: int, result: Any = None, headers: dict[str, str] | None = None
) -> ErrorResponse:
    """The envelope of an error. Workers AI sends {} as the result for an error of the model, else null."""
    return ErrorResponse(message, code, status, result, headers)


def openai_error(message: str, code: int, status: int) -> dict[str, Any]:
    """The object that OpenAI's clients raise an exception for. Its "param" is the parameter that the message names."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = "server_error" if status >= 500 else kinds.get(status, "invalid_request_error")
    named = PARAMETER.search(message)
    param = re.sub(r"\.(\d+)", r"[\1]", named[1][1:].replace("/", ".")) if named else None  # /a/0/b -> a[0].b
    return {"message": message, "type": kind, "code": code, "param": param}


def rest_error(error: ContractError) -> ErrorResponse:
    return error_response(str(error), error.code, error.status, {}, retry_after(error))


def binding_error(error: ContractError) -> JsonResponse:
    """An error in the form that a Worker's `env.AI.run` reads."""
    message = str(error)
    description = message.removeprefix("AiError: ").removeprefix("Bad input: ")
    fields = {"internalCode": error.code, "httpCode": error.status, "name": "AiError"}
    return JsonResponse({**fields, "message": message, "description": description}, error.status, retry_after(error))


def retry_after(error: ContractError) -> dict[str, str]:
    return {"retry-after": "1"} if error.code == NO_CAPACITY else {}


# These are functions, not constants: an exception that is raised again keeps the frames of all earlier times.


def no_capacity() -> ContractError:
    return ContractError("AiError: Capacity temporarily exceeded, please try again.", NO_CAPACITY, 429)


def server_stopping() -> ContractError:
    return ContractError("AiError: the server is stopping; ask again later", NO_CAPACITY, 503)
