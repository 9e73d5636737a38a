"""OpenAI's older completions: raw text in, its continuation out. What the two kinds share is in `openai.py`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llama3.server.answers import MODELS, Json, Shape, rest_error
from llama3.server.openai import MAX_TOP_LOGPROBS, asked, error_chunk, head, logprobs, started
from llama3.workers_ai import NUMBERS, bad_input, check_type, failure, usage_of, validate

if TYPE_CHECKING:
    from llama3.completion import Piece
    from llama3.llama import Llama
    from llama3.workers_ai import Stream


def begin(llama: "Llama", body: Any) -> "tuple[Stream, dict[str, Any]]":
    """The answer begun, and what was asked for. Raises ContractError."""
    body = asked(body)
    if body.get("echo"):
        raise bad_input("'/echo' must be false")
    inputs = {name: body[name] for name in (*NUMBERS, "stream", "lora") if name in body}
    given = validate({**inputs, "prompt": body.get("prompt"), "raw": True})
    top = check_type("/logprobs", body["logprobs"], "integer") if "logprobs" in body else None
    if top is not None and not 0 <= top <= MAX_TOP_LOGPROBS:
        raise bad_input(f"'/logprobs' must be >= 0 and <= {MAX_TOP_LOGPROBS}")
    given |= {"model": body.get("model", MODELS[0]), "logprobs": top}
    return started(llama, given, body)


def result(stream: "Stream", given: dict[str, Any]) -> dict[str, Any]:
    pieces = list(stream)
    choice = choice_of(pieces, given, stream.finish_reason)
    return {**head(given, "text_completion"), "choices": [choice], "usage": usage_of(stream.usage), "seed": stream.seed}


def chunks(stream: "Stream", given: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Raises nothing: an error is a chunk. The last one has the reason for the end, the usage and the seed."""
    base = head(given, "text_completion")
    try:
        for piece in stream:
            if piece.text or given["logprobs"] is not None:
                yield {**base, "choices": [choice_of([piece], given, None)]}
        last = choice_of([], given, stream.finish_reason)
        yield {**base, "choices": [last], "usage": usage_of(stream.usage), "seed": stream.seed}
    except Exception as error:
        yield error_chunk(failure(error))
    finally:
        stream.close()


def choice_of(pieces: "list[Piece]", given: dict[str, Any], reason: str | None) -> dict[str, Any]:
    text = "".join(piece.text for piece in pieces)
    choice: dict[str, Any] = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
    if given["logprobs"] is not None:
        found = [one for piece in pieces for one in logprobs(given, piece)]
        choice["logprobs"] = {
            "tokens": [one["token"] for one in found],
            "token_logprobs": [one["logprob"] for one in found],
            "top_logprobs": [{rival["token"]: rival["logprob"] for rival in one["top_logprobs"]} for one in found],
            "text_offset": [sum(len(before["token"]) for before in found[:i]) for i in range(len(found))],
        }
    return choice


COMPLETIONS = Shape(begin, result, chunks, error_chunk, Json, rest_error)
