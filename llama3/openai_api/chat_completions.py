"""OpenAI's chat completions: read the requests, and write the answers as OpenAI's objects.

The code that OpenAI's routes share is in `input.py` and `output.py`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from llama3.api_format import ApiFormat, Llama
from llama3.errors import RequestError
from llama3.openai_api.input import (
    check_body,
    check_shared,
    check_top,
    start_stream,
    to_bad_input,
)
from llama3.openai_api.output import (
    arguments_text,
    error_body,
    error_chunk,
    last_chunks,
    logprob_objects,
    new_id,
    object_header,
    tool_calls,
)
from llama3.tools import Call, render_message
from llama3.workers_ai import Stream, encode_prompt, may_call_tools
from llama3.workers_ai_input import bad_input, check_messages, check_tools, check_type, json_type, to_contract_error

# ---- the request ----


def start_chat(llama: Llama, body: Any) -> tuple[Stream, dict[str, Any]]:
    """Validate the request and start its generation -> (stream, parameters). Raises ContractError."""
    body = check_body(llama, body)
    if "max_completion_tokens" in body:
        body["max_tokens"] = body["max_completion_tokens"]
    messages = check_type("/messages", body.get("messages"), "array")
    parameters = check_shared(llama, body)
    parameters["messages"] = check_messages(
        [plain_message(f"/messages/{i}", message) for i, message in enumerate(messages)]
    )
    parameters["tools"] = check_tools(body.get("tools"))
    if check_type("/logprobs", body.get("logprobs", False), "boolean"):
        parameters["logprobs"] = check_top("/top_logprobs", body.get("top_logprobs", 0))
    elif body.get("top_logprobs"):
        raise bad_input("'/top_logprobs' needs '/logprobs' to be true")
    choice = tool_choice_of(body.get("tool_choice", "auto"))
    parallel = check_type("/parallel_tool_calls", body.get("parallel_tool_calls", True), "boolean")
    if choice not in ("auto", "none"):  # a call is demanded, and response_format applies to the content only
        parameters.pop("response_format", None)
    try:
        ids, grammar = encode_prompt(llama, parameters, choice, parallel)
        return start_stream(llama, ids, grammar, parameters), parameters
    except RequestError as error:
        raise to_bad_input(error) from error


def plain_message(path: str, message: Any) -> dict[str, str]:
    """A message whose content is one string: parts are joined, and tool calls are written as the model writes them.

    If an assistant's message has no "content", its "refusal" is the text. "function_call" is the older form of
    "tool_calls", for one call.
    """
    check_type(path, message, "object")
    content = joined_parts(f"{path}/content", message.get("content"))
    legacy_call = [message["function_call"]] if message.get("function_call") else []
    try:
        rendered = render_message(
            {
                "role": message.get("role"),
                "content": message.get("refusal") if content is None else content,
                "tool_calls": message.get("tool_calls") or legacy_call,
            }
        )
    except RequestError as error:
        raise bad_input(f"'{path}': {error}") from error
    return {"role": rendered["role"], "content": rendered["content"] or ""}


def joined_parts(path: str, content: Any) -> str | None:
    """Content as one string. It may come in parts with a "text" (or, where the model refused, a "refusal") each."""
    if content is None:
        return None
    if json_type(content) != "array":
        return str(check_type(path, content, "string"))
    texts = []
    for j, part in enumerate(content):
        check_type(f"{path}/{j}", part, "object")
        text = part.get("refusal") if part.get("type") == "refusal" else part.get("text")
        texts.append(check_type(f"{path}/{j}/text", text, "string"))
    return "".join(texts)


def tool_choice_of(choice: Any) -> str:
    """OpenAI's tool_choice -> "auto", "none", "required", or the name of the tool to call."""
    if isinstance(choice, Mapping):
        choice = check_type("/tool_choice/function", choice.get("function"), "object").get("name")
    return str(check_type("/tool_choice", choice, "string"))


# ---- the answer ----


def result(stream: Stream, parameters: dict[str, Any]) -> dict[str, Any]:
    pieces = list(stream)
    text = "".join(piece.text for piece in pieces)
    calls = tool_calls(text, stream, parameters)
    message: dict[str, Any] = {"role": "assistant", "content": None if calls else text}
    if calls:
        message["tool_calls"] = [call_object(call) for call in calls]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason(stream, calls)}
    if parameters["logprobs"] is not None:
        content = [logprob for piece in pieces for logprob in logprob_objects(parameters, piece)]
        choice["logprobs"] = {"content": content}
    header = object_header(parameters, "chat.completion", "chatcmpl-")
    return {**header, "choices": [choice], "usage": stream.usage.as_dict(), "seed": stream.seed}


def chunks(stream: Stream, parameters: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The answer in chunks; the last ones have finish_reason, seed and usage. Raises nothing: an error is a chunk.

    All tool calls are sent whole, in one chunk near the end. Calls that were cut short are sent there as text.
    """
    header, text, held = object_header(parameters, "chat.completion.chunk", "chatcmpl-"), "", ""

    def chunk(delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {**header, "choices": [{"index": 0, "delta": delta, "finish_reason": None, **more}]}

    try:
        yield chunk({"role": "assistant", "content": ""})
        for piece in stream:
            text += piece.text
            in_call = may_call_tools(parameters) and text.startswith("{")
            held = text if in_call else ""
            more: dict[str, Any] = {}
            if parameters["logprobs"] is not None:
                more = {"logprobs": {"content": logprob_objects(parameters, piece)}}
            if (piece.text and not in_call) or more:
                yield chunk({} if in_call else {"content": piece.text}, **more)
        calls = tool_calls(text, stream, parameters)
        if calls:
            yield chunk({"tool_calls": [{"index": i, **call_object(call)} for i, call in enumerate(calls)]})
        elif held:
            yield chunk({"content": held})
        last = chunk({}, finish_reason=finish_reason(stream, calls))
        yield from last_chunks(header, last, stream.usage, stream.seed, parameters)
    except Exception as error:
        yield error_chunk(to_contract_error(error))
    finally:
        stream.close()


def finish_reason(stream: Stream, calls: list[Call]) -> str | None:
    return "tool_calls" if calls else stream.finish_reason


def call_object(call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": arguments_text(call)}
    return {"id": new_id("call_"), "type": "function", "function": function}


CHAT_COMPLETIONS = ApiFormat(start_chat, result, chunks, error_chunk, dict, error_body)
