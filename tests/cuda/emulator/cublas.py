"""A libcublas without a GPU: it takes cuBLAS's own calls through C, checks every argument, and computes with NumPy.

The checks are those of NVIDIA's documentation, written down a second time: the prototypes of cublas_api.h, column-major
matrices, leading dimensions, and the order of the calls (setting the stream takes the workspace away again).
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

Int, Size, Address = ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p
PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "cublasCreate_v2": (ctypes.POINTER(Address),),
    "cublasDestroy_v2": (Address,),
    "cublasSetStream_v2": (Address, Address),
    "cublasSetWorkspace_v2": (Address, Address, Size),
    "cublasSetMathMode": (Address, Int),
    "cublasGemmEx": (
        Address, Int, Int, Int, Int, Int, Address, Address, Int, Int, Address, Int, Int, Address, Address, Int, Int,
        Int, Int,
    ),
}  # fmt: skip
TYPES = {14: np.dtype(ml_dtypes.bfloat16), 0: np.dtype(np.float32)}  # cudaDataType
REFUSED = 7  # CUBLAS_STATUS_INVALID_VALUE


@dataclass
class Settings:
    """What was set for a handle."""

    stream: int | None = None
    workspace: tuple[int, int] | None = None  # address, bytes
    math: int = 0


class FakeCublas:
    """memory(address, nbytes): the bytes there, as a view; it raises if they do not belong to one live array.

    queue(stream, product, out): runs the function `product` now, or records it if the stream is being captured. out:
    the address of what it writes.
    """

    def __init__(self, memory: Callable[[int, int], np.ndarray], queue: Callable[[int, Callable[[], None], int], None]):
        self.memory, self.queue = memory, queue
        self.handles: dict[int, Settings] = {}
        self.error: BaseException | None = None  # of the last call that was refused
        for name, parameters in PROTOTYPES.items():
            setattr(self, name, self._entry(parameters, getattr(self, "_" + name.removesuffix("_v2"))))

    def _entry(self, parameters: tuple[Any, ...], function: Callable[..., None]) -> Any:
        def call(*args: Any) -> int:
            try:
                function(*args)
                return 0
            except Exception as error:  # it cannot pass through C
                self.error = error
                return REFUSED

        return ctypes.CFUNCTYPE(Int, *parameters)(call)

    def _cublasCreate(self, handle: Any) -> None:
        handle[0] = 0x7F00_0000_0000 + len(self.handles)  # more than 32 bits, as an address has
        self.handles[handle[0]] = Settings()

    def _cublasDestroy(self, handle: int) -> None:
        del self.handles[handle]

    def _cublasSetStream(self, handle: int, stream: int) -> None:
        self.handles[handle] = Settings(stream, None, self.handles[handle].math)

    def _cublasSetWorkspace(self, handle: int, address: int, nbytes: int) -> None:
        self.memory(address, nbytes)
        self.handles[handle].workspace = address, nbytes

    def _cublasSetMathMode(self, handle: int, mode: int) -> None:
        self.handles[handle].math = mode

    def _cublasGemmEx(
        self, handle: int, op_a: int, op_b: int, m: int, n: int, k: int, alpha: int,
        a: int, a_type: int, lda: int, b: int, b_type: int, ldb: int, beta: int, c: int, c_type: int, ldc: int,
        compute: int, algorithm: int,
    ) -> None:  # fmt: skip
        settings = self.handles[handle]
        assert settings.stream is not None and settings.workspace and settings.workspace[1] >= 32 << 20, settings
        assert settings.math == 16, "sums of bfloat16 products may be rounded to bfloat16 on the way"
        assert compute == 68 and algorithm == -1, (compute, algorithm)
        one, old = (ctypes.c_float.from_address(at).value for at in (alpha, beta))
        assert (op_a, op_b) in ((0, 0), (0, 1), (1, 0), (1, 1)) and one == 1 and old in (0, 1), (op_a, op_b, one, old)
        stored_a, stored_b = ((k, m) if op_a else (m, k)), ((n, k) if op_b else (k, n))

        def product() -> None:
            self.memory(*settings.workspace)  # it must still be there when a graph is replayed
            left, right = (
                self._columns(address, TYPES[type_], leading, shape).astype(np.float32)
                for address, type_, leading, shape in ((a, a_type, lda, stored_a), (b, b_type, ldb, stored_b))
            )
            out = self._columns(c, TYPES[c_type], ldc, (m, n))
            result = (left.T if op_a else left) @ (right.T if op_b else right)  # (m, n)
            out[...] = result + out.astype(np.float32) if old else result

        self.queue(settings.stream, product, c)

    def _columns(self, address: int, dtype: np.dtype, leading: int, shape: tuple[int, int]) -> np.ndarray:
        """A column-major matrix of this shape: `leading` elements lie between the starts of two columns."""
        rows, columns = shape
        assert leading >= rows >= 1 and columns >= 1, (leading, shape)
        assert address % 16 == 0, f"{address:#x}: cuBLAS's fast kernels want multiples of 16"
        view = self.memory(address, (leading * (columns - 1) + rows) * dtype.itemsize).view(dtype)
        return np.lib.stride_tricks.as_strided(view, shape, (dtype.itemsize, leading * dtype.itemsize))
