"""Decoding with CUDA graphs: the launches of a whole step are recorded once, and later steps replay them as one.

Everything that changes from step to step is in device memory, where the kernels read it: tokens, positions, and the
sampler's state. A step ends by drawing its own next tokens, so the next replay needs nothing from the host. Graphs are
captured for 1, 2, 4, ... 64 rows. Rows that are not used are padding: their position is -1, and the kernels skip them.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from llama3.config import ModelConfig
from llama3.cuda.activations import Activations
from llama3.cuda.device import Array, Device, Graph
from llama3.cuda.kv_cache import KVCache
from llama3.cuda.linear import MAX_GRAPH_ROWS, bucket
from llama3.cuda.sampler import SamplerState, results, sample
from llama3.errors import LogitsError
from llama3.model.batch import Batch
from llama3.sampler import Sample, SequenceSampler

LaunchModel = Callable[[Activations, KVCache, Array], None]  # launches the kernels from the tokens to the logits
ReadSamples = Callable[[], list[Sample | LogitsError]]  # waits for the device, then returns what it has drawn


class RowState(NamedTuple):
    slot: int
    position: int
    token: int


PADDING = RowState(slot=0, position=-1, token=0)


class Decoding:
    """The graphs of one cache, the device memory they work on, and what the host knows about that memory.

    It holds no reference to the cache. The model keeps it in a dictionary with weak keys, under its cache, so that both
    are freed together.
    """

    def __init__(self, device: Device, config: ModelConfig, slots: int):
        """slots: the number of slots of the cache. Raises DeviceError if there is not enough memory."""
        self.device = device
        self.max_rows = bucket(min(slots, MAX_GRAPH_ROWS))
        self._activations = Activations.alloc(device, config, self.max_rows)
        self._logits = device.alloc((self.max_rows, config.vocab_size), np.float32)
        self._sampler = SamplerState(device, max(slots, self.max_rows), slots, config.vocab_size)
        self._eager_tokens = device.alloc((slots,), np.int32)  # drawn outside the graphs
        self._eager_positions = device.alloc((slots,), np.int32)
        self._graphs: dict[int, Graph] = {}  # by number of rows
        self._device_rows: list[RowState] | None = None  # the rows that device memory holds; None: not known
        self._n_steps = 0  # how many steps have begun, with a graph or without

    def step(
        self, batch: Batch, cache: KVCache, samplers: Sequence[SequenceSampler], launch_model: LaunchModel
    ) -> ReadSamples:
        """Run one row of each sequence and draw its next token; returns the function that waits for the tokens."""
        n = len(batch.tokens)
        rows = [RowState(slot, cache.lengths[slot], int(token)) for slot, token in zip(batch.slots, batch.tokens)]
        assert all(row.position < cache.max_len for row in rows), (rows, cache.max_len)
        padding = [PADDING] * (bucket(n) - n)
        a, logits = self._activations.first(bucket(n)), self._logits[: bucket(n)]

        known = self._device_rows
        self.forget()  # a step that fails or is interrupted leaves the device in a state that the host does not know
        if known != rows + padding:
            self._upload(rows + padding, a)
        self._sampler.set(self.device, samplers, batch.slots)
        self._run(a, cache, logits, launch_model)
        for slot in batch.slots:
            cache.advance(slot, 1)
        this_step = self._n_steps

        def read_samples() -> list[Sample | LogitsError]:
            samples = results(self.device, self._sampler, logits, n)
            drawn = [sample.token for sample in samples if isinstance(sample, Sample)]
            if this_step == self._n_steps and len(drawn) == n:
                stepped = [RowState(row.slot, row.position + 1, token) for row, token in zip(rows, drawn)]
                self._device_rows = stepped + padding
            return samples

        return read_samples

    def draw(self, logits: Array, slots: Sequence[int], samplers: Sequence[SequenceSampler]) -> ReadSamples:
        """The next tokens from logits (n, vocab_size) float32 that were computed outside the graphs."""
        n = len(slots)
        positions = self.device.upload(np.zeros(n, np.int32), into=self._eager_positions[:n])
        self._sampler.set(self.device, samplers, slots)
        sample(self.device, logits, self._sampler, self._eager_tokens[:n], positions)
        return lambda: results(self.device, self._sampler, logits, n)

    def forget(self) -> None:
        """Assume nothing about the rows in device memory: the next step uploads all of them."""
        self._device_rows = None
        self._n_steps += 1

    def _upload(self, rows: list[RowState], a: Activations) -> None:
        columns = np.array(rows, np.int32).T
        for column, array in zip(columns, (a.slots, a.positions, a.tokens)):
            self.device.upload(np.ascontiguousarray(column), into=array)

    def _run(self, a: Activations, cache: KVCache, logits: Array, launch_model: LaunchModel) -> None:
        """Replay the graph for this number of rows. If there is none yet, launch kernel by kernel, then capture it."""

        def launch() -> None:
            launch_model(a, cache, logits)
            sample(self.device, logits, self._sampler, a.tokens, a.positions)

        size = len(a.tokens)
        if size in self._graphs:
            self.device.replay(self._graphs[size])
        else:
            launch()  # the first launch of a kernel compiles it, which a capture does not allow
            with self.device.capture() as graph:
                launch()
            self._graphs[size] = graph
