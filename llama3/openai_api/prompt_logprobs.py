"""The log-probabilities of a prompt's own tokens, which evaluation programs request with "echo".

The engine computes only the logits of the next token. So the prompt is run separately here, in chunks between the
engine's steps.
"""

import contextlib
import threading
from collections.abc import Callable, Sequence

import numpy as np

from llama3.api_format import Llama
from llama3.sampler_fast import logprobs

Scored = tuple[float, tuple[tuple[int, float], ...]]  # a token's log-probability; the most likely tokens with theirs
_one_prompt = threading.Lock()  # one prompt at a time, so that there is only one additional KV cache


class Closed(Exception):
    """The client has gone."""


def prompt_logprobs(
    llama: Llama, ids: Sequence[int], top: int, lora: str | None, closed: Callable[[], bool]
) -> list[Scored]:
    """For each token but the first: its log-probability given those before it, and the `top` most likely tokens.

    Natural logs, from the raw logits. Ends early if `closed()` is true.
    """
    scores: list[Scored] = []

    def keep(start: int, logits: np.ndarray) -> None:
        if closed():
            raise Closed
        for row, token in zip(logits, ids[start + 1 :]):  # row i predicts token i + 1
            scores.append(logprobs(row, token, top))

    with _one_prompt, contextlib.suppress(Closed):
        llama._forward(list(ids), lora, keep)
    return scores
