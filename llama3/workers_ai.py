"""The contract of Cloudflare Workers AI's `@hf/meta-llama/meta-llama-3-8b-instruct`: its input object and its output.

    run(llama, {"prompt": "What is RoPE?"})            -> {"response": ..., "tool_calls": [], "usage": {...}}
    run(llama, {"messages": [...], "stream": True})    -> an iterator of {"response": ..., "p": ...}; usage in the last

No HTTP is in it: a server adds that. A breach of the contract is one ContractError, with the code of the service and
the path of what is wrong. Keys that the contract does not name are not looked at.
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

BAD_INPUT, TOO_LONG, NO_JSON, INTERNAL = 5006, 5021, 5024, 3043  # the service's codes
PADDING = "abcdefghijklmnopqrstuvwxyz0123456789"

# Of each number: whether it is a whole one, its least and its largest value.
NUMBERS: dict[str, tuple[bool, float, float]] = {
    "max_tokens": (True, 1, math.inf),
    "temperature": (False, 0, 5),
    "top_p": (False, 0.001, 1),
    "top_k": (True, 1, 50),
    "seed": (True, 1, 9_999_999_999),
    "repetition_penalty": (False, 0, 2),  # 0 is off, the same as 1
    "frequency_penalty": (False, -2, 2),
    "presence_penalty": (False, -2, 2),
}
SWITCHES = ("raw", "stream")
JSON_MODES = ("json_object", "json_schema")


class Stream(Protocol):
    """An answer as it is generated: what the contract and the server need of `llama3.Stream`."""

    seed: int

    @property
    def finish_reason(self) -> FinishReason | None: ...
    @property
    def usage(self) -> Usage: ...
    def __iter__(self) -> Iterator[Piece]: ...
    def completion(self) -> Completion: ...
    def close(self) -> None: ...


class Llama(Protocol):
    """A loaded model: what the contract needs of `llama3.Llama`."""

    @property
    def adapters(self) -> tuple[str, ...]: ...
    @property
    def config(self) -> ModelConfig: ...
    def encode(self, text: str) -> list[int]: ...
    def encode_chat(self, messages: Sequence[Message]) -> list[int]: ...
    def stream(self, prompt: Sequence[int], **parameters: Any) -> Stream: ...


def run(llama: Llama, inputs: Any) -> dict[str, Any] | Iterator[dict[str, Any]]:
    """One request -> its result or, with "stream", an iterator of chunks, which raises nothing: an error is a chunk.

    Raises ContractError before the first token for whatever is wrong with the inputs.
    """
    stream, given = begin(llama, inputs)
    return chunks(stream, given) if given.get("stream") else result(stream, given)


def begin(llama: Llama, inputs: Any) -> tuple[Stream, dict[str, Any]]:
    """`run` up to the first token: the answer to be, for `chunks` or `result`, and what was asked for."""
    given = validate(inputs)
    try:
        return start(llama, given), given
    except ContractError:
        raise
    except RequestError as error:
        raise bad_input(str(error)) from error


# ---- the inputs ----


def validate(inputs: Any) -> dict[str, Any]:
    """What the contract names of the inputs, each as it should be. Raises ContractError."""
    check_type("/", inputs, "object")
    given: dict[str, Any] = {}
    if asks_by_prompt(inputs):
        given["prompt"] = check_type("/prompt", inputs["prompt"], "string")
        if not given["prompt"]:
            raise bad_input("'/prompt' must not be shorter than 1 character")
    else:
        given["messages"] = messages_of(inputs["messages"])
        given["tools"] = [*tools_of(inputs.get("tools")), *functions_of(inputs.get("functions"))]
    for name, (whole, low, high) in NUMBERS.items():
        if name in inputs:
            given[name] = number_of(f"/{name}", inputs[name], whole, low, high)
    for name in SWITCHES:
        if name in inputs:
            given[name] = check_type(f"/{name}", inputs[name], "boolean")
    if "response_format" in inputs:
        given["response_format"] = schema_of(inputs["response_format"])
    if "lora" in inputs:
        given["lora"] = check_type("/lora", inputs["lora"], "string")
    return given


def asks_by_prompt(inputs: Mapping[str, Any]) -> bool:
    """Or by messages: one of the two. Where both are there, one that could not be meant so does not count."""
    both = "prompt" in inputs and "messages" in inputs
    if both:
        is_prompt = kind_of(inputs["prompt"]) == "string" and inputs["prompt"] != ""
        is_messages = are_messages(inputs["messages"])
        if is_prompt != is_messages:
            return is_prompt
        both = is_prompt
    elif "prompt" in inputs or "messages" in inputs:
        return "prompt" in inputs
    missing = "0 matches: required properties at '/' are 'prompt', required properties at '/' are 'messages'"
    matches = "2 matches: 'prompt' and 'messages' exclude one another"
    raise bad_input(f"oneOf at '/' not met, {matches if both else missing}")


def are_messages(value: Any) -> bool:
    return kind_of(value) == "array" and all(
        kind_of(message) == "object" and all(kind_of(message.get(name)) == "string" for name in ("role", "content"))
        for message in value
    )


def messages_of(messages: Any) -> list[dict[str, str]]:
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


def tools_of(tools: Any) -> list[dict[str, Any]]:
    """Flat, or in OpenAI's envelope. More is let pass than the page's schema does: what real frameworks send."""
    if tools is None:
        return []
    check_type("/tools", tools, "array")
    for i, tool in enumerate(tools):
        check_type(f"/tools/{i}", tool, "object")
    try:
        return read_tools(tools)
    except RequestError as error:
        raise bad_input(f"'/tools': {error}") from error


def functions_of(functions: Any) -> list[dict[str, Any]]:
    """Offered as tools whose arguments nobody has described; the code is never run or read."""
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


def number_of(path: str, value: Any, whole: bool, low: float, high: float) -> float:
    expected = "integer" if whole else "number"
    if kind_of(value) not in ("integer", "number") or (whole and value != value // 1):
        raise mismatch(path, kind_of(value), expected)
    if not value >= low:  # NaN, too
        raise bad_input(f"'{path}' must be >= {low}")
    if not value <= high or value == math.inf:
        raise bad_input(f"'{path}' must be <= {high}")
    return int(value) if whole else float(value)


def schema_of(form: Any) -> Mapping[str, Any]:
    """The JSON Schema that a response_format asks for; bare, or in OpenAI's envelope {"name", "schema", "strict"}."""
    path = "/response_format"
    check_type(path, form, "object")
    if "type" not in form:
        raise bad_input(f"required properties at '{path}' are 'type'")
    mode = check_type(f"{path}/type", form["type"], "string")
    if mode not in JSON_MODES:
        raise bad_input(f"'{path}/type' must be one of 'json_object', 'json_schema'")
    if mode == "json_object":
        return {"type": "object"}
    if "json_schema" not in form:
        raise bad_input(f"required properties at '{path}' are 'json_schema'")
    schema: Mapping[str, Any] = check_type(f"{path}/json_schema", form["json_schema"], "object")
    if "schema" in schema and "name" in schema:
        schema = check_type(f"{path}/json_schema/schema", schema["schema"], "object")
    return schema


def check_type(path: str, value: Any, expected: str) -> Any:
    if kind_of(value) != expected:
        raise mismatch(path, kind_of(value), expected)
    return value


def kind_of(value: Any) -> str:
    """Its type's name in JSON Schema."""
    if value is None:
        return "null"
    kinds: dict[type | tuple[type, ...], str] = {
        bool: "boolean",
        int: "integer",
        float: "number",
        str: "string",
        (list, tuple): "array",
        Mapping: "object",
    }
    return next((name for kind, name in kinds.items() if isinstance(value, kind)), repr(type(value)))


def mismatch(path: str, found: str, expected: str) -> ContractError:
    return bad_input(f"Type mismatch of '{path}', '{found}' not in '{expected}'")


def bad_input(why: str) -> ContractError:
    return ContractError(f"AiError: Bad input: Error: {why}", BAD_INPUT, 400)


def no_json(why: object) -> ContractError:
    return ContractError(f"AiError: JSON Mode couldn't be met: {why}", NO_JSON, 400)


def failure(error: Exception) -> ContractError:
    """What has ended an answer, in the service's words: a schema that leads nowhere, or a step that failed."""
    if isinstance(error, ContractError):
        return error
    if isinstance(error, GrammarError):
        return no_json(error)
    return ContractError(f"AiError: {' '.join(str(error).split())}", INTERNAL, 500)


# ---- the answer ----


def start(llama: Llama, given: Mapping[str, Any], tool_choice: str = "auto", **more: Any) -> Stream:
    """The prompt as ids: through the chat template or, raw, as it stands; and the generation of the answer begun.

    more: what `Llama.stream` knows beside the contract.
    """
    lora = given.get("lora")
    if lora is not None and lora not in llama.adapters:
        raise bad_input(f"'/lora' names the adapter {lora[:100]!r}; loaded: {', '.join(llama.adapters) or 'none'}")
    tools, schema, grammar = given.get("tools"), given.get("response_format"), None
    messages = dialog = given.get("messages") or [{"role": "user", "content": given["prompt"]}]
    if tools and schema is None:
        dialog, grammar = prepare(tools, messages, tool_choice)
    elif tools:
        dialog, _ = prepare(tools, messages)  # JSON mode: the answer is that JSON, and no call
    if given.get("raw"):
        ids = llama.encode("".join(message["content"] for message in messages))
    else:
        ids = llama.encode_chat(dialog)
    max_tokens, window = given.get("max_tokens", MAX_TOKENS), llama.config.max_seq_len
    if len(ids) + max_tokens > window:
        raise ContractError(
            f"AiError: Ai: The estimated number of input and maximum output tokens ({len(ids) + max_tokens}) "
            f"exceeded this model context window limit ({window}).",
            TOO_LONG,
            413,
        )
    parameters = {name: given[name] for name in NUMBERS if name in given and name != "max_tokens"}
    return llama.stream(
        ids, max_tokens=max_tokens, json_schema=schema, grammar=grammar, lora=lora, **parameters, **more
    )


def result(stream: Stream, given: Mapping[str, Any]) -> dict[str, Any]:
    try:
        answer = stream.completion()
    except GrammarError as error:
        raise no_json(error) from error
    calls = finish(answer.text, answer.finish_reason, given)
    return {"response": "" if calls else answer.text, "tool_calls": calls, "usage": usage_of(answer.usage)}


def chunks(stream: Stream, given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A chunk for each piece of text, one with the usage at the end; if it ends badly, one with the errors instead.

    Calls of tools are no text: they come whole, in the last chunk.
    """
    text = ""
    try:
        for piece in stream:
            text += piece.text
            if piece.text and not (may_call(given) and text.startswith("{")):
                yield {"response": piece.text, "p": padding()}
        calls = finish(text, stream.finish_reason, given)
    except Exception as error:
        yield error_chunk(failure(error))
    else:
        called = {"tool_calls": calls} if given.get("tools") else {}
        yield {"response": "", **called, "usage": usage_of(stream.usage)}
    finally:
        stream.close()


def error_chunk(error: ContractError) -> dict[str, Any]:
    return {"response": "", "errors": [{"message": str(error), "code": error.code}]}


def may_call(given: Mapping[str, Any]) -> bool:
    return bool(given.get("tools")) and "response_format" not in given


def finish(text: str, finish_reason: str | None, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The calls of an answer. Raises ContractError for JSON or calls that were cut short or hold an infinite number."""
    calls = may_call(given) and text.startswith("{")
    if not calls and "response_format" not in given:
        return []
    try:
        if finish_reason != "stop":
            raise ValueError("max_tokens cut it short")
        if calls:
            return [{"name": call.name, "arguments": call.arguments} for call in read_calls(text)]
        read_json(text)
        return []
    except ValueError as error:
        raise no_json(error) from error


def usage_of(usage: Usage) -> dict[str, int]:
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {name: getattr(usage, name) for name in names}


def padding(draw: Callable[[int], int] = secrets.randbelow) -> str:
    """Of a random length, so that the length of an encrypted chunk does not tell that of its text."""
    return PADDING[: 1 + draw(len(PADDING))]
