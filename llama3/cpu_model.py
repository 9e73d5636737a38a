"""The model as the engine runs it on the CPU: a forward pass, then a draw for each sequence that wants a token.

Its twin on the GPU is `cuda/transformer.py`, which draws on the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llama3.errors import LogitsError
from llama3.model.batch import Batch
from llama3.model.kv_cache import KVCache
from llama3.model.transformer import Transformer
from llama3.sampler import Sample, SequenceSampler, sample_rows


class CpuModel(Transformer):
    prefill_chunk = 512  # tokens; a longer chunk makes no product faster, and each step would take seconds

    def step(self, batch: Batch, cache: KVCache, samplers: Sequence[SequenceSampler | None]) -> "Pending":
        """Run the batch, then draw the next token of every sequence that has a sampler (None: still in its prompt)."""
        drawing = [i for i, sampler in enumerate(samplers) if sampler is not None]
        logits = self.forward(batch, cache, batch.last_rows[drawing])  # (len(drawing), vocab_size)
        samples: list[Sample | LogitsError | None] = [None] * len(samplers)
        drawn = sample_rows(logits, [sampler for sampler in samplers if sampler is not None])
        for i, sample in zip(drawing, drawn):
            samples[i] = sample
        return Pending(samples)


@dataclass(frozen=True)
class Pending:
    """The result of a step. On the CPU it is there at once; the GPU's is waited for in `samples()`."""

    _samples: list[Sample | LogitsError | None]

    def samples(self) -> list[Sample | LogitsError | None]:
        """For each sequence of the batch its token, the reason why none could be drawn, or None: none was asked for."""
        return self._samples
