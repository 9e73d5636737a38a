"""Memory that begins at a cache line: a vector that crosses from one line to the next costs two reads."""

import math

import numpy as np


def aligned(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """An array of unset numbers that begins at a multiple of 64 bytes."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    begin = -memory.ctypes.data % 64
    return memory[begin : begin + size].view(dtype).reshape(shape)
