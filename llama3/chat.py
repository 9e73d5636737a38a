"""Llama 3's chat format: messages -> token ids, ready for the assistant's answer.

    <|begin_of_text|><|start_header_id|>user<|end_header_id|>

    Hello<|eot_id|><|start_header_id|>assistant<|end_header_id|>

The prompt is put together from ids, not from text. So the text of a message can never become a control token, and there
is exactly one <|begin_of_text|>. https://www.llama.com/docs/model-cards-and-prompt-formats/meta-llama-3 is Meta's
description.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from llama3.errors import RequestError
from llama3.tokenizer import BOS, Tokenizer
from llama3.tokenizer_file import LLAMA3_1_SPECIAL, LLAMA3_SPECIAL

HEADER_NAMES = {"tool": "ipython", "developer": "system"}  # a role in other chat formats -> Llama 3's name for it
START, END, EOT = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
Message = Mapping[str, Any]  # "role" and "content"; other keys are ignored

# What control tokens look like in chat templates. DeepSeek's have full-width bars.
CONTROL_TOKEN = re.compile(r"<[|｜][^<>|｜\s'\"]{1,60}[|｜]>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>")


def other_chat_format(template: str | None) -> str | None:
    """The reason why a chat template (in Jinja) is not one of Llama 3's; None if it is one, or if it is None.

    A template of Llama 3, 3.1 or 3.2 names the tokens of this format, puts an empty line after each header, and names
    no other models' control tokens. It may add text, such as today's date in front of the system message.
    """
    if template is None:
        return None
    named = dict.fromkeys(CONTROL_TOKEN.findall(template))
    if foreign := [name for name in named if name not in LLAMA3_SPECIAL + LLAMA3_1_SPECIAL]:
        return f"it has {', '.join(foreign[:3])}"
    if lacking := [name for name in (START, END, EOT) if name not in named]:
        return f"it lacks {', '.join(lacking)}"
    # A newline is written as itself or as \n, and a new string may begin before it: '<|end_header_id|>' + '\n\n'
    after_header = template.replace("\\n", "\n").split(END)[1:]
    if not all(re.match(r"(['\"] *[+~] *['\"])?\n\n", text) for text in after_header):
        return f"{END} is not followed by an empty line"
    return None


def encode_dialog(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """A prompt of token ids: <|begin_of_text|>, every message, and the header of the assistant's answer.

    Raises RequestError, with the message's index and what was found, if a message lacks role or content. Raises it too
    if the chat template of the tokenizer's folder is not Llama 3's.
    """
    if found := other_chat_format(tokenizer.chat_template):
        raise RequestError(
            f"this model's chat template is not Llama 3's ({found}), and chats in another format are not supported: "
            "write the prompt yourself, as raw text or token ids"
        )
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise RequestError(f"messages is {type(messages).__name__}, expected a list of messages")
    if not messages:
        raise RequestError("messages is empty, expected at least one message")
    ids = [_control_token(tokenizer, BOS)]
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
    """The token ids of one message.

    White space around the content is dropped, as in Meta's and Hugging Face's templates.

    Raises RequestError if the role is not a non-empty string, or the content is not a string.
    """
    if not isinstance(content, str):
        raise RequestError(f"content is {_name(content)}, expected a string")
    return [*_encode_header(tokenizer, role, content.strip()), _control_token(tokenizer, EOT)]


def _encode_header(tokenizer: Tokenizer, role: str, content: str = "") -> list[int]:
    """The token ids of a header and the content after it.

    The empty line between them is encoded together with the content. If the content begins with an added token that
    has lstrip, the line becomes part of that token.
    """
    if not isinstance(role, str) or not role:
        raise RequestError(f"role is {_name(role)}, expected a string that is not empty")
    name = HEADER_NAMES.get(role, role)
    start, end = _control_token(tokenizer, START), _control_token(tokenizer, END)
    return [start, *tokenizer.encode(name), end, *tokenizer.encode("\n\n" + content)]


def _control_token(tokenizer: Tokenizer, name: str) -> int:
    """The id of a control token.

    Raises RequestError if the token has a flag that changes the text beside it, such as the empty line after a header.
    """
    token = tokenizer.special_id(name)
    for field in tokenizer.flags(name):
        raise RequestError(
            f"the tokenizer gives {name} the field {field}, so messages cannot be put between such tokens"
        )
    return token


def _name(value: object) -> str:
    return "missing" if value is None else repr(value) if isinstance(value, str) else type(value).__name__
