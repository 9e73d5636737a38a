"""Llama 3's chat format: messages -> token ids, ready for the assistant's answer.

    <|begin_of_text|><|start_header_id|>user<|end_header_id|>

    Hello<|eot_id|><|start_header_id|>assistant<|end_header_id|>

The prompt is put together from ids, not from text. So the text of a message can never become a control token, and there
is exactly one <|begin_of_text|>. https://www.llama.com/docs/model-cards-and-prompt-formats/meta-llama-3 is Meta's
description.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from llama3.errors import RequestError
from llama3.tokenizer import Tokenizer

HEADER_NAMES = {"tool": "ipython", "developer": "system"}  # Llama 3's names for roles that other formats have
Message = Mapping[str, Any]  # "role" and "content"; other keys are ignored


def encode_dialog(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """A prompt of token ids: <|begin_of_text|>, every message, and the header of the assistant's answer.

    Raises RequestError, with the message's index and what was found, if a message lacks role or content.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise RequestError(f"messages is {type(messages).__name__}, expected a list of messages")
    if not messages:
        raise RequestError("messages is empty, expected at least one message")
    ids = [tokenizer.bos_id]
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            found = type(message).__name__
            raise RequestError(f"messages[{index}] is {found}, expected a mapping with role and content")
        role: Any = message.get("role")
        content: Any = message.get("content")
        try:
            ids += encode_message(tokenizer, role, content)
        except RequestError as error:
            raise RequestError(f"messages[{index}]: {error}") from error
    return ids + _encode_header(tokenizer, "assistant")


def encode_message(tokenizer: Tokenizer, role: str, content: str) -> list[int]:
    """The token ids of one message. White space around the content is dropped, as Meta's and Hugging Face's templates
    do.

    Raises RequestError if the role is not a non-empty string, or the content is not a string.
    """
    if not isinstance(content, str):
        raise RequestError(f"content is {_name(content)}, expected a string")
    text = tokenizer.encode(content.strip())
    return [*_encode_header(tokenizer, role), *text, tokenizer.special_id("<|eot_id|>")]


def _encode_header(tokenizer: Tokenizer, role: str) -> list[int]:
    if not isinstance(role, str) or not role:
        raise RequestError(f"role is {_name(role)}, expected a string that is not empty")
    name = HEADER_NAMES.get(role, role)
    start, end = tokenizer.special_id("<|start_header_id|>"), tokenizer.special_id("<|end_header_id|>")
    return [start, *tokenizer.encode(name), end, *tokenizer.encode("\n\n")]


def _name(value: object) -> str:
    return "missing" if value is None else repr(value) if isinstance(value, str) else type(value).__name__
