"""Products of more rows than our own kernels take, by NVIDIA's library cuBLAS, also while a graph is captured.

CuPy calls cuBLAS, too, but refuses it in a capture. So this module calls the library itself. Whatever cuBLAS would do
that a capture does not allow is done before: its workspace is memory of ours, so it allocates none.
https://docs.nvidia.com/cuda/cublas/#cuda-graphs-support
"""

import ctypes
import weakref
from contextlib import AbstractContextManager
from typing import Any

from llama3.errors import DeviceError

WORKSPACE = 32 << 20  # bytes; what NVIDIA recommends for Hopper and newer. It is used to split long sums over the GPU

# From cublas_api.h and library_types.h.
TRANSPOSED, AS_IT_IS = 1, 0  # cublasOperation_t
BF16, FLOAT = 14, 0  # cudaDataType
COMPUTE_FLOAT = 68  # cublasComputeType_t: float32 sums
ALGORITHM = -1  # cublasGemmAlgo_t: cuBLAS chooses, by the shapes alone
SUMS_STAY_FLOAT = 16  # cublasMath_t: the parts of a sum that was split are added as float32, also if out is bfloat16

Handle, Pointer, Int = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int
Matrix = [Pointer, Int, Int]  # address, type, leading dimension
PARAMETERS: dict[str, list[Any]] = {
    "cublasCreate_v2": [ctypes.POINTER(Handle)],
    "cublasDestroy_v2": [Handle],
    "cublasSetStream_v2": [Handle, Pointer],
    "cublasSetWorkspace_v2": [Handle, Pointer, ctypes.c_size_t],
    "cublasSetMathMode": [Handle, Int],
    # handle; how to read a and b; m, n, k; alpha; a; b; beta; c; type of the sums, algorithm
    "cublasGemmEx": [Handle, *[Int] * 5, Pointer, *Matrix, *Matrix, Pointer, *Matrix, Int, Int],
}

STATUS = {
    1: "not initialised: is there a driver?",
    3: "no memory",
    7: "an argument that it refuses",
    8: "this GPU is too old or too new for this cuBLAS",
    11: "no access to memory",
    13: "the GPU failed",
    14: "internal error",
    15: "not supported",
}


def load_library() -> ctypes.CDLL:
    """libcublas, from where CuPy takes it: a wheel of NVIDIA's, conda, or the CUDA toolkit. Raises DeviceError."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib  # CuPy depends on it

        return ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
    except (ImportError, RuntimeError, OSError) as error:
        found = " ".join(str(error).split())[:120]
        raise DeviceError(f"no cuBLAS ({found}); pip install 'llama3[cuda13-ctk]' (cuda12-ctk for CUDA 12)") from None


class Cublas:
    """A handle of cuBLAS, for one stream of one GPU. It is destroyed with the object, or when Python ends."""

    def __init__(self, library: Any, gpu: AbstractContextManager[Any], stream: int, workspace: int):
        """gpu: makes the GPU the current one. workspace: the address of WORKSPACE bytes there, which the caller keeps.

        Raises DeviceError, as does every method, with what cuBLAS has answered.
        """
        for name, parameters in PARAMETERS.items():
            getattr(library, name).argtypes = parameters
        self._library, self._gpu, self._handle = library, gpu, Handle()
        self._call("cublasCreate_v2", ctypes.byref(self._handle))
        self.close = weakref.finalize(self, _destroy, library, gpu, self._handle)
        self._call("cublasSetStream_v2", self._handle, stream)
        self._call("cublasSetWorkspace_v2", self._handle, workspace, WORKSPACE)  # after the stream, which resets it
        self._call("cublasSetMathMode", self._handle, SUMS_STAY_FLOAT)

    def gemm(
        self,
        addresses: tuple[int, int, int],
        sizes: tuple[int, int, int],
        out_stride: int,
        out_is_float: bool,
        accumulate: bool,
    ) -> None:
        """out (rows, n_out) = x w.T, or += x w.T; x (rows, width), w (n_out, width). Nothing waits for the product.

        addresses: of x and w, both bfloat16, and of out, float32 or bfloat16. sizes: rows, n_out, width.
        out_stride: elements from one row of out to the next.
        """
        (x, w, out), (rows, n_out, width) = addresses, sizes
        one, beta = ctypes.c_float(1), ctypes.c_float(accumulate)
        # cuBLAS is column-major: it sees out as (n_out, rows), x as (width, rows), and w as (width, n_out), which it is
        # told to transpose. So it computes out.T = w x.T.
        self._call(
            "cublasGemmEx",
            self._handle,
            *(TRANSPOSED, AS_IT_IS),
            *(n_out, rows, width),
            ctypes.addressof(one),
            *(w, BF16, width),
            *(x, BF16, width),
            ctypes.addressof(beta),
            *(out, FLOAT if out_is_float else BF16, out_stride),
            *(COMPUTE_FLOAT, ALGORITHM),
        )

    def _call(self, name: str, *args: Any) -> None:
        with self._gpu:
            status = getattr(self._library, name)(*args)
        if status:
            raise DeviceError(f"cuBLAS: {name.removesuffix('_v2')} failed: {STATUS.get(status, f'status {status}')}")


def _destroy(library: Any, gpu: AbstractContextManager[Any], handle: ctypes.c_void_p) -> None:
    with gpu:
        library.cublasDestroy_v2(handle)
