"""OpenAI's older completions: continue a raw text. What it shares with chat completions is in `chat_completions.py`."""

from collections.abc import Iterator, Sequence
from typing import Any

from llama3.completion import Piece
from llama3.llama import Llama
from llama3.server.api_formats import ApiFormat
from llama3.server.chat_completions import (
    MAX_TOP_LOGPROBS,
    check_body,
    error_chunk,
    logprob_objects,
    object_header,
    start_with_stops,
)
from llama3.server.models import MODELS
from llama3.server.responses import JsonResponse, rest_error
from llama3.workers_ai import Stream, usage_object
from llama3.workers_ai_input import NUMBERS, bad_input, check_type, to_contract_error, validate


def start_completion(llama: Llama, body: Any) -> tuple[Stream, dict[str, Any]]:
    """Validate the request and start its generation -> (stream, parameters). Raises ContractError."""
    body = check_body(body)
    if body.get("echo"):
        raise bad_input("'/echo' must be false")
    inputs = {name: body[name] for name in (*NUMBERS, "stream", "lora") if name in body}
    parameters = validate({**inputs, "prompt": body.get("prompt"), "raw": True})
    top = check_type("/logprobs", body["logprobs"], "integer") if "logprobs" in body else None
    if top is not None and not 0 <= top <= MAX_TOP_LOGPROBS:
        raise bad_input(f"'/logprobs' must be >= 0 and <= {MAX_TOP_LOGPROBS}")
    parameters |= {"model": body.get("model", MODELS[0]), "logprobs": top}
    return start_with_stops(llama, parameters, body)


def result(stream: Stream, parameters: dict[str, Any]) -> dict[str, Any]:
    pieces = list(stream)
    choice = choice_object(pieces, parameters, stream.finish_reason)
    header = object_header(parameters, "text_completion")
    return {**header, "choices": [choice], "usage": usage_object(stream.usage), "seed": stream.seed}


def chunks(stream: Stream, parameters: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The answer in chunks; the last one has finish_reason, usage and seed. Raises nothing: an error is a chunk."""
    header = object_header(parameters, "text_completion")
    try:
        for piece in stream:
            if piece.text or parameters["logprobs"] is not None:
                yield {**header, "choices": [choice_object([piece], parameters, None)]}
        last = choice_object([], parameters, stream.finish_reason)
        yield {**header, "choices": [last], "usage": usage_object(stream.usage), "seed": stream.seed}
    except Exception as error:
        yield error_chunk(to_contract_error(error))
    finally:
        stream.close()


def choice_object(pieces: Sequence[Piece], parameters: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    """One element of "choices": the text of these pieces and, if the request asked for them, their logprobs."""
    text = "".join(piece.text for piece in pieces)
    choice: dict[str, Any] = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}
    if parameters["logprobs"] is not None:
        tokens = [token for piece in pieces for token in logprob_objects(parameters, piece)]
        choice["logprobs"] = {
            "tokens": [token["token"] for token in tokens],
            "token_logprobs": [token["logprob"] for token in tokens],
            "top_logprobs": [{other["token"]: other["logprob"] for other in token["top_logprobs"]} for token in tokens],
            "text_offset": [sum(len(before["token"]) for before in tokens[:i]) for i in range(len(tokens))],
        }
    return choice


COMPLETIONS = ApiFormat(start_completion, result, chunks, error_chunk, JsonResponse, rest_error)
