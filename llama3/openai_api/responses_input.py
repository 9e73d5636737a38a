"""Reads the requests of OpenAI's Responses API: turns items, tools and formats into those of chat completions."""

import math
from collections.abc import Mapping
from typing import Any

from llama3.api_format import Llama
from llama3.errors import ContractError, RequestError
from llama3.openai_api.chat_completions import plain_message
from llama3.openai_api.input import NUMBERS, REST_OF_WINDOW, check_body, check_shared, check_top
from llama3.tools import read_tools
from llama3.workers_ai_input import (
    bad_input,
    check_messages,
    check_number,
    check_response_format,
    check_type,
    json_type,
)

# Fields that need stored responses or other services, each with the value that has no effect and is accepted.
NOT_SERVED = {"store": False, "background": False, "previous_response_id": "", "conversation": "", "prompt": ""}
# Fields of other routes -> the fields of this route that replace them.
OTHER_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
}
SHARED = ("model", "stream", "stop", "lora", "logit_bias", *(NUMBERS.keys() - {"max_tokens"}))
TEXT_PARTS = ("input_text", "output_text", "text", "refusal")
LOGPROBS = "message.output_text.logprobs"  # their name in "include"


def check_request(llama: Llama, body: Any) -> dict[str, Any]:
    """The parameters of a request. "body" holds it without its null fields. Raises ContractError."""
    body = check_body(llama, body)
    for name, harmless in NOT_SERVED.items():
        if body.get(name, harmless) != harmless:
            raise bad_input(f"'/{name}' is not served here, where no response is stored: leave it out")
    for name, here in OTHER_NAMES.items():
        if name in body:
            raise bad_input(f"'/{name}' is not a field of this route; expected {here}")
    parameters = check_shared(llama, {name: body[name] for name in SHARED if name in body})
    if "max_output_tokens" in body:
        wanted = body["max_output_tokens"]
        least = REST_OF_WINDOW if wanted == REST_OF_WINDOW else 1
        parameters["sampling"]["max_tokens"] = check_number("/max_output_tokens", wanted, True, least, math.inf)
    text = check_type("/text", body.get("text", {}), "object")
    parameters |= check_format(text.get("format"))
    parameters["messages"] = check_input(body)
    parameters["tools"] = check_tools(body.get("tools", []))
    if LOGPROBS in check_type("/include", body.get("include", []), "array") or body.get("top_logprobs"):
        parameters["logprobs"] = check_top("/top_logprobs", body.get("top_logprobs", 0))
    return parameters | {"body": body}


def check_format(text_format: Any) -> dict[str, Any]:
    """{"response_format": the JSON Schema that text.format asks for}; empty if it asks for text."""
    if text_format is None or check_type("/text/format", text_format, "object").get("type") == "text":
        return {}
    known = {name: value for name, value in text_format.items() if value is not None}
    try:
        return {"response_format": check_response_format(known)}
    except ContractError as error:
        raise renamed(error, "/response_format", "/text/format") from None


def check_input(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The instructions and the input as the messages of a dialogue, each with one text."""
    messages = input_messages(body.get("input"))
    if not messages:
        raise bad_input("'/input' must not be empty")
    if "instructions" in body:
        text = check_type("/instructions", body["instructions"], "string")
        messages.insert(0, ("/instructions", {"role": "system", "content": text}))
    try:
        return list(check_messages([plain_message(path, message) for path, message in messages]))
    except ContractError as error:
        raise renamed(error, "/messages", "/input") from None


def renamed(error: ContractError, there: str, here: str) -> ContractError:
    """The error, with the path of the chat completions' field (`there`) replaced by the path on this route (`here`)."""
    return ContractError(str(error).replace(f"'{there}", f"'{here}"), error.code, error.status)


def input_messages(items: Any) -> list[tuple[str, dict[str, Any]]]:
    """Text, or the items of a dialogue, as messages of chat completions, each with the path of its first item.

    Calls are added to the assistant's message before them, because the model wrote both in one answer.
    """
    if json_type(items) != "array":
        return [("/input", {"role": "user", "content": check_type("/input", items, "string")})]
    messages: list[tuple[str, dict[str, Any]]] = []
    for i, item in enumerate(items):
        path = f"/input/{i}"
        kind = check_type(path, item, "object").get("type", "message")
        if kind == "message":
            role = check_type(f"{path}/role", item.get("role"), "string")
            messages.append((path, {"role": role, "content": checked_parts(f"{path}/content", item.get("content"))}))
        elif kind == "function_call":
            if not messages or messages[-1][1]["role"] != "assistant":
                messages.append((path, {"role": "assistant", "content": None}))
            call = {"name": item.get("name"), "arguments": item.get("arguments")}
            messages[-1][1].setdefault("tool_calls", []).append({"function": call})
        elif kind == "function_call_output":
            messages.append((path, {"role": "tool", "content": checked_parts(f"{path}/output", item.get("output"))}))
        elif kind == "item_reference":
            raise bad_input(f"'{path}' is the id of an item, and no items are stored here; expected the item itself")
        else:
            expected = "message, function_call or function_call_output"
            raise bad_input(f"'{path}/type' is {str(kind)[:100]!r}, which is not served here; expected {expected}")
    return messages


def checked_parts(path: str, content: Any) -> Any:
    """The content, if it is text. Raises ContractError for images, files and other kinds of parts."""
    if json_type(content) == "array":
        for j, part in enumerate(content):
            kind = check_type(f"{path}/{j}", part, "object").get("type")
            if kind not in TEXT_PARTS:
                raise bad_input(f"'{path}/{j}/type' is {str(kind)[:100]!r}; expected one of {', '.join(TEXT_PARTS)}")
    return content


def check_tools(tools: Any) -> list[dict[str, Any]]:
    """Function tools as the prompt offers them. The built-in tools of OpenAI's own service are refused."""
    for i, tool in enumerate(check_type("/tools", tools, "array")):
        kind = check_type(f"/tools/{i}", tool, "object").get("type")
        if kind != "function":
            raise bad_input(f"'/tools/{i}/type' is {str(kind)[:100]!r}, which is not served here; expected 'function'")
    try:
        return read_tools(tools)
    except RequestError as error:
        raise bad_input(f"'/tools': {error}") from error


def check_tool_choice(choice: Any) -> str:
    """OpenAI's tool_choice -> "auto", "none", "required", or the name of the tool to call."""
    if isinstance(choice, Mapping):
        if choice.get("type") != "function":
            kind = str(choice.get("type"))[:100]
            raise bad_input(f"'/tool_choice/type' is {kind!r}, which is not served here; expected 'function'")
        return str(check_type("/tool_choice/name", choice.get("name"), "string"))
    return str(check_type("/tool_choice", choice, "string"))
