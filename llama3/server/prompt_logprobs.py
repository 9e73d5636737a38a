"""The log-probabilities of a prompt's own tokens, which programs that measure a model ask for ("echo").

The engine computes logits for the token to come alone, so the prompt is run on its own here, in chunks between the
engine's steps.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from llama3.engine import PREFILL_CHUNK
from llama3.llama import Llama
from llama3.model.batch import Batch
from llama3.sampler_fast import logprobs

Scored = tuple[float, tuple[tuple[int, float], ...]]  # a token's log-probability; the most likely tokens with theirs
_one_prompt = threading.Lock()  # prompts are run one after the other, so that there is only one more KV cache


def prompt_logprobs(
    llama: Llama, ids: Sequence[int], top: int, lora: str | None, closed: Callable[[], bool]
) -> Iterator[Scored]:
    """For each token but the first: its log-probability after those before it, and the `top` most likely tokens.

    Natural logs, from the raw logits. Ends early if `closed()` is true.
    """
    with _one_prompt:
        cache = llama.model.new_cache(1, len(ids))
        slot = cache.allocate()
        logits: np.ndarray = np.empty((0, 0), np.float32)

        def forward(start: int) -> None:
            nonlocal logits
            batch = Batch.of([(slot, ids[start : start + PREFILL_CHUNK])], [lora])
            logits = llama.model.forward(batch, cache, np.arange(len(batch.tokens)))  # (rows, vocab_size)

        for start in range(0, len(ids), PREFILL_CHUNK):
            if closed():
                return
            llama._turns.run(partial(forward, start))  # between two steps of the engine
            for row, token in zip(logits, ids[start + 1 :]):  # row i predicts token i + 1
                yield logprobs(row, token, top)
