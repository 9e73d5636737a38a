"""Read the request body: JSON, limited in size, plain or compressed with gzip. The content type is ignored."""

import codecs
import zlib
from typing import Any

import msgspec
from starlette.requests import Request

from llama3.errors import ContractError
from llama3.limits import LIMITS
from llama3.server.responses import no_capacity
from llama3.workers_ai_input import bad_input

MAX_BYTES_ARRIVING = 64 << 20  # limit for all bodies together that are still arriving
MISSING_BODY, TOO_LARGE, BAD_INPUT = 3003, 3006, 5006  # Cloudflare's error codes
GZIP = 16 + zlib.MAX_WBITS  # tells zlib to read gzip's format


class BodyReader:
    """Reads request bodies and limits the memory of those that are still arriving.

    A body that arrives slowly does not count as a request in flight. It costs only the bytes that have been received.
    """

    def __init__(self) -> None:
        self.bytes_arriving = 0

    async def receive(self, request: Request) -> bytes:
        """The body as it was sent. Raises ContractError if it is too large."""
        body = bytearray()
        try:
            async for part in request.stream():
                body += part
                self.bytes_arriving += len(part)
                if len(body) > LIMITS.body_bytes:
                    raise too_large()
                if self.bytes_arriving > MAX_BYTES_ARRIVING:
                    raise no_capacity()
        finally:
            self.bytes_arriving -= len(body)
        return bytes(body)

    async def read(self, request: Request) -> Any:
        """The decoded body. Raises ContractError if it is missing, too large, in an unknown encoding or not JSON."""
        body = await self.receive(request)
        if not body:
            raise ContractError("AiError: Request is missing headers or body: body", MISSING_BODY, 400)
        text = decompressed(body, request.headers.get("content-encoding", ""))
        try:
            return msgspec.json.decode(text.removeprefix(codecs.BOM_UTF8))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise bad_input(f"the body is not JSON: {' '.join(str(error).split())[:200]}") from None


def decompressed(body: bytes, encoding: str) -> bytes:
    """The decompressed body. Raises ContractError if the encoding is unknown or wrong, or the result is too large."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip"):
        message = f"the content encoding {encoding[:100]!r} is not supported; send gzip, or JSON without an encoding"
        raise ContractError(f"AiError: Bad input: {message}", BAD_INPUT, 415)
    unzip = zlib.decompressobj(GZIP)
    try:
        text = unzip.decompress(body, LIMITS.body_bytes + 1)
    except zlib.error:
        raise bad_input("the content encoding is gzip, but the body is not in that format") from None
    if len(text) > LIMITS.body_bytes:
        raise too_large()
    if not unzip.eof or unzip.unused_data:
        raise bad_input("the body is not one complete gzip stream")
    return text


def too_large() -> ContractError:
    message = f"AiError: Request is too large: more than {LIMITS.body_bytes:,} bytes"
    return ContractError(message, TOO_LARGE, 413)
