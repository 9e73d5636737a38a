"""Decoding, a graph a step: the launches of a whole step are recorded once and replayed as one.

What changes from step to step is in device memory, where the kernels find it: tokens, positions, and the sampler's
state. A step ends with the draw of its own next tokens, so that the next replay needs nothing of the host. Graphs come
in buckets of 1, 2, 4 to 64 rows; rows that are over are nobody's: their position is -1, and no kernel writes for them.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from llama3.cuda.activations import Activations
from llama3.cuda.device import Array, Graph
from llama3.cuda.kv_cache import KVCache, bucket
from llama3.cuda.linear import MAX_FEW
from llama3.cuda.sampler import SamplerState, results, sample
from llama3.errors import LogitsError
from llama3.model.batch import Batch
from llama3.sampler import Sample, SequenceSampler

if TYPE_CHECKING:
    from llama3.cuda.transformer import Transformer

NOBODY = (0, -1, 0)  # slot, position, token of a row that fills up a graph
Wait = Callable[[], list[Sample | LogitsError]]


class Decoding:
    """Of one cache: its graphs, the rows they work on, and what is known of those."""

    def __init__(self, model: "Transformer", cache: KVCache):
        slots, vocab_size = len(cache.lengths), model.config.vocab_size
        self.model, self.cache = model, cache
        self.max_rows = bucket(min(slots, MAX_FEW))
        self._rows = Activations.alloc(model.device, model.config, self.max_rows)
        self._logits = model.device.alloc((self.max_rows, vocab_size), np.float32)
        self._sampler = SamplerState(model.device, max(slots, self.max_rows), slots, vocab_size)
        self._elsewhere = model.device.alloc((slots,), np.int32), model.device.alloc((slots,), np.int32)
        self._graphs: dict[int, Graph] = {}
        self._known: list[tuple[int, int, int]] | None = None  # of each row there: slot, position, token
        self._turn = 0

    def step(self, batch: Batch, samplers: Sequence[SequenceSampler]) -> Wait:
        """One row of each sequence, and its next token; -> the function that waits for them."""
        device, cache, n = self.model.device, self.cache, len(batch.tokens)
        size = bucket(n)
        rows, logits = self._rows.first(size), self._logits[:size]
        steps = [(slot, cache.lengths[slot], int(token)) for slot, token in zip(batch.slots, batch.tokens)]
        assert all(position < cache.max_len for _, position, _ in steps), (steps, cache.max_len)
        if self._known != [*steps, *[NOBODY] * (size - n)]:
            what = np.array([*steps, *[NOBODY] * (size - n)], np.int32)
            for column, array in enumerate((rows.slots, rows.positions, rows.tokens)):
                device.upload(np.ascontiguousarray(what[:, column]), into=array)
        self.forget()  # until it is known that all went well
        self._sampler.set(device, samplers, batch.slots)
        if size in self._graphs:
            device.replay(self._graphs[size])
        else:
            self._launch(rows, logits)  # a kernel's first launch compiles it, which a capture may not
            with device.capture() as graph:
                self._launch(rows, logits)
            self._graphs[size] = graph
        for slot in batch.slots:
            cache.advance(slot, 1)
        turn = self._turn

        def wait() -> list[Sample | LogitsError]:
            samples = results(device, self._sampler, logits, n)
            drawn = [sample.token for sample in samples if isinstance(sample, Sample)]
            if turn == self._turn and len(drawn) == n:
                self._known = [(slot, position + 1, token) for (slot, position, _), token in zip(steps, drawn)]
                self._known += [NOBODY] * (size - n)
            return samples

        return wait

    def draw(self, logits: Array, slots: Sequence[int], samplers: Sequence[SequenceSampler]) -> Wait:
        """The next tokens by logits (n, vocab_size) that a step outside the graphs has left."""
        n = len(slots)
        tokens, positions = (array[:n] for array in self._elsewhere)
        self.model.device.upload(np.zeros(n, np.int32), into=positions)
        self._sampler.set(self.model.device, samplers, slots)
        sample(self.model.device, logits, self._sampler, tokens, positions)
        return lambda: results(self.model.device, self._sampler, logits, n)

    def forget(self) -> None:
        """What the rows hold is no longer what the next step would need."""
        self._known = None
        self._turn += 1

    def _launch(self, rows: Activations, logits: Array) -> None:
        self.model.layers(rows, self.cache, singles=len(rows.tokens), tiles=None)
        self.model.logits(rows, logits)
        sample(self.model.device, logits, self._sampler, rows.tokens, rows.positions)
