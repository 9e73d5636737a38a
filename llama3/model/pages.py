"""Memory that is taken from the operating system in small pages, and only where something is written to it.

For a large `np.zeros`, NumPy asks Linux for pages of 2 MB. In a KV cache of 8,192 positions, 16 tokens would then take
2 MB for the keys of each head of each layer, and as much for the values: 1.1 GB with the 8B model, and not 4 MB.
"""

import math
import mmap
from contextlib import suppress

import numpy as np


def zeros_on_demand(shape: tuple[int, ...]) -> np.ndarray:
    """As np.zeros(shape, np.float32). Raises MemoryError if the system does not even promise the memory."""
    size = 4 * math.prod(shape)
    if not hasattr(mmap, "MAP_ANONYMOUS"):  # Windows
        return np.zeros(shape, np.float32)
    try:
        # Private: a forked child gets a copy. By default, parent and child would write to the same memory.
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"{size / 1e9:.2f} GB for an array of the shape {shape}") from error
    with suppress(AttributeError, OSError):  # not Linux, or a Linux without large pages
        memory.madvise(mmap.MADV_NOHUGEPAGE)  # some systems take large pages unasked
    return np.frombuffer(memory, np.float32).reshape(shape)
