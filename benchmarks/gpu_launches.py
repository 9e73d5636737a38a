"""What a step of Llama 3 8B launches, and with which grids: recorded from the model's own code, without a GPU.

The device below takes the launches of `llama3/cuda`, checks them as every device does, and runs none. Its arrays have
addresses and no memory.
"""

import mmap
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from null_device import empty_model  # the file beside this one

from llama3.config import ModelConfig
from llama3.cuda.device import Graph
from llama3.cuda.launch import Launch
from llama3.model.batch import Batch
from llama3.sampler import SequenceSampler
from llama3.sampling_params import SamplingParams
from tests.cuda.emulator.device import EmulatedDevice

RESERVED = 0x4000  # MAP_NORESERVE


@dataclass(frozen=True)
class Launched:
    """A kernel of ours, or a product by cuBLAS, which has no grid of ours."""

    name: str
    blocks: int
    arrays: tuple[tuple[tuple[int, ...], int], ...]  # shape and bytes of each argument that is an array
    defines: tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        """Bytes of the first argument: of the matrix, in a product."""
        return self.arrays[0][1]

    @property
    def x(self) -> int:
        """Bytes of the second argument: of the rows that a product multiplies."""
        return self.arrays[1][1]


@dataclass
class Recorder(EmulatedDevice):
    launched: list[Launched] = field(default_factory=list)  # since the last `clear`, by hand or by a graph
    replays: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def alloc(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        dtype = np.dtype(dtype)
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        area = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | RESERVED)
        return np.frombuffer(area, np.uint8)[:nbytes].view(dtype).reshape(shape)

    def _owns(self, arg: Any) -> bool:
        return isinstance(arg, np.ndarray)

    def _run(self, launch: Launch) -> None:
        arrays = tuple((arg.shape, arg.nbytes) for arg in launch.args if isinstance(arg, np.ndarray))
        self.launched.append(Launched(launch.kernel.name, int(np.prod(launch.grid)), arrays, launch.kernel.defines))

    def _gemm(self, x: np.ndarray, w: np.ndarray, out: np.ndarray, accumulate: bool) -> None:
        product = Launched("cuBLAS", 0, tuple((array.shape, array.nbytes) for array in (w, x, out)))
        if self.capturing:
            self.capturing.handle.append(lambda: self.launched.append(product))
        else:
            self.launched.append(product)

    def replay(self, graph: Graph) -> None:
        self.replays += 1
        super().replay(graph)


def decoding_launches(c: ModelConfig, batch: int, max_len: int, kind: str | None = None) -> list[Launched]:
    """The launches of one replay of the graph that decodes `batch` sequences greedily. kind: see `empty_model`."""
    device = Recorder()
    model = empty_model(device, c, kind)
    cache = model.new_cache(batch, max_len)
    samplers = [SequenceSampler(SamplingParams(temperature=0), [0], c.vocab_size) for _ in range(batch)]
    rows = Batch.of([(slot, [0]) for slot in range(batch)])
    for _ in range(2):  # the first step captures the graph
        device.launched.clear()
        device.replays = 0
        for sample, sampler in zip(model.step(rows, cache, samplers).samples(), samplers):
            sampler.accept(sample.token)
    assert device.replays == 1, f"a step of {batch} rows replayed {device.replays} graphs"
    return list(device.launched)


def prompt_launches(c: ModelConfig, rows: int, start: int = 0) -> list[Launched]:
    """The launches of one chunk of a prompt, with the logits of its last row."""
    device = Recorder()
    model = empty_model(device, c)
    cache = model.new_cache(1, start + rows)
    cache.lengths[0] = start
    device.launched.clear()
    model.forward(Batch.of([(0, np.zeros(rows, np.int32))]), cache, np.array([rows - 1]))
    return list(device.launched)
