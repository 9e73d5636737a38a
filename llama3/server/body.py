"""Read the request body: JSON, whatever its content type says, and limited in size."""

from typing import Any

import msgspec
from starlette.requests import Request

from llama3.errors import ContractError
from llama3.limits import LIMITS
from llama3.server.responses import no_capacity
from llama3.workers_ai_input import bad_input

MAX_BYTES_ARRIVING = 64 << 20  # of all bodies together that have not arrived completely
MISSING_BODY, TOO_LARGE = 3003, 3006  # Cloudflare's error codes


class BodyReader:
    """Reads request bodies and limits the memory of those that are still arriving.

    A body that arrives slowly does not count as a request in flight. It costs only the bytes that have been received.
    """

    def __init__(self) -> None:
        self.bytes_arriving = 0

    async def read(self, request: Request) -> Any:
        """The decoded body. Raises ContractError if it is missing, too large or not JSON."""
        body = bytearray()
        try:
            async for part in request.stream():
                body += part
                self.bytes_arriving += len(part)
                if len(body) > LIMITS.body_bytes:
                    message = f"AiError: Request is too large: more than {LIMITS.body_bytes:,} bytes"
                    raise ContractError(message, TOO_LARGE, 413)
                if self.bytes_arriving > MAX_BYTES_ARRIVING:
                    raise no_capacity()
        finally:
            self.bytes_arriving -= len(body)
        if not body:
            raise ContractError("AiError: Request is missing headers or body: body", MISSING_BODY, 400)
        try:
            return msgspec.json.decode(bytes(body))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise bad_input(f"the body is not JSON: {' '.join(str(error).split())[:200]}") from None
