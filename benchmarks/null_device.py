"""A device that does nothing: what is left of a step on it is the host's work, and its graphs count their launches.

No kernel runs, every draw gives token 0, and no page of an array is ever touched.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from llama3.config import ModelConfig
from llama3.cuda.device import Array, Device, Graph, bfloat16
from llama3.cuda.launch import Launch
from llama3.cuda.pinned import HostCopy
from llama3.cuda.quantised import SCRATCH_ROWS, Matrix, QuantisedArray, row_bytes
from llama3.cuda.transformer import Transformer
from llama3.cuda.weights import LayerWeights, Weights
from llama3.model.batch import Batch
from llama3.sampler import SequenceSampler
from llama3.sampling_params import SamplingParams


class NullCopy(HostCopy):
    def __init__(self, source: Array):
        self._source, self._rows = source, 0

    def start(self, rows: int) -> None:
        self._rows = rows

    def wait(self) -> np.ndarray:
        return self._source[: self._rows]


class NullDevice(Device):
    def alloc(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return np.empty(shape, dtype)

    def upload(self, array: np.ndarray, into: Array | None = None) -> Array:
        assert into is None or (into.shape, into.dtype) == (array.shape, array.dtype), (into.shape, array.shape)
        return np.array(array) if into is None else into

    def download(self, array: Array) -> np.ndarray:
        return np.zeros(array.shape, array.dtype)

    def host_copy(self, source: Array) -> HostCopy:
        return NullCopy(source)

    def memory(self) -> tuple[int, int]:
        return 1 << 40, 1 << 40

    def copy(self, source: Array, into: Array) -> None: ...
    def sync(self) -> None: ...
    def replay(self, graph: Graph) -> None: ...

    def _owns(self, arg: Any) -> bool:
        return isinstance(arg, np.ndarray)

    def _launch(self, launch: Launch) -> None: ...
    def _gemm(self, x: Array, w: Array, out: Array, accumulate: bool) -> None: ...
    def _queue(self, work: Callable[[int, int], None], array: Array) -> None: ...
    def _begin_capture(self, graph: Graph) -> None: ...
    def _end_capture(self, graph: Graph) -> None: ...


def empty_model(device: Device, c: ModelConfig, kind: str | None = None) -> Transformer:
    """A model whose weights have shapes and no contents. kind: of its matrices, as in `QuantisedArray`; None: bf16."""

    def array(*shape: int) -> Array:
        return device.alloc(shape, bfloat16)

    scratch = array(min(SCRATCH_ROWS, c.vocab_size) * max(c.dim, c.hidden_dim) if kind else 0)

    def matrix(n_out: int, n_in: int) -> Matrix:
        if kind is None:
            return array(n_out, n_in)
        return QuantisedArray(kind, (n_out, n_in), device.alloc((n_out, row_bytes(kind, n_in)), np.uint8), scratch)

    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    layers = [
        LayerWeights(
            attention_norm=array(c.dim), wqkv=matrix(q + 2 * kv, c.dim), wo=matrix(c.dim, q),
            ffn_norm=array(c.dim), w13=matrix(2 * c.hidden_dim, c.dim), w2=matrix(c.dim, c.hidden_dim),
        )
        for _ in range(c.n_layers)
    ]  # fmt: skip
    table = array(c.vocab_size, c.dim)
    return Transformer(device, c, Weights(table, layers, array(c.dim), matrix(c.vocab_size, c.dim)))


def launches(c: ModelConfig, rows: int, params: SamplingParams) -> int:
    """How many kernels and products the graph of a decoding step holds, counted in a capture."""
    model = empty_model(NullDevice(), c)
    cache = model.new_cache(rows, 16)
    samplers = [SequenceSampler(params, [0], c.vocab_size) for _ in range(rows)]
    return model.step(Batch.of([(slot, [0]) for slot in range(rows)]), cache, samplers).graph.launches
