"""A model without weights: its next token is a known function of all tokens before it, which it reads from the cache.

So an engine that confuses slots, positions or rows gets a token other than the one in `answer`.
"""

from collections.abc import Sequence

import numpy as np

from llama3.config import ModelConfig
from llama3.cpu_model import Pending
from llama3.errors import LogitsError
from llama3.model.batch import Batch
from llama3.model.kv_cache import KVCache
from llama3.sampler import SequenceSampler

VOCAB = 101


def next_token(tokens: Sequence[int]) -> int:
    return (sum((i + 1) * (token + 1) for i, token in enumerate(tokens)) * 31 + len(tokens)) % VOCAB


def answer(prompt: Sequence[int], max_tokens: int, stop_ids: frozenset[int] = frozenset()) -> list[int]:
    """The tokens that greedy generation gives for one request alone."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + max_tokens and (token := next_token(tokens)) not in stop_ids:
        tokens.append(token)
    return tokens[len(prompt) :]


class MockModel:
    prefill_chunk = 12
    mixed_prefill_chunk = 7

    def __init__(self, max_seq_len: int = 64):
        self.config = ModelConfig(2, 1, 1, 1, 2, 2, VOCAB, max_seq_len=max_seq_len)
        self.batches: list[Batch] = []
        self.fail_with: BaseException | None = None  # raised in place of the next step

    def new_cache(self, slots: int, max_len: int) -> KVCache:
        return KVCache(self.config, slots, max_len)

    def step(self, batch: Batch, cache: KVCache, samplers: Sequence[SequenceSampler | None]) -> Pending:
        self.batches.append(batch)
        for slot, span, n in zip(batch.slots, batch.spans, batch.counts):
            k = np.broadcast_to(batch.tokens[span].astype(np.float32)[:, None, None], (n, 1, 2))
            cache.write(slot, 0, k, k)
            cache.advance(slot, n)
        if self.fail_with:
            error, self.fail_with = self.fail_with, None
            raise error
        return Pending([self._draw(slot, cache, sampling) for slot, sampling in zip(batch.slots, samplers)])

    def _draw(self, slot: int, cache: KVCache, sampling: SequenceSampler | None):
        if sampling is None:
            return None
        tokens = cache.k[slot, 0, 0, : cache.lengths[slot], 0].astype(int).tolist()
        logits = np.zeros(VOCAB, np.float32)
        logits[next_token(tokens)] = 30.0
        try:
            return sampling.sample(logits)
        except LogitsError as error:
            return error
