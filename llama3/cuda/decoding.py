"""Decoding with CUDA graphs: the launches of a whole step are recorded once, and later steps replay them as one.

Everything that changes from step to step is in device memory, where the kernels read it: tokens, positions, and the
sampler's state. A step ends by drawing its own next tokens, so the next replay needs nothing from the host. It is
launched before the host has read these tokens, so that the device does not wait for Python. Graphs are captured for 1,
2, 4, ... 64 rows, once for greedy draws and once for all others. Rows that are not used are padding: their position is
-1, and the kernels skip them.
"""

from collections.abc import Callable, Sequence

import numpy as np

from llama3.config import ModelConfig
from llama3.cuda.activations import Activations
from llama3.cuda.device import Array, Device, Graph
from llama3.cuda.group import Group
from llama3.cuda.kv_cache import KVCache
from llama3.cuda.linear import MAX_GRAPH_ROWS, bucket
from llama3.cuda.sampler import Draw, ReadSamples, SamplerState, sample
from llama3.errors import LogitsError
from llama3.model.batch import Batch
from llama3.sampler import Sample, SequenceSampler

LaunchModel = Callable[[Activations, KVCache, Array], None]  # launches the kernels from the tokens to the logits


class Decoding:
    """The graphs of one cache, and the device memory they work on.

    It holds no reference to the cache. The model keeps it in a dictionary with weak keys, under its cache, so that both
    are freed together.
    """

    def __init__(self, device: Device, config: ModelConfig, slots: int, group: Group | None = None):
        """slots: the number of slots of the cache; group: see `Transformer`.

        Raises DeviceError if there is not enough memory.
        """
        self.device, self.group = device, group
        self.max_rows = bucket(min(slots, MAX_GRAPH_ROWS))
        self._activations = Activations.alloc(device, config, self.max_rows)
        self._logits = device.alloc((self.max_rows, config.vocab_size), np.float32)
        self.sampler = SamplerState(device, max(slots, self.max_rows), slots, config.vocab_size)
        self._eager_tokens = device.alloc((slots,), np.int32)  # drawn outside the graphs
        self._eager_positions = device.upload(np.zeros(slots, np.int32))  # a draw only asks whether they are negative
        self.graphs: dict[tuple[int, bool], Graph] = {}  # by number of rows, and whether the draw is greedy
        self.n_steps = 0  # how many have begun, in a graph or outside

    def step(
        self, batch: Batch, cache: KVCache, samplers: Sequence[SequenceSampler], launch_model: LaunchModel
    ) -> "DecodingStep":
        """Run one row of each sequence and draw its next token."""
        self.n_steps += 1
        n, size = len(batch.tokens), bucket(len(batch.tokens))
        positions = [cache.lengths[slot] for slot in batch.slots]
        assert max(positions) < cache.max_len, (positions, cache.max_len)
        a, logits = self._activations.first(size), self._logits[:size]
        padding = [0] * (size - n), [-1] * (size - n)
        self.device.upload(np.array([*batch.tokens.tolist(), *padding[0]], np.int32), into=a.tokens)
        self.device.upload(np.array([*positions, *padding[1]], np.int32), into=a.positions)
        self.device.upload(np.array([*batch.slots, *padding[0]], np.int32), into=a.slots)
        draw = self.sampler.prepare(self.device, samplers, batch.slots)
        if self.group:
            self.group.announce("decode", cache, batch, draw.greedy)
        graph = self._run(a, cache, logits, launch_model, draw.greedy)
        return DecodingStep(self, cache, batch.slots, draw, graph, logits, room=cache.max_len - max(positions) - 1)

    def draw(self, logits: Array, slots: Sequence[int], samplers: Sequence[SequenceSampler]) -> ReadSamples:
        """The next tokens from logits (n, vocab_size) float32 that were computed outside the graphs."""
        n = len(slots)
        draw = self.sampler.prepare(self.device, samplers, slots)
        tokens, positions = self._eager_tokens[:n], self._eager_positions[:n]
        sample(self.device, logits, self.sampler, tokens, positions, draw.greedy)
        return self.sampler.collect(self.device, draw, logits)

    def forget(self) -> None:
        """A step outside the graphs begins: the last one in a graph cannot be continued."""
        self.n_steps += 1

    def _run(self, a: Activations, cache: KVCache, logits: Array, launch_model: LaunchModel, greedy: bool) -> Graph:
        """Replay the graph for this number of rows and this kind of draw."""

        def launch() -> None:
            launch_model(a, cache, logits)
            sample(self.device, logits, self.sampler, a.tokens, a.positions, greedy)
            if self.group:
                pass_on(self.group, a)

        return replay_or_capture(self.device, self.graphs, (len(a.tokens), greedy), launch)


def pass_on(group: Group, a: Activations) -> None:
    """The tokens that rank 0 has drawn, and their positions, to the other ranks."""
    group.broadcast(a.tokens)
    group.broadcast(a.positions)


def replay_or_capture(
    device: Device, graphs: dict[tuple[int, bool], Graph], key: tuple[int, bool], launch: Callable[[], None]
) -> Graph:
    """Replay the graph of this key. If there is none yet, launch kernel by kernel, then capture it."""
    if key in graphs:
        device.replay(graphs[key])
    else:
        launch()  # the first launch of a kernel compiles it, which a capture does not allow
        with device.capture() as graph:
            launch()
        graphs[key] = graph
    return graphs[key]


class DecodingStep:
    """A step that was launched, and that the device may still be computing: `engine.Pending`."""

    def __init__(
        self,
        decoding: Decoding,
        cache: KVCache,
        slots: Sequence[int],
        draw: Draw,
        graph: Graph,
        logits: Array,
        room: int,
    ):
        """room: how many more positions each of the slots has."""
        for slot in slots:
            cache.lengths[slot] += 1
        self._decoding, self._cache, self._slots, self._draw, self.graph = decoding, cache, slots, draw, graph
        self._logits, self._room, self._number = logits, room, decoding.n_steps
        self._read_samples = decoding.sampler.collect(decoding.device, draw, logits)
        self._samples: list[Sample | LogitsError] | None = None

    def samples(self) -> list[Sample | LogitsError]:
        """For each sequence its token, or the reason why none could be drawn."""
        if self._samples is None:
            self._samples = self._read_samples()
        return self._samples

    def launch_next(self) -> "DecodingStep | None":
        """Run the next row of each sequence: the token that this step draws, whatever it is.

        None if the next step needs something from the host, or if it would not be the next one.
        """
        decoding = self._decoding
        if not self._draw.may_repeat or not self._room or self._number != decoding.n_steps:
            return None
        decoding.n_steps += 1
        if decoding.group:
            decoding.group.announce("next")
        decoding.sampler.repeat(self._draw)  # first: if an interrupt comes in between, the history is uploaded again
        decoding.device.replay(self.graph)
        return DecodingStep(decoding, self._cache, self._slots, self._draw, self.graph, self._logits, self._room - 1)
