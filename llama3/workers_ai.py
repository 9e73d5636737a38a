"""The contract of Cloudflare Workers AI's `@hf/meta-llama/meta-llama-3-8b-instruct`: its input and output objects.

    run(llama, {"prompt": "What is RoPE?"})            -> {"response": ..., "tool_calls": [], "usage": {...}}
    run(llama, {"messages": [...], "stream": True})    -> an iterator of {"response": ..., "p": ...}; the last has usage

There is no HTTP here: `llama3.server` adds it. `workers_ai_input.py` says what the input object may hold.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from llama3.chat import Message
from llama3.completion import Completion, Piece, Usage
from llama3.config import ModelConfig
from llama3.errors import ContractError, GrammarError, RequestError
from llama3.json_text import read_json
from llama3.request import MAX_TOKENS, FinishReason
from llama3.tools import prepare, read_calls
from llama3.workers_ai_input import CONTEXT_EXCEEDED, NUMBERS, bad_input, json_mode_failed, to_contract_error
from llama3.workers_ai_input import validate as validate  # public here

PADDING_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


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


# ---- generation ----


def start_generation(
    llama: Llama,
    parameters: Mapping[str, Any],
    tool_choice: str = "auto",
    parallel_tool_calls: bool = True,
    **more: Any,
) -> Stream:
    """Encode the prompt and start to generate the answer to it.

    parameters: from `validate`. tool_choice, parallel_tool_calls: see `llama3.tools.prepare`. more: further arguments
    of `Llama.stream`, which the contract does not name. Raises ContractError.
    """
    lora = parameters.get("lora")
    if lora is not None and lora not in llama.adapters:
        raise bad_input(f"'/lora' names the adapter {lora[:100]!r}; loaded: {', '.join(llama.adapters) or 'none'}")
    sampling = {name: parameters[name] for name in NUMBERS if name in parameters and name != "max_tokens"}
    try:
        ids, grammar = encode_prompt(llama, parameters, tool_choice, parallel_tool_calls)
        return llama.stream(
            ids,
            max_tokens=output_limit(len(ids), parameters.get("max_tokens"), llama.config.max_seq_len),
            json_schema=parameters.get("response_format"),
            grammar=grammar,
            lora=lora,
            **sampling,
            **more,
        )
    except ContractError:
        raise
    except RequestError as error:
        raise bad_input(str(error)) from error


def output_limit(prompt_tokens: int, max_tokens: int | None, window: int) -> int:
    """How many tokens to generate: max_tokens or, if it is None, the smaller of MAX_TOKENS and the rest of the window.

    Raises ContractError if the window does not hold that many after the prompt.
    """
    wanted = max(1, min(MAX_TOKENS, window - prompt_tokens)) if max_tokens is None else max_tokens
    if prompt_tokens + wanted > window:
        raise ContractError(
            f"AiError: Ai: The estimated number of input and maximum output tokens ({prompt_tokens + wanted}) "
            f"exceeded this model context window limit ({window}).",
            CONTEXT_EXCEEDED,
            413,
        )
    return wanted


def encode_prompt(
    llama: Llama, parameters: Mapping[str, Any], tool_choice: str = "auto", parallel_tool_calls: bool = True
) -> tuple[list[int], str | None]:
    """The token ids of the prompt, and the grammar of the answer if there are tools, else None.

    The prompt goes through the chat template or, with "raw", is encoded as it stands.
    """
    messages = parameters.get("messages") or [{"role": "user", "content": parameters["prompt"]}]
    dialog, grammar = prepare(parameters.get("tools", ()), messages, tool_choice, parallel_tool_calls)
    if "response_format" in parameters:
        if tool_choice not in ("auto", "none"):
            raise RequestError(f"tool_choice is {tool_choice!r}, but response_format asks for JSON in place of a call")
        grammar = None  # the answer is the JSON that was asked for, never a call
    if parameters.get("raw"):
        return llama.encode("".join(message["content"] for message in messages)), grammar
    return llama.encode_chat(dialog), grammar


# ---- the answer ----


def result(stream: Stream, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The whole answer as Workers AI's output object. Raises ContractError if JSON mode could not be met."""
    try:
        answer = stream.completion()
    except GrammarError as error:
        raise json_mode_failed(error) from error
    calls = check_answer(answer.text, answer.finish_reason, parameters)
    return {"response": "" if calls else answer.text, "tool_calls": calls, "usage": answer.usage.as_dict()}


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
        yield {"response": "", **tool_calls, "usage": stream.usage.as_dict()}
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


def padding(draw: Callable[[int], int] = secrets.randbelow) -> str:
    """The chunk's "p": text of a random length, so that an encrypted chunk's size does not reveal the token's size."""
    return PADDING_CHARACTERS[: 1 + draw(len(PADDING_CHARACTERS))]
