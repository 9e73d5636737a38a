"""What an API is made of, whatever carries it: how its requests are read and its answers written, as plain objects.

`REST` is the format of Workers AI's own route. OpenAI's formats are in `openai_api/`. The server sends them over HTTP,
and `batch_request.py` writes them to a file.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from llama3 import workers_ai
from llama3.checkpoint import Checkpoint
from llama3.errors import ContractError
from llama3.tokenizer import Tokenizer
from llama3.workers_ai import chunks, error_chunk, result, validate_and_start


class Llama(workers_ai.Llama, Protocol):
    """A loaded model: the part of `llama3.Llama` that all formats use."""

    checkpoint: Checkpoint
    tokenizer: Tokenizer | None

    def _forward(
        self, ids: list[int], lora: str | None, keep: Callable[[int, np.ndarray], None] | None = None
    ) -> Any: ...


@dataclass(frozen=True)
class ApiFormat:
    """How the requests of one kind of client are read, and how they are answered.

    `start` returns the generation: a `Stream`, or an object with a stream's finish_reason, usage and `close`. The dict
    beside it holds the validated parameters of the request. `result` and `chunks` take both.
    """

    start: Callable[[Llama, Any], tuple[Any, dict[str, Any]]]  # request body -> generation; raises ContractError
    result: Callable[[Any, dict[str, Any]], dict[str, Any]]  # the whole answer
    chunks: Callable[[Any, dict[str, Any]], Iterator[dict[str, Any]]]  # the answer in chunks, while it is generated
    error_chunk: Callable[[ContractError], dict[str, Any]]  # the last chunk of an answer that an error has ended
    body: Callable[[dict[str, Any]], dict[str, Any]]  # result -> the body of the response
    error_body: Callable[[ContractError], dict[str, Any]]
    named_events: bool = False  # a chunk's "type" is the name of its event, and no [DONE] follows the last one


def envelope(result: Any) -> dict[str, Any]:
    """Cloudflare's envelope around a result."""
    return {"result": result, "success": True, "errors": [], "messages": []}


def error_envelope(message: str, code: int, result: Any) -> dict[str, Any]:
    """Cloudflare's envelope around an error. The result is {} for an error of the model, else null."""
    return {"errors": [{"message": message, "code": code}], "success": False, "result": result, "messages": []}


def rest_error_body(error: ContractError) -> dict[str, Any]:
    return error_envelope(str(error), error.code, {})


REST = ApiFormat(validate_and_start, result, chunks, error_chunk, envelope, rest_error_body)
