"""From the start of a process to its first token, and the upload of weights, for gpu.py.

These rows run alone: the processes that they start need the memory of the GPU themselves.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from gpu_floor import shapes  # the files beside this one
from gpu_report import Figure, Row
from gpu_timing import RUNS, timed
from make_checkpoint import write_checkpoint

from llama3.config import ModelConfig
from llama3.cuda.device import Device, bfloat16, open_device

FIRST_COMPILED = "process start: first token, kernels compiled"
FIRST_CACHED = "process start: first token, kernels cached"
LOADING = "process start: of that, loading weights"
UPLOAD = "weights from memory to the device"

START = """
import sys, time
from llama3 import Llama
begun = time.time()
llama = Llama.load(sys.argv[2], device="cuda")
loaded = time.time()
llama.generate([1, 2, 3], max_tokens=1, temperature=0)
print(loaded - begun, time.time() - float(sys.argv[1]))
"""


def start_process(folder: Path) -> tuple[float, float]:
    """Milliseconds for loading the weights, and from the start of the process to its first token."""
    command = [sys.executable, "-c", START, str(time.time()), str(folder)]
    environment = os.environ | {"CUPY_CACHE_DIR": f"{folder}/kernels"}  # empty at the first start, which compiles
    root = Path(__file__).parents[1]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)
    if ran.returncode:
        raise RuntimeError((ran.stderr.strip().splitlines() or ["the process said nothing"])[-1])
    loaded, first = map(float, ran.stdout.split())
    return loaded * 1e3, first * 1e3


class Starts:
    """The checkpoint, and the starts that several rows are about."""

    def __init__(self, folder: Path, c: ModelConfig):
        self.folder, self.config = folder, c

    @cached_property
    def checkpoint(self) -> Path:
        path = self.folder / "checkpoint"
        write_checkpoint(path, self.config)
        return path

    @cached_property
    def cached(self) -> list[tuple[float, float]]:
        """Starts with compiled kernels."""
        return [start_process(self.checkpoint) for _ in range(RUNS)]


def rows(starts: Starts) -> Iterator[Row]:
    """A process that compiles the kernels comes first, because later ones find them compiled."""
    c, alone = starts.config, True
    yield Row(FIRST_COMPILED, lambda: [start_process(starts.checkpoint)[1]], Figure(), 180, alone)
    yield Row(FIRST_CACHED, lambda: [first for _, first in starts.cached], Figure(), 120, alone)
    yield Row(LOADING, lambda: [loading for loading, _ in starts.cached], Figure(), 10, alone)
    yield Row(UPLOAD, lambda: upload(open_device("cuda"), c), Figure(copied=upload_bytes(c)), 30, alone)


def upload_bytes(c: ModelConfig) -> int:
    return sum(2 * n_out * width for name, (n_out, width) in shapes(c).items() if name != "head")


def upload(device: Device, c: ModelConfig) -> list[float]:
    """Milliseconds for copying the matrices of a layer from ordinary memory, which holds random bits."""
    rng = np.random.default_rng(0)
    sizes = [shape for name, shape in shapes(c).items() if name != "head"]
    sources = [rng.integers(0, 2**16, shape, np.uint16).view(bfloat16) for shape in sizes]
    targets = [device.alloc(shape, bfloat16) for shape in sizes]

    def run() -> None:
        for source, into in zip(sources, targets, strict=True):
            device.upload(source, into=into)

    return timed(device.sync, run)
