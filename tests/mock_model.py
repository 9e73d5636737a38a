"""A model without weights: its next token is a known function of all tokens before it, which it reads from the cache.

So an engine that confuses slots, positions or rows gets a token other than the one in `answer`.
"""

import copy
from collections.abc import Sequence

import numpy as np

from llama3.config import ModelConfig
from llama3.errors import LogitsError
from llama3.model.batch import Batch
from llama3.model.kv_cache import KVCache
from llama3.sampler import Sample, SequenceSampler

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
    """ahead: like a GPU, it can launch the next step before the tokens of the last one have been read."""

    prefill_chunk = 12
    mixed_prefill_chunk = 7

    def __init__(self, max_seq_len: int = 64, ahead: bool = False, certainty: float = 30.0):
        """certainty: by how much the logit of the next token exceeds all others."""
        self.config = ModelConfig(2, 1, 1, 1, 2, 2, VOCAB, max_seq_len=max_seq_len)
        self.ahead, self.certainty = ahead, certainty
        self.batches: list[Batch] = []
        self.launched_ahead = 0
        self.fail_with: BaseException | None = None  # raised in place of the next step

    def new_cache(self, slots: int, max_len: int) -> KVCache:
        return KVCache(self.config, slots, max_len)

    def step(self, batch: Batch, cache: KVCache, samplers: Sequence[SequenceSampler | None]) -> "MockPending":
        self.batches.append(batch)
        for slot, span, n in zip(batch.slots, batch.spans, batch.counts):
            k = np.broadcast_to(batch.tokens[span].astype(np.float32)[:, None, None], (n, 1, 2))
            cache.write(slot, 0, k, k)
            cache.advance(slot, n)
        if self.fail_with:
            error, self.fail_with = self.fail_with, None
            raise error
        drawn = [self._draw(slot, cache, sampling) for slot, sampling in zip(batch.slots, samplers)]
        return MockPending(self, batch, cache, samplers, drawn)

    def _draw(self, slot: int, cache: KVCache, sampling: SequenceSampler | None) -> Sample | LogitsError | None:
        if sampling is None:
            return None
        tokens = cache.k[slot, 0, 0, : cache.lengths[slot], 0].astype(int).tolist()
        logits = np.zeros(VOCAB, np.float32)
        logits[next_token(tokens)] = self.certainty
        try:
            return sampling.sample(logits)
        except LogitsError as error:
            return error


class MockPending:
    def __init__(
        self,
        model: MockModel,
        batch: Batch,
        cache: KVCache,
        samplers: Sequence[SequenceSampler | None],
        drawn: list[Sample | LogitsError | None],
    ):
        self.model, self.batch, self.cache, self.samplers, self.drawn = model, batch, cache, samplers, drawn
        self.number = len(model.batches)

    def samples(self) -> list[Sample | LogitsError | None]:
        assert len(self.model.batches) <= self.number + 1, "a GPU has overwritten these results"
        return self.drawn

    def launch_next(self) -> "MockPending | None":
        """As on a GPU, which continues with its own copies of the tokens and of the samplers."""
        if not self.model.ahead or set(self.batch.counts) != {1} or None in self.samplers:
            return None
        tokens = [sample.token if isinstance(sample, Sample) else 0 for sample in self.drawn]
        samplers = copy.deepcopy(self.samplers)
        for sampler, token in zip(samplers, tokens):
            assert sampler and sampler.mask is None, "this sampler needs the host"
            sampler.accept(token)
        self.model.launched_ahead += 1
        return self.model.step(Batch.of([(s, [t]) for s, t in zip(self.batch.slots, tokens)]), self.cache, samplers)
