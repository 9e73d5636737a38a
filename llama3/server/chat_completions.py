"""OpenAI's chat completions: read its requests, and write answers as its objects. Errors are those of Workers AI.

As lenient as OpenAI's own API: null counts as absent, the content of a message may come in parts, and unknown fields
are ignored.
"""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from llama3.completion import Piece
from llama3.errors import ContractError
from llama3.limits import LIMITS
from llama3.llama import Llama
from llama3.server.api_formats import ApiFormat
from llama3.server.models import MODELS, unknown_model
from llama3.server.responses import JsonResponse, rest_error
from llama3.tools import Call, read_calls
from llama3.workers_ai import Stream, may_call_tools, start_generation, usage_object
from llama3.workers_ai_input import NUMBERS, bad_input, check_type, json_type, to_contract_error, validate

MAX_TOP_LOGPROBS = 20

# ---- the request ----


def start_chat(llama: Llama, body: Any) -> tuple[Stream, dict[str, Any]]:
    """Validate the request and start its generation -> (stream, parameters). Raises ContractError."""
    body = check_body(body)
    inputs = {name: body[name] for name in (*NUMBERS, "stream", "tools", "lora") if name in body}
    if "max_completion_tokens" in body:
        inputs["max_tokens"] = body["max_completion_tokens"]
    messages = check_type("/messages", body.get("messages"), "array")
    inputs["messages"] = [plain_message(i, message) for i, message in enumerate(messages)]
    response_format = check_type("/response_format", body.get("response_format", {}), "object")
    if response_format.get("type", "text") != "text":
        inputs["response_format"] = response_format
    parameters = validate(inputs) | {"model": body.get("model", MODELS[0]), "logprobs": check_top_logprobs(body)}
    return start_with_stops(llama, parameters, body, tool_choice_of(body.get("tool_choice", "auto")))


def check_body(body: Any) -> dict[str, Any]:
    """The request without its null fields. Raises ContractError for an unknown model and for more than one answer."""
    check_type("/", body, "object")
    body = {name: value for name, value in body.items() if value is not None}
    if error := unknown_model(str(body.get("model", MODELS[0]))):
        raise error
    if body.get("n", 1) != 1:
        raise bad_input("'/n' must be 1")
    return body


def start_with_stops(
    llama: Llama, parameters: dict[str, Any], body: dict[str, Any], tool_choice: str = "auto"
) -> tuple[Stream, dict[str, Any]]:
    """Start a generation with the two parameters that Workers AI does not have: "stop" and "logprobs".

    The tokenizer and the stop ids, which `logprob_objects` needs, are added to the parameters.
    """
    parameters |= {"tokenizer": llama.tokenizer, "stop_ids": llama.checkpoint.stop_ids}
    stop = body.get("stop", [])
    if isinstance(stop, list) and len(stop) > LIMITS.stops:
        raise bad_input(f"'/stop' must not have more than {LIMITS.stops} items")
    stream = start_generation(llama, parameters, tool_choice, stop=stop, logprobs=parameters["logprobs"])
    return stream, parameters


def plain_message(i: int, message: Any) -> dict[str, str]:
    """A message whose content is one string: parts are joined, and tool calls are written as the model writes them."""
    path = f"/messages/{i}"
    check_type(path, message, "object")
    content = message.get("content")
    if json_type(content) == "array":
        parts = [check_type(f"{path}/content/{j}", part, "object").get("text") for j, part in enumerate(content)]
        content = "".join(check_type(f"{path}/content/{j}/text", part, "string") for j, part in enumerate(parts))
    calls = message.get("tool_calls")
    if content is None and calls:
        content = "; ".join(call_text(path, call) for call in check_type(f"{path}/tool_calls", calls, "array"))
    return {"role": message.get("role"), "content": "" if content is None else content}


def call_text(path: str, call: Any) -> str:
    """A tool call of an earlier answer, as the model writes it."""
    function = check_type(f"{path}/tool_calls", call, "object").get("function")
    check_type(f"{path}/tool_calls/function", function, "object")
    arguments = function.get("arguments", "{}")
    name = json.dumps(function.get("name"), ensure_ascii=False)
    return f'{{"name":{name},"parameters":{arguments if isinstance(arguments, str) else json.dumps(arguments)}}}'


def tool_choice_of(choice: Any) -> str:
    """OpenAI's tool_choice -> "auto", "none", "required", or the name of the tool to call."""
    if isinstance(choice, Mapping):
        choice = check_type("/tool_choice/function", choice.get("function"), "object").get("name")
    return str(check_type("/tool_choice", choice, "string"))


def check_top_logprobs(body: Mapping[str, Any]) -> int | None:
    """How many alternatives to report for each token; None: no logprobs at all."""
    if not check_type("/logprobs", body.get("logprobs", False), "boolean"):
        return None
    top = check_type("/top_logprobs", body.get("top_logprobs", 0), "integer")
    if not 0 <= top <= MAX_TOP_LOGPROBS:
        raise bad_input(f"'/top_logprobs' must be >= 0 and <= {MAX_TOP_LOGPROBS}")
    return int(top)


# ---- the answer ----


def result(stream: Stream, parameters: dict[str, Any]) -> dict[str, Any]:
    pieces = list(stream)
    text = "".join(piece.text for piece in pieces)
    calls = tool_calls(text, stream, parameters)
    message: dict[str, Any] = {"role": "assistant", "content": None if calls else text}
    if calls:
        message["tool_calls"] = [call_object(i, call) for i, call in enumerate(calls)]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason(stream, calls)}
    if parameters["logprobs"] is not None:
        content = [logprob for piece in pieces for logprob in logprob_objects(parameters, piece)]
        choice["logprobs"] = {"content": content}
    header = object_header(parameters, "chat.completion")
    return {**header, "choices": [choice], "usage": usage_object(stream.usage), "seed": stream.seed}


def chunks(stream: Stream, parameters: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The answer in chunks; the last one has finish_reason, usage and seed. Raises nothing: an error is a chunk.

    Tool calls come whole, in one chunk near the end.
    """
    header, text = object_header(parameters, "chat.completion.chunk"), ""

    def chunk(delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {**header, "choices": [{"index": 0, "delta": delta, "finish_reason": None, **more}]}

    try:
        yield chunk({"role": "assistant", "content": ""})
        for piece in stream:
            text += piece.text
            in_call = may_call_tools(parameters) and text.startswith("{")
            more: dict[str, Any] = {}
            if parameters["logprobs"] is not None:
                more = {"logprobs": {"content": logprob_objects(parameters, piece)}}
            if (piece.text and not in_call) or more:
                yield chunk({} if in_call else {"content": piece.text}, **more)
        calls = tool_calls(text, stream, parameters)
        if calls:
            yield chunk({"tool_calls": [{"index": i, **call_object(i, call)} for i, call in enumerate(calls)]})
        last = chunk({}, finish_reason=finish_reason(stream, calls))
        yield {**last, "usage": usage_object(stream.usage), "seed": stream.seed}
    except Exception as error:
        yield error_chunk(to_contract_error(error))
    finally:
        stream.close()


def error_chunk(error: ContractError) -> dict[str, Any]:
    """ "errors" holds the error as on the other routes. "error" is what OpenAI's clients raise an exception for.

    Without "error" they would take a text that an error has cut off for a complete one.
    """
    error_fields = {"message": str(error), "code": error.code}
    return {"choices": [], "errors": [error_fields], "error": error_fields}


def object_header(parameters: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The fields with which every object of OpenAI's API begins."""
    now = time.time()
    return {"id": f"id-{int(now * 1000)}", "object": kind, "created": int(now), "model": parameters["model"]}


def tool_calls(text: str, stream: Stream, parameters: Mapping[str, Any]) -> list[Call]:
    """The tool calls in the answer. Empty for plain text, and for calls that max_tokens has cut short.

    In the second case finish_reason is "length".
    """
    if not may_call_tools(parameters) or stream.finish_reason != "stop":
        return []
    return read_calls(text)


def finish_reason(stream: Stream, calls: list[Call]) -> str | None:
    return "tool_calls" if calls else stream.finish_reason


def call_object(i: int, call: Call) -> dict[str, Any]:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {"id": f"call_{i}", "type": "function", "function": {"name": call.name, "arguments": arguments}}


def logprob_objects(parameters: Mapping[str, Any], piece: Piece) -> list[dict[str, Any]]:
    """One token with its log-probability and its alternatives; empty for a stop token, which is not part of the text.

    A token that the grammar forced has the log-probability 0, since no other was possible.
    """
    tokenizer = parameters["tokenizer"]
    if piece.token in parameters["stop_ids"]:
        return []

    def token_object(token: int, logprob: float | None) -> dict[str, Any]:
        # An embedding may be padded to a round number of rows; the ids of the padding have no text.
        raw = tokenizer.token_bytes(token) if token in tokenizer else b""
        return {"token": raw.decode("utf-8", "replace"), "logprob": logprob or 0.0, "bytes": list(raw)}

    alternatives = [token_object(token, logprob) for token, logprob in piece.top_logprobs]
    return [{**token_object(piece.token, piece.logprob), "top_logprobs": alternatives}]


CHAT_COMPLETIONS = ApiFormat(start_chat, result, chunks, error_chunk, JsonResponse, rest_error)
