"""Receive a request whole, within the limits, and put a seed into it."""

import asyncio
import codecs
import secrets
from typing import Any

import msgspec
from starlette.requests import Request

from llama3.api_format import REST, ApiFormat
from llama3.errors import ContractError
from llama3.limits import LIMITS
from llama3.openai_api.chat_completions import CHAT_COMPLETIONS
from llama3.openai_api.responses import RESPONSES
from llama3.ray.affinity import keys_of
from llama3.ray.replica import Ask, Headers
from llama3.server.auth import BINDING_RUN
from llama3.server.binding import BINDING
from llama3.server.body import BodyReader, decompressed
from llama3.server.responses import OPENAI_PATH
from llama3.server.timeouts import INVALID_REQUEST, TOO_SLOW

MOST_SEED = 9_999_999_999  # that the hosted model takes


def api_format(path: str) -> ApiFormat:
    """The format in which this path reports errors."""
    if path in BINDING_RUN:
        return BINDING
    if OPENAI_PATH.match(path):
        return RESPONSES if path.endswith("/responses") else CHAT_COMPLETIONS
    return REST


async def receive_whole(request: Request, bodies: BodyReader) -> Ask:
    """Raises ContractError for a request that is too large, or does not arrive in time; ClientDisconnect."""
    scope = request.scope
    headers: Headers = list(scope["headers"])
    if sum(len(name) + len(value) + 4 for name, value in headers) + len(scope["query_string"]) > LIMITS.header_bytes:
        msg = f"the headers have more than {LIMITS.header_bytes:,} bytes; --limit header_bytes=N allows N"
        raise ContractError(msg, INVALID_REQUEST, 431)
    try:
        body = await asyncio.wait_for(bodies.receive(request), LIMITS.seconds)
    except TimeoutError:
        msg = f"the request did not arrive within {LIMITS.seconds} s; --limit seconds=N allows N"
        raise ContractError(msg, TOO_SLOW, 408) from None
    raw_path = scope.get("raw_path") or scope["path"].encode()
    ask = Ask(scope["method"], scope["path"], raw_path, scope["query_string"], headers, body)
    given = decoded(request, body)
    ask.keys = keys_of(headers, given)
    if with_seed(given, scope["path"]):
        ask.body = msgspec.json.encode(given)
        ask.headers = [(name, value) for name, value in headers if name != b"content-encoding"]
    return ask


def decoded(request: Request, body: bytes) -> Any:
    """The JSON of a body; None if there is none. What is wrong with it is for the replica to say."""
    try:
        text = decompressed(body, request.headers.get("content-encoding", ""))
        return msgspec.json.decode(text.removeprefix(codecs.BOM_UTF8))
    except (ContractError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def with_seed(given: Any, path: str) -> bool:
    """Put a seed into a request for a stream that has none -> whether this was one.

    Another replica can then generate the same text again. OpenAI's routes take null for no seed.
    """
    inputs = given.get("inputs") if isinstance(given, dict) and path in BINDING_RUN else given
    if not isinstance(inputs, dict) or inputs.get("stream") is not True:
        return False
    if "seed" in inputs and not (inputs["seed"] is None and OPENAI_PATH.match(path)):
        return False
    inputs["seed"] = 1 + secrets.randbelow(MOST_SEED)
    return True
