"""What the stand-in for CuPy hands out: arrays with addresses, a device, streams, events and graphs."""

import ctypes
from typing import Any

import numpy as np

from tests.cuda.stand_ins.card import SMALL, Card, StandInError


class ndarray:
    """An array of the card: a shape, strides and an address."""

    def __init__(self, card: Card, host: np.ndarray):
        self._card, self._host = card, host
        self.shape, self.dtype, self.ndim, self.nbytes, self.size = (
            host.shape, host.dtype, host.ndim, host.nbytes, host.size,
        )  # fmt: skip
        self.flags, self.strides = host.flags, host.strides

    @property
    def data(self) -> "MemoryPointer":
        return MemoryPointer(self._card, self._host.ctypes.data, self._host)

    def __len__(self) -> int:
        return len(self._host)

    def __getitem__(self, key: Any) -> "ndarray":
        return ndarray(self._card, self._host[key])

    def __setitem__(self, key: Any, value: "ndarray") -> None:
        self._card.not_while_capturing("a copy")
        target = self._host[key]
        if not isinstance(value, ndarray) or value.shape != target.shape or value.dtype != target.dtype:
            raise StandInError(f"a copy from {describe(value)} to {describe(ndarray(self._card, target))}")
        if self._card.emulator or target.nbytes <= SMALL:
            target[...] = value._host

    def view(self, dtype: Any) -> "ndarray":
        return ndarray(self._card, self._host.view(dtype))

    def reshape(self, *shape: Any) -> "ndarray":
        out = self._host.reshape(*shape)
        if not np.shares_memory(out, self._host, max_work=1):
            raise StandInError("this reshape would copy")
        return ndarray(self._card, out)


def describe(array: Any) -> str:
    return f"{array.shape} {array.dtype}" if isinstance(array, ndarray) else type(array).__name__


class MemoryPointer:
    def __init__(self, card: Card, ptr: int, keep: np.ndarray):
        self._card, self.ptr, self._keep = card, ptr, keep

    def __add__(self, offset: int) -> "MemoryPointer":
        return MemoryPointer(self._card, self.ptr + offset, self._keep)

    def copy_from_host_async(self, mem: ctypes.c_void_p, size: int, stream: Any = None) -> None:
        if self._may_copy(mem, size, stream):
            ctypes.memmove(self.ptr, mem, size)

    def copy_to_host_async(self, mem: ctypes.c_void_p, size: int, stream: Any = None) -> None:
        if self._may_copy(mem, size, stream):
            ctypes.memmove(mem, self.ptr, size)

    def _may_copy(self, mem: ctypes.c_void_p, size: int, stream: Any) -> bool:
        self._card.not_while_capturing("a copy between host and GPU")
        begin = self._keep.ctypes.data
        if not isinstance(mem, ctypes.c_void_p) or not isinstance(stream, Stream):
            raise StandInError(f"a copy with {type(mem).__name__} on {type(stream).__name__}")
        if not begin <= self.ptr <= self.ptr + size <= begin + self._keep.nbytes:
            raise StandInError(f"a copy of {size} bytes ends behind the array")
        return self._card.emulator is not None or size <= SMALL


class Current:
    """A device or a stream, which a `with` block makes the current one."""

    depth = 0

    def __enter__(self) -> "Current":
        self.depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.depth -= 1


class Device(Current):
    def __init__(self, card: Card, index: int):
        self.card, self.id = card, index
        self.compute_capability = "80" if card.emulator else "90"  # the emulator takes no kernels for one GPU only

    @property
    def mem_info(self) -> tuple[int, int]:
        return self.card.total - self.card.used, self.card.total


class Stream(Current):
    def __init__(self, card: Card, non_blocking: bool):
        if not non_blocking:
            raise StandInError("a stream that waits for the legacy stream cannot be captured beside torch")
        self.card, self.ptr = card, id(self)

    def synchronize(self) -> None:
        self.card.not_while_capturing("synchronize")

    def begin_capture(self) -> None:
        self.card.not_while_capturing("a capture")
        self.card.capturing = []

    def end_capture(self) -> "Graph":
        launches, self.card.capturing = self.card.capturing, None
        if launches is None:
            raise StandInError("a capture ends that has not begun")
        return Graph(launches)


class Graph:
    def __init__(self, launches: list[Any]):
        self._launches = launches

    def launch(self, stream: Stream) -> None:
        assert isinstance(stream, Stream), type(stream)
        for launch in self._launches:
            launch()


class Event:
    def __init__(self, *, block: bool = False, disable_timing: bool = False, interprocess: bool = False):
        pass

    def record(self, stream: Stream) -> None:
        assert isinstance(stream, Stream), type(stream)

    def synchronize(self) -> None:  # one that was never recorded waits for nothing
        pass
