"""The input object of Cloudflare Workers AI's `@hf/meta-llama/meta-llama-3-8b-instruct`: what it may hold.

`validate` checks a request; `workers_ai.py` answers it. Wrong input raises ContractError, with Workers AI's error code
and a message that names the path of the wrong value. Keys that the contract does not name are ignored.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from llama3.errors import ContractError, GrammarError, RequestError
from llama3.limits import LIMITS
from llama3.schema_check import looks_like_schema
from llama3.tools import read_tools, render_message

BAD_INPUT, CONTEXT_EXCEEDED, JSON_MODE_FAILED, INTERNAL_ERROR = 5006, 5021, 5024, 3043  # Cloudflare's error codes

# Each numeric parameter: whether it must be a whole number, its minimum and its maximum.
NUMBERS: dict[str, tuple[bool, float, float]] = {
    "max_tokens": (True, 1, math.inf),
    "temperature": (False, 0, 5),
    "top_p": (False, 0.001, 1),
    "top_k": (True, 1, 50),
    "seed": (True, 1, 9_999_999_999),
    "repetition_penalty": (False, 0, 2),  # 0 means off, the same as 1
    "frequency_penalty": (False, -2, 2),
    "presence_penalty": (False, -2, 2),
}
BOOLEANS = ("raw", "stream")
JSON_MODES = ("json_object", "json_schema")
ENVELOPE = {"name", "description", "strict", "schema"}  # OpenAI's keys around a JSON Schema


def validate(inputs: Any) -> dict[str, Any]:
    """The inputs that the contract names, checked and normalised: the parameters of the request.

    "tools" and "functions" become one list, "tools". "response_format" becomes the JSON Schema that it asks for.
    Raises ContractError.
    """
    check_type("/", inputs, "object")
    parameters: dict[str, Any] = {}
    if is_prompt_request(inputs):
        parameters["prompt"] = check_type("/prompt", inputs["prompt"], "string")
        if not parameters["prompt"]:
            raise bad_input("'/prompt' must not be shorter than 1 character")
    else:
        parameters["messages"] = check_messages(inputs["messages"])
        parameters["tools"] = [*check_tools(inputs.get("tools")), *check_functions(inputs.get("functions"))]
    for name, (whole, low, high) in NUMBERS.items():
        if name in inputs:
            parameters[name] = check_number(f"/{name}", inputs[name], whole, low, high)
    for name in BOOLEANS:
        if name in inputs:
            parameters[name] = check_type(f"/{name}", inputs[name], "boolean")
    if "response_format" in inputs:
        parameters["response_format"] = check_response_format(inputs["response_format"])
    if "lora" in inputs:
        parameters["lora"] = check_type("/lora", inputs["lora"], "string")
    return parameters


def is_prompt_request(inputs: Mapping[str, Any]) -> bool:
    """True for a request by "prompt", False for one by "messages". Raises ContractError for neither or both.

    If both keys are present but only one of them has a value of the right kind, the other is ignored.
    """
    both = "prompt" in inputs and "messages" in inputs
    if both:
        is_prompt = json_type(inputs["prompt"]) == "string" and inputs["prompt"] != ""
        if is_prompt != is_message_list(inputs["messages"]):
            return is_prompt
        both = is_prompt
    elif "prompt" in inputs or "messages" in inputs:
        return "prompt" in inputs
    missing = "0 matches: required properties at '/' are 'prompt', required properties at '/' are 'messages'"
    matches = "2 matches: 'prompt' and 'messages' exclude one another"
    raise bad_input(f"oneOf at '/' not met, {matches if both else missing}")


def is_message_list(value: Any) -> bool:
    return json_type(value) == "array" and all(
        json_type(message) == "object"
        and json_type(message.get("role")) == "string"
        and (json_type(message.get("content")) == "string" or (message.get("content") is None and has_calls(message)))
        for message in value
    )


def has_calls(message: Mapping[str, Any]) -> bool:
    return message.get("role") == "assistant" and bool(message.get("tool_calls"))


def check_messages(messages: Any) -> list[dict[str, str]]:
    """The messages as {"role", "content"}, with the tool calls written into the content."""
    check_type("/messages", messages, "array")
    if not messages:
        raise bad_input("'/messages' must not be empty")
    if len(messages) > LIMITS.messages:
        raise bad_input(f"'/messages' must not have more than {LIMITS.messages} items")
    out = []
    for i, message in enumerate(messages):
        path = f"/messages/{i}"
        check_type(path, message, "object")
        if has_calls(message) and message.get("content") is None:
            message = {**message, "content": ""}
        if not {"role", "content"} <= message.keys():
            raise bad_input(f"required properties at '{path}' are 'role,content'")
        for name in ("role", "content"):
            check_type(f"{path}/{name}", message[name], "string")
        if not message["role"]:
            raise bad_input(f"'{path}/role' must not be shorter than 1 character")
        try:
            out.append(render_message(message))
        except RequestError as error:
            raise bad_input(f"'{path}': {error}") from error
    return out


def check_tools(tools: Any) -> list[dict[str, Any]]:
    """Tools, flat or in OpenAI's envelope. Cloudflare's published schema would refuse tools of real frameworks."""
    if tools is None:
        return []
    check_type("/tools", tools, "array")
    for i, tool in enumerate(tools):
        check_type(f"/tools/{i}", tool, "object")
    try:
        return read_tools(tools)
    except RequestError as error:
        raise bad_input(f"'/tools': {error}") from error


def check_functions(functions: Any) -> list[dict[str, Any]]:
    """Functions as tools without a description or a schema of their arguments. Their code is never run or read."""
    if functions is None:
        return []
    check_type("/functions", functions, "array")
    out = []
    for i, function in enumerate(functions):
        check_type(f"/functions/{i}", function, "object")
        for name in ("name", "code"):
            if name not in function:
                raise bad_input(f"required properties at '/functions/{i}' are 'name,code'")
            check_type(f"/functions/{i}/{name}", function[name], "string")
        out.append({"name": function["name"]})
    try:
        return read_tools(out)
    except RequestError as error:
        raise bad_input(f"'/functions': {error}") from error


def check_number(path: str, value: Any, whole: bool, low: float, high: float) -> float:
    expected = "integer" if whole else "number"
    if json_type(value) not in ("integer", "number") or (whole and value != value // 1):
        raise type_mismatch(path, json_type(value), expected)
    if not value >= low:  # true for NaN, too
        raise bad_input(f"'{path}' must be >= {low}")
    if not value <= high or value == math.inf:
        raise bad_input(f"'{path}' must be <= {high}")
    return int(value) if whole else float(value)


def check_response_format(response_format: Any) -> Mapping[str, Any]:
    """The JSON Schema that a response_format asks for. Without one, {"type": "object"}: any JSON object.

    The schema is in "json_schema", or in "schema" as in llama.cpp and OpenAI's Responses API. Either key may hold the
    bare schema or OpenAI's envelope around it. An unknown envelope is refused, because its schema would be ignored.
    """
    path = "/response_format"
    check_type(path, response_format, "object")
    if "type" not in response_format:
        raise bad_input(f"required properties at '{path}' are 'type'")
    mode = check_type(f"{path}/type", response_format["type"], "string")
    if mode not in JSON_MODES:
        raise bad_input(f"'{path}/type' must be one of 'json_object', 'json_schema'")
    check_keys(path, response_format, {"type", "json_schema", *ENVELOPE})
    if "json_schema" in response_format and "schema" in response_format:
        raise bad_input(f"'{path}' has a 'json_schema' and a 'schema'; expected one of them")
    for name in ("json_schema", "schema"):
        if name in response_format:
            return schema_inside(f"{path}/{name}", response_format[name])
    return {"type": "object"}


def schema_inside(path: str, value: Any) -> Mapping[str, Any]:
    """The JSON Schema in an envelope, or the value itself if it is a bare schema.

    The envelope is {"name", "description", "strict", "schema"}. Any of these keys may be missing. Without "schema", the
    result is {"type": "object"}.
    """
    schema: Mapping[str, Any] = check_type(path, value, "object")
    if "schema" in schema:
        check_keys(path, schema, ENVELOPE)
        path, schema = f"{path}/schema", check_type(f"{path}/schema", schema["schema"], "object")
    elif schema and schema.keys() <= ENVELOPE:
        return {"type": "object"}
    if not looks_like_schema(schema):
        raise bad_input(f"'{path}' is no JSON Schema: it has the keys {some_keys(schema)}, and no keyword with a rule")
    return schema


def check_keys(path: str, value: Mapping[str, Any], known: set[str]) -> None:
    if unknown := [key for key in value if key not in known]:
        raise bad_input(f"'{path}' has the unknown key {some_keys(unknown)}; expected {', '.join(sorted(known))}")


def some_keys(keys: Iterable[Any]) -> str:
    return ", ".join(repr(key)[:40] for key in list(keys)[:5])


def check_type(path: str, value: Any, expected: str) -> Any:
    """The value, if it has this JSON type. Raises ContractError."""
    if json_type(value) != expected:
        raise type_mismatch(path, json_type(value), expected)
    return value


def json_type(value: Any) -> str:
    """The name that JSON Schema gives the value's type; Python's name for a type that JSON does not have."""
    if value is None:
        return "null"
    kinds: dict[type | tuple[type, ...], str] = {
        bool: "boolean",  # before int, which is its base class
        int: "integer",
        float: "number",
        str: "string",
        (list, tuple): "array",
        Mapping: "object",
    }
    return next((name for kind, name in kinds.items() if isinstance(value, kind)), repr(type(value)))


# ---- errors, in Workers AI's words ----


def type_mismatch(path: str, found: str, expected: str) -> ContractError:
    return bad_input(f"Type mismatch of '{path}', '{found}' not in '{expected}'")


def bad_input(why: str) -> ContractError:
    return ContractError(f"AiError: Bad input: Error: {why}", BAD_INPUT, 400)


def json_mode_failed(why: object) -> ContractError:
    return ContractError(f"AiError: JSON Mode couldn't be met: {why}", JSON_MODE_FAILED, 400)


def to_contract_error(error: Exception) -> ContractError:
    """The error that Workers AI would return for an exception during generation.

    A GrammarError, from a schema that cannot be satisfied, is a failure of JSON mode. All others are internal errors.
    """
    if isinstance(error, ContractError):
        return error
    if isinstance(error, GrammarError):
        return json_mode_failed(error)
    return ContractError(f"AiError: {' '.join(str(error).split())}", INTERNAL_ERROR, 500)
