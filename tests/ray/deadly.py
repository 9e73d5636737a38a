"""A model whose process ends when it reads a certain prompt. Its module can be imported by the processes of Ray."""

import os
from typing import Any

from llama3 import Llama

DEADLY = "This prompt ends the process."


def load(device: str, slots: int) -> Llama:
    llama = Llama.load(device=device, slots=slots)
    begin = llama.stream

    def stream(prompt: Any, **parameters: Any) -> Any:
        if llama.tokenizer and DEADLY in llama.tokenizer.decode([*prompt]):
            os._exit(1)
        return begin(prompt, **parameters)

    llama.stream = stream  # type: ignore[method-assign]
    return llama
