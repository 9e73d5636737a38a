"""Tools: how the prompt offers them, and how their calls are read from the model's answer.

The format is the one that Meta documents for Llama 3's JSON tool calls. The tools are listed in the first user message,
and a call is {"name": ..., "parameters": {...}}. Several calls are separated by "; ", as vLLM reads them from Llama 3.
https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama3.constraint import no_call_grammar, tools_grammar
from llama3.errors import RequestError
from llama3.json_text import read_json
from llama3.limits import LIMITS
from llama3.schema_check import short_message

OFFER = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments "
    "that best answers the given prompt.\n\n"
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}. '
    "Do not use variables.\n\n"
)
CALL_SEPARATOR = "; "


@dataclass(frozen=True)
class Call:
    """One call of a tool, as the model has written it."""

    name: str
    arguments: dict[str, Any]


def prepare(
    tools: Sequence[Mapping[str, Any]],
    messages: Sequence[Mapping[str, Any]],
    choice: str = "auto",
    parallel: bool = True,
) -> tuple[list[Mapping[str, Any]], str | None]:
    """Offer tools in a dialogue. Returns the messages with the offer, and the grammar of the answer.

    The grammar is None if there are no tools.

    choice: "auto", "none", "required", or the name of the tool to call. parallel: whether the answer may hold more than
    one call. Raises RequestError for tools that `read_tools` refuses, and for a choice that cannot be met.
    """
    offered = read_tools(tools)
    if not offered and choice in ("auto", "none"):
        return list(render_messages(messages)), None
    return with_tools(messages, offered), choice_grammar(offered, choice, parallel)


def render_messages(messages: Any) -> Any:
    """The messages of a dialogue, each as `render_message` returns it.

    Raises RequestError, with the message's index, if `render_message` does. Anything but a list of mappings is returned
    as it is, because `llama3.chat.encode_dialog` refuses it.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        return messages
    out = []
    for i, message in enumerate(messages):
        try:
            out.append(render_message(message) if isinstance(message, Mapping) else message)
        except RequestError as error:
            raise RequestError(f"messages[{i}]: {error}") from error
    return out


def render_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message with its calls written into its text, as the model writes them: {"role", "content"}.

    Only an assistant's message has calls, in "tool_calls": each is {"name", "arguments"}, alone or as the "function" of
    an object, as OpenAI has it. The arguments are an object or its JSON text; null and empty text count as {}. The
    calls are written after the content, which may then be null. Raises RequestError for calls in any other form.
    """
    role, content, calls = message.get("role"), message.get("content"), message.get("tool_calls")
    if role != "assistant" or not calls:
        return {"role": role, "content": content}
    if not isinstance(calls, list | tuple):
        raise RequestError(f"tool_calls is {type(calls).__name__}; expected a list")
    written = CALL_SEPARATOR.join(_written_call(i, call) for i, call in enumerate(calls))
    if not (content is None or isinstance(content, str)):
        raise RequestError(f"content is {type(content).__name__}; expected text or null")
    text = (content or "").strip()
    if _same_calls(text, written):  # some clients send the calls twice, as text and as data
        text = ""
    # Without the empty line, a token could span the text and the call. With it, the call keeps the ids that it had when
    # the model generated it.
    return {"role": role, "content": f"{text}\n\n{written}" if text else written}


def _written_call(i: int, call: Any) -> str:
    place = f"tool_calls[{i}]"
    function = call.get("function", call) if isinstance(call, Mapping) else call
    if not isinstance(function, Mapping):
        raise RequestError(f"{place} is {type(function).__name__}; expected an object")
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise RequestError(f"{place}: name is {name!r}; expected text")
    try:
        arguments = _arguments_object(function.get("arguments"))
        call = {"name": name, "parameters": arguments}
        return json.dumps(call, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"{place}: arguments are not a JSON object: {short_message(error)}") from None


def _arguments_object(arguments: Any) -> Any:
    """The arguments of a call as an object; they may be given as JSON text. Raises ValueError if they are no object."""
    if isinstance(arguments, str):
        arguments = read_json(arguments) if arguments.strip() else None
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping):
        raise ValueError(f"found {type(arguments).__name__}")
    return arguments


def _same_calls(text: str, written: str) -> bool:
    """Whether a text consists of these calls; white space within them may differ."""
    try:
        return read_calls(text) == read_calls(written)
    except ValueError:
        return False


def read_tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tools as a client sends them, plain or in OpenAI's {"function": ...}.

    Returns each as {"name", "description", "parameters"}. Raises RequestError for a malformed tool and for too many.
    """
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Sequence):
        raise RequestError(f"tools is {type(tools).__name__}; expected a list")
    if len(tools) > LIMITS.tools:
        raise RequestError(f"there are {len(tools)} tools; expected at most {LIMITS.tools}")
    out: list[dict[str, Any]] = []
    for i, tool in enumerate(tools):
        if isinstance(tool, Mapping) and "function" in tool:
            tool = tool["function"]
        if not isinstance(tool, Mapping):
            raise RequestError(f"tools[{i}] is {type(tool).__name__}; expected an object")
        name = tool.get("name")
        description, parameters = (tool.get(key) for key in ("description", "parameters"))
        description = "" if description is None else description
        parameters = {"type": "object"} if parameters in (None, {}) else parameters
        if not isinstance(name, str) or not name:
            raise RequestError(f"tools[{i}]: name is {name!r}; expected text")
        if not isinstance(description, str) or not isinstance(parameters, Mapping):
            raise RequestError(f"tools[{i}]: expected description to be text, and parameters to be a JSON Schema")
        if any(name == other["name"] for other in out):
            raise RequestError(f"tools[{i}]: there are two tools named {name!r}")
        out.append({"name": name, "description": description, "parameters": dict(parameters)})
    return out


def with_tools(messages: Sequence[Mapping[str, Any]], tools: list[dict[str, Any]]) -> list[Mapping[str, Any]]:
    """The dialogue with the tools in front of the text of the first user message.

    If there is no user message, one with the tools is put at the beginning. Raises RequestError for tools that are not
    JSON.
    """
    try:
        offer = OFFER + "\n\n".join(json.dumps(tool, indent=4, allow_nan=False) for tool in tools) + "\n\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"the tools are not JSON: {short_message(error)}") from None
    out = list(render_messages(messages))
    for i, message in enumerate(out):
        if isinstance(message, Mapping) and message.get("role") == "user" and isinstance(message.get("content"), str):
            out[i] = {**message, "content": offer + message["content"].strip()}
            return out
    return [{"role": "user", "content": offer}, *out]


def choice_grammar(tools: list[dict[str, Any]], choice: str = "auto", parallel: bool = True) -> str:
    """The grammar of answers under this choice (see `prepare`).

    Raises RequestError for a tool that is not offered, and for a choice that demands a call if there are no tools.
    """
    if choice == "none":
        return no_call_grammar()
    if choice == "auto":
        return tools_grammar(tools, parallel=parallel)
    if not tools:
        raise RequestError(f"tool_choice is {choice!r}, but there are no tools; expected tools, or auto or none")
    named = tools if choice == "required" else [tool for tool in tools if tool["name"] == choice]
    if not named:
        names = ", ".join(tool["name"] for tool in tools)
        raise RequestError(f"tool_choice is {choice!r}; expected auto, none, required or one of {names}")
    return tools_grammar(named, must_call=True, parallel=parallel)


def read_calls(text: str) -> list[Call]:
    """The calls in an answer; an empty list if the answer is text. Raises ValueError for a malformed one."""
    if not text.startswith("{"):
        return []
    decoder, calls, start = json.JSONDecoder(), [], 0
    while start < len(text):
        try:
            _, end = decoder.raw_decode(text, start)
        except RecursionError:
            raise ValueError("a call is nested too deeply") from None
        call = read_json(text[start:end])
        if not (
            isinstance(call, dict) and isinstance(call.get("parameters"), dict) and isinstance(call.get("name"), str)
        ):
            raise ValueError(f"{text[start:end][:40]!r} is no call; expected name and parameters")
        calls.append(Call(call["name"], call["parameters"]))
        start = end + len(CALL_SEPARATOR) if text.startswith(CALL_SEPARATOR, end) else end
        if start == end < len(text) or end < start == len(text):
            raise ValueError(f"{text[end:][:20]!r} follows a call; expected {CALL_SEPARATOR!r} and a call, or the end")
    return calls
