"""Copies that the host need not wait for. They go through pinned memory: its pages stay where they are.

An event beside each piece of this memory says when the copy is done.
"""

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np


class HostCopy(ABC):
    """A copy of a device array's first rows in host memory, made while the host does something else."""

    @abstractmethod
    def start(self, rows: int) -> None:
        """Queue the copy. What `wait` returned before is overwritten from now on."""

    @abstractmethod
    def wait(self) -> np.ndarray:
        """Wait until the copy is there, and return its memory, (rows, ...)."""


class PinnedCopy(HostCopy):
    """`HostCopy` of a cupy.ndarray."""

    def __init__(
        self, cupy: Any, cupyx: Any, source: Any, stream: Any, current: Callable[[], AbstractContextManager[None]]
    ):
        """current: makes the GPU of `source` the current one, as it is during this call."""
        self._source, self._stream, self._current = source, stream, current
        self._host = cupyx.empty_pinned(source.shape, source.dtype)
        self._row_bytes = source.nbytes // len(source)
        self._done = cupy.cuda.Event(disable_timing=True)
        self._rows = 0

    def start(self, rows: int) -> None:
        address, size = ctypes.c_void_p(self._host.ctypes.data), rows * self._row_bytes
        with self._current():
            self._source.data.copy_to_host_async(address, size, self._stream)
            self._done.record(self._stream)
        self._rows = rows

    def wait(self) -> np.ndarray:
        self._done.synchronize()
        return self._host[: self._rows]


class UploadRing:
    """Slots of pinned memory that take turns: an upload waits only for the one that used its slot a round ago."""

    def __init__(self, cupy: Any, cupyx: Any, n_slots: int, size: int):
        """size: bytes of a slot. A longer array goes piece by piece."""
        events = [cupy.cuda.Event(disable_timing=True) for _ in range(n_slots)]
        self._slots = [(cupyx.empty_pinned(size, np.uint8), event) for event in events]
        self._size, self._next = size, 0

    def upload(self, data: np.ndarray, target: Any, stream: Any) -> None:
        """Queue the copies of data (n,) uint8 to a cupy.cuda.MemoryPointer."""
        for start in range(0, data.size, self._size):
            pinned, copied = self._slots[self._next]
            self._next = (self._next + 1) % len(self._slots)
            copied.synchronize()
            piece = data[start : start + self._size]
            pinned[: piece.size] = piece
            (target + start).copy_from_host_async(ctypes.c_void_p(pinned.ctypes.data), piece.size, stream)
            copied.record(stream)
