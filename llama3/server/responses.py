"""JSON responses: Cloudflare's envelope around results and errors, and the errors that the server itself adds."""

import json
from typing import Any

from starlette.responses import Response

from llama3.errors import ContractError

NO_CAPACITY = 3040  # Cloudflare's error code


class JsonResponse(Response):
    """The content type is exactly `application/json`: workerd's AI binding does not decode anything else as JSON."""

    def __init__(self, content: Any, status: int = 200, headers: dict[str, str] | None = None):
        super().__init__(encode_json(content), status, {"content-type": "application/json", **(headers or {})})


def encode_json(content: Any) -> bytes:
    """Compact JSON in UTF-8. Lone surrogates, which UTF-8 cannot encode, become "?"."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def success_response(result: Any) -> JsonResponse:
    return JsonResponse({"result": result, "success": True, "errors": [], "messages": []})


def error_response(
    message: str, code: int, status: int, result: Any = None, headers: dict[str, str] | None = None
) -> JsonResponse:
    """The envelope of an error. Workers AI sends the result {} for an error of the model, else null."""
    errors = [{"message": message, "code": code}]
    return JsonResponse({"errors": errors, "success": False, "result": result, "messages": []}, status, headers)


def rest_error(error: ContractError) -> JsonResponse:
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
