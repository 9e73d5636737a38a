"""A request's body: JSON, whatever content type it claims, and bounded, also over all that are still arriving."""

from typing import Any

import msgspec
from starlette.requests import Request

from llama3.errors import ContractError
from llama3.limits import LIMITS
from llama3.server.answers import CAPACITY
from llama3.workers_ai import bad_input

MAX_ARRIVING = 64 << 20  # bytes of all bodies that are not whole yet


class Bodies:
    """A body that comes in drops takes no request's place, only the bytes that it has sent."""

    def __init__(self) -> None:
        self.arriving = 0

    async def read(self, request: Request) -> Any:
        """Raises ContractError."""
        body = bytearray()
        try:
            async for part in request.stream():
                body += part
                self.arriving += len(part)
                if len(body) > LIMITS.body_bytes:
                    too_large = f"AiError: Request is too large: more than {LIMITS.body_bytes:,} bytes"
                    raise ContractError(too_large, 3006, 413)
                if self.arriving > MAX_ARRIVING:
                    raise CAPACITY
        finally:
            self.arriving -= len(body)
        if not body:
            raise ContractError("AiError: Request is missing headers or body: body", 3003, 400)
        try:
            return msgspec.json.decode(bytes(body))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise bad_input(f"the body is not JSON: {' '.join(str(error).split())[:200]}") from None
