"""Parts that the answers of all of OpenAI's routes share: ids, headers, usage, tool calls, logprobs and errors."""

import json
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import uuid4

from llama3.api_format import rest_error_body
from llama3.completion import Piece, Usage
from llama3.errors import ContractError
from llama3.tokenizer import Tokenizer
from llama3.tools import Call, read_calls
from llama3.workers_ai import Stream, may_call_tools
from llama3.workers_ai_input import json_mode_failed

PARAMETER = re.compile(r"'(/[^' ]+)'")  # the path of a wrong value in Workers AI's messages


def new_id(prefix: str) -> str:
    """A unique identifier with this prefix."""
    return prefix + uuid4().hex


def object_header(parameters: Mapping[str, Any], kind: str, prefix: str) -> dict[str, Any]:
    """The fields with which every object of an answer begins."""
    return {"id": new_id(prefix), "object": kind, "created": int(time.time()), "model": parameters["model"]}


def last_chunks(
    header: Mapping[str, Any], chunk: dict[str, Any], usage: Usage, seed: int, parameters: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """The last chunk, with the usage and the seed. A client that asks for the usage gets it in a chunk of its own."""
    if parameters["include_usage"]:
        yield {**chunk, "seed": seed}
        yield {**header, "choices": [], "usage": usage.as_dict()}
    else:
        yield {**chunk, "usage": usage.as_dict(), "seed": seed}


def openai_error(message: str, code: int, status: int) -> dict[str, Any]:
    """The object that OpenAI's clients raise an exception for. Its "param" is the parameter that the message names."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = "server_error" if status >= 500 else kinds.get(status, "invalid_request_error")
    named = PARAMETER.search(message)
    param = re.sub(r"\.(\d+)", r"[\1]", named[1][1:].replace("/", ".")) if named else None  # /a/0/b -> a[0].b
    return {"message": message, "type": kind, "code": code, "param": param}


def error_body(error: ContractError) -> dict[str, Any]:
    """OpenAI's "error" object, the only one that its clients read, and beside it the envelope of the other routes."""
    return {"error": openai_error(str(error), error.code, error.status), **rest_error_body(error)}


def error_chunk(error: ContractError) -> dict[str, Any]:
    """A chunk that reports an error. Its "errors" are those of the other routes; OpenAI's clients raise its "error".

    Without "error", they would take a text that an error has cut off for a complete one.
    """
    errors = [{"message": str(error), "code": error.code}]
    return {"choices": [], "errors": errors, "error": openai_error(str(error), error.code, error.status)}


def tool_calls(text: str, stream: Stream, parameters: Mapping[str, Any]) -> list[Call]:
    """The tool calls in the answer; empty for plain text.

    Calls that max_tokens or a stop string has cut short count as text. Raises ContractError for calls that cannot be
    read.
    """
    if not may_call_tools(parameters) or stream.finish_reason != "stop":
        return []
    try:
        return read_calls(text)
    except ValueError as error:
        if parameters["stop"]:
            return []
        raise json_mode_failed(error) from error


def arguments_text(call: Call) -> str:
    return json.dumps(call.arguments, ensure_ascii=False)


def token_bytes(tokenizer: Tokenizer, token: int) -> bytes:
    """The bytes of a token. The embedding may have padding rows; their ids have no bytes."""
    return tokenizer.token_bytes(token) if token in tokenizer else b""


def logprob_objects(parameters: Mapping[str, Any], piece: Piece) -> list[dict[str, Any]]:
    """One token with its log-probability and its alternatives; empty for a stop token, which is not part of the text.

    A token that the grammar forced has the log-probability 0, since no other was possible.
    """
    if piece.token in parameters["stop_ids"]:
        return []

    def token_object(token: int, logprob: float | None) -> dict[str, Any]:
        raw = token_bytes(parameters["tokenizer"], token)
        return {"token": raw.decode("utf-8", "replace"), "logprob": logprob or 0.0, "bytes": list(raw)}

    alternatives = [token_object(token, logprob) for token, logprob in piece.top_logprobs]
    return [{**token_object(piece.token, piece.logprob), "top_logprobs": alternatives}]
