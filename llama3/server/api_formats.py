"""The request and response formats of an API, and those of Workers AI's two routes: REST and a Worker's binding.

OpenAI's formats are in `chat_completions.py` and `completions.py`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from llama3.errors import ContractError
from llama3.llama import Llama
from llama3.server.responses import JsonResponse, binding_error, rest_error, success_response
from llama3.workers_ai import Stream, chunks, error_chunk, result, validate_and_start
from llama3.workers_ai_input import bad_input


@dataclass(frozen=True)
class ApiFormat:
    """How the requests of one kind of client are read, and how they are answered.

    `start` returns the generation: a `Stream`, or an object with a stream's finish_reason, usage and `close`. The dict
    beside it holds the validated parameters of the request. The other functions take both.
    """

    start: Callable[[Llama, Any], tuple[Any, dict[str, Any]]]  # request body -> generation; raises ContractError
    result: Callable[[Any, dict[str, Any]], dict[str, Any]]  # the whole answer
    chunks: Callable[[Any, dict[str, Any]], Iterator[dict[str, Any]]]  # the answer in chunks, while it is generated
    error_chunk: Callable[[ContractError], dict[str, Any]]  # the last chunk of an answer that an error has ended
    response: Callable[[dict[str, Any]], JsonResponse]  # result -> response
    error_response: Callable[[ContractError], Response]
    named_events: bool = False  # a chunk's "type" is the name of its event, and no [DONE] follows the last one


def start_from_binding(llama: Llama, body: Any) -> tuple[Stream, dict[str, Any]]:
    if not isinstance(body, dict) or "inputs" not in body:
        raise bad_input("required properties at '/' are 'inputs'")
    return validate_and_start(llama, body["inputs"])


REST = ApiFormat(validate_and_start, result, chunks, error_chunk, success_response, rest_error)
BINDING = ApiFormat(start_from_binding, result, chunks, error_chunk, JsonResponse, binding_error)
