"""The format of the route that a Worker's AI binding calls, `POST /run`: the inputs stand in "inputs"."""

from typing import Any

from llama3.api_format import ApiFormat, Llama
from llama3.errors import ContractError
from llama3.workers_ai import Stream, chunks, error_chunk, result, validate_and_start
from llama3.workers_ai_input import bad_input


def start_from_binding(llama: Llama, body: Any) -> tuple[Stream, dict[str, Any]]:
    if not isinstance(body, dict) or "inputs" not in body:
        raise bad_input("required properties at '/' are 'inputs'")
    return validate_and_start(llama, body["inputs"])


def binding_error_body(error: ContractError) -> dict[str, Any]:
    """An error in the form that a Worker's `env.AI.run` reads."""
    message = str(error)
    description = message.removeprefix("AiError: ").removeprefix("Bad input: ")
    fields = {"internalCode": error.code, "httpCode": error.status, "name": "AiError"}
    return {**fields, "message": message, "description": description}


BINDING = ApiFormat(start_from_binding, result, chunks, error_chunk, dict, binding_error_body)
