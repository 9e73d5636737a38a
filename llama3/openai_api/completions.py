"""OpenAI's older completions: continue one raw text, or several, each given as text or as token ids.

The code that OpenAI's routes share is in `input.py` and `output.py`.
"""

import codecs
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from llama3.api_format import ApiFormat, Llama
from llama3.completion import Usage
from llama3.errors import RequestError
from llama3.openai_api.input import (
    answer_length,
    check_body,
    check_shared,
    check_top,
    start_stream,
    to_bad_input,
)
from llama3.openai_api.output import error_body, error_chunk, last_chunks, object_header, token_bytes
from llama3.openai_api.prompt_logprobs import prompt_logprobs
from llama3.request import FinishReason
from llama3.sampling_params import SamplingParams
from llama3.tokenizer import BOS
from llama3.workers_ai import Stream, output_limit
from llama3.workers_ai_input import bad_input, check_number, check_type, json_type, to_contract_error

MAX_PROMPTS = 128  # of one request
Top = Sequence[tuple[int, float]]  # (token, logprob) of the most likely tokens


@dataclass(frozen=True)
class Prompt:
    ids: list[int]
    n_hidden: int = 0  # 1 if <|begin_of_text|> was put in front of the text: it is not echoed


class CompletionStream:
    """The answers to all prompts of a request, generated one after the other, so that the request takes one slot."""

    def __init__(self, llama: Llama, prompts: Sequence[Prompt], parameters: Mapping[str, Any]):
        """Starts the first answer. Raises RequestError if a parameter is not acceptable."""
        self.llama, self.prompts, self.parameters = llama, prompts, parameters
        self.seed: int = parameters["sampling"]["seed"]
        self.streams: list[Stream] = []
        self.closed = self.complete = False
        if parameters["generates"]:
            self.answer(0)

    def answer(self, i: int) -> Stream:
        """The answer to prompt i. It is started now if it has not been started yet."""
        if i == len(self.streams):
            self.streams.append(start_stream(self.llama, self.prompts[i].ids, None, self.parameters))
            if self.closed:
                self.streams[i].close()
        return self.streams[i]

    @property
    def finish_reason(self) -> FinishReason | None:
        if not self.complete:
            return "cancelled" if self.closed else None
        return self.streams[-1].finish_reason if self.streams else "length"

    @property
    def usage(self) -> Usage:
        """The numbers of tokens of all prompts and of all answers so far."""
        answered = sum(stream.usage.completion_tokens for stream in self.streams)
        return Usage(sum(len(prompt.ids) for prompt in self.prompts), answered)

    def close(self) -> None:
        self.closed = True
        for stream in self.streams:
            stream.close()


# ---- the request ----


def start_completion(llama: Llama, body: Any) -> tuple[CompletionStream, dict[str, Any]]:
    """Validate the request and start its generation -> (stream, parameters). Raises ContractError."""
    body = check_body(llama, body)
    parameters = check_shared(llama, body)
    if "logprobs" in body:
        parameters["logprobs"] = check_top("/logprobs", body["logprobs"])
    parameters["echo"] = check_type("/echo", body.get("echo", False), "boolean")
    parameters["generates"] = not (parameters["echo"] and parameters["sampling"].get("max_tokens") == 0)
    parameters["sampling"].setdefault("seed", SamplingParams().with_seed().seed)
    try:
        prompts = check_prompts(llama, body.get("prompt"))
        for prompt in prompts:
            if parameters["generates"]:
                answer_length(llama, len(prompt.ids), parameters)
            else:
                output_limit(len(prompt.ids), 0, llama.config.max_seq_len)
        return CompletionStream(llama, prompts, parameters), parameters
    except RequestError as error:
        raise to_bad_input(error) from error


def check_prompts(llama: Llama, prompt: Any) -> list[Prompt]:
    """The prompts of a request: text, token ids, or a list of these."""
    is_list = json_type(prompt) == "array"
    if not is_list or json_type(prompt[0] if prompt else None) == "integer":
        return [check_prompt(llama, "/prompt", prompt)]
    if not 1 <= len(prompt) <= MAX_PROMPTS:
        raise bad_input(f"'/prompt' has {len(prompt)} items; expected 1 to {MAX_PROMPTS}")
    return [check_prompt(llama, f"/prompt/{i}", one) for i, one in enumerate(prompt)]


def check_prompt(llama: Llama, path: str, prompt: Any) -> Prompt:
    if json_type(prompt) == "array":
        if not prompt:
            raise bad_input(f"'{path}' must not be empty")
        highest = llama.config.vocab_size - 1
        return Prompt([int(check_number(f"{path}/{i}", token, True, 0, highest)) for i, token in enumerate(prompt)])
    if not check_type(path, prompt, "string"):
        raise bad_input(f"'{path}' must not be shorter than 1 character")
    return Prompt(llama.encode(prompt), n_hidden=0 if prompt.startswith(BOS) else 1)


# ---- the answer ----


class LogprobsWriter:
    """Writes tokens as the "logprobs" of a choice, and keeps the position of the next token in the choice's text."""

    def __init__(self, parameters: Mapping[str, Any]):
        self.tokenizer, self.stop_ids = parameters["tokenizer"], parameters["stop_ids"]
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.offset = 0  # in characters

    def write(self, tokens: Sequence[tuple[int, float | None, Top]], n_hidden: int = 0) -> dict[str, list[Any]]:
        """tokens: (token, log-probability or None, the most likely tokens). n_hidden: how many of them have no text."""
        out: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for i, (token, logprob, top) in enumerate(tokens):
            raw, name = token_bytes(self.tokenizer, token), self.name(token)
            if self.decoder.getstate()[0] and raw[:1] and not 0x80 <= raw[0] < 0xC0:
                # The token before ended within a character that this one does not continue.
                self.offset += len(self.decoder.decode(b"", final=True))
            names: dict[str, float] = {}
            for other, its_logprob in top:
                names.setdefault(self.name(other), its_logprob)
            out["tokens"].append(name)
            out["token_logprobs"].append(logprob)
            out["top_logprobs"].append(None if logprob is None else {**names, name: logprob})
            out["text_offset"].append(self.offset)
            if i >= n_hidden:
                self.offset += len(self.decoder.decode(raw))
        return out

    def name(self, token: int) -> str:
        """A token's text or, as OpenAI writes part of a character, "bytes:" and its bytes."""
        raw = token_bytes(self.tokenizer, token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def choice_parts(stream: CompletionStream, parameters: Mapping[str, Any], i: int) -> Iterator[dict[str, Any]]:
    """The choice of prompt i in parts, as they are streamed. `joined` makes the whole choice of them.

    With logprobs, the answer's tokens include the stop token, which has no text.
    """
    prompt, top = stream.prompts[i], parameters["logprobs"]
    writer = LogprobsWriter(parameters)

    def part(text: str, tokens: Sequence[Any] = (), reason: str | None = None, n_hidden: int = 0) -> dict[str, Any]:
        logprobs = None if top is None else writer.write(tokens, n_hidden)
        return {"index": i, "text": text, "logprobs": logprobs, "finish_reason": reason}

    if parameters["echo"]:
        scores: list[Any] = []
        if top is not None:
            is_closed = partial(getattr, stream, "closed")
            scores = [(None, ()), *prompt_logprobs(stream.llama, prompt.ids, top, parameters["lora"], is_closed)]
        raw = b"".join(token_bytes(parameters["tokenizer"], token) for token in prompt.ids[prompt.n_hidden :])
        tokens = [(token, *score) for token, score in zip(prompt.ids, scores)]
        yield part(raw.decode("utf-8", "replace"), tokens, n_hidden=prompt.n_hidden)
    if not parameters["generates"]:
        yield part("", reason="length")
        return
    for piece in stream.answer(i):
        yield part(piece.text, [(piece.token, piece.logprob or 0.0, piece.top_logprobs)])
    yield part("", reason=stream.answer(i).finish_reason)


def result(stream: CompletionStream, parameters: dict[str, Any]) -> dict[str, Any]:
    choices = [joined(choice_parts(stream, parameters, i)) for i in range(len(stream.prompts))]
    stream.complete = not stream.closed
    header = object_header(parameters, "text_completion", "cmpl-")
    return {**header, "choices": choices, "usage": stream.usage.as_dict(), "seed": stream.seed}


def joined(parts: Iterator[dict[str, Any]]) -> dict[str, Any]:
    choice = next(parts)
    for part in parts:
        choice["text"] += part["text"]
        choice["finish_reason"] = part["finish_reason"]
        for name, values in (part["logprobs"] or {}).items():
            choice["logprobs"][name] += values
    return choice


def chunks(stream: CompletionStream, parameters: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The answer in chunks; the last ones have finish_reason, seed and usage. Raises nothing: an error is a chunk."""
    header = object_header(parameters, "text_completion", "cmpl-")
    last_index = len(stream.prompts) - 1
    try:
        for i in range(len(stream.prompts)):
            for part in choice_parts(stream, parameters, i):
                chunk = {**header, "choices": [part]}
                if part["finish_reason"] and i == last_index:
                    stream.complete = not stream.closed
                    yield from last_chunks(header, chunk, stream.usage, stream.seed, parameters)
                elif part["text"] or part["finish_reason"] or parameters["logprobs"] is not None:
                    yield chunk
    except Exception as error:
        yield error_chunk(to_contract_error(error))
    finally:
        stream.close()


COMPLETIONS = ApiFormat(start_completion, result, chunks, error_chunk, dict, error_body)
