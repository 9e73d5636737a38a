"""The contract of Cloudflare Workers AI's `@hf/meta-llama/meta-llama-3-8b-instruct`: its input and output objects.

    run(llama, {"prompt": "What is RoPE?"})            -> {"response": ..., "tool_calls": [], "usage": {...}}
    run(llama, {"messages": [...], "stream": True})    -> an iterator of {"response": ..., "p": ...}; the last has usage

There is no HTTP here: `llama3.server` adds it. Wrong input raises ContractError, with the service's error code and a
message that names the path of the wrong value. Keys that the contract does not name are ignored.
"""

import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from llama3.chat import Message
from llama3.completion import Completion, Piece, Usage
from llama3.config import ModelConfig
from llama3.engine import MAX_TOKENS, FinishReason
from llama3.errors import ContractError, GrammarError, RequestError
from llama3.json_text import read_json
from llama3.limits import LIMITS
from llama3.tools import prepare, read_calls, read_tools

BAD_INPUT, CONTEXT_EXCEEDED, JSON_MODE_FAILED, INTERNAL_ERROR = 5006, 5021, 5024, 3043  # the service's codes
PADDING_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"

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


class Stream(Protocol):
    """An answer while it is generated: the part of `llama3.Stream` that the contract and the server use."""

    seed: int

    @property
    def finish_reason(self) -> FinishReason | None: ...
    @property
    def usage(self) -> Usage: ...
    def __iter__(self) -> Iterator[Piece]: ...
    def completion(self) -> Completion: ...
    def close(self) -> None: ...


class Llama(Protocol):
    """A loaded model: the part of `llama3.Llama` that the contract uses."""

    @property
    def adapters(self) -> tuple[str, ...]: ...
    @property
    def config(self) -> ModelConfig: ...
    def encode(self, text: str) -> list[int]: ...
    def encode_chat(self, messages: Sequence[Message]) -> list[int]: ...
    def stream(self, prompt: Sequence[int], **parameters: Any) -> Stream: ...


def run(llama: Llama, inputs: Any) -> dict[str, Any] | Iterator[dict[str, Any]]:
    """Answer one request: the result or, with "stream", an iterator of chunks.

    Raises ContractError for wrong inputs, before the first token is generated. The iterator itself raises nothing: an
    error that ends the answer is its last chunk.
    """
    stream, parameters = validate_and_start(llama, inputs)
    return chunks(stream, parameters) if parameters.get("stream") else result(stream, parameters)


def validate_and_start(llama: Llama, inputs: Any) -> tuple[Stream, dict[str, Any]]:
    """The first half of `run` -> (stream, parameters), for `chunks` or `result`. Raises ContractError."""
    parameters = validate(inputs)
    return start_generation(llama, parameters), parameters


# ---- validation of the inputs ----


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
        json_type(message) == "object" and all(json_type(message.get(name)) == "string" for name in ("role", "content"))
        for message in value
    )


def check_messages(messages: Any) -> list[dict[str, str]]:
    check_type("/messages", messages, "array")
    if not messages:
        raise bad_input("'/messages' must not be empty")
    if len(messages) > LIMITS.messages:
        raise bad_input(f"'/messages' must not have more than {LIMITS.messages} items")
    out = []
    for i, message in enumerate(messages):
        path = f"/messages/{i}"
        check_type(path, message, "object")
        missing = [name for name in ("role", "content") if name not in message]
        if missing:
            raise bad_input(f"required properties at '{path}' are 'role,content'")
        role, content = (check_type(f"{path}/{name}", message[name], "string") for name in ("role", "content"))
        if not role:
            raise bad_input(f"'{path}/role' must not be shorter than 1 character")
        out.append({"role": role, "content": content})
    return out


def check_tools(tools: Any) -> list[dict[str, Any]]:
    """Tools, flat or in OpenAI's envelope. The page's schema is stricter than what real frameworks send."""
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
    """The JSON Schema that a response_format asks for, bare or in OpenAI's envelope {"name", "schema", "strict"}."""
    path = "/response_format"
    check_type(path, response_format, "object")
    if "type" not in response_format:
        raise bad_input(f"required properties at '{path}' are 'type'")
    mode = check_type(f"{path}/type", response_format["type"], "string")
    if mode not in JSON_MODES:
        raise bad_input(f"'{path}/type' must be one of 'json_object', 'json_schema'")
    if mode == "json_object":
        return {"type": "object"}
    if "json_schema" not in response_format:
        raise bad_input(f"required properties at '{path}' are 'json_schema'")
    schema: Mapping[str, Any] = check_type(f"{path}/json_schema", response_format["json_schema"], "object")
    if "schema" in schema and "name" in schema:
        schema = check_type(f"{path}/json_schema/schema", schema["schema"], "object")
    return schema


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


# ---- errors, in the service's words ----


def type_mismatch(path: str, found: str, expected: str) -> ContractError:
    return bad_input(f"Type mismatch of '{path}', '{found}' not in '{expected}'")


def bad_input(why: str) -> ContractError:
    return ContractError(f"AiError: Bad input: Error: {why}", BAD_INPUT, 400)


def json_mode_failed(why: object) -> ContractError:
    return ContractError(f"AiError: JSON Mode couldn't be met: {why}", JSON_MODE_FAILED, 400)


def to_contract_error(error: Exception) -> ContractError:
    """The error of the service for an exception during generation.

    A GrammarError, from a schema that cannot be satisfied, is a failure of JSON mode. All others are internal errors.
    """
    if isinstance(error, ContractError):
        return error
    if isinstance(error, GrammarError):
        return json_mode_failed(error)
    return ContractError(f"AiError: {' '.join(str(error).split())}", INTERNAL_ERROR, 500)


# ---- generation ----


def start_generation(llama: Llama, parameters: Mapping[str, Any], tool_choice: str = "auto", **more: Any) -> Stream:
    """Encode the prompt and start to generate the answer to it.

    parameters: from `validate`. tool_choice: see `llama3.tools.prepare`. more: further arguments of `Llama.stream`
    that the contract does not have. Raises ContractError.
    """
    lora = parameters.get("lora")
    if lora is not None and lora not in llama.adapters:
        raise bad_input(f"'/lora' names the adapter {lora[:100]!r}; loaded: {', '.join(llama.adapters) or 'none'}")
    max_tokens, window = parameters.get("max_tokens", MAX_TOKENS), llama.config.max_seq_len
    sampling = {name: parameters[name] for name in NUMBERS if name in parameters and name != "max_tokens"}
    try:
        ids, grammar = encode_prompt(llama, parameters, tool_choice)
        if len(ids) + max_tokens > window:
            raise ContractError(
                f"AiError: Ai: The estimated number of input and maximum output tokens ({len(ids) + max_tokens}) "
                f"exceeded this model context window limit ({window}).",
                CONTEXT_EXCEEDED,
                413,
            )
        schema = parameters.get("response_format")
        return llama.stream(
            ids, max_tokens=max_tokens, json_schema=schema, grammar=grammar, lora=lora, **sampling, **more
        )
    except ContractError:
        raise
    except RequestError as error:
        raise bad_input(str(error)) from error


def encode_prompt(llama: Llama, parameters: Mapping[str, Any], tool_choice: str) -> tuple[list[int], str | None]:
    """The token ids of the prompt, and the grammar that the tools demand of the answer, if there are any.

    The prompt goes through the chat template or, with "raw", is encoded as it stands.
    """
    tools, json_mode, grammar = parameters.get("tools"), "response_format" in parameters, None
    messages = dialog = parameters.get("messages") or [{"role": "user", "content": parameters["prompt"]}]
    if tools and json_mode:
        dialog, _ = prepare(tools, messages)  # no grammar: the answer is the JSON that was asked for, never a call
    elif tools:
        dialog, grammar = prepare(tools, messages, tool_choice)
    if parameters.get("raw"):
        return llama.encode("".join(message["content"] for message in messages)), grammar
    return llama.encode_chat(dialog), grammar


# ---- the answer ----


def result(stream: Stream, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The whole answer as the service's output object. Raises ContractError if JSON mode could not be met."""
    try:
        answer = stream.completion()
    except GrammarError as error:
        raise json_mode_failed(error) from error
    calls = check_answer(answer.text, answer.finish_reason, parameters)
    return {"response": "" if calls else answer.text, "tool_calls": calls, "usage": usage_object(answer.usage)}


def chunks(stream: Stream, parameters: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One chunk for each piece of text, then one with the usage or, if the answer ended badly, with the errors.

    Tool calls are not text: they come whole, in the last chunk.
    """
    text = ""
    try:
        for piece in stream:
            text += piece.text
            if piece.text and not (may_call_tools(parameters) and text.startswith("{")):
                yield {"response": piece.text, "p": padding()}
        calls = check_answer(text, stream.finish_reason, parameters)
    except Exception as error:
        yield error_chunk(to_contract_error(error))
    else:
        tool_calls = {"tool_calls": calls} if parameters.get("tools") else {}
        yield {"response": "", **tool_calls, "usage": usage_object(stream.usage)}
    finally:
        stream.close()


def error_chunk(error: ContractError) -> dict[str, Any]:
    return {"response": "", "errors": [{"message": str(error), "code": error.code}]}


def may_call_tools(parameters: Mapping[str, Any]) -> bool:
    return bool(parameters.get("tools")) and "response_format" not in parameters


def check_answer(text: str, finish_reason: str | None, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tool calls in an answer; empty for text and for JSON.

    Raises ContractError for JSON or tool calls that were cut short, or that hold a number too large for a float64.
    """
    is_calls = may_call_tools(parameters) and text.startswith("{")
    if not is_calls and "response_format" not in parameters:
        return []
    try:
        if finish_reason != "stop":
            raise ValueError("max_tokens cut it short")
        if is_calls:
            return [{"name": call.name, "arguments": call.arguments} for call in read_calls(text)]
        read_json(text)
        return []
    except ValueError as error:
        raise json_mode_failed(error) from error


def usage_object(usage: Usage) -> dict[str, int]:
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {name: getattr(usage, name) for name in names}


def padding(draw: Callable[[int], int] = secrets.randbelow) -> str:
    """The chunk's "p": text of a random length, so that the size of an encrypted chunk does not reveal its token's."""
    return PADDING_CHARACTERS[: 1 + draw(len(PADDING_CHARACTERS))]
