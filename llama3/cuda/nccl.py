"""Sums over GPUs by NVIDIA's library NCCL, also while a graph is captured. One process has one GPU.

A collective call waits on the GPU until all ranks have made it. If one never does, only `abort` ends the wait.
https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/usage/cudagraph.html
"""

import ctypes
import weakref
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from llama3.cuda.device import Array, Device
from llama3.errors import DeviceError

# From nccl.h.
INT32, FLOAT32 = 2, 7  # ncclDataType_t
SUM = 0  # ncclRedOp_t
INSTALL = "pip install nvidia-nccl-cu13 (nvidia-nccl-cu12 for CUDA 12)"
MEMORY = 512 << 20  # bytes of a GPU that NCCL takes for its connections; an estimate


class UniqueId(ctypes.Structure):
    """What the ranks find one another by. Rank 0 makes one, and hands it to the others."""

    _fields_ = (("internal", ctypes.c_byte * 128),)


Comm, Pointer, Int, Size = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
PARAMETERS: dict[str, list[Any]] = {
    "ncclGetVersion": [ctypes.POINTER(Int)],
    "ncclGetUniqueId": [ctypes.POINTER(UniqueId)],
    "ncclCommInitRank": [ctypes.POINTER(Comm), Int, UniqueId, Int],
    "ncclAllReduce": [Pointer, Pointer, Size, Int, Int, Comm, Pointer],  # from, to, count, type, operation, ., stream
    "ncclBroadcast": [Pointer, Pointer, Size, Int, Int, Comm, Pointer],  # from, to, count, type, root, ., stream
    "ncclCommAbort": [Comm],
    "ncclGetErrorString": [Int],
}


def load_library() -> Any:
    """libnccl, from NVIDIA's wheel, conda, or the system. Raises DeviceError."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        path = load_nvidia_dynamic_lib("nccl").abs_path
    except (ImportError, RuntimeError, OSError, ValueError):
        path = "libnccl.so.2"
    try:
        return with_types(ctypes.CDLL(path))
    except (OSError, AttributeError) as error:
        raise DeviceError(f"several GPUs need NCCL ({' '.join(str(error).split())[:80]}); {INSTALL}") from None


def with_types(library: Any) -> Any:
    """The same library, with the types of its functions' parameters."""
    for name, parameters in PARAMETERS.items():
        getattr(library, name).argtypes = parameters
    library.ncclGetErrorString.restype = ctypes.c_char_p
    return library


def call(library: Any, name: str, *args: Any) -> None:
    """Raises DeviceError with what NCCL answers."""
    if status := getattr(library, name)(*args):
        reason = (library.ncclGetErrorString(status) or b"").decode()
        raise DeviceError(f"NCCL: {name} failed: {reason or f'status {status}'}")


def version(library: Any) -> str:
    number = Int()
    call(library, "ncclGetVersion", ctypes.byref(number))
    return f"{number.value // 10000}.{number.value // 100 % 100}.{number.value % 100}"


def unique_id(library: Any) -> bytes:
    made = UniqueId()
    call(library, "ncclGetUniqueId", ctypes.byref(made))
    return bytes(made)


class Nccl:
    """This process's GPU among those of the other ranks."""

    def __init__(self, library: Any, device: Device, rank: int, ranks: int, id: bytes):
        """Waits until all ranks are here. id: see `unique_id`. Raises DeviceError, as does every method."""
        self._library, self._device, self._comm = library, device, Comm()
        with device.gpu:
            call(library, "ncclCommInitRank", ctypes.byref(self._comm), ranks, UniqueId.from_buffer_copy(id), rank)
        # Aborted, not destroyed: a rank that has gone already would be waited for.
        self.abort = weakref.finalize(self, _abort, library, device.gpu, self._comm)

    def all_reduce(self, x: Array) -> None:
        """See `Group`."""
        assert x.dtype == np.float32, x.dtype
        self._queue("ncclAllReduce", x, FLOAT32, SUM)

    def broadcast(self, x: Array) -> None:
        """See `Group`."""
        assert x.dtype == np.int32, x.dtype
        self._queue("ncclBroadcast", x, INT32, 0)

    def _queue(self, name: str, x: Array, dtype: int, last: int) -> None:
        self._device.queue(
            lambda address, stream: call(
                self._library, name, address, address, x.size, dtype, last, self._comm, stream
            ),
            x,
        )


def _abort(library: Any, gpu: AbstractContextManager[Any], comm: ctypes.c_void_p) -> None:
    with gpu:
        library.ncclCommAbort(comm)
