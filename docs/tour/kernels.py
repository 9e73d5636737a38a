"""RMSNorm's kernels, compiled by g++ and run on the CPU by the emulation of the tests, for page 11 of the tour.

It needs the repository and Linux with g++, but no GPU.
"""

import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
from numpy import ndarray as Array

from llama3.cuda import source
from llama3.cuda.device import bfloat16
from llama3.cuda.launch import Kernel
from llama3.resources import resource
from tests.cuda.emulator import build
from tests.cuda.emulator.device import ORDERS, EmulatedDevice

NAIVE, FAST = Kernel("rms_norm.cu", "rms_norm_naive"), Kernel("rms_norm.cu", "rms_norm")
BARRIER = "__syncthreads();"


def run(kernel: Kernel, x: Array, weight: Array, eps: float, order: str = "forward") -> Array:
    """x (T, dim), weight (dim,) -> (T, dim) bfloat16. order: in which blocks and threads run."""
    device, (rows, dim) = EmulatedDevice(), x.shape
    out = device.alloc(x.shape, bfloat16)
    args = [device.upload(x.astype(np.float32)), device.upload(weight.astype(bfloat16)), out]
    with device.in_order(order):
        if kernel is NAIVE:  # a thread for each row
            numbers = [np.int32(rows), np.int32(dim), np.float32(eps)]
            device.launch(kernel, (-(-rows // 32),), (32,), [*args, *numbers])
        else:  # a block of 256 threads for each row
            device.launch(kernel, (rows,), (256,), [*args, np.int32(dim), np.float32(eps)], dependent=True)
    return device.download(out)


def in_every_order(x: Array, weight: Array, eps: float, barrier: bool = True) -> list[Array]:
    """The fast kernel's result in each order of threads; without its barrier if `barrier` is false."""
    if barrier:
        return [run(FAST, x, weight, eps, order) for order in ORDERS]
    with tempfile.TemporaryDirectory() as folder:
        for path in resource("kernels").iterdir():
            text = path.read_text(encoding="utf-8")
            Path(folder, path.name).write_text(
                text.replace(BARRIER, ";") if path.name == "rms_norm.cuh" else text, encoding="utf-8"
            )
        forget()
        try:
            with patch.object(source, "kernel_path", Path(folder).joinpath):
                return in_every_order(x, weight, eps)
        finally:
            forget()


def forget() -> None:
    """Compile again at the next launch."""
    build.load.cache_clear()
    build._library.cache_clear()


def agree(results: list[Array]) -> str:
    return "yes" if len({result.tobytes() for result in results}) == 1 else "no"
