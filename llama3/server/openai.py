"""OpenAI's chat completions: its request as the contract's inputs, the answer as its objects; the service's errors.

It is as lenient as OpenAI's own: null is as good as absent, a text may come in parts, unknown fields are not looked at.
"""

import json
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from llama3.errors import ContractError, RequestError
from llama3.limits import LIMITS
from llama3.server.answers import MODELS, Json, Shape, rest_error, unknown_model
from llama3.tools import Call, read_calls
from llama3.workers_ai import NUMBERS, bad_input, check_type, failure, kind_of, start, usage_of, validate

if TYPE_CHECKING:
    from llama3.completion import Piece
    from llama3.llama import Llama
    from llama3.workers_ai import Stream

MAX_TOP_LOGPROBS = 20


def begin(llama: "Llama", body: Any) -> "tuple[Stream, dict[str, Any]]":
    """The answer begun, and what was asked for. Raises ContractError."""
    body = asked(body)
    inputs = {name: body[name] for name in (*NUMBERS, "stream", "tools", "lora") if name in body}
    if "max_completion_tokens" in body:
        inputs["max_tokens"] = body["max_completion_tokens"]
    inputs["messages"] = [
        message_of(i, m) for i, m in enumerate(check_type("/messages", body.get("messages"), "array"))
    ]
    form = check_type("/response_format", body.get("response_format", {}), "object")
    if form.get("type", "text") != "text":
        inputs["response_format"] = form
    given = validate(inputs) | {"model": body.get("model", MODELS[0]), "logprobs": logprobs_of(body)}
    return started(llama, given, body, choice_of(body.get("tool_choice", "auto")))


def asked(body: Any) -> dict[str, Any]:
    """The request without its nulls. Raises ContractError for what no kind of completion knows."""
    check_type("/", body, "object")
    body = {name: value for name, value in body.items() if value is not None}
    if error := unknown_model(str(body.get("model", MODELS[0]))):
        raise error
    if body.get("n", 1) != 1:
        raise bad_input("'/n' must be 1")
    return body


def started(
    llama: "Llama", given: dict[str, Any], body: dict[str, Any], choice: str = "auto"
) -> "tuple[Stream, dict[str, Any]]":
    given |= {"tokenizer": llama.tokenizer, "stop_ids": llama.checkpoint.stop_ids}
    stop = body.get("stop", [])
    if isinstance(stop, list) and len(stop) > LIMITS.stops:
        raise bad_input(f"'/stop' must not have more than {LIMITS.stops} items")
    try:
        return start(llama, given, choice, stop=stop, logprobs=given["logprobs"]), given
    except ContractError:
        raise
    except RequestError as error:
        raise bad_input(str(error)) from error


def message_of(i: int, message: Any) -> dict[str, str]:
    """Text, or text in parts; calls of tools are written as the model writes them."""
    path = f"/messages/{i}"
    check_type(path, message, "object")
    content = message.get("content")
    if kind_of(content) == "array":
        parts = [check_type(f"{path}/content/{j}", part, "object").get("text") for j, part in enumerate(content)]
        content = "".join(check_type(f"{path}/content/{j}/text", part, "string") for j, part in enumerate(parts))
    calls = message.get("tool_calls")
    if content is None and calls:
        content = "; ".join(call_text(path, call) for call in check_type(f"{path}/tool_calls", calls, "array"))
    return {"role": message.get("role"), "content": "" if content is None else content}


def call_text(path: str, call: Any) -> str:
    function = check_type(f"{path}/tool_calls", call, "object").get("function")
    check_type(f"{path}/tool_calls/function", function, "object")
    arguments = function.get("arguments", "{}")
    name = json.dumps(function.get("name"), ensure_ascii=False)
    return f'{{"name":{name},"parameters":{arguments if isinstance(arguments, str) else json.dumps(arguments)}}}'


def choice_of(choice: Any) -> str:
    """ "auto", "none", "required", or the name of a tool."""
    if isinstance(choice, Mapping):
        choice = check_type("/tool_choice/function", choice.get("function"), "object").get("name")
    return str(check_type("/tool_choice", choice, "string"))


def logprobs_of(body: Mapping[str, Any]) -> int | None:
    if not check_type("/logprobs", body.get("logprobs", False), "boolean"):
        return None
    top = check_type("/top_logprobs", body.get("top_logprobs", 0), "integer")
    if not 0 <= top <= MAX_TOP_LOGPROBS:
        raise bad_input(f"'/top_logprobs' must be >= 0 and <= {MAX_TOP_LOGPROBS}")
    return int(top)


# ---- the answer ----


def result(stream: "Stream", given: dict[str, Any]) -> dict[str, Any]:
    pieces = list(stream)
    text = "".join(piece.text for piece in pieces)
    calls = calls_of(text, stream, given)
    message: dict[str, Any] = {"role": "assistant", "content": None if calls else text}
    if calls:
        message["tool_calls"] = [call_object(i, call) for i, call in enumerate(calls)]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason(stream, calls)}
    if given["logprobs"] is not None:
        choice["logprobs"] = {"content": [found for piece in pieces for found in logprobs(given, piece)]}
    return {**head(given, "chat.completion"), "choices": [choice], "usage": usage_of(stream.usage), "seed": stream.seed}


def chunks(stream: "Stream", given: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Raises nothing: an error is a chunk. The last one has the reason for the end, the usage and the seed."""
    base, text = head(given, "chat.completion.chunk"), ""

    def chunk(delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": None, **more}]}

    try:
        yield chunk({"role": "assistant", "content": ""})
        for piece in stream:
            text += piece.text
            held = bool(given.get("tools")) and text.startswith("{")  # calls come whole, at the end
            more = {"logprobs": {"content": logprobs(given, piece)}} if given["logprobs"] is not None else {}
            if (piece.text and not held) or more:
                yield chunk({} if held else {"content": piece.text}, **more)
        calls = calls_of(text, stream, given)
        if calls:
            yield chunk({"tool_calls": [{"index": i, **call_object(i, call)} for i, call in enumerate(calls)]})
        last = chunk({}, finish_reason=reason(stream, calls))
        yield {**last, "usage": usage_of(stream.usage), "seed": stream.seed}
    except Exception as error:
        yield error_chunk(failure(error))
    finally:
        stream.close()


def error_chunk(error: ContractError) -> dict[str, Any]:
    """ "errors" as everywhere here; "error", too, since OpenAI's clients raise for that alone, and would else take a
    text that was cut off for a whole one.
    """
    told = {"message": str(error), "code": error.code}
    return {"choices": [], "errors": [told], "error": told}


def head(given: Mapping[str, Any], kind: str) -> dict[str, Any]:
    now = time.time()
    return {"id": f"id-{int(now * 1000)}", "object": kind, "created": int(now), "model": given["model"]}


def calls_of(text: str, stream: "Stream", given: Mapping[str, Any]) -> list[Call]:
    """None if the text is none, or if max_tokens has cut them short: then finish_reason says so."""
    if not given.get("tools") or "response_format" in given or stream.finish_reason != "stop":
        return []
    return read_calls(text)


def reason(stream: "Stream", calls: list[Call]) -> str | None:
    return "tool_calls" if calls else stream.finish_reason


def call_object(i: int, call: Call) -> dict[str, Any]:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {"id": f"call_{i}", "type": "function", "function": {"name": call.name, "arguments": arguments}}


def logprobs(given: Mapping[str, Any], piece: "Piece") -> list[dict[str, Any]]:
    """Of one token, none for a stop token. Of a token that had to come: 0, since nothing else could."""
    tokenizer = given["tokenizer"]
    if piece.token in given["stop_ids"]:
        return []

    def one(token: int, logprob: float | None) -> dict[str, Any]:
        raw = tokenizer.token_bytes(token) if token in tokenizer else b""  # an embedding may be padded
        return {"token": raw.decode("utf-8", "replace"), "logprob": logprob or 0.0, "bytes": list(raw)}

    return [{**one(piece.token, piece.logprob), "top_logprobs": [one(*likely) for likely in piece.top_logprobs]}]


OPENAI = Shape(begin, result, chunks, error_chunk, Json, rest_error)
