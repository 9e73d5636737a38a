"""Checks that the requests of all of OpenAI's routes share, and the start of a generation.

A field that is null counts as absent, as in OpenAI's own API, and unknown fields are ignored. A known field that would
change the answer, but is not supported here, is refused.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from llama3.api_format import Llama
from llama3.errors import ContractError, RequestError
from llama3.limits import LIMITS
from llama3.model_names import MODELS, openai_names, unknown_model
from llama3.workers_ai import Stream, output_limit
from llama3.workers_ai_input import bad_input, check_number, check_response_format, check_type

MAX_TOP_LOGPROBS = 20
REST_OF_WINDOW = -1  # max_tokens -1: as many tokens as the context window leaves
# Each number: whether it must be whole, its minimum and its maximum. 0 and -1 have the meaning that they have in
# OpenAI's API and in vLLM: any seed, top_p 0 for the most likely token, top_k -1 or 0 for all tokens.
NUMBERS: dict[str, tuple[bool, float, float]] = {
    "max_tokens": (True, REST_OF_WINDOW, math.inf),
    "temperature": (False, 0, 5),
    "top_p": (False, 0, 1),
    "top_k": (True, -1, 2**31 - 1),
    "min_p": (False, 0, 1),
    "seed": (True, -(2**63), 2**64 - 1),
    "repetition_penalty": (False, 0, 2),
    "frequency_penalty": (False, -2, 2),
    "presence_penalty": (False, -2, 2),
}
# Fields that are not supported, each with the values that have no effect and are accepted.
NOT_SERVED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "suffix": ("",),
    "functions": ([],),
    "function_call": ("auto", "none"),
    "web_search_options": (),
    "modalities": (["text"],),
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar"), ()),
    **dict.fromkeys(("structured_outputs", "grammar"), ()),
}


def check_body(llama: Llama, body: Any) -> dict[str, Any]:
    """The request without its null fields. Raises ContractError for an unknown model or an unsupported field."""
    check_type("/", body, "object")
    body = {name: value for name, value in body.items() if value is not None}
    if error := unknown_model(check_type("/model", body.get("model", MODELS[0]), "string"), openai_names(llama)):
        raise error
    for name, harmless in NOT_SERVED.items():
        if name in body and body[name] not in harmless:
            raise bad_input(f"'/{name}' is not served here: leave it out")
    return body


def check_sampling(body: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a request as arguments of `Llama.stream`: max_tokens and fields of `SamplingParams`."""
    found = {name: check_number(f"/{name}", body[name], *NUMBERS[name]) for name in NUMBERS if name in body}
    if found.get("top_k", 1) < 1:
        del found["top_k"]
    if "seed" in found:
        found["seed"] = int(found["seed"]) % 2**64
    return found


def check_logit_bias(bias: Any) -> dict[int, float]:
    """{"token id": number} -> the same with whole numbers as ids."""
    check_type("/logit_bias", bias, "object")
    for token in bias:
        if not (token.isascii() and token.isdigit() and len(token) <= 10):
            raise bad_input(f"'/logit_bias' has the key {token[:40]!r}; expected token ids")
    return {int(token): check_number(f"/logit_bias/{token}", value, False, -100, 100) for token, value in bias.items()}


def check_top(path: str, value: Any) -> int:
    """How many alternatives to report for each token."""
    return int(check_number(path, value, True, 0, MAX_TOP_LOGPROBS))


def check_shared(llama: Llama, body: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that all of OpenAI's routes have.

    They also hold the tokenizer and the stop ids, which the logprobs of the answer need.
    """
    stop = body.get("stop", [])
    if isinstance(stop, list) and len(stop) > LIMITS.stops:
        raise bad_input(f"'/stop' must not have more than {LIMITS.stops} items")
    stream_options = check_type("/stream_options", body.get("stream_options", {}), "object")
    parameters = {
        "sampling": check_sampling(body),
        "model": body.get("model", MODELS[0]),
        "stream": check_type("/stream", body.get("stream", False), "boolean"),
        "include_usage": stream_options.get("include_usage") is True,
        "stop": stop,
        "logit_bias": check_logit_bias(body.get("logit_bias", {})),
        "logprobs": None,
        "lora": check_lora(llama, body.get("lora")),
        "tokenizer": llama.tokenizer,
        "stop_ids": llama.checkpoint.stop_ids,
    }
    response_format = check_type("/response_format", body.get("response_format", {"type": "text"}), "object")
    if response_format.get("type") != "text":
        response_format = {name: value for name, value in response_format.items() if value is not None}
        parameters["response_format"] = check_response_format(response_format)
    return parameters


def start_stream(llama: Llama, ids: Sequence[int], grammar: str | None, parameters: Mapping[str, Any]) -> Stream:
    """Start to generate the answer to a prompt. parameters: from `check_shared`. Raises RequestError."""
    sampling = {**parameters["sampling"], "max_tokens": answer_length(llama, len(ids), parameters)}
    return llama.stream(
        ids,
        grammar=grammar,
        json_schema=parameters.get("response_format"),
        stop=parameters["stop"],
        logit_bias=parameters["logit_bias"],
        logprobs=parameters["logprobs"],
        lora=parameters["lora"],
        **sampling,
    )


def answer_length(llama: Llama, n_prompt: int, parameters: Mapping[str, Any]) -> int:
    """How many tokens to generate after a prompt of n_prompt tokens. Raises ContractError if they do not fit."""
    window, max_tokens = llama.config.max_seq_len, parameters["sampling"].get("max_tokens")
    if max_tokens == 0:
        raise bad_input("'/max_tokens' must be >= 1, or -1 for all that the context window leaves")
    return output_limit(n_prompt, max(1, window - n_prompt) if max_tokens == REST_OF_WINDOW else max_tokens, window)


def check_lora(llama: Llama, lora: Any) -> Any:
    if lora is not None and check_type("/lora", lora, "string") not in llama.adapters:
        raise bad_input(f"'/lora' names the adapter {lora[:100]!r}; loaded: {', '.join(llama.adapters) or 'none'}")
    return lora


def to_bad_input(error: RequestError) -> ContractError:
    return error if isinstance(error, ContractError) else bad_input(str(error))
